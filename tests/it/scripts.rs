//! The scripts at the entry: that they find what they need from anywhere, what they say when something is missing, and
//! that they become the program.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, geteuid};

use crate::support::{Ended, Serving, fake_toolchain, helo_reply, scratch, serve};

/// A program that says how it was called.
const ECHO: &str = "#!/bin/sh\necho \"${0##*/} $*\"\n";
/// A cargo that builds such programs where the real one would put them.
const CARGO: &str = r#"#!/bin/sh
[ "$1" = build ] || exit 0
[ -n "${CARGO_TARGET_DIR-unset}" ] || { echo "error: CARGO_TARGET_DIR is empty" >&2; exit 101; }
target=${CARGO_TARGET_DIR:-${CARGO_BUILD_TARGET_DIR:-target}}
release=$target/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release
mkdir -p "$release"
for program in tidemill bench; do
    cp "$ECHO" "$release/$program"
done
"#;

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// A checkout of the scripts alone, and a `PATH` with a cargo of its own.
struct Checkout {
    scratch: PathBuf,
    root: PathBuf,
}

impl Checkout {
    /// Its path has a blank in it.
    fn new() -> Checkout {
        Checkout::within(scratch("checkout"))
    }

    fn within(scratch: PathBuf) -> Checkout {
        let root = scratch.join("tide mill");
        fs::create_dir_all(root.join("scripts")).unwrap();
        let copy = "cd \"$1\" && cp ./*.sh \"$2\" && cp scripts/*.sh \"$2/scripts\"";
        run(Command::new("sh").args(["-c", copy, "copy", env!("CARGO_MANIFEST_DIR")]).arg(&root));
        let checkout = Checkout { scratch, root };
        checkout.write("echo", ECHO);
        checkout.write("bin/cargo", CARGO);
        checkout
    }

    /// Not by this process: what another test starts at that moment would hold the file open, and it could not be run.
    fn write(&self, path: &str, script: &str) {
        let path = self.scratch.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let write = "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"";
        run(Command::new("sh").args(["-c", write, "write", script]).arg(path));
    }

    /// As if it had been built.
    fn build(&self) {
        self.write("tide mill/target/release/tidemill", ECHO);
    }

    /// Runs a script as whoever types its path below the folder in which the checkout lies.
    fn command(&self, path: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\"", path]).current_dir(&self.scratch);
        for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_BUILD_TARGET", "CDPATH"] {
            command.env_remove(name);
        }
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.scratch.join("bin").display()));
        command.env("ECHO", self.scratch.join("echo"));
        command
    }

    /// The same, with nothing to be found but a shell and `dirname`.
    fn bare_command(&self, path: &str) -> Command {
        let bare = self.scratch.join("bare");
        fs::create_dir_all(&bare).unwrap();
        for tool in ["sh", "dirname"] {
            let paths = [format!("/bin/{tool}"), format!("/usr/bin/{tool}")];
            let found = paths.iter().find(|path| fs::exists(path).unwrap()).unwrap();
            if !bare.join(tool).exists() {
                symlink(found, bare.join(tool)).unwrap();
            }
        }
        let mut command = self.command(path);
        command.env("PATH", bare);
        command
    }
}

/// The only line on standard output, from a script that went well.
#[track_caller]
fn line_of(command: &mut Command) -> String {
    let ended = Ended::of(command);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
    ended.stdout.trim_end().to_owned()
}

