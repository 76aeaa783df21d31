//! Hot upgrades by SIGUSR2: another process takes over and no client notices, or this one goes on.

mod starts;

use std::fs;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::support::{
    DEADLINE, Peer, Serving, SetAtEnd, eventually, helo_reply, program_at, scratch, stats_in, tell,
};

const REAL: &str = env!("CARGO_BIN_EXE_tidemill");
/// What a connection that was just accepted is given for its first line.
const FIRST_LINE: Duration = Duration::from_millis(50);

/// A service whose process changes: the first one, whose output is that of all, and the present one.
#[derive(Debug)]
struct Line {
    first: Serving,
    now: Present,
    /// What is started, where another program may be put.
    program: PathBuf,
}

impl Line {
    /// Starts the program with `options`, separated by blanks.
    #[track_caller]
    fn start(options: &str) -> Line {
        let program = scratch("upgrade").join("tidemill");
        symlink(REAL, &program).unwrap();
        let mut command = program_at(&program);
        command.args(["serve", "0"]).args(options.split_whitespace());
        Line::run(command, program)
    }

    #[track_caller]
    fn run(command: Command, program: PathBuf) -> Line {
        let first = Serving::start(command);
        Line { now: Present(first.pid()), first, program }
    }

    fn address(&self) -> SocketAddr {
        self.first.address
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.now.0, signal).unwrap();
    }

    /// Puts a shell script where the program is.
    fn put_script(&self, script: &str) {
        // Another file, as an installation does it: that of a program that runs cannot be written.
        let new = self.program.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &self.program).unwrap();
    }

    /// Puts the program back.
    fn put_program(&self) {
        let new = self.program.with_extension("new");
        symlink(REAL, &new).unwrap();
        fs::rename(new, &self.program).unwrap();
    }

    /// Upgrades, and returns once the old process has said so.
    #[track_caller]
    fn upgrade(&mut self) {
        let (before, failures) = (self.upgrades().len(), self.failures().len());
        self.signal(Signal::USR2);
        eventually("the upgrade", || {
            assert_eq!(self.failures().len(), failures, "{}", self.first.log());
            self.upgrades().len() > before
        });
        self.now = Present(self.upgrades()[before]);
    }

    /// The processes that have taken over so far.
    fn upgrades(&self) -> Vec<Pid> {
        let log = self.first.log();
        let lines = log.lines().filter_map(|line| line.split_once("has taken over process="));
        let number = |rest: &str| rest.split(' ').next().unwrap().parse().unwrap();
        lines.map(|(_, rest)| Pid::from_raw(number(rest)).unwrap()).collect()
    }

    /// Asks for an upgrade that fails, for a reason that contains `reason`; nothing is left of it, and the service goes on.
    #[track_caller]
    fn expect_failure(&self, reason: &str) {
        let before = self.failures().len();
        self.signal(Signal::USR2);
        eventually("the failure is told", || self.failures().len() > before);
        let line = &self.failures()[before];
        assert!(line.contains(reason), "{line}");
        assert_eq!(children(self.now.0), [], "{reason}");
        Peer::connect(self.address()).ask("it goes on");
        assert_eq!(self.failures().len(), before + 1, "one line");
    }

    /// What was logged of upgrades that failed.
    fn failures(&self) -> Vec<String> {
        let log = self.first.log();
        log.lines().filter(|line| line.contains("not upgraded")).map(str::to_owned).collect()
    }

    /// SIGTERM to the present process. Each that there was has lost nothing; their statistics.
    #[track_caller]
    fn stop(self) -> Vec<Value> {
        let processes = 1 + self.upgrades().len();
        self.signal(Signal::TERM);
        // The end of what the log is read from comes with the last of them.
        let ended = self.first.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let last_lines = ended.stderr.lines().filter(|line| line.contains("stopped; nothing was dropped"));
        let stats: Vec<Value> = last_lines.map(stats_in).collect();
        assert_eq!(stats.len(), processes, "{}", ended.stderr);
        stats
    }
}

/// The process that serves now. Where a test fails it is ended; the first one has a guard of its own, and may be gone.
#[derive(Debug)]
pub(crate) struct Present(pub(crate) Pid);

impl Drop for Present {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = kill_process(self.0, Signal::KILL);
        }
    }
}

/// The processes that this one has started and not waited for.
pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().to_string();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let child = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let of = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.to_owned();
        (of == parent).then(|| Pid::from_raw(id))?
    };
    all.filter_map(child).collect()
}

