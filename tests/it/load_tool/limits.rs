//! What the tool itself costs and cannot do: rates beyond reach, descriptors, lines that are too long, files of others.

use super::*;

/// The tool in a shell that has set limits.
fn limited(limits: &str, target: &str, arguments: &[&str]) -> Ended {
    let program = program();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limits} && exec \"$0\" \"$@\"")]).arg(program.get_program());
    Ended::of(shell.args(["load", target, "--json"]).args(arguments))
}

#[test]
fn rate_beyond_reach_ends_in_time_in_little_memory_with_every_request_accounted_for() {
    let server = WrongServer::start(Fault::None);
    for (more, exact) in [(&[][..], true), (&["--threads", "2"], true), (&["--poisson"], false)] {
        let arguments = ["-c", "4", "-r", "10000000", "-d", "2s", "--warm-up", "500ms", "--timeout", "1s"];
        // The requests that are due would need 160 MiB.
        let run = Run::of(&limited("ulimit -v 260000", &server.address(), &[&arguments[..], more].concat()));
        let errors = run.errors();
        let offered = (run.count("requests", "offered"), run.count("total", "offered"));
        let most = if exact { 2 } else { 40_000 };
        let is_right = offered.0.abs_diff(20_000_000) <= most && offered.1.abs_diff(25_000_000) <= most;
        assert!(is_right, "{more:?}: {offered:?} {}", run.json["requests"]);
        assert!(matches!(&errors[..], [(unsent, _)] if unsent == "unsent"), "{more:?}: {errors:?}");
        // What was due first is sent first, which is all of the warm-up.
        assert!(run.count("total", "right") > 0 && run.status == 1, "{more:?}: {}", run.json["total"]);
    }
}

#[test]
fn rate_beyond_reach_is_not_deaf_to_an_interrupt() {
    let server = WrongServer::start(Fault::None);
    let flood = Flood::start(&server.address(), &["-c", "4", "-r", "10000000", "-d", "1h"]);
    // The more was due in one turn, the more is due in the next.
    let started = Instant::now();
    eventually("it floods", || server.requests() > 100 && started.elapsed() > Duration::from_millis(1500));
    flood.signal(Signal::INT);
    let run = flood.end();
    assert!(run.json["ended_early"].as_str().unwrap().contains("interrupted"), "{}", run.json);
    let offered = run.count("total", "offered");
    assert!(offered >= 10_000_000, "{offered} became due by then");
    run.errors();
}
