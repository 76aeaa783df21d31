//! What the server stands on, and how it fails.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};
use rustix::thread::{CpuSet, sched_getaffinity};

use super::Connects::{Often, Once};
use super::{beside, settle};
use crate::examples::missing;
use crate::support::{
    Ended, Peer, Serving, allow_files, assert_json_adds_up, eventually, helo_reply, in_parallel, program,
    scratch, serve, skipped,
};

const MS: Duration = Duration::from_millis(1);

/// The program, behind a line of shell that ends with running `"$@"`.
fn within(script: &str, options: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_tidemill"), "serve", "0"]);
    command.args(options.split_whitespace()).stdin(Stdio::null());
    command
}

#[test]
fn no_descriptors() {
    allow_files(4000);
    let serving = serve("");
    beside(&serving, Once, || {
        serving.limit_files(serving.open_files() + 10);
        let mut peers: Vec<Peer> = (0..60).map(|_| serving.connect()).collect();
        peers.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
        eventually("some are refused", || serving.stats()["accept_errors_total"].as_u64() > Some(0));
        serving.limit_files(4000);
        // Nobody is forgotten.
        peers.iter_mut().for_each(|peer| peer.expect_reply("x"));
    });
    settle(serving);
}

/// A worker costs address space: under a limit of it the system refuses most of them.
#[test]
fn no_threads() {
    let options = "--handler-delay 20ms --max-threads 200 --tolerance 0 --thread-stack 64MiB";
    let serving = serve(options);
    beside(&serving, Once, || {
        let room = (serving.mapped_kib() + (200 << 10)) << 10;
        let maximum = getrlimit(Resource::As).maximum;
        prlimit(Some(serving.pid()), Resource::As, Rlimit { current: Some(room), maximum }).unwrap();
        let replies = in_parallel(16, |_| {
            let mut peers: Vec<Peer> = (0..10).map(|_| serving.connect()).collect();
            peers.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
            peers.iter_mut().for_each(|peer| peer.expect_reply("x"));
            peers.len()
        });
        assert_eq!(replies.into_iter().sum::<usize>(), 160);
        let stats = serving.stats();
        assert!(stats["pool_threads_refused_total"].as_u64() > Some(0), "{stats}");
        assert!(stats["pool_threads"].as_u64().unwrap() < 100, "{stats}");
    });
    settle(serving);
}

/// With as much address space as the documentation asks for, a flood of what must be held closes connections and never ends
/// the process, which an allocation that fails would.
#[test]
fn no_memory_beyond_what_the_limit_promises() {
    allow_files(6000);
    const LIMIT_MIB: u64 = 16;
    let serving = serve("--max-memory 16MiB --max-threads 8");
    // All threads are there, and so are the allocator's arenas, which are address space and not memory.
    beside(&serving, Once, || {
        let room = serving.mapped_kib() + ((LIMIT_MIB * 5 / 4 + 32) << 10);
        let limit = Rlimit { current: Some(room << 10), maximum: getrlimit(Resource::As).maximum };
        prlimit(Some(serving.pid()), Resource::As, limit).unwrap();
        let half = vec![b'x'; 64_000];
        let long = [&b"HELO "[..], &[b'x'; 2000], b"\n"].concat().repeat(100);
        let tiny = b"HELO \n".repeat(20_000);
        let mut peers = Vec::new();
        for number in 0..1200 {
            let mut peer = Peer::with_small_buffer(serving.address, 4096);
            peer.send_what_goes([&half, &long, &tiny][number % 3]);
            peers.push(peer);
        }
        eventually("the biggest holders are closed", || {
            serving.stats()["connections_closed_total"]["memory"].as_u64() > Some(0)
        });
    });
    settle(serving);
}

/// The headroom that the documentation asks for: start, 1.25 times the limit, 32 MiB, and what the kernel may hold for each
/// connection. The group's memory is what ends the process; it closes connections instead.
#[test]
fn no_memory_beyond_the_limit_of_a_group() {
    const PEERS: u64 = 600;
    /// Send buffer of 16 KiB, doubled by the kernel, and a receive buffer as it begins.
    const KERNEL_KIB_A_PEER: u64 = 32 + 128;
    allow_files(6000);
    let group = match Group::new() {
        Ok(group) => group,
        Err(why) => return skipped(&why),
    };
    let script = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", group.path.display());
    let serving = Serving::start(within(&script, "--max-memory 16MiB --max-threads 8 --send-buffer 16KiB"));
    let room_kib = (16 << 10) * 5 / 4 + (32 << 10) + PEERS * KERNEL_KIB_A_PEER;
    group.limit((serving.resident_kib() + room_kib) << 10);
    beside(&serving, Once, || {
        let half = vec![b'x'; 64_000];
        let tiny = b"HELO \n".repeat(20_000);
        let mut peers = Vec::new();
        for number in 0..PEERS {
            let mut peer = Peer::with_small_buffer(serving.address, 4096);
            peer.send_what_goes(if number % 2 == 0 { &half } else { &tiny });
            peers.push(peer);
        }
        eventually("the biggest holders are closed", || {
            serving.stats()["connections_closed_total"]["memory"].as_u64() > Some(0)
        });
    });
    settle(serving);
}

