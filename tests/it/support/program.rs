//! The real program as a child process, killed when its guard is dropped.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit, setrlimit};
use serde_json::Value;

use super::{DEADLINE, Peer, Unread, eventually};

/// The program, with an environment that sets none of its options.
pub(crate) fn program() -> Command {
    without_settings(Command::new(env!("CARGO_BIN_EXE_tidemill")))
}

/// The program under another name.
pub(crate) fn program_at(path: &Path) -> Command {
    without_settings(Command::new(path))
}

fn without_settings(mut command: Command) -> Command {
    for name in ["MIN_THREADS", "MAX_THREADS", "TOLERANCE", "STUDENT_ID"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Starts `tidemill serve 0` with further `options`, separated by blanks, and waits until clients can connect.
#[track_caller]
pub(crate) fn serve(options: &str) -> Serving {
    let mut command = program();
    command.args(["serve", "0"]).args(options.split_whitespace());
    Serving::start(command)
}

/// A server in a process of its own.
#[derive(Debug)]
pub(crate) struct Serving {
    child: Child,
    pub(crate) address: SocketAddr,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// How a server's process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The statistics of the last log line.
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        let line = self.stderr.lines().rfind(|line| line.contains("stats=")).unwrap_or_else(|| {
            panic!("no statistics in the log: {}", self.stderr);
        });
        stats_in(line)
    }

    /// The end of its log, for the message of a test that fails.
    fn last_words(&self) -> String {
        let lines: Vec<&str> = self.stderr.lines().collect();
        lines[lines.len().saturating_sub(4)..].join("\n")
    }

    /// It stopped as asked and lost nothing.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.status.code(), Some(0), "{}", self.last_words());
        assert!(self.stderr.contains("nothing was dropped"), "{}", self.last_words());
    }
}

/// The JSON behind `stats=` in a log line.
#[track_caller]
pub(crate) fn stats_in(line: &str) -> Value {
    let json = line.split_once("stats=").unwrap().1;
    serde_json::Deserializer::from_str(json).into_iter().next().unwrap().unwrap()
}

impl Serving {
    /// Runs a command that becomes a server.
    #[track_caller]
    pub(crate) fn start(command: Command) -> Serving {
        Serving::try_start(command).unwrap_or_else(|ended| panic!("the server did not start: {ended:?}"))
    }

    /// Runs a command that becomes a server, or ends.
    #[track_caller]
    pub(crate) fn try_start(mut command: Command) -> Result<Serving, Ended> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut serving = Serving::of(child);
        serving.read_log();
        serving.announced()
    }

    /// Runs a command that becomes a server, and whose standard error nobody reads.
    #[track_caller]
    pub(crate) fn start_unread(mut command: Command) -> Serving {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Serving::of(child).announced().unwrap()
    }

    /// Waits until it says where it listens.
    #[track_caller]
    fn announced(mut self) -> Result<Serving, Ended> {
        let (announce, announced) = mpsc::channel();
        let (out, stdout) = (self.child.stdout.take().unwrap(), Arc::clone(&self.stdout));
        self.readers.push(thread::spawn(move || {
            let mut announce = Some(announce);
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let address = line.strip_prefix("listening on ").and_then(|text| text.parse().ok());
                stdout.lock().unwrap().push_str(&(line + "\n"));
                if let (Some(address), Some(announce)) = (address, announce.take()) {
                    // It is waited for, unless the test has failed by now.
                    announce.send(address).unwrap_or_default();
                }
            }
        }));
        match announced.recv_timeout(DEADLINE) {
            Ok(address) => {
                self.address = address;
                Ok(self)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(self.wait()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("the server neither started nor ended: {}", self.log())
            }
        }
    }

    /// Runs a command that becomes a server, and reads nothing of what it says: where it listens, the system tells.
    #[track_caller]
    pub(crate) fn launch(command: &mut Command) -> Serving {
        let mut serving = Serving::of(command.spawn().unwrap());
        // The other ends of its output are its own.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let id = serving.child.id();
        let mut address = None;
        eventually("the server listens", || {
            assert_eq!(serving.child.try_wait().unwrap(), None, "it has ended");
            address = listening(id);
            address.is_some()
        });
        serving.address = address.unwrap();
        serving
    }

    fn of(child: Child) -> Serving {
        Serving {
            child,
            address: ([127, 0, 0, 1], 0).into(),
            stdout: Arc::default(),
            stderr: Arc::default(),
            readers: Vec::new(),
        }
    }

    pub(crate) fn connect(&self) -> Peer {
        Peer::connect(self.address)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Begins to read the log of a server that was started with nobody reading it.
    pub(crate) fn read_log(&mut self) {
        let stderr = self.child.stderr.take().unwrap();
        let log = Arc::clone(&self.stderr);
        self.readers.push(thread::spawn(move || copy(stderr, &log)));
    }

    /// Begins to read the standard output of a server that was launched with nobody reading it.
    pub(crate) fn read_output(&mut self, unread: Unread) {
        let (reader, stdout) = (unread.into_reader(), Arc::clone(&self.stdout));
        self.readers.push(thread::spawn(move || copy(reader, &stdout)));
    }

    /// Closes the reading end of a log that nobody reads.
    pub(crate) fn close_log(&mut self) {
        drop(self.child.stderr.take());
    }

    /// Stops the process in its tracks: from when this returns until `resume`, it runs not one instruction.
    pub(crate) fn freeze(&self) {
        freeze(self.pid());
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// What it has written to standard error so far.
    pub(crate) fn log(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// What it has written to standard output so far.
    pub(crate) fn output(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    /// Waits until `text` stands in its log.
    #[track_caller]
    pub(crate) fn expect_log(&self, text: &str) {
        eventually(text, || self.stderr.lock().unwrap().contains(text));
    }

    /// Its statistics now, asked for by a signal.
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        let lines =
            |log: &str| log.lines().filter(|line| line.contains("stats=") && line.ends_with('}')).count();
        let before = lines(&self.log());
        self.signal(Signal::USR1);
        eventually("a line with the statistics", || lines(&self.stderr.lock().unwrap()) > before);
        let log = self.log();
        stats_in(log.lines().rfind(|line| line.contains("stats=")).unwrap())
    }

    /// CPU time that it has used, in clock ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// How often its threads have gone to sleep or were put off a CPU.
    pub(crate) fn context_switches(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of_task = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
            counts.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum::<u64>()
        };
        tasks.flatten().map(of_task).sum()
    }

    /// Memory that it occupies.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.of_status("VmRSS:")
    }

    /// The most memory that it has occupied at any time.
    pub(crate) fn most_resident_kib(&self) -> u64 {
        self.of_status("VmHWM:")
    }

    /// Address space that it has mapped.
    pub(crate) fn mapped_kib(&self) -> u64 {
        self.of_status("VmSize:")
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> u64 {
        self.of_status("Threads:")
    }

    /// A number of its status, in KiB where that is its unit.
    fn of_status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many files it has open.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Changes how many files it may open from now on.
    pub(crate) fn limit_files(&self, limit: usize) {
        let limit = Some(limit as u64);
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(Some(self.pid()), Resource::Nofile, Rlimit { current: limit, maximum }).unwrap();
    }

    /// SIGTERM, and the end.
    #[track_caller]
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        let status = wait_for(&mut self.child);
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let mut stderr = self.log();
        if let Some(unread) = self.child.stderr.as_mut() {
            unread.read_to_string(&mut stderr).unwrap();
        }
        Ended { status, stdout: self.output(), stderr }
    }
}

