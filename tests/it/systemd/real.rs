//! The units of `scripts/deploy` under the real systemd: read by its tools, and run by one that is process 1 of namespaces of its
//! own, where root may make such.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, getuid};

use super::{FIRST_LINE, REAL, UNIX_REPLY};
use crate::examples::missing;
use crate::support::{DEADLINE, Ended, SetAtEnd, eventually, scratch, skipped};
use crate::upgrade::children;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/deploy");
const NESTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/systemd/nested.sh");
/// The most that `systemd-analyze security` may say of the unit; of 10, and below 2 is what it calls OK. It was 1.2 when this was
/// written; later versions may look for more.
const MOST_EXPOSURE: f64 = 1.9;

/// The units, with the program where it is.
fn units() -> Vec<PathBuf> {
    let directory = scratch("units");
    ["tidemill.service", "tidemill.socket"]
        .map(|name| {
            let text = fs::read_to_string(Path::new(DEPLOY).join(name)).unwrap();
            let path = directory.join(name);
            fs::write(&path, text.replace("/usr/local/bin/tidemill", REAL)).unwrap();
            path
        })
        .to_vec()
}

fn analyze(arguments: &[&str], units: &[PathBuf]) -> Option<Ended> {
    match Ended::try_of(Command::new("systemd-analyze").args(arguments).args(units).stdin(Stdio::null())) {
        Ok(ended) => Some(ended),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            missing("systemd-analyze is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_units_are_valid_and_hardened() {
    let units = units();
    let Some(verified) = analyze(&["verify", "--man=no"], &units) else { return };
    assert_eq!((verified.status.code(), verified.stderr.as_str()), (Some(0), ""));
    let Some(secure) = analyze(&["security", "--offline=yes", "--no-pager"], &units[..1]) else { return };
    let level = secure.stdout.lines().find(|line| line.contains("exposure level")).unwrap();
    let exposure = level.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap();
    assert!(exposure < MOST_EXPOSURE, "{level}");
}

/// A systemd with the units, and the way to it. Its end is the end of all that it has started.
#[derive(Debug)]
struct Nested {
    unshare: Child,
    systemd: Pid,
    cgroup: PathBuf,
}

impl Nested {
    /// `None` where it cannot be had, which is told.
    fn start() -> Option<Nested> {
        let is_there =
            ["unshare", "nsenter", "ip"].iter().all(|tool| Command::new(tool).arg("--help").output().is_ok());
        if !Path::new("/lib/systemd/systemd").exists() || !is_there {
            missing("systemd, unshare, nsenter or ip is not installed");
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let cgroups = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[2] == "cgroup2" && fields[3].starts_with("rw")).then(|| PathBuf::from(fields[1]))
        });
        let Some(cgroups) = cgroups.filter(|_| getuid().is_root()) else {
            skipped("a systemd of its own needs root and cgroups");
            return None;
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let cgroup = cgroups.join(format!("tidemill-test-{}-{number}", std::process::id()));
        let mut command = Command::new(NESTED);
        command.args([REAL, DEPLOY]).arg(&cgroup).stdin(Stdio::null()).stdout(Stdio::null());
        let mut unshare = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = unshare.stderr.take().unwrap();
        let id = Pid::from_child(&unshare);
        let mut nested = Nested { unshare, systemd: id, cgroup };
        let mut is_refused = false;
        eventually("systemd runs", || {
            if let Some(status) = nested.unshare.try_wait().unwrap() {
                let mut text = String::new();
                said.read_to_string(&mut text).unwrap();
                assert_eq!(status.code(), Some(77), "{text}");
                is_refused = true;
                return true;
            }
            let child = children(id);
            nested.systemd = child.first().copied().unwrap_or(id);
            nested.systemd != id && nested.systemctl(&["show"]).status.success()
        });
        if is_refused {
            skipped("namespaces are refused");
            return None;
        }
        // Nobody reads it any more.
        thread::spawn(move || drop(std::io::copy(&mut said, &mut std::io::sink())));
        Some(nested)
    }

    fn systemctl(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.systemd.as_raw_nonzero().to_string(), "-p", "-m", "-n", "-i", "systemctl"]);
        Ended::of(command.args(arguments).stdin(Stdio::null()))
    }

    /// The same, which must succeed.
    #[track_caller]
    fn control(&self, arguments: &[&str]) {
        let ended = self.systemctl(arguments);
        assert!(ended.status.success(), "{arguments:?}: {ended:?}\n{}\n{}", self.show("Result"), self.log());
    }

    /// A property of the service.
    fn show(&self, property: &str) -> String {
        self.systemctl(&["show", "--value", "-p", property, "tidemill"]).stdout.trim().to_owned()
    }

    /// A file as it is there.
    fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.systemd.as_raw_nonzero()).into()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("/run/log")).unwrap_or_default()
    }

    /// Upgrades, as the unit's head says.
    #[track_caller]
    fn upgrade(&self) {
        let before = self.show("MainPID");
        self.control(&["kill", "-s", "USR2", "--kill-whom=main", "tidemill"]);
        eventually("the main process is another one", || self.show("MainPID") != before);
        assert_eq!(self.show("ActiveState"), "active");
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        // With it systemd, which is process 1, and with that all others.
        drop(self.unshare.kill());
        drop(self.unshare.wait());
        // It has cgroups within, which go when the last process has.
        let deadline = Instant::now() + DEADLINE;
        while remove_cgroups(&self.cgroup).is_err() && Instant::now() < deadline {
            thread::yield_now();
        }
    }
}