/// A group of processes whose memory can be limited. What the kernel holds for their sockets is in the sum, where it counts
/// that.
struct Group {
    path: PathBuf,
    limit: PathBuf,
}

impl Group {
    /// Why there is none, if there is none.
    fn new() -> Result<Group, String> {
        let name = format!("tidemill-test-{}", std::process::id());
        for (root, file) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let path = Path::new(root).join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Group { limit: path.join(file), path };
            if group.limit.exists() {
                return Ok(group);
            }
        }
        Err("this system lets a test make no group of processes with a memory of its own".to_owned())
    }

    fn limit(&self, bytes: u64) {
        std::fs::write(&self.limit, bytes.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.path));
    }
}

/// Where the log tells nothing: the statistics on standard output add up, and it ends as asked.
#[track_caller]
fn settle_by_output(serving: Serving) {
    let lines = |serving: &Serving| serving.output().lines().filter(|line| line.starts_with('{')).count();
    let before = lines(&serving);
    eventually("statistics come", || lines(&serving) > before + 2);
    let ended = serving.stop();
    assert_eq!(ended.status.code(), Some(0));
    for line in ended.stdout.lines().filter(|line| line.starts_with('{')) {
        assert_json_adds_up(&serde_json::from_str(line).unwrap());
    }
}

/// Clients come and go while it writes as much as it can.
fn while_it_tells_much(serving: &Serving) {
    beside(serving, Often, || {
        in_parallel(100, |_| serving.connect().ask("x"));
        (0..100).for_each(|_| serving.signal(Signal::USR1));
    });
}

#[test]
fn a_full_disk_behind_either_output_and_both() {
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let options = ["serve", "0", "--stats-every", "1ms", "--log-level", "debug"];
    let mut serving = Serving::launch(program().args(options).stdout(full()).stderr(Stdio::piped()));
    serving.read_log();
    while_it_tells_much(&serving);
    settle(serving);

    let serving = Serving::start(within("exec \"$@\" 2>/dev/full", &options[2..].join(" ")));
    while_it_tells_much(&serving);
    settle_by_output(serving);

    let serving = Serving::launch(program().args(options).stdout(full()).stderr(full()));
    while_it_tells_much(&serving);
    assert_eq!(serving.stop().status.code(), Some(0));
}

#[test]
fn standard_streams_that_are_closed() {
    let options = "--stats-every 1ms --log-level debug";
    let closing = |closed: &str| within(&format!("exec \"$@\" {closed}"), options);
    // A client must never get a descriptor that something is printed to.
    let ask = |serving: &Serving| {
        beside(serving, Often, || {
            let mut peers: Vec<Peer> = (0..20).map(|_| serving.connect()).collect();
            peers.iter_mut().for_each(|peer| peer.ask("x"));
            serving.signal(Signal::USR1);
            for peer in &mut peers {
                assert!(peer.is_silent_for(MS), "something else came");
                peer.ask("y");
            }
        });
    };
    let serving = Serving::start(closing("<&-"));
    ask(&serving);
    settle(serving);
    let mut serving = Serving::launch(closing(">&-").stdout(Stdio::null()).stderr(Stdio::piped()));
    serving.read_log();
    ask(&serving);
    settle(serving);
    let serving = Serving::start(closing("2>&-"));
    ask(&serving);
    settle_by_output(serving);
    let serving = Serving::launch(closing("<&- >&- 2>&-").stdout(Stdio::null()).stderr(Stdio::null()));
    ask(&serving);
    assert_eq!(serving.stop().status.code(), Some(0));
}

#[test]
fn a_process_that_is_stopped_and_continued() {
    let serving = serve("");
    beside(&serving, Often, || {
        for _ in 0..5 {
            serving.freeze();
            // What comes meanwhile waits in the kernel.
            let mut waits = serving.connect();
            waits.send(b"HELO waits\n");
            thread::sleep(20 * MS);
            serving.resume();
            waits.expect_reply("waits");
        }
    });
    settle(serving);
}

