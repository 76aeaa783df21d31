//! Runs that must not be called right: a generator that did not run, a server that did not let in, read, answer or stop.

use super::*;

/// Lets it run for a third of the time, until it ends.
#[track_caller]
fn stutter(mut flood: Flood) -> Run {
    let started = Instant::now();
    while flood.child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < DEADLINE, "the run does not end");
        flood.signal(Signal::STOP);
        thread::sleep(Duration::from_millis(400));
        flood.signal(Signal::CONT);
        thread::sleep(Duration::from_millis(200));
    }
    flood.end()
}

#[test]
fn generator_that_ran_for_a_third_of_the_time_says_so_in_every_mode() {
    let check = |arguments: &[&str], part: &str| {
        let server = WrongServer::start(Fault::None);
        let arguments = [&["-d", "3s", "--timeout", PATIENT], arguments].concat();
        let flood = Flood::start(&server.address(), &arguments);
        eventually("requests are sent", || server.requests() > 0);
        let run = stutter(flood);
        let problems = run.json["problems"].to_string();
        assert_eq!(
            (&run.json["verdict"], run.status),
            (&Value::from("invalid"), 0),
            "{arguments:?}: {problems}"
        );
        assert!(problems.contains("did not run for"), "{arguments:?}: {problems}");
        assert!(problems.contains(part), "{arguments:?}: {problems}");
    };
    // Side by side: most of it is waiting. What the open loop sent late it knows besides, at the percentile that it can tell.
    thread::scope(|scope| {
        [
            (&["-c", "2", "-r", "1000"][..], "late (p99)"),
            (&["-c", "4", "-r", "1000", "--reconnect"], "late (p99)"),
            (&["-c", "4", "-r", "100"], "late (p90)"),
            (&["-c", "4"], ""),
        ]
        .map(|(arguments, part)| scope.spawn(move || check(arguments, part)))
        .map(|way| way.join().unwrap())
    });
}
