//! Simulated runs as a table and as a page.

use tidemill::Decision;
use tidemill::simulate::{self, Run, Times};

use super::page::{Axis, Chart, Color, Figure, Line, Marker, Page, Table, Unit};
use super::{microseconds, number, table};

/// Markers in one chart; a rule that resizes all the time would make the page useless.
const MAX_MARKERS: usize = 1_000;

/// The runs beside each other, for a terminal.
pub(crate) fn text(runs: &[Run]) -> String {
    table::text(&rows(runs))
}

/// A page with a chart of each run.
pub(crate) fn page(workload: &str, pool: &str, runs: &[Run]) -> Page {
    let rows = rows(runs);
    let (head, rows) =
        rows.split_first().map(|(head, rows)| (head.clone(), rows.to_vec())).unwrap_or_default();
    Page {
        title: format!("Simulated: {workload}"),
        subtitle: pool.to_owned(),
        footer: format!("tidemill {} · simulated time, exact", env!("CARGO_PKG_VERSION")),
        verdict: None,
        figures: runs.first().map(figures).unwrap_or_default(),
        charts: runs.iter().flat_map(|run| [workers(run), waiting(run)]).collect(),
        tables: vec![Table { title: "All rules".to_owned(), head, rows, wide: true }],
    }
}

fn time(duration: std::time::Duration) -> String {
    microseconds(duration.as_secs_f64() * 1e6)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn rows(runs: &[Run]) -> Vec<Vec<String>> {
    let head = [
        "rule",
        "resizes",
        "turns",
        "threads started",
        "most",
        "mean",
        "at end",
        "unmet",
        "unneeded",
        "wait p50",
        "wait p99",
        "wait max",
        "done",
    ];
    let row = |run: &Run| {
        let Times { p50, p99, max, .. } = run.wait;
        let (arrived, finished) = run.streams.iter().fold((0, 0), |(arrived, finished), stream| {
            (arrived + stream.arrived, finished + stream.finished)
        });
        vec![
            run.rule.to_string(),
            number(run.resizes as f64),
            number(run.turns as f64),
            number(run.threads_started as f64),
            number(run.peak_workers as f64),
            format!("{:.1}", run.mean_workers),
            number(run.last_workers as f64),
            percent(run.unmet),
            percent(run.unneeded),
            time(p50),
            time(p99),
            time(max),
            format!("{} of {}", number(finished as f64), number(arrived as f64)),
        ]
    };
    std::iter::once(head.map(str::to_owned).to_vec()).chain(runs.iter().map(row)).collect()
}

fn figures(run: &Run) -> Vec<Figure> {
    let figure = |name: &str, value: String, note: &str| Figure {
        name: format!("{} ({})", name, run.rule),
        value,
        note: note.to_owned(),
    };
    vec![
        figure("resizes", number(run.resizes as f64), &format!("{} changes of direction", run.turns)),
        figure(
            "most workers",
            number(run.peak_workers as f64),
            &format!("{:.1} on average", run.mean_workers),
        ),
        figure("demand not met", percent(run.unmet), "by area"),
        figure("workers not needed", percent(run.unneeded), "by area, apart from the window"),
        figure("wait p99", time(run.wait.p99), &format!("{} at most", time(run.wait.max))),
    ]
}

fn workers(run: &Run) -> Chart {
    let t: Vec<f64> = run.series.iter().map(|point| point.t).collect();
    let line = |name, color, value: fn(&simulate::Point) -> usize| {
        let y = run.series.iter().map(|point| Some(value(point) as f64)).collect();
        Line::new(name, color, t.clone(), y).stepped()
    };
    let mut help =
        "Demand is work weighed by how long it takes. Each triangle is a resize: point at it for the reason."
            .to_owned();
    if run.resizes > MAX_MARKERS as u64 {
        help += &format!(" Of {} resizes the first {MAX_MARKERS} are marked.", number(run.resizes as f64));
    }
    Chart {
        title: format!("Workers by the rule `{}`", run.rule),
        help,
        axis: Axis::Time,
        unit: Unit::Count,
        logarithmic: false,
        lines: vec![
            line("workers", Color::Blue, |point| point.workers).filled(),
            line("demand", Color::Orange, |point| point.demand),
        ],
        markers: run.decisions.iter().take(MAX_MARKERS).map(marker).collect(),
    }
}

fn waiting(run: &Run) -> Chart {
    let x = run.series.iter().map(|point| point.t).collect();
    let y = run.series.iter().map(|point| Some(point.waiting as f64)).collect();
    Chart {
        title: format!("Requests that wait, by the rule `{}`", run.rule),
        help: "The most that had no worker yet.".to_owned(),
        axis: Axis::Time,
        unit: Unit::Count,
        logarithmic: false,
        lines: vec![Line::new("waiting", Color::Violet, x, y).stepped().filled()],
        markers: Vec::new(),
    }
}

fn marker(decision: &Decision) -> Marker {
    let Decision { at, demand, waiting, busy, blocked, from, to, reason, .. } = decision;
    let t = at.as_secs_f64();
    let blocked = blocked.map(|blocked| format!(" · blocked {blocked}")).unwrap_or_default();
    let reason = reason.as_str().replace('_', " ");
    Marker {
        x: t,
        text: format!(
            "{from} → {to} workers at {t:.3} s\n{reason}\ndemand {demand} · waiting {waiting} · busy {busy}{blocked}"
        ),
        color: if to > from { Color::Green } else { Color::Orange },
    }
}
