//! `--config`: where options come from, what is refused and how, and `--check`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Ended, Serving, program, scratch};

/// A file that is there for one test.
pub(crate) struct ConfigFile(pub(crate) PathBuf);

impl ConfigFile {
    pub(crate) fn new(text: &str) -> ConfigFile {
        let file = ConfigFile(scratch("config").join("tidemill.toml"));
        file.write(text);
        file
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(&self.0, text).unwrap();
    }

    /// `tidemill serve --config FILE` with further options.
    pub(crate) fn command(&self, options: &str) -> Command {
        let mut command = program();
        command.arg("serve").arg("--config").arg(&self.0).args(options.split_whitespace());
        command
    }

    pub(crate) fn serve(&self, options: &str) -> Serving {
        Serving::start(self.command(options))
    }
}

/// Each option with its value and its source, as `--check` tells them.
#[track_caller]
fn check(command: &mut Command) -> BTreeMap<String, (String, String)> {
    let ended = Ended::of(command.arg("--check"));
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), ""));
    let line = |line: &str| {
        let (key, rest) = line.split_once(" = ").unwrap_or_else(|| panic!("{line}"));
        let (value, source) = rest.split_once("  # ").unwrap_or_else(|| panic!("{line}"));
        (key.to_owned(), (value.to_owned(), source.to_owned()))
    };
    ended.stdout.lines().map(line).collect()
}

/// One line that names what is wrong, and exit status 2, whether it is only checked or not.
#[track_caller]
pub(crate) fn assert_refused(file: &ConfigFile, options: &str, named: &[&str]) {
    for mode in ["", "--check"] {
        let ended = Ended::of(file.command(options).args(mode.split_whitespace()));
        let text = fs::read_to_string(&file.0).unwrap_or_default();
        assert_eq!(ended.status.code(), Some(2), "{text}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{text}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{text}");
        for part in named {
            assert!(ended.stderr.contains(part), "'{part}' is not in: {}", ended.stderr);
        }
        assert!(ended.stderr.contains("tidemill.toml"), "{}", ended.stderr);
    }
}

#[test]
fn flags_win_over_the_environment_that_over_the_file_and_that_over_defaults() {
    let file = ConfigFile::new(
        "port = 0\nmax-threads = 9\nmin-threads = 3\ntolerance = 2\nbind = [\"127.0.0.1\", \"::1\"]\nmax-line = \"1KiB\"\n",
    );
    let with = |command: &mut Command| {
        command.env("MIN_THREADS", "5").env("TOLERANCE", "7").args([
            "--tolerance",
            "1",
            "--bind",
            "127.0.0.1",
        ]);
    };
    let mut command = file.command("");
    with(&mut command);
    let values = check(&mut command);
    for (key, value, source) in [
        ("port", "0", "file, line 1"),
        ("max-threads", "9", "file, line 2"),
        ("min-threads", "5", "environment, MIN_THREADS"),
        ("tolerance", "1", "flag"),
        ("bind", "[\"127.0.0.1\"]", "flag"),
        ("max-line", "\"1KiB\"", "file, line 6"),
        ("max-pending", "65536", "default"),
        ("idle-timeout", "\"off\"", "default"),
    ] {
        assert_eq!(values[key], (value.to_owned(), source.to_owned()), "{key}");
    }
    let mut command = file.command("");
    with(&mut command);
    let serving = Serving::start(command);
    let stats = serving.stats();
    assert_eq!((&stats["pool_min"], &stats["pool_max"]), (&5.into(), &9.into()));
    let mut peer = serving.connect();
    peer.send(&[b'x'; 1025]);
    peer.expect_rest(b"ERROR line too long (limit 1024 bytes)\n");
}

#[test]
fn every_kind_of_value_is_read_as_people_write_it() {
    let file = ConfigFile::new(
        r#"
        port = 8001
        "bind" = "127.0.0.2"                # one, without a list
        unix = ["/tmp/a", "/tmp/b"]
        unix-mode = "0660"
        kill-from = ["10.0.0.0/8", "::1"]   # or with commas in one string
        max-line = 4096
        max-memory = "64MiB"
        line-timeout = "1m 30s"
        idle-timeout = "off"
        max-connections-per-peer = "off"
        stats-every = "off"
        student-id = "0042"
        advertise-ip = ""
        assignment = false
        inline = true
        log-format = "json"
        "#,
    );
    let values = check(&mut file.command(""));
    for (key, value) in [
        ("port", "8001"),
        ("bind", "[\"127.0.0.2\"]"),
        ("unix", "[\"/tmp/a\", \"/tmp/b\"]"),
        ("kill-from", "\"10.0.0.0/8,::1\""),
        ("max-line", "4096"),
        ("line-timeout", "\"1m 30s\""),
        ("student-id", "\"0042\""),
        ("advertise-ip", "\"\""),
        ("assignment", "false"),
        ("inline", "true"),
    ] {
        assert_eq!(values[key].0, value, "{key}");
    }
}