/// Exit status 1, and one line on standard error that says it all.
#[track_caller]
fn assert_one_line(command: &mut Command, parts: &[&str]) {
    let ended = Ended::of(command);
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    for part in parts {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn without_cargo_and_without_a_build_they_say_what_to_install() {
    let checkout = Checkout::new();
    for (script, arguments) in [
        ("compile.sh", &[][..]),
        ("start.sh", &["8000"]),
        ("scripts/client.sh", &["H", "127.0.0.1", "1"]),
        ("scripts/check.sh", &[]),
        ("scripts/loom.sh", &[]),
    ] {
        let path = format!("tide mill/{script}");
        let missing = ["cargo not found", "install Rust"];
        assert_one_line(checkout.bare_command(&path).args(arguments), &missing);
        // As rustup has it without a toolchain.
        checkout.write("bin/cargo", "#!/bin/sh\necho no toolchain >&2\nexit 1\n");
        assert_one_line(checkout.command(&path).args(arguments), &missing);
    }
}

#[test]
fn without_cargo_what_is_built_is_run() {
    let checkout = Checkout::new();
    checkout.build();
    let mut start = checkout.bare_command("tide mill/start.sh");
    assert_eq!(line_of(start.arg("8000")), "tidemill serve --assignment 8000");
    let mut client = checkout.bare_command("tide mill/scripts/client.sh");
    assert_eq!(line_of(client.args(["H", "::1", "1", "a b"])), "tidemill client H ::1 1 a b");
}

#[test]
fn they_find_their_checkout_whatever_cdpath_says_and_through_symbolic_links() {
    let checkout = Checkout::new();
    // To here `cd` would go first.
    let elsewhere = checkout.scratch.join("elsewhere");
    for folder in ["tide mill/scripts", "scripts", "links"] {
        fs::create_dir_all(elsewhere.join(folder)).unwrap();
    }
    let links = checkout.scratch.join("links");
    fs::create_dir_all(&links).unwrap();
    symlink(&checkout.root, checkout.scratch.join("linked")).unwrap();
    for (script, arguments, said) in [
        ("compile.sh", &[][..], ""),
        ("start.sh", &["0", "--max-line", "1KiB"], "tidemill serve --assignment 0 --max-line 1KiB\n"),
        ("scripts/client.sh", &["K", "::1", "1"], "tidemill client K ::1 1\n"),
        ("scripts/load.sh", &["::1:1", "-n", "1"], "tidemill load --report "),
        ("scripts/bench.sh", &["--quick"], "bench compare --tidemill "),
        ("scripts/elasticity.sh", &["--quick"], "bench elasticity --tidemill "),
        ("scripts/overload.sh", &["--patience", "1s"], "bench overload --tidemill "),
        ("scripts/programs.sh", &["--others"], "bench programs --tidemill "),
    ] {
        let name = script.rsplit('/').next().unwrap();
        // A link to a link, the second one relative.
        symlink(checkout.root.join(script), links.join(format!("{name}.first"))).unwrap();
        symlink(format!("{name}.first"), links.join(name)).unwrap();
        for path in [format!("tide mill/{script}"), format!("links/{name}"), format!("linked/{script}")] {
            let mut command = checkout.command(&path);
            let ended = Ended::of(command.args(arguments).env("CDPATH", &elsewhere));
            assert_eq!(ended.status.code(), Some(0), "{path}: {}", ended.stderr);
            assert!(ended.stdout.starts_with(said), "{path}: {}", ended.stdout);
            let built = checkout.root.join("target/release/tidemill");
            fs::remove_file(built).unwrap_or_else(|_| panic!("{path} built elsewhere: {}", ended.stderr));
        }
    }
}

#[test]
fn the_program_is_found_where_cargo_was_told_to_put_it() {
    let checkout = Checkout::new();
    let absolute = checkout.scratch.join("abso lute");
    let absolute = absolute.to_str().unwrap();
    for (name, value) in [
        ("CARGO_TARGET_DIR", "rela tive"),
        ("CARGO_TARGET_DIR", absolute),
        ("CARGO_TARGET_DIR", ""),
        ("CARGO_BUILD_TARGET_DIR", "other"),
        ("CARGO_BUILD_TARGET", "x86_64-unknown-linux-musl"),
    ] {
        let command = |script: &str| {
            let mut command = checkout.command(&format!("tide mill/{script}"));
            command.env(name, value);
            command
        };
        assert_eq!(line_of(command("start.sh").arg("1")), "tidemill serve --assignment 1", "{name}={value}");
        let client = line_of(command("scripts/client.sh").args(["K", "::1", "1"]));
        assert_eq!(client, "tidemill client K ::1 1", "{name}={value}");
        for (script, what) in [("bench", "compare"), ("elasticity", "elasticity"), ("overload", "overload")] {
            let said = line_of(command(&format!("scripts/{script}.sh")).arg("--help"));
            assert!(said.starts_with(&format!("bench {what} --tidemill /")), "{name}={value}: {said}");
        }
        // It starts the program itself, which here does not say where it listens.
        let cost = Ended::of(command("scripts/cost.sh").arg("idle"));
        assert_eq!((cost.status.code(), cost.stderr.lines().count()), (Some(1), 1), "{}", cost.stderr);
        assert!(cost.stderr.contains("/release/tidemill serve 0"), "{name}={value}: {}", cost.stderr);
        let load = Ended::of(command("scripts/load.sh").args(["::1:1"]));
        assert_eq!(load.status.code(), Some(0), "{name}={value}: {}", load.stderr);
    }
}

/// A checkout that its user may read and no more, built or not.
#[test]
fn a_checkout_that_cannot_be_written_runs_what_is_built_or_says_so_in_one_line() {
    // Where another user may go: to root nothing is read-only.
    let directory = std::env::temp_dir().join(format!("tidemill-scripts-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let checkout = Checkout::within(directory.clone());
    let target = checkout.root.join("target");
    let as_reader = |script: &str| {
        let mut command = checkout.command(&format!("tide mill/{script}"));
        if geteuid().is_root() {
            command.uid(12_345).gid(12_345);
        }
        command
    };
    let set_mode = |mode: u32| {
        for path in [&checkout.root, &target, &target.join("release")] {
            if path.exists() {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    };
    set_mode(0o555);
    assert_one_line(as_reader("start.sh").arg("1"), &["cannot write", "CARGO_TARGET_DIR"]);
    assert_one_line(&mut as_reader("compile.sh"), &["cannot write", "CARGO_TARGET_DIR"]);
    set_mode(0o755);
    checkout.build();
    set_mode(0o555);
    assert_eq!(line_of(as_reader("start.sh").arg("1")), "tidemill serve --assignment 1");
    assert_eq!(line_of(as_reader("scripts/client.sh").args(["K", "::1", "1"])), "tidemill client K ::1 1");
    let load = Ended::of(as_reader("scripts/load.sh").args(["::1:1"]));
    assert_eq!(load.status.code(), Some(0), "{}", load.stderr);
    let report = load.stdout.strip_prefix("tidemill load --report ").unwrap();
    let report = report.strip_suffix(" ::1:1\n").unwrap();
    assert!(!Path::new(report).starts_with(&checkout.root), "{report}");
    set_mode(0o755);
    fs::remove_dir_all(Path::new(report).parent().unwrap()).unwrap();
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_build_that_fails_starts_nothing() {
    let checkout = Checkout::new();
    checkout.build();
    checkout.write(
        "bin/cargo",
        "#!/bin/sh\n[ \"$1\" = build ] || exit 0\necho 'error: it does not compile' >&2\nexit 101\n",
    );
    assert_one_line(checkout.command("tide mill/start.sh").arg("1"), &["it does not compile"]);
    let mut client = checkout.command("tide mill/scripts/client.sh");
    assert_one_line(client.args(["K", "::1", "1"]), &["it does not compile"]);
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

/// A program in the checkout's place that says how it is called to flood, and serves nobody.
const FLOODS: &str = r#"#!/bin/sh
case $1 in
serve)
    echo 'listening on 127.0.0.1:1'
    trap 'exit 0' TERM
    while :; do sleep 0.05; done
    ;;
*) echo "$*" >>"$FLOODS" ;;
esac
"#;

#[test]
fn load_sh_takes_the_options_that_it_gives_itself() {
    // A server of somebody else's, and the real program.
    let server = serve("");
    let checkout = Checkout::new();
    let address = server.address.to_string();
    let load = |arguments: &[&str]| {
        let mut command = checkout.command("tide mill/scripts/load.sh");
        let program = crate::support::program();
        Ended::of(command.env("ECHO", program.get_program()).arg(&address).args(arguments))
    };
    let page = checkout.root.join("target/load-report/flood.html");
    let ended = load(&["-n", "20", "-c", "2"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.ends_with(&format!("report: {}\n", page.display())), "{ended:?}");
    assert!(fs::read_to_string(&page).unwrap().starts_with("<!doctype html>"));
    // No page of this run, but of the one before.
    for (arguments, status) in [
        (&["-n", "20", "-c", "2", "--report", "own.html"][..], 0),
        (&["-n", "0"], 2),
        (&["-n", "20", "--report", "/nowhere/at/all.html"], 1),
    ] {
        fs::write(&page, "of another run").unwrap();
        let ended = load(arguments);
        assert_eq!(ended.status.code(), Some(status), "{arguments:?}: {ended:?}");
        assert!(!ended.stdout.contains("report: "), "{arguments:?}: {ended:?}");
    }
    assert!(fs::read_to_string(checkout.scratch.join("own.html")).unwrap().starts_with("<!doctype html>"));

    // A server of its own: what is given comes last, and counts.
    checkout.write("floods", FLOODS);
    let mut command = checkout.command("tide mill/scripts/load.sh");
    command.args(["-c", "100", "--quick", "-d", "3s", "--report", "own.html"]);
    let list = checkout.scratch.join("list");
    let ended = Ended::of(command.env("ECHO", checkout.scratch.join("floods")).env("FLOODS", &list));
    assert_eq!(ended.status.code(), Some(1), "nothing was answered: {ended:?}");
    assert!(!ended.stdout.contains("report: "), "{ended:?}");
    let list = fs::read_to_string(list).unwrap();
    let given: Vec<&str> =
        list.lines().filter(|line| line.ends_with(" -c 100 -d 3s --report own.html")).collect();
    assert_eq!((given.len(), list.lines().count()), (2, 6), "{list}");
    assert!(given.iter().all(|line| line.contains(" -c 64 ") && line.contains(" -d 1s ")), "{list}");
}
