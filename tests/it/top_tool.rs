//! `tidemill top`: in a real pseudo terminal, which it gives back however it ends; and for scripts.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::admin::admin_of_program;
use crate::support::{Ended, Serving, eventually, program, scratch, serve};

fn top(arguments: &[&str]) -> Command {
    let mut command = program();
    command.arg("top").args(arguments);
    command
}

#[track_caller]
fn run(command: &mut Command) -> Ended {
    Ended::try_of(command.stdin(Stdio::null())).unwrap()
}

#[test]
fn without_a_terminal_it_is_one_snapshot() {
    let serving = serve("--admin 0 --min-threads 2 --max-threads 7");
    let mut peer = serving.connect();
    peer.ask("x");
    // Its worker is at it for a moment after the reply.
    eventually("nobody is busy", || serving.stats()["pool_busy"] == 0);
    let admin = admin_of_program(&serving).to_string();
    let ended = run(&mut top(&[&admin]));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    for part in [
        &format!("at {admin}, process {}", serving.pid().as_raw_nonzero()),
        "state        serving\n",
        "connections  1, 1 accepted, 0 rejected",
        "requests     1, 1 replied, 0 pending, 0 dropped\n",
        "0 of 2 workers busy, 2 to 7 allowed",
    ] {
        assert!(ended.stdout.contains(part), "{part} in {}", ended.stdout);
    }
    let json = run(&mut top(&["--json", &admin]));
    let stats: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&stats["replies_total"], &stats["pool_max"]), (&1.into(), &7.into()), "{stats}");
}

#[test]
fn a_unix_socket_is_asked_too() {
    let path = scratch("top").join("admin");
    let serving = serve(&format!("--admin unix:{}", path.display()));
    let ended = run(&mut top(&[&format!("unix:{}", path.display())]));
    assert!(ended.stdout.contains("state        serving\n"), "{ended:?}");
    serving.stop().assert_clean();
}

#[test]
fn a_check_says_by_its_status_whether_it_holds() {
    let serving = serve("--admin 0");
    serving.connect().ask("x");
    let admin = admin_of_program(&serving).to_string();
    let check = |conditions: &str| run(&mut top(&["--check", conditions, &admin]));
    let holds =
        check("ready=1,requests_pending=0, pool_saturation<0.9,queue_wait_seconds.p99<10s,requests_total=1");
    assert_eq!((holds.status.code(), holds.stdout.as_str()), (Some(0), ""), "{holds:?}");
    let broken = check("ready=1,replies_total>1,uptime_seconds>10m");
    assert_eq!(broken.status.code(), Some(1), "{broken:?}");
    let lines: Vec<&str> = broken.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{broken:?}");
    assert_eq!(lines[0], "replies_total>1 does not hold: it is 1");
    assert!(lines[1].starts_with("uptime_seconds>10m does not hold: it is "), "{broken:?}");
    for wrong in ["beauty>1", "ready", "uptime_seconds>10", "state=1"] {
        let ended = check(wrong);
        assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(2), 1), "{wrong}: {ended:?}");
    }
}

#[test]
fn who_does_not_answer_is_told_in_one_line() {
    let serving = serve("");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, part) in [
        (gone.to_string(), "refused"),
        (silent.local_addr().unwrap().to_string(), "no answer within 500ms"),
        ("unix:/nowhere".to_owned(), "No such file"),
        // To which a request by HTTP is lines that have no reply.
        (serving.address.to_string(), "no answer within 500ms"),
    ] {
        for mode in ["--json", "--check=ready=1", "--every=1s"] {
            let ended = run(&mut top(&["--timeout", "500ms", mode, &address]));
            assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
            assert!(ended.stderr.lines().count() == 1 && ended.stderr.contains(part), "{address}: {ended:?}");
        }
    }
    let wrong = run(&mut top(&["nowhere"]));
    assert_eq!((wrong.status.code(), wrong.stderr.lines().count()), (Some(2), 1), "{wrong:?}");
}

/// The program in a terminal.
struct Terminal {
    child: Child,
    keys: File,
    /// The side that the program has.
    inside: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    /// Before the program had it.
    modes: String,
}

impl Terminal {
    #[track_caller]
    fn run(command: &mut Command) -> Terminal {
        let outside = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let name = ptsname(&outside, Vec::new()).unwrap();
        let inside = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        tcsetwinsize(&inside, Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let modes = modes(&inside);
        let side = || Stdio::from(inside.try_clone().unwrap());
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        let (keys, mut screen) = (File::from(outside.try_clone().unwrap()), File::from(outside));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&shown);
        // Until the last of those who hold the other side has let go.
        thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut part) {
                taken.lock().unwrap().extend_from_slice(&part[..read]);
            }
        });
        Terminal { child, keys, inside, shown, modes }
    }

    /// What has been sent to the terminal so far.
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until this is sent to the terminal, of which only what has changed is.
    #[track_caller]
    fn expect(&self, text: &str) {
        eventually(text, || self.shown().contains(text));
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for the end, and finds the terminal as it was.
    #[track_caller]
    fn expect_end(mut self) {
        let mut status = None;
        eventually("it has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0), "{}", self.shown());
        assert_eq!(modes(&self.inside), self.modes);
        // The screen is the one from before, with its cursor.
        self.expect("\u{1b}[?1049l");
        self.expect("\u{1b}[?25h");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended, or nobody needs it any more.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How input and output are treated.
fn modes(terminal: &OwnedFd) -> String {
    let modes = tcgetattr(terminal).unwrap();
    format!("{:?} {:?} {:?}", modes.input_modes, modes.output_modes, modes.local_modes)
}

#[test]
fn the_terminal_is_given_back_however_it_ends() {
    let serving = serve("--admin 0");
    let admin = admin_of_program(&serving).to_string();
    type Way = (&'static str, fn(&mut Terminal));
    let ways: [Way; 5] = [
        ("q", |terminal| terminal.keys.write_all(b"q").unwrap()),
        ("CTRL-C", |terminal| terminal.keys.write_all(b"\x03").unwrap()),
        ("SIGTERM", |terminal| kill_process(terminal.pid(), Signal::TERM).unwrap()),
        ("SIGINT", |terminal| kill_process(terminal.pid(), Signal::INT).unwrap()),
        ("SIGHUP", |terminal| kill_process(terminal.pid(), Signal::HUP).unwrap()),
    ];
    for (name, end) in ways {
        let mut terminal = Terminal::run(top(&[&admin]).env("TERM", "xterm-256color"));
        terminal.expect("serving");
        terminal.expect("decisions");
        assert_ne!(modes(&terminal.inside), terminal.modes, "{name}: it is in use");
        end(&mut terminal);
        terminal.expect_end();
    }
    serving.stop().assert_clean();
}

#[test]
fn a_server_that_goes_is_waited_for() {
    let serving = serve("--admin 0");
    let admin = admin_of_program(&serving).to_string();
    let mut terminal = Terminal::run(top(&["--every", "50ms", &admin]).env("TERM", "xterm-256color"));
    terminal.expect("serving");
    serving.stop().assert_clean();
    terminal.expect("no answer");
    let mut command = program();
    command.args(["serve", "0", "--admin", &admin]);
    let again = Serving::start(command);
    eventually("it is seen again", || {
        let shown = terminal.shown();
        shown.rfind("serving") > shown.rfind("no answer for")
    });
    terminal.keys.write_all(b"q").unwrap();
    eventually("it has ended", || terminal.child.try_wait().unwrap().is_some());
    again.stop().assert_clean();
}
