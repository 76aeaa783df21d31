//! Every option of every subcommand with values that nobody means: a panic or a hang is none of the answers.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::admin::admin_of_program;
use crate::support::{DEADLINE, Ended, Serving, program, scratch, serve};

/// For durations, numbers and sizes alike: what is none of them is refused as such.
const VALUES: [&str; 13] = [
    "0",
    "1",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "nan",
    "0s",
    "1ns",
    "365days",
    "500000000000years",
    "17179869183GiB",
    "-1",
    "",
];

/// The long names of the options that take a value.
fn options(subcommand: &str) -> Vec<String> {
    let help = Ended::of(program().args([subcommand, "--help"])).stdout;
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let options = lines.filter_map(|line| {
        let (name, rest) = line[line.find("--")?..].split_once(' ')?;
        rest.trim_start().starts_with('<').then(|| name.to_owned())
    });
    options.collect()
}

/// What has not ended by then would run on.
const MOMENT: Duration = Duration::from_secs(2);

/// Runs a command to its end, which what would run on is asked for after a moment.
fn end(command: &mut Command) -> Ended {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.current_dir(scratch("extremes")).spawn().unwrap();
    let (process, started) = (Pid::from_child(&child), Instant::now());
    let mut is_asked = false;
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > MOMENT && !std::mem::replace(&mut is_asked, true) {
            kill_process(process, Signal::INT).unwrap();
        }
        if started.elapsed() > DEADLINE {
            kill_process(process, Signal::KILL).unwrap();
        }
        thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    Ended {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// It ended by itself or when it was asked to, with a result or with one line that says why not.
#[track_caller]
fn assert_told(what: &str, ended: &Ended) {
    let status = ended.status.code();
    assert!(matches!(status, Some(0..=2)), "{what}: {:?} {}", ended.status, ended.stderr);
    if status == Some(2) || status == Some(1) && ended.stdout.is_empty() {
        let is_line = ended.stderr.lines().count() == 1 && ended.stderr.starts_with("tidemill: ");
        assert!(is_line, "{what}: {}", ended.stderr);
    }
}

/// Tries each value for each option beside some arguments.
#[track_caller]
fn try_all(subcommand: &str, arguments: &[&str]) {
    let options = options(subcommand);
    assert!(options.len() >= 2, "{subcommand}: {options:?}");
    for option in options {
        for value in VALUES {
            let option = format!("{option}={value}");
            let ended = end(program().arg(subcommand).args(arguments).arg(&option));
            assert_told(&format!("{subcommand} {option}"), &ended);
        }
    }
}

#[test]
fn no_value_of_an_option_of_serve_is_more_than_refused() {
    try_all("serve", &["0", "--check"]);
    for option in options("serve") {
        for value in ["18446744073709551615", "365days"] {
            let value = format!("{option}={value}");
            if end(program().args(["serve", "0", "--check", &value])).status.code() == Some(2) {
                continue;
            }
            let mut command = program();
            command.args(["serve", "0", &value]).current_dir(scratch("extremes"));
            match Serving::try_start(command) {
                Ok(server) => {
                    if !["--student-id", "--handler-delay", "--unix"].contains(&option.as_str()) {
                        server.connect().ask("x");
                    }
                    // SIGTERM would wait for the delay.
                    server.signal(Signal::INT);
                    server.wait().assert_clean();
                }
                Err(ended) => assert_told(&value, &ended),
            }
        }
    }
}

#[test]
fn no_value_of_an_option_of_the_tools_is_more_than_refused() {
    let server = serve("--admin 0");
    let address = server.address.to_string();
    try_all("load", &[&address, "-c", "1", "-n", "3", "--timeout", "2s"]);
    let (ip, port) = (server.address.ip().to_string(), server.address.port().to_string());
    try_all("client", &["H", &ip, &port]);
    try_all("client", &["--pipe", &address]);
    try_all("top", &[&admin_of_program(&server).to_string()]);
    for rule in ["tidemill", "all"] {
        try_all("simulate", &["rate=hold:100@100ms block=1ms", "--rule", rule]);
    }
    server.stop().assert_clean();
}

#[test]
fn no_length_and_no_number_within_a_value_is_more_than_refused() {
    let server = serve("");
    let address = server.address.to_string();
    let ages = "500000000000years";
    let shapes = [
        format!("hold:1@{ages}"),
        format!("hold:1@{ages},hold:1@{ages}"),
        format!("step:1..2x100000@{ages}"),
        "hold:1@365days,hold:1@1ms".to_owned(),
        "hold:1000000000@1s".to_owned(),
        "hold:1e308@1s".to_owned(),
        "hold:1e-300@1s".to_owned(),
        "hold:nan@1s".to_owned(),
        "hold:-1@1s".to_owned(),
        "hold:@".to_owned(),
        "random:0..1e9x100000@1s".to_owned(),
    ];
    let finds =
        ["p99<500000000000years", "p99<0s", "p99<", "rate>18446744073709551616", "rate>nan", "lost=-1"];
    let mut loads: Vec<[String; 2]> = Vec::new();
    for shape in &shapes {
        loads.push(["--shape".to_owned(), format!("rate={shape}")]);
        loads.push(["--shape".to_owned(), format!("connections={shape}")]);
    }
    for asserts in finds {
        loads.push(["--find".to_owned(), asserts.to_owned()]);
        loads.push(["--assert".to_owned(), asserts.to_owned()]);
    }
    for arguments in &loads {
        let mut command = program();
        command.args(["load", &address, "-c", "1", "--timeout", "300ms"]).args(arguments);
        // With --find there is none.
        if arguments[0] != "--find" {
            command.args(["-n", "3"]);
        }
        assert_told(&arguments.join(" "), &end(&mut command));
    }
    let mut workloads: Vec<String> = Vec::new();
    for shape in &shapes {
        workloads.push(format!("rate={shape} cpu=1ms"));
        workloads.push(format!("rate={shape} poisson cpu=1ms"));
        workloads.push(format!("clients={shape} block=1ms"));
    }
    workloads.extend([
        format!("rate=hold:1@1s cpu={ages} block={ages}"),
        "rate=hold:1@1s cpu=365days block=365days exponential".to_owned(),
        format!("burst=1@{ages} cpu=1ms"),
        "burst=1@365days cpu=1ms".to_owned(),
        "burst=18446744073709551616@1s cpu=1ms".to_owned(),
    ]);
    for workload in &workloads {
        for more in [&[][..], &["--duration", "10ms"], &["--tolerance", "10000", "--keep-alive", "365days"]] {
            let ended = end(program().args(["simulate", workload, "--rule", "all"]).args(more));
            assert_told(workload, &ended);
        }
    }
}