#[test]
fn what_check_prints_is_a_file_that_says_the_same() {
    let first = ConfigFile::new(
        "port = 0\nunix = [\"/tmp/x y\"]\nmax-threads = 3\nkill-from = \"any\"\nassignment = true\n",
    );
    let mut command = first.command("--handler-delay 5ms");
    let printed = Ended::of(command.arg("--check")).stdout;
    let values = check(&mut first.command("--handler-delay 5ms"));
    let again = check(&mut ConfigFile::new(&printed).command(""));
    assert_eq!(values.len(), again.len());
    for (key, (value, _)) in &values {
        assert_eq!(&again[key].0, value, "{key}");
    }
    // Also with programs, whose options go with --exec only, and which others do not go with.
    let mut command = program();
    let printed = Ended::of(command.args(["serve", "--exec", "cat", "--exec-spare", "2", "--check"])).stdout;
    let again = check(&mut ConfigFile::new(&printed).command(""));
    assert_eq!((&again["exec"].0[..], &again["exec-spare"].0[..]), ("\"cat\"", "2"));
    // The two defaults that --assignment changes.
    assert_eq!(values["bind"].0, "[\"0.0.0.0\"]");
    assert_eq!(check(&mut ConfigFile::new("assignment = true").command(""))["kill-from"].0, "\"any\"");
    let both = ConfigFile::new("kill-from = \"none\"\nbind = \"127.0.0.1\"\n");
    let values = check(&mut both.command("--assignment"));
    assert_eq!((&values["kill-from"].0[..], &values["bind"].0[..]), ("\"none\"", "[\"127.0.0.1\"]"));
}

