//! The scripts at the entry: what they say when something is missing, and that they become the program.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use rustix::process::Signal;

use crate::support::{Ended, Serving, fake_toolchain, helo_reply, scratch, serve};

/// A command that finds nothing but a shell and `dirname`.
fn without_cargo(script: &str) -> Command {
    let directory = scratch("bare");
    for tool in ["sh", "dirname"] {
        let found = ["/bin", "/usr/bin"]
            .iter()
            .map(|bin| format!("{bin}/{tool}"))
            .find(|path| fs::exists(path).unwrap());
        symlink(found.unwrap(), directory.join(tool)).unwrap();
    }
    let mut command = Command::new(format!("{}/{script}", env!("CARGO_MANIFEST_DIR")));
    command.env("PATH", directory);
    command
}

#[test]
fn compile_sh_without_cargo_says_what_to_install() {
    for (script, arguments) in [("compile.sh", &[][..]), ("start.sh", &["8000"])] {
        let ended = Ended::of(without_cargo(script).args(arguments));
        assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("cargo not found") && ended.stderr.contains("install"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn compile_sh_builds_the_release() {
    let ended = Ended::of(&mut fake_toolchain("compile.sh"));
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(0), "cargo build --release --locked\n"));
}

#[test]
fn start_sh_without_a_good_port_is_one_usage_line_and_exit_status_2() {
    for arguments in [
        &[][..],
        &[""],
        &["http"],
        &["-1"],
        &["65536"],
        &["100000"],
        &["99999999999999999999"],
        &["8000x"],
        &[" 8000"],
        &["0x50"],
        &["--help"],
        &["1.5"],
    ] {
        let ended = Ended::of(fake_toolchain("start.sh").args(arguments));
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.starts_with("usage: ./start.sh PORT"), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn start_sh_becomes_the_server_with_the_defaults_of_the_assignment() {
    let mut command = fake_toolchain("start.sh");
    command.args(["0", "--student-id", "me"]);
    let serving = Serving::start(command);
    assert!(serving.address.ip().is_unspecified(), "it listens for clients on other machines");
    // Not a child of the shell: the process that was started is the server, so that signals reach it.
    assert_eq!(
        fs::read_to_string(format!("/proc/{}/comm", serving.pid().as_raw_pid())).unwrap(),
        "tidemill\n"
    );
    let mut peer = crate::support::Peer::connect(("127.0.0.1", serving.address.port()));
    peer.send(b"HELO x\nKILL_SERVICE\n");
    let port = serving.address.port();
    peer.expect_rest(format!("HELO x\nIP:127.0.0.1\nPort:{port}\nStudentID:me\n").as_bytes());
    drop(peer);
    let ended = serving.wait();
    ended.assert_clean();
    assert_eq!(ended.stdout, format!("listening on 0.0.0.0:{port}\n"), "the build's words go elsewhere");
}

#[test]
fn start_sh_passes_on_the_exit_status() {
    let serving = serve("");
    let port = serving.address.port().to_string();
    let in_use = Ended::of(fake_toolchain("start.sh").args([&port, "--bind", "127.0.0.1"]));
    assert_eq!(in_use.status.code(), Some(1), "{}", in_use.stderr);
    let wrong = Ended::of(fake_toolchain("start.sh").args(["0", "--min-threads", "x"]));
    assert_eq!(wrong.status.code(), Some(2), "{}", wrong.stderr);
}

#[test]
fn start_sh_can_be_called_from_anywhere() {
    for relative in [false, true] {
        let mut command = fake_toolchain("start.sh");
        command.args(["0", "--bind", "127.0.0.1"]).current_dir("/");
        if relative {
            // As cargo takes it: from the folder of the repository.
            let target = command.get_envs().find(|(name, _)| *name == "CARGO_TARGET_DIR").unwrap().1.unwrap();
            let up = "../".repeat(env!("CARGO_MANIFEST_DIR").matches('/').count());
            let target = format!("{up}{}", target.to_str().unwrap().trim_start_matches('/'));
            command.env("CARGO_TARGET_DIR", target);
        }
        let serving = Serving::start(command);
        serving.connect().ask("from elsewhere");
        serving.signal(Signal::TERM);
        serving.wait().assert_clean();
    }
}

#[test]
fn client_sh_sends_one_helo_or_stops_the_service() {
    let serving = serve("");
    let port = serving.address.port().to_string();
    let ended = Ended::of(fake_toolchain("scripts/client.sh").args(["H", "127.0.0.1", &port]));
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout.as_bytes(), helo_reply(b"IMPRESSIVE_TEST", serving.address));
    let ended = Ended::of(fake_toolchain("scripts/client.sh").args(["K", "127.0.0.1", &port]));
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    serving.wait().assert_clean();
    let ended = Ended::of(fake_toolchain("scripts/client.sh").args(["H"]));
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.starts_with("usage:"), "{}", ended.stderr);
}