fn remove_cgroups(path: &Path) -> std::io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn asked_over(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"HELO x\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

/// Asks again and again until it is `over`, and counts. Refused, reset or not answered although it was sent in time, it panics.
fn ask_on(systemd: &Nested, path: &Path, over: &AtomicBool, asked: &AtomicU64) {
    while !over.load(Relaxed) {
        let begun = Instant::now();
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut reply = String::new();
        let sent = stream.write_all(b"HELO x\n").and_then(|()| stream.shutdown(Shutdown::Write));
        let in_time = begun.elapsed() < FIRST_LINE / 2;
        let came = sent.and_then(|()| stream.read_to_string(&mut reply));
        // Who took so long that nothing is promised may have been closed.
        assert!(
            reply == UNIX_REPLY && came.is_ok() || !in_time && reply.is_empty(),
            "{came:?} {reply:?} after {:?}, {}",
            begun.elapsed(),
            systemd.log()
        );
        asked.fetch_add(1, Relaxed);
    }
}

#[test]
fn the_service_starts_reloads_upgrades_is_watched_and_stops() {
    let Some(systemd) = Nested::start() else { return };
    systemd.control(&["start", "tidemill"]);
    // Ready when that returns.
    let socket = systemd.path("/run/tidemill/socket");
    assert_eq!(asked_over(&socket), UNIX_REPLY);
    fs::write(
        systemd.path("/etc/tidemill.toml"),
        "port = 0\nunix = \"/run/tidemill/socket\"\ntolerance = 1\n",
    )
    .unwrap();
    systemd.control(&["reload", "tidemill"]);
    eventually("it is reloaded", || systemd.log().contains("tolerance: 4 -> 1"));
    assert_eq!(systemd.show("ActiveState"), "active");

    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        scope.spawn(|| ask_on(&systemd, &socket, &over, &asked));
        for _ in 0..5 {
            let before = asked.load(Relaxed);
            eventually("clients are served", || asked.load(Relaxed) > before);
            systemd.upgrade();
        }
    });
    eventually("the state in words is the new one's", || systemd.show("StatusText").contains("workers busy"));
    // One that cannot take over: the file is bad.
    fs::write(systemd.path("/etc/tidemill.toml"), "nonsense").unwrap();
    let main = systemd.show("MainPID");
    systemd.control(&["kill", "-s", "USR2", "--kill-whom=main", "tidemill"]);
    eventually("it is refused", || systemd.log().contains("not upgraded"));
    assert_eq!((systemd.show("MainPID"), asked_over(&socket).as_str()), (main.clone(), UNIX_REPLY));
    fs::write(systemd.path("/etc/tidemill.toml"), "port = 0\nunix = \"/run/tidemill/socket\"\n").unwrap();

    // The watchdog: first it is content with the upgraded process, then that stands still.
    assert_eq!(systemd.show("NRestarts"), "0");
    systemd.control(&["kill", "-s", "STOP", "--kill-whom=main", "tidemill"]);
    eventually("it is restarted", || {
        systemd.show("NRestarts") == "1" && systemd.show("ActiveState") == "active"
    });
    assert_ne!(systemd.show("MainPID"), main);
    eventually("it serves again", || socket.exists());
    assert_eq!(asked_over(&socket), UNIX_REPLY);

    let lines = systemd.log().matches("nothing was dropped").count();
    systemd.control(&["stop", "tidemill"]);
    assert_eq!((systemd.show("Result").as_str(), systemd.show("ExecMainStatus").as_str()), ("success", "0"));
    assert_eq!(systemd.log().matches("nothing was dropped").count(), lines + 1);
    assert!(!socket.exists());
}