/// Stops a process in its tracks: from when this returns until it gets SIGCONT, it runs not one instruction.
pub(crate) fn freeze(process: Pid) {
    kill_process(process, Signal::STOP).unwrap();
    eventually("the process is frozen", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
        tasks.flatten().all(|task| {
            // A thread that has just ended is no longer running either.
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    });
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has been waited for, or nobody needs it any more.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// The columns of each TCP socket of IPv4 in this state of `/proc/net/tcp`: 1 is its own address, 2 its peer's.
pub(crate) fn tcp_sockets(state: &str) -> impl Iterator<Item = Vec<String>> {
    let table = BufReader::new(fs::File::open("/proc/net/tcp").unwrap());
    let column = format!(" {state} ");
    // It is long where many connections have ended of late.
    let lines = table.lines().map(Result::unwrap).filter(move |line| line.contains(&column));
    let columns = lines.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    columns.filter({
        let state = state.to_owned();
        move |columns| columns[3] == state
    })
}

/// Where a process listens, on IPv4.
fn listening(id: u32) -> Option<SocketAddr> {
    let files = fs::read_dir(format!("/proc/{id}/fd")).ok()?;
    let files: Vec<PathBuf> = files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).collect();
    let is_its = |columns: &Vec<String>| files.contains(&PathBuf::from(format!("socket:[{}]", columns[9])));
    let columns = tcp_sockets("0A").find(is_its)?;
    let (ip, port) = columns[1].split_once(':').unwrap();
    let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
    Some((ip, u16::from_str_radix(port, 16).unwrap()).into())
}

#[track_caller]
fn wait_for(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the process ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn copy(from: impl Read, to: &Mutex<String>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        to.lock().unwrap().push_str(&(line + "\n"));
    }
}

/// Raises this process's limit of open files to `wanted`, or as far as it goes. Returns what it is then.
pub(crate) fn allow_files(wanted: usize) -> usize {
    let number = |limit: Option<u64>| limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap());
    let limit = getrlimit(Resource::Nofile);
    let most = wanted.min(number(limit.maximum));
    if number(limit.current) < most {
        setrlimit(Resource::Nofile, Rlimit { current: Some(most as u64), maximum: limit.maximum }).unwrap();
    }
    number(getrlimit(Resource::Nofile).current)
}

/// An empty directory for one test.
pub(crate) fn scratch(name: &str) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

/// Makes `command`, a script of ours, find the program of this test build where a release build would lie, and a `cargo`
/// that has nothing to do: the script is what is tested, not the compiler.
pub(crate) fn fake_toolchain(script: &str) -> Command {
    let directory = scratch("toolchain");
    let bin = directory.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let cargo = bin.join("cargo");
    fs::write(&cargo, "#!/bin/sh\necho \"cargo $*\"\n").unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(directory.join("target/release")).unwrap();
    symlink(env!("CARGO_BIN_EXE_tidemill"), directory.join("target/release/tidemill")).unwrap();

    let mut command = without_settings(Command::new(script_path(script)));
    command.env("CARGO_TARGET_DIR", directory.join("target"));
    command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    command
}

fn script_path(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(script)
}

impl Ended {
    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn of(command: &mut Command) -> Ended {
        Ended::try_of(command).unwrap()
    }

    /// Runs a command to its end, if it can be started.
    #[track_caller]
    pub(crate) fn try_of(command: &mut Command) -> io::Result<Ended> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pid = Pid::from_child(&child);
        let (done, ended) = mpsc::channel::<()>();
        // Ended from outside if it takes too long; its output would be waited for without end.
        let watch = thread::spawn(move || {
            if ended.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
                kill_process(pid, Signal::KILL).unwrap();
            }
        });
        let output = child.wait_with_output().unwrap();
        drop(done);
        watch.join().unwrap();
        Ok(Ended {
            status: output.status,
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        })
    }
}
