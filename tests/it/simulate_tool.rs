//! `tidemill simulate` as people call it; what its rule does is held by `controller_sim`.

use std::fs;

use serde_json::Value;

use crate::support::{Ended, program, scratch};

fn simulate(arguments: &[&str]) -> Ended {
    Ended::of(program().arg("simulate").args(arguments))
}

fn document(arguments: &[&str]) -> Value {
    let ended = simulate(arguments);
    assert!(ended.status.success(), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[test]
fn the_document_holds_every_decision_with_its_reason() {
    let limits = ["--min-threads", "2", "--max-threads", "64", "--tolerance", "2", "--cores", "2", "--json"];
    let document = document(&[&["step"], &limits[..]].concat());
    let run = &document["runs"][0];
    assert_eq!((&run["rule"], &run["peak_workers"]), (&"tidemill".into(), &64.into()));
    let decisions = run["decisions"].as_array().unwrap();
    assert_eq!(decisions.len() as u64, run["resizes"].as_u64().unwrap());
    let mut workers = 2;
    for decision in decisions {
        assert_eq!(decision["from"], workers);
        assert!(decision["reason"].is_string() && decision["t"].is_f64(), "{decision}");
        workers = decision["to"].as_u64().unwrap();
    }
    assert_eq!(workers, 2, "back at its minimum at the end");
}

#[test]
fn the_same_seed_prints_the_same_and_another_does_not() {
    let text = "rate=hold:300@3s poisson block=20ms exponential";
    let run = |seed| simulate(&[text, "--json", "--seed", seed]).stdout;
    assert_eq!(run("3"), run("3"));
    assert_ne!(run("3"), run("4"));
}

#[test]
fn load_of_which_chance_made_nothing_ends() {
    let arrived = (1..=8).map(|seed| {
        let seed = seed.to_string();
        let document = document(&["rate=random:0..1x1@1s cpu=1ms", "--json", "-d", "10s", "--seed", &seed]);
        document["runs"][0]["streams"][0]["arrived"].as_u64().unwrap()
    });
    assert_eq!(arrived.min(), Some(0));
}

#[test]
fn rules_are_compared_side_by_side() {
    let ended = simulate(&["trickle", "--rule", "tidemill,tokio", "--rule", "jdk,tokio"]);
    let rules: Vec<_> =
        ended.stdout.lines().skip(4).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(rules, ["tidemill", "tokio", "jdk"], "{}", ended.stdout);
    let all = document(&["trickle", "--rule", "all", "--json"]);
    assert_eq!(all["runs"].as_array().unwrap().len(), 8);
}

#[test]
fn a_longer_duration_plays_the_workload_again() {
    let arrived = |more: &[&str]| {
        let document = document(&[&["rate=hold:100@1s block=1ms", "--json"], more].concat());
        document["runs"][0]["streams"][0]["arrived"].as_u64().unwrap()
    };
    assert_eq!((arrived(&[]), arrived(&["-d", "10s"])), (99, 999));
    let document = document(&["burst=5@1s,3@2s block=1ms", "--json", "-d", "9s"]);
    assert_eq!(document["runs"][0]["streams"][0]["arrived"], 24, "a pass takes three seconds");
}

#[test]
fn the_report_draws_demand_workers_and_decisions() {
    let path = scratch("simulate").join("report.html");
    let ended = simulate(&["onoff", "--rule", "all", "--report", path.to_str().unwrap()]);
    assert!(ended.status.success(), "{}", ended.stderr);
    let html = fs::read_to_string(&path).unwrap();
    for part in [
        "Workers by the rule `tidemill`",
        "Workers by the rule `dotnet`",
        "\"name\":\"demand\"",
        "workers at ",
    ] {
        assert!(html.contains(part), "{part}");
    }
}

#[test]
fn the_default_of_one_bound_yields_to_the_other() {
    for (arguments, expected) in [
        (["--max-threads", "3"], [3, 3]),
        (["--min-threads", "40"], [40, 40]),
        (["--max-threads", "9"], [4, 9]),
        (["--min-threads", "9"], [9, 32]),
    ] {
        let document = document(&[&["stuck", "--json"], &arguments[..]].concat());
        let bounds =
            [&document["min_threads"], &document["max_threads"]].map(|bound| bound.as_u64().unwrap());
        assert_eq!(bounds, expected, "{arguments:?}");
    }
}

#[test]
fn wrong_usage_is_one_line_and_exit_status_2() {
    for (arguments, named) in [
        (&["steps"][..], "`steps` is none of step"),
        (&[], "<WORKLOAD>"),
        (&["rate=hold:5@1s"], "cpu= or block="),
        (&["rate=hold:5@1s cpu=1ms", "--rule", "go"], "tidemill, jdk, tokio, dotnet, php-fpm, squid"),
        (&["step", "--min-threads", "9", "--max-threads", "8"], "--min-threads is 9"),
        (&["step", "--duration", "0s"], "--duration"),
        (&["step", "--keep-alive", "0s"], "--keep-alive"),
        (&["step", "--cores", "0"], "--cores"),
    ] {
        let ended = simulate(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(named) && ended.stdout.is_empty(), "{}", ended.stderr);
    }
}

#[test]
fn a_report_that_cannot_be_written_is_one_line_and_exit_status_1() {
    let ended = simulate(&["step", "--report", "/nowhere/at/all.html"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.stderr.contains("/nowhere/at/all.html") && ended.stderr.lines().count() == 1,
        "{}",
        ended.stderr
    );
}