#[test]
fn systemd_listens_for_the_service_also_between_its_starts() {
    let Some(systemd) = Nested::start() else { return };
    systemd.control(&["start", "tidemill.socket"]);
    let socket = systemd.path("/run/tidemill.sock");
    assert_eq!(systemd.show("ActiveState"), "inactive");
    // What the file says of sockets is of no account.
    assert_eq!(asked_over(&socket), UNIX_REPLY);
    assert!(!systemd.path("/run/tidemill/socket").exists());
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        scope.spawn(|| {
            // Whoever connects while it restarts waits in the queue, and is never refused.
            while !over.load(Relaxed) {
                drop(UnixStream::connect(&socket).unwrap());
                asked.fetch_add(1, Relaxed);
            }
        });
        for _ in 0..3 {
            let before = asked.load(Relaxed);
            systemd.control(&["restart", "tidemill"]);
            eventually("clients connect", || asked.load(Relaxed) > before);
            assert_eq!(asked_over(&socket), UNIX_REPLY);
        }
    });
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        scope.spawn(|| ask_on(&systemd, &socket, &over, &asked));
        for _ in 0..3 {
            let before = asked.load(Relaxed);
            eventually("clients are served", || asked.load(Relaxed) > before);
            systemd.upgrade();
        }
    });
    systemd.control(&["stop", "tidemill"]);
    assert_eq!(asked_over(&socket), UNIX_REPLY, "it is started for this");
    systemd.control(&["stop", "tidemill.socket", "tidemill"]);
}

/// systemd kills a main process that is not its child in the moment in which it asks it to stop.
#[test]
fn a_stop_after_an_upgrade_waits_for_what_is_under_way() {
    let Some(systemd) = Nested::start() else { return };
    fs::write(
        systemd.path("/etc/tidemill.toml"),
        "port = 0\nunix = \"/run/tidemill/socket\"\nhandler-delay = \"500ms\"\n",
    )
    .unwrap();
    systemd.control(&["start", "tidemill"]);
    systemd.upgrade();
    let mut peer = UnixStream::connect(systemd.path("/run/tidemill/socket")).unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    peer.write_all(b"HELO x\n").unwrap();
    systemd.control(&["stop", "tidemill"]);
    let mut reply = String::new();
    peer.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, UNIX_REPLY);
    assert_eq!((systemd.show("Result").as_str(), systemd.show("ExecMainStatus").as_str()), ("success", "0"));
    assert_eq!(systemd.log().matches("nothing was dropped").count(), 2, "{}", systemd.log());
}

/// Whichever process systemd holds for the main one in that moment.
#[test]
fn a_restart_beside_an_upgrade_loses_nobody() {
    let Some(systemd) = Nested::start() else { return };
    systemd.control(&["start", "tidemill.socket", "tidemill"]);
    let socket = systemd.path("/run/tidemill.sock");
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        for _ in 0..2 {
            scope.spawn(|| ask_on(&systemd, &socket, &over, &asked));
        }
        for round in 0..12 {
            let before = asked.load(Relaxed);
            eventually("clients are served", || asked.load(Relaxed) > before);
            systemd.control(&["kill", "-s", "USR2", "--kill-whom=main", "tidemill"]);
            // In another phase of the upgrade each time.
            thread::sleep(Duration::from_millis(2 * round));
            systemd.control(&["restart", "tidemill"]);
            assert_eq!(systemd.show("ActiveState"), "active");
        }
    });
    systemd.control(&["stop", "tidemill.socket", "tidemill"]);
}