/// All clocks have run out when it goes on, but nobody was slow: what they had sent, and what they had made room for, the
/// kernel knew.
#[test]
fn a_process_that_was_stopped_for_longer_than_its_timeouts() {
    // More than the events of one poll.
    const PEERS: usize = 300;
    const REQUESTS: usize = 3000;
    allow_files(4000);
    let serving = serve("--line-timeout 4s --idle-timeout 4s --write-timeout 4s --send-buffer 16KiB");
    let replies = helo_reply(b"x", serving.address).repeat(REQUESTS);
    beside(&serving, Once, || {
        // At once, and not before the polite client is served: their clocks run.
        let mut readers: Vec<Peer> =
            (0..PEERS).map(|_| Peer::with_small_buffer(serving.address, 16 << 10)).collect();
        let mut halves: Vec<Peer> = (0..PEERS).map(|_| serving.connect()).collect();
        let mut idle: Vec<Peer> = (0..PEERS).map(|_| serving.connect()).collect();
        idle.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
        readers.iter_mut().for_each(|peer| peer.send(&b"HELO x\n".repeat(REQUESTS)));
        idle.iter_mut().for_each(|peer| peer.expect_reply("x"));
        halves.iter_mut().for_each(|peer| peer.send(b"HELO ha"));
        serving.freeze();
        let read: Vec<usize> = readers.iter_mut().map(|peer| peer.expect_what_is_there(&replies)).collect();
        halves.iter_mut().for_each(|peer| peer.send(b"lf\n"));
        idle.iter_mut().for_each(|peer| peer.send(b"HELO y\n"));
        thread::sleep(4100 * MS);
        serving.resume();
        for (peer, read) in readers.iter_mut().zip(read) {
            peer.expect(&replies[read..]);
        }
        halves.iter_mut().for_each(|peer| peer.expect_reply("half"));
        idle.iter_mut().for_each(|peer| peer.expect_reply("y"));
    });
    let (_, stats) = settle(serving);
    let closed = &stats["connections_closed_total"];
    assert_eq!((&closed["line_timeout"], &closed["write_timeout"]), (&0.into(), &0.into()));
}

/// The machine's clock is set, ahead and back, by more than any timeout. Nothing here may go by it but what the log says of the
/// time of day.
#[test]
fn a_clock_that_jumps() {
    let Some(clock) = FakeClock::new() else { return missing("libfaketime is not installed") };
    let timeouts = ["line", "idle", "write", "queue", "request"].map(|name| format!("--{name}-timeout 1m"));
    let mut command =
        clock.program(&format!("--stats-every 20ms --handler-delay 1ms {}", timeouts.join(" ")));
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let serving = Serving::start(command);
    let (mut half, mut idle) = (serving.connect(), serving.connect());
    half.send(b"HELO ha");
    beside(&serving, Often, || {
        for hours in [1, -1, 0, 10_000, -10_000, 0] {
            clock.set(hours);
            eventually("the log tells the new time", || {
                serving.stats();
                hours_ahead(&serving.log()) == hours
            });
            // It goes on to do what is due now and then, and to follow the load.
            let lines = serving.output().lines().count();
            in_parallel(16, |_| (0..10).for_each(|_| serving.connect().ask("x")));
            eventually("statistics come", || serving.output().lines().count() > lines + 2);
        }
    });
    half.send(b"lf\n");
    half.expect_reply("half");
    idle.ask("y");
    drop((half, idle));
    // Also while it stops.
    clock.set(1);
    let (_, stats) = settle(serving);
    for (reason, count) in stats["connections_closed_total"].as_object().unwrap() {
        assert!(count == 0 || ["eof", "reset"].contains(&reason.as_str()), "{reason}: {stats}");
    }
}

/// The one that the server goes by never does, says the system. Where it does all the same, timeouts are wrong by so much, and
/// no more than that.
#[test]
fn a_clock_that_jumps_though_it_must_not() {
    let Some(clock) = FakeClock::new() else { return missing("libfaketime is not installed") };
    let serving = Serving::start(clock.program("--handler-delay 1ms"));
    beside(&serving, Often, || {
        for hours in [1, 0, 10_000, -1, 0] {
            clock.set(hours);
            eventually("the log tells the new time", || {
                serving.stats();
                hours_ahead(&serving.log()) == hours
            });
            in_parallel(16, |_| (0..10).for_each(|_| serving.connect().ask("x")));
        }
    });
    settle(serving);
}

/// A clock of its own for a program: the system's, so many hours ahead.
struct FakeClock {
    library: PathBuf,
    offset: PathBuf,
}

impl FakeClock {
    /// `None`: its library is not installed.
    fn new() -> Option<FakeClock> {
        let library = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
            .map(|directory| Path::new(directory).join("faketime/libfaketimeMT.so.1"))
            .into_iter()
            .find(|path| path.exists())?;
        let clock = FakeClock { library, offset: scratch("clock").join("offset") };
        clock.set(0);
        Some(clock)
    }