/// What clients have seen.
#[derive(Debug, Default)]
struct Seen {
    over: AtomicBool,
    replies: AtomicU64,
    connections: AtomicU64,
    /// Connections whose line was sent later than is promised, and not answered.
    too_slow: AtomicU64,
}

/// A connection that is ended, without a reply or between two, is no loss where nothing was promised: what had arrived was answered.
fn connected<S: Read + Write>(seen: &Seen, connect: impl Fn() -> S, reply: &[u8], requests: usize) {
    let mut buffer = vec![0; reply.len()];
    while !seen.over.load(Relaxed) {
        let begun = Instant::now();
        let mut stream = connect();
        seen.connections.fetch_add(1, Relaxed);
        for number in 0..requests {
            // Where the other side has ended the stream, it may have closed since.
            let sent = stream.write_all(b"HELO x\n");
            let in_time = begun.elapsed() < FIRST_LINE / 2;
            let mut len = 0;
            let end = loop {
                match stream.read(&mut buffer[len..]) {
                    Ok(0) => break true,
                    Ok(read) => len += read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => panic!("{error} at request {number}, after {len} bytes"),
                }
                if len == reply.len() {
                    break false;
                }
            };
            assert_eq!(buffer[..len], reply[..len]);
            if end {
                assert_eq!(len, 0, "ended inside a reply");
                assert!(number > 0 || !in_time, "not answered");
                seen.too_slow.fetch_add(u64::from(number == 0), Relaxed);
                break;
            }
            sent.unwrap();
            seen.replies.fetch_add(1, Relaxed);
        }
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

const UNIX_REPLY: &[u8] = b"HELO x\nIP:unix\nPort:0\nStudentID:16336617\n";

#[test]
fn fifty_upgrades_in_a_flood_are_noticed_by_nobody() {
    const UPGRADES: usize = 50;
    let path = scratch("upgrade").join("socket");
    let mut line = Line::start(&format!("--unix {} --drain-timeout 30s", path.display()));
    let address = line.address();
    let reply = helo_reply(b"x", address);
    let seen = Seen::default();
    let stats = thread::scope(|scope| {
        let (seen, reply, path) = (&seen, &reply, &path);
        let is_over = SetAtEnd(&seen.over);
        // New ones all the time, and such as stay.
        for requests in [1, 1, usize::MAX] {
            scope.spawn(move || connected(seen, || tcp(address), reply, requests));
            scope.spawn(move || connected(seen, || unix(path), UNIX_REPLY, requests));
        }
        // Several requests under way, of which those are answered that had arrived.
        scope.spawn(move || {
            while !seen.over.load(Relaxed) {
                let mut peer = Peer::connect(address);
                seen.connections.fetch_add(1, Relaxed);
                loop {
                    peer.try_send(&b"HELO x\n".repeat(20));
                    let came = peer.replies(reply, 20);
                    seen.replies.fetch_add(came as u64, Relaxed);
                    if came < 20 || seen.over.load(Relaxed) {
                        break;
                    }
                }
            }
        });
        for _ in 0..UPGRADES {
            let before = seen.replies.load(Relaxed);
            eventually("clients are served", || seen.replies.load(Relaxed) > before + 50);
            line.upgrade();
        }
        drop(is_over);
        // The old ones end when their clients have.
        line.stop()
    });
    assert!(!path.exists(), "the last one removes it");
    let sum = |name: &str| stats.iter().map(|stats| stats[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("replies_total"), seen.replies.load(Relaxed), "each reply that was written was read");
    assert_eq!(sum("connections_accepted_total"), seen.connections.load(Relaxed), "each was accepted once");
    // How many is the machine's doing.
    if seen.too_slow.load(Relaxed) >= seen.connections.load(Relaxed) / 10 {
        tell(&format!("many were too slow to be promised a reply: {seen:?}"));
    }
}

#[test]
fn the_configuration_is_read_anew_and_a_bad_one_changes_nothing() {
    let file = scratch("upgrade").join("config.toml");
    fs::write(&file, "max-threads = 7\n").unwrap();
    let mut line = Line::start(&format!("--config {}", file.display()));
    fs::write(&file, "max-threads = seven\n").unwrap();
    line.expect_failure("did not become ready (exit status: 2)");
    fs::remove_file(&file).unwrap();
    line.expect_failure("did not become ready (exit status: 2)");
    // As the present one has read it, if it has.
    fs::write(&file, "max-threads = 7\nupgrade-timeout = \"123ms\"\n").unwrap();
    line.signal(Signal::HUP);
    line.first.expect_log("upgrade-timeout: \"10s\" -> \"123ms\"");
    line.put_script("exec sleep 1000");
    line.expect_failure("was not ready within 123ms");
    line.put_program();
    fs::write(&file, "max-threads = 7\n").unwrap();
    line.signal(Signal::HUP);
    line.first.expect_log("upgrade-timeout: \"123ms\" -> \"10s\"");
    fs::write(&file, "max-threads = 9\n").unwrap();
    line.upgrade();
    let stats = line.stop();
    let mut limits: Vec<u64> = stats.iter().map(|stats| stats["pool_max"].as_u64().unwrap()).collect();
    limits.sort_unstable();
    assert_eq!(limits, [7, 9]);
}

#[test]
fn the_admin_address_is_handed_over_and_answered_by_the_new_process_only() {
    let path = scratch("upgrade").join("admin");
    let mut line = Line::start(&format!("--handler-delay 2s --admin unix:{}", path.display()));
    let asked = || {
        let mut stream = unix(&path);
        stream.write_all(b"GET /stats.json HTTP/1.0\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let stats: Value = serde_json::from_str(reply.split_once("\r\n\r\n").unwrap().1).unwrap();
        stats["requests_pending"].as_u64().unwrap()
    };
    let mut peer = Peer::connect(line.address());
    peer.send(b"HELO x\n");
    eventually("the old process has a request", || asked() == 1);
    line.upgrade();
    // The old one has it still, and answers it, but nobody else.
    for _ in 0..20 {
        assert_eq!(asked(), 0);
    }
    peer.expect_reply("x");
    peer.expect_end();
    drop(peer);
    line.stop();
    assert!(!path.exists());
}

#[test]
fn a_second_request_is_ignored_while_one_is_under_way_and_a_stop_ends_both() {
    let line = Line::start("--upgrade-timeout 1h");
    line.put_script("exec sleep 1000");
    line.signal(Signal::USR2);
    // By a process in between.
    let started = || children(line.now.0).into_iter().flat_map(children).collect::<Vec<_>>();
    eventually("it is started", || !started().is_empty());
    line.signal(Signal::USR2);
    // Signals are obeyed one after another.
    line.first.stats();
    let new = started();
    assert_eq!((new.len(), children(line.now.0).len()), (1, 1));
    Peer::connect(line.address()).ask("x");
    line.signal(Signal::TERM);
    let ended = line.first.wait();
    ended.assert_clean();
    assert!(ended.stderr.contains("not upgraded") && ended.stderr.contains("the server stops"), "{ended:?}");
    assert!(test_kill_process(new[0]).is_err(), "the new process has been waited for");
}

#[test]
fn a_stop_at_any_moment_of_an_upgrade_leaves_no_process_behind() {
    let mut started = 0;
    // Later from round to round, until some were started before the stop.
    for round in 0..4000 {
        if round >= 60 && started > 0 {
            break;
        }
        let line = Line::start("--upgrade-timeout 1h");
        let told = line.program.with_file_name("number");
        line.put_script(&format!("echo $$ >{}; exec sleep 1000 >&- 2>&-", told.display()));
        line.signal(Signal::USR2);
        // In another phase of it each time.
        thread::sleep(Duration::from_micros(250 * round));
        line.signal(Signal::TERM);
        line.first.wait().assert_clean();
        let Ok(number) = fs::read_to_string(&told) else { continue };
        let Ok(number) = number.trim().parse() else { continue };
        started += 1;
        let new = Pid::from_raw(number).unwrap();
        eventually("it has ended, too", || test_kill_process(new).is_err());
    }
    assert!(started > 0, "no new process was started within a second");
}

#[test]
fn kill_service_ends_a_process_that_is_not_ready_too() {
    let line = Line::start("--upgrade-timeout 1h");
    line.put_script("exec sleep 1000");
    line.signal(Signal::USR2);
    let started = || children(line.now.0).into_iter().flat_map(children).collect::<Vec<_>>();
    eventually("it is started", || !started().is_empty());
    let new = started();
    Peer::connect(line.address()).send(b"KILL_SERVICE\n");
    line.first.wait().assert_clean();
    assert!(test_kill_process(new[0]).is_err());
}

/// What a service manager does that has heard of the new process, and that before the old one gives the word to take over.
#[test]
fn who_is_in_the_queue_is_served_by_a_process_that_is_to_stop_as_it_takes_over() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (old, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let said = |record: &[u8], socket: Option<&TcpListener>| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let socket = socket.map(AsFd::as_fd);
        assert!(socket.is_none() || control.push(SendAncillaryMessage::ScmRights(socket.as_slice())));
        sendmsg(&old, &[IoSlice::new(record)], &mut control, SendFlags::NOSIGNAL).unwrap();
    };
    said(b"tidemill listeners 2 1", None);
    said(format!("helo\0\0{address}").as_bytes(), Some(&socket));
    let mut command = program_at(Path::new(REAL));
    command.args(["serve", &address.port().to_string()]).env("TIDEMILL_UPGRADE", "1").stdin(theirs);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut new = Serving::launch(&mut command);
    new.read_log();
    let mut ready = [0; 5];
    recv(&old, &mut ready[..], RecvFlags::empty()).unwrap();
    assert_eq!(&ready, b"ready");
    new.signal(Signal::TERM);
    new.expect_log("stopping");
    // Whoever of both it was that stops, this one would wait in vain for the other.
    let mut peer = Peer::connect(address);
    peer.send(b"HELO x\n");
    drop(socket);
    said(b"go", None);
    peer.expect(&helo_reply(b"x", address));
    peer.expect_end();
    drop((peer, old));
    new.wait().assert_clean();
}

#[test]
fn the_new_process_does_not_end_before_the_old_one_unless_it_is_told_twice() {
    for twice in [false, true] {
        let mut line = Line::start("--handler-delay 2s --drain-timeout 20s");
        let first = line.now.0;
        let mut peer = Peer::connect(line.address());
        peer.send(b"HELO x\n");
        eventually("the old process has a request", || line.first.stats()["requests_pending"] == 1);
        line.upgrade();
        let (second, begun) = (line.now.0, Instant::now());
        line.signal(Signal::TERM);
        if twice {
            line.first.expect_log("once more stops at once");
            line.signal(Signal::TERM);
            line.first.expect_log("stopping at once");
            eventually("the new process ends", || has_ended(second));
        } else {
            // It is there as long as the old one has anything: whoever sees it end sees the request answered.
            eventually("the new process ends", || has_ended(second));
            assert_eq!(descriptors_of(first), 0, "after {:?}", begun.elapsed());
        }
        peer.expect_reply("x");
        peer.expect_end();
        drop(peer);
        line.first.wait().assert_clean();
    }
}

#[test]
fn the_old_process_is_waited_for_no_longer_than_the_drain_timeout_that_is_in_force_now() {
    let file = scratch("upgrade").join("config.toml");
    fs::write(&file, "drain-timeout = \"1h\"\n").unwrap();
    let mut line = Line::start(&format!("--handler-delay 1h --config {}", file.display()));
    let first = line.now.0;
    let mut peer = Peer::connect(line.address());
    peer.send(b"HELO x\n");
    eventually("the old process has a request", || line.first.stats()["requests_pending"] == 1);
    line.upgrade();
    fs::write(&file, "drain-timeout = \"10ms\"\n").unwrap();
    line.signal(Signal::HUP);
    line.first.expect_log("configuration reloaded changed=drain-timeout");
    line.signal(Signal::TERM);
    eventually("the new process ends", || has_ended(line.now.0));
    assert!(!has_ended(first), "it drains by its own timeout");
    drop(peer);
}

/// Whether a process has ended, waited for or not.
/// None are left from when it ends, though it may be seen a moment longer.
fn descriptors_of(process: Pid) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero()));
    all.map_or(0, |all| all.flatten().count())
}

fn has_ended(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn programs_end_with_the_process_that_has_started_them() {
    let script = scratch("upgrade").join("shout");
    fs::write(&script, "#!/bin/sh\nwhile read -r line; do echo \"$line! ${TIDEMILL_UPGRADE-}\"; done\n")
        .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut line = Line::start(&format!("--min-threads 1 --exec {}", script.display()));
    let first = line.now.0;
    eventually("it has programs", || !children(first).is_empty());
    let programs = children(first);
    for _ in 0..3 {
        let mut peer = Peer::connect(line.address());
        peer.send(b"x\n");
        peer.expect(b"x! \n");
        line.upgrade();
        peer.expect_end();
    }
    eventually("those of the first one have gone", || {
        programs.iter().all(|it| test_kill_process(*it).is_err())
    });
    line.stop();
}