#[test]
fn what_is_wrong_in_a_file_is_one_line_with_file_line_key_and_what_was_meant() {
    for (text, named) in [
        ("\nmax-treads = 5\n", &[".toml:2: ", "max-treads", "did you mean max-threads?"][..]),
        ("max_threads = 5\n", &[".toml:1: ", "max_threads", "did you mean max-threads?"]),
        ("Max-Threads = 5\n", &["did you mean max-threads?"]),
        ("listen-backlog-of-sockets = 5\n", &[".toml:1: ", "listen-backlog-of-sockets", "no such option"]),
        ("config = \"other\"\n", &["config", "only be given as a flag"]),
        ("port = 0\n[pool]\nmax = 5\n", &[".toml:2: ", "pool"]),
        ("port = 0\npool.max = 5\n", &[".toml:2: ", "pool"]),
        ("port = 0\n[max-threads]\n", &[".toml:2: ", "max-threads", "table"]),
        ("port = 0\nport = 1\n", &[".toml:2: ", "duplicate"]),
        ("port = 0\nmax-threads =\n", &[".toml:2: "]),
        ("port = \n", &[".toml:1: "]),
        ("port = 70000\n", &[".toml:1: ", "port", "70000"]),
        ("port = -1\n", &[".toml:1: ", "port", "-1"]),
        ("port = \"--help\"\n", &[".toml:1: ", "port", "--help"]),
        ("# one\n# two\nmax-threads = \"many\"\n", &[".toml:3: ", "max-threads", "many"]),
        ("max-threads = true\n", &[".toml:1: ", "max-threads", "true"]),
        ("max-threads = [1, 2]\n", &[".toml:1: ", "max-threads", "one value"]),
        ("max-threads = 1.5\n", &[".toml:1: ", "max-threads", "1.5"]),
        ("max-threads = 2026-11-27\n", &[".toml:1: ", "max-threads", "date"]),
        ("max-line = \"64KB\"\n", &[".toml:1: ", "max-line", "64KiB"]),
        ("line-timeout = 30\n", &[".toml:1: ", "line-timeout", "30", "unit"]),
        ("log-level = \"wran\"\n", &[".toml:1: ", "log-level", "did you mean warn?"]),
        ("inline = \"yes\"\n", &[".toml:1: ", "inline", "true or false"]),
        ("bind = [\"localhost\"]\n", &[".toml:1: ", "bind", "localhost"]),
        ("bind = [[\"::1\"]]\n", &[".toml:1: ", "bind", "strings"]),
        ("kill-from = \"\"\n", &[".toml:1: ", "kill-from"]),
        ("kill-from = [\"loopback\", \"10.0.0.0/8\"]\n", &[".toml:1: ", "kill-from", "stands alone"]),
        // What only the library knows to be wrong.
        ("max-line = 0\n", &[".toml:1: ", "max-line is 0"]),
        ("\nmin-threads = 9\nmax-threads = 8\n", &[".toml:2: ", "min-threads is 9", "max-threads"]),
        ("drain-timeout = \"2years\"\n", &[".toml:1: ", "drain-timeout"]),
        // What does not go together.
        ("\ninline = true\nhandler-delay = \"1s\"\n", &["--inline", "--handler-delay", ".toml:2", ".toml:3"]),
    ] {
        assert_refused(&ConfigFile::new(text), "", named);
    }
    assert_refused(
        &ConfigFile::new("inline = true\n"),
        "--handler-delay 1s",
        &["--handler-delay", ".toml:1"],
    );
    // Also where a flag wins.
    assert_refused(&ConfigFile::new("max-threads = 0x\n"), "--max-threads 5", &[".toml:1: "]);
    assert_refused(
        &ConfigFile::new("max-threads = \"many\"\n"),
        "--max-threads 5",
        &[".toml:1: ", "max-threads"],
    );
    let gone = ConfigFile::new("");
    fs::remove_file(&gone.0).unwrap();
    assert_refused(&gone, "", &["No such file"]);
    let no_text = ConfigFile::new("");
    fs::write(&no_text.0, [0xff, 0xfe]).unwrap();
    assert_refused(&no_text, "", &["UTF-8"]);
    let huge = ConfigFile::new(&"#\n".repeat(600 << 10));
    assert_refused(&huge, "", &["longer than"]);
}

#[test]
fn a_flag_or_variable_that_is_wrong_is_told_as_ever() {
    let file = ConfigFile::new("max-threads = 8\n");
    for command in [file.command("--min-threads x"), file.command("--min-threads 9")] {
        let mut command = command;
        let ended = Ended::of(command.arg("--check"));
        assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(2), ""));
        assert!(
            ended.stderr.starts_with("tidemill: ") && ended.stderr.contains("--min-threads"),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn check_binds_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let values = check(program().args(["serve", &port.to_string()]));
    assert_eq!(values["port"], (port.to_string(), "flag".to_owned()));
    // As a list of the options it is complete: whatever the help names, but for what is about the file.
    let help = Ended::of(program().args(["serve", "--help"])).stdout;
    let named = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let named = named.map(|line| line.split([' ', '=']).next().unwrap());
    let named: BTreeSet<&str> = named.filter(|name| !["help", "config", "check"].contains(name)).collect();
    assert!(named.len() > 25, "{help}");
    for name in &named {
        assert!(values.contains_key(*name), "--check does not tell {name}");
    }
    assert_eq!(values.len(), named.len() + 1, "and PORT");
}

/// Each line of the example that is commented out with one `#` and no blank is an option.
#[test]
fn the_example_holds_every_option_with_its_default_and_can_be_used() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deploy/tidemill.toml");
    let text = fs::read_to_string(path).unwrap();
    let defaults = check(program().arg("serve"));
    let uncommented =
        |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).map(str::to_owned);
    let all: Vec<String> =
        text.lines().map(|line| uncommented(line).unwrap_or_else(|| line.to_owned())).collect();
    let used = check(&mut ConfigFile::new(&all.join("\n")).command(""));
    for (key, (value, _)) in &defaults {
        let given = all.iter().any(|line| line.starts_with(&format!("{key} = ")));
        assert!(given, "the example does not have {key}");
        assert_eq!(&used[key].0, value, "{key}");
    }
    // As it is, it changes nothing.
    let values = check(&mut ConfigFile::new(&text).command(""));
    assert!(values.values().all(|(_, source)| source == "default"), "{values:?}");
}