    fn set(&self, hours: i64) {
        // Whole, whenever it is read.
        let new = self.offset.with_extension("new");
        std::fs::write(&new, format!("{:+}", hours * 3600)).unwrap();
        std::fs::rename(new, &self.offset).unwrap();
    }

    fn program(&self, options: &str) -> Command {
        let mut command = program();
        command.args(["serve", "0"]).args(options.split_whitespace());
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_NO_CACHE", "1");
        command.env("FAKETIME_TIMESTAMP_FILE", &self.offset);
        command
    }
}

/// By how many hours the last line of a log is ahead of this machine's clock.
fn hours_ahead(log: &str) -> i64 {
    let told = log.lines().last().and_then(|line| line.split(' ').next()).unwrap();
    let told = humantime::parse_rfc3339_weak(told).unwrap();
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    let ahead = seconds(told) - seconds(SystemTime::now());
    (ahead + 1800).div_euclid(3600)
}

#[test]
fn a_storm_of_signals() {
    let serving = serve("--handler-delay 1ms");
    beside(&serving, Often, || {
        let begun = Instant::now();
        let harmless = [Signal::USR1, Signal::WINCH, Signal::CHILD, Signal::CONT, Signal::URG, Signal::PIPE];
        for number in 0..20_000 {
            serving.signal(harmless[number % harmless.len()]);
            if number % 500 == 0 {
                serving.connect().ask("in the storm");
            }
            if begun.elapsed() > Duration::from_secs(3) {
                break;
            }
        }
    });
    settle(serving);
}

#[test]
fn without_proc() {
    let script = "mount -t tmpfs none /proc && exec \"$@\"";
    let mut probe = Command::new("unshare");
    if !probe
        .args(["-Urm", "sh", "-c", "mount -t tmpfs none /proc"])
        .output()
        .is_ok_and(|it| it.status.success())
    {
        return skipped("this system does not let a test hide /proc");
    }
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_tidemill"), "serve", "0"]);
    command.args(["--handler-delay", "5ms", "--tolerance", "0"]).stdin(Stdio::null());
    let serving = Serving::start(command);
    beside(&serving, Often, || {
        // The pool cannot see who computes, and takes it that all do.
        in_parallel(16, |_| {
            for _ in 0..20 {
                serving.connect().ask("x");
            }
        });
    });
    settle(serving);
}

#[test]
fn one_cpu() {
    let cpus = sched_getaffinity(None).unwrap();
    let Some(cpu) = (0..CpuSet::MAX_CPU).find(|cpu| cpus.is_set(*cpu)) else {
        return skipped("no CPU is known");
    };
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string(), env!("CARGO_BIN_EXE_tidemill"), "serve", "0"]);
    command.args(["--handler-delay", "2ms"]).stdin(Stdio::null());
    if Command::new("taskset").arg("--version").output().is_err() {
        return skipped("there is no taskset");
    }
    let serving = Serving::start(command);
    beside(&serving, Often, || {
        in_parallel(16, |number| {
            let text = format!("{number}");
            let lines = format!("HELO {text}\n").repeat(20);
            let mut peer = serving.connect();
            peer.send(lines.as_bytes());
            (0..20).for_each(|_| peer.expect_reply(&text));
        });
        assert_eq!(serving.stats()["pool_cores"], 1);
    });
    settle(serving);
}

/// `/proc/self` is one for anybody, whatever the rights of who runs the test.
#[test]
fn a_directory_that_takes_no_file() {
    let mut command = program();
    command.args(["serve", "0"]).current_dir("/proc/self");
    let serving = Serving::start(command);
    beside(&serving, Often, || in_parallel(20, |_| serving.connect().ask("x")));
    settle(serving);
    let mut command = program();
    command.args(["serve", "0", "--unix", "socket"]).current_dir("/proc/self");
    let ended = Ended::of(&mut command);
    assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(1), 1), "{}", ended.stderr);
    assert!(ended.stderr.contains("socket") && !Path::new("/proc/self/socket").exists(), "{}", ended.stderr);
}

/// Whatever a log line or a snapshot is worth in the middle of all this: it adds up.
#[test]
fn snapshots_in_the_middle_of_everything_add_up() {
    let serving = serve("--max-connections 40 --handler-delay 1ms");
    beside(&serving, Once, || {
        in_parallel(300, |number| {
            let mut peer = serving.connect();
            peer.send_what_goes(&b"HELO x\nnothing\n".repeat(number % 7));
            if number % 20 == 0 {
                assert_json_adds_up(&serving.stats());
            }
            if number % 3 == 0 {
                peer.reset();
            }
        });
    });
    settle(serving);
}
