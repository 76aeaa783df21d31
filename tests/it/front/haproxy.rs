//! Real HAProxy with the configuration of `scripts/deploy` before two servers, where it is installed.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::deploy::file;
use crate::examples::missing;
use crate::support::{Killed, Peer, Serving, eventually, program};

/// Of clients, of servers and their agents. Each test has addresses of its own, so they are free.
pub(super) const PORT: u16 = 8000;
const AGENT_PORT: u16 = 8001;

/// A loopback address that is only used by this process, for the part of a test that has this number.
pub(super) fn own_ip(number: u8) -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 100 + number, high, low)
}

/// HAProxy in a process of its own.
pub(super) struct HaProxy {
    _process: Killed,
    front: SocketAddr,
}

impl HaProxy {
    /// Before servers at `a` and `b`. `None` where it is not installed, which is told.
    fn start(front: Ipv4Addr, a: Ipv4Addr, b: Ipv4Addr) -> Option<HaProxy> {
        Self::start_with(front, a, b, |_| ())
    }

    /// The same with more to say to it.
    pub(super) fn start_with(
        front: Ipv4Addr,
        a: Ipv4Addr,
        b: Ipv4Addr,
        change: impl FnOnce(&mut Command),
    ) -> Option<HaProxy> {
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file("haproxy.cfg")).stdin(Stdio::null()).stderr(Stdio::null());
        command.env("FRONT", SocketAddr::from((front, PORT)).to_string());
        for (name, ip) in [("A", a), ("B", b)] {
            command.env(format!("SERVER_{name}"), SocketAddr::from((ip, PORT)).to_string());
            command.env(format!("AGENT_{name}"), ip.to_string());
            command.env(format!("AGENT_{name}_PORT"), AGENT_PORT.to_string());
        }
        change(&mut command);
        let Ok(child) = command.spawn() else {
            missing("haproxy is not installed");
            return None;
        };
        let front = SocketAddr::from((front, PORT));
        eventually("HAProxy listens", || TcpStream::connect(front).is_ok());
        Some(HaProxy { _process: Killed(child), front })
    }
}

/// A server at `ip` that HAProxy may ask, and which it tells whose connections it brings.
pub(super) fn server(ip: Ipv4Addr, options: &str) -> Serving {
    let mut command = program();
    command.args(["serve", &PORT.to_string(), "--bind", &ip.to_string(), "--proxy-from", "loopback"]);
    command.args(["--agent", &SocketAddr::from((ip, AGENT_PORT)).to_string()]);
    command.args(options.split_whitespace());
    Serving::start(command)
}

/// The load tool against a target, killed when it is dropped; what it says in JSON when it has ended.
struct Load(Option<Child>);

impl Load {
    fn start(target: SocketAddr, options: &str) -> Load {
        let mut command = program();
        command.args(["load", &target.to_string(), "--json"]).args(options.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Load(Some(command.spawn().unwrap()))
    }

    /// Ends it before its time.
    #[track_caller]
    fn interrupt(self) -> Value {
        kill_process(Pid::from_child(self.0.as_ref().unwrap()), Signal::INT).unwrap();
        self.end()
    }

    #[track_caller]
    fn end(mut self) -> Value {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&said).unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Of a test that has failed.
        drop(self.0.take().map(Killed));
    }
}

/// Requests that clients have brought.
fn requests(serving: &Serving) -> u64 {
    serving.stats()["requests_total"]["helo"]["request"].as_u64().unwrap()
}

#[test]
fn a_server_sees_the_clients_of_haproxy_by_their_own_addresses() {
    let (front, a, b) = (own_ip(0), own_ip(1), own_ip(2));
    let servers = [a, b].map(|ip| server(ip, "--kill-from none"));
    let Some(haproxy) = HaProxy::start(front, a, b) else { return };
    // The reply names the address that the client reached, which is HAProxy's.
    for number in 0..20 {
        Peer::connect(haproxy.front).ask(&format!("number {number}"));
    }
    eventually("both have had some", || servers.iter().all(|server| requests(server) > 0));
    let mut stops = Peer::connect(haproxy.front);
    stops.send(b"KILL_SERVICE\n");
    stops.expect_rest(b"ERROR KILL_SERVICE refused\n");
    let told = format!("peer={}", stops.local());
    eventually("it is logged with its address", || servers.iter().any(|server| server.log().contains(&told)));
    // Its own looks are told from those of clients, and are none of their faults.
    for server in servers {
        assert_eq!(server.stop().stats()["connections_closed_total"]["proxy_header"], 0);
    }
}

#[test]
fn both_servers_are_restarted_one_after_the_other_under_load_and_no_client_sees_anything() {
    const OPTIONS: &str = "--handler-delay 5ms --drain-delay 2s";
    let (front, a, b) = (own_ip(3), own_ip(4), own_ip(5));
    let mut servers = vec![server(a, OPTIONS), server(b, OPTIONS)];
    let Some(haproxy) = HaProxy::start(front, a, b) else { return };
    // A connection for each request: who has one open for long has to reconnect when its server goes.
    let load = Load::start(haproxy.front, "--reconnect -c 16 -r 100 -d 1h --timeout 20s");
    eventually("both serve", || servers.iter().all(|server| requests(server) > 10));
    for (number, ip) in [a, b].into_iter().enumerate() {
        servers[number].signal(Signal::TERM);
        servers[number].expect_log("draining");
        servers.remove(number).wait().assert_clean();
        servers.insert(number, server(ip, OPTIONS));
        eventually("the new one serves", || requests(&servers[number]) > 10);
    }
    let run = load.interrupt();
    let count = |group: &str, name: &str| run[group][name].as_u64().unwrap();
    for (group, name) in [
        ("requests", "wrong"),
        ("requests", "lost"),
        ("connections", "refused"),
        ("connections", "reset"),
        ("connections", "closed_early"),
    ] {
        assert_eq!(count(group, name), 0, "{name}: {run}");
    }
    assert!(count("requests", "right") > 40, "{run}");
}

#[test]
fn by_the_weights_alone_a_server_with_half_the_workers_gets_no_more_than_it_can_do() {
    // Both together can do 240 a second. In equal parts of 216, the smaller one is 28 behind with every second.
    let (front, a, b) = (own_ip(11), own_ip(12), own_ip(13));
    let servers = [(a, 16), (b, 8)].map(|(ip, workers)| {
        server(ip, &format!("--handler-delay 100ms --min-threads {workers} --max-threads {workers}"))
    });
    let Some(haproxy) = HaProxy::start(front, a, b) else { return };
    let load = Load::start(haproxy.front, "--reconnect -c 400 -r 216 -d 1h --timeout 60s");
    let counts = || servers.each_ref().map(requests);
    eventually("the weights have had time to follow", || counts().iter().sum::<u64>() > 1000);
    let before = counts();
    eventually("as many again", || counts().iter().sum::<u64>() > 2000);
    let after = counts();
    let [of_a, of_b] = [0, 1].map(|server| after[server] - before[server]);
    // Behind by a second of its work at the most, once it has caught up with its start; without weights it is further and
    // further behind.
    eventually("it keeps up", || servers[1].stats()["requests_pending"].as_u64() < Some(8 + 80));
    let run = load.interrupt();
    // A third would be ideal, and half it is without weights.
    let share = of_b as f64 / (of_a + of_b) as f64;
    assert!((0.25..0.41).contains(&share), "{share}: {of_a} and {of_b}");
    assert_eq!(run["requests"]["right"], run["requests"]["sent"], "{run}");
}
