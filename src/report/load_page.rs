//! The page of a load run, alone or laid over another one.

use super::load::{LoadReport, Point, Verdict};
use super::page::{self, Axis, Chart, Color, Figure, Line, Page, Table, Tone, Unit};
use super::server_stats::ServerStats;
use super::{microseconds, number};

/// The page for `run`; `other` is drawn under it with dashed lines, `server` is what the server said meanwhile.
pub(crate) fn page(run: &LoadReport, other: Option<&LoadReport>, server: Option<&ServerStats>) -> Page {
    let mut charts = vec![by_percentile(run, other), over_time(run, other), requests(run, other)];
    charts.extend(server.into_iter().flat_map(ServerStats::charts));
    charts.push(connections(run, other));
    charts.retain(|chart| !chart.lines.is_empty());
    let started = humantime::format_rfc3339_seconds(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs_f64(run.started_unix_seconds.max(0.0)),
    );
    Page {
        title: format!("Load on {}", run.target),
        subtitle: run.subtitle(),
        footer: format!("tidemill {} · started {started}", run.tidemill),
        verdict: Some(verdict(run)),
        figures: figures(run, other),
        charts,
        tables: tables(run, other),
    }
}

fn verdict(run: &LoadReport) -> page::Verdict {
    let (text, tone) = match run.verdict {
        Verdict::Ok => ("Every reply was right", Tone::Good),
        Verdict::Failed => ("Failed", Tone::Bad),
        Verdict::Invalid => ("Replies right, timing invalid", Tone::Doubtful),
    };
    page::Verdict { text: text.to_owned(), tone, reasons: run.reasons() }
}

fn figures(run: &LoadReport, other: Option<&LoadReport>) -> Vec<Figure> {
    let latency = |pick: fn(&LoadReport) -> Option<f64>| {
        move |run: &LoadReport| pick(run).map_or_else(|| "too few".to_owned(), microseconds)
    };
    let figure = |name: &str, show: &dyn Fn(&LoadReport) -> String| Figure {
        name: name.to_owned(),
        value: show(run),
        note: other.map(|other| format!("other run: {}", show(other))).unwrap_or_default(),
    };
    vec![
        figure("replies a second", &|run| number(run.requests_per_second.round())),
        figure("latency p50", &latency(|run| run.latency_us.p50)),
        figure("latency p99", &latency(|run| run.latency_us.p99)),
        figure("latency p99.9", &latency(|run| run.latency_us.p999)),
        figure("latency max", &latency(|run| Some(run.latency_us.max).filter(|_| run.latency_us.count > 0))),
        figure("right of sent", &|run| {
            let share = run.total.right as f64 / run.total.sent.max(1) as f64;
            // 99.9999 % must not look like all.
            if run.total.right == run.total.sent {
                "100 %".to_owned()
            } else {
                format!("{:.2} %", (share * 1e4).floor() / 100.0)
            }
        }),
    ]
}

/// The same line for both runs, dashed for the other one.
fn both(
    run: &LoadReport,
    other: Option<&LoadReport>,
    make: impl Fn(&LoadReport) -> Option<Line>,
) -> impl Iterator<Item = Line> {
    make(run).into_iter().chain(other.and_then(make).map(Line::other))
}

fn series(run: &LoadReport, name: &str, color: Color, value: impl Fn(&Point) -> Option<f64>) -> Option<Line> {
    let y: Vec<_> = run.series.iter().map(value).collect();
    let x = run.series.iter().map(|point| point.t).collect();
    y.iter().any(Option::is_some).then(|| Line::new(name, color, x, y))
}

fn by_percentile(run: &LoadReport, other: Option<&LoadReport>) -> Chart {
    let line = |run: &LoadReport| {
        let all: u64 = run.histogram_ns.iter().map(|&(_, count)| count).sum();
        let (mut below, mut x, mut y) = (0, Vec::new(), Vec::new());
        for &(nanoseconds, count) in &run.histogram_ns {
            // Each value is drawn where it starts to be the percentile.
            x.push(all as f64 / (all - below) as f64);
            y.push(Some(nanoseconds as f64 / 1e3));
            below += count;
        }
        (all > 0).then(|| Line::new("latency", Color::Blue, x, y).stepped())
    };
    Chart {
        title: "Latency by percentile".to_owned(),
        help: "How slow the slowest replies are: each step to the right is ten times rarer.".to_owned(),
        axis: Axis::Percentile,
        unit: Unit::Microseconds,
        logarithmic: true,
        lines: both(run, other, line).collect(),
        markers: Vec::new(),
    }
}

fn over_time(run: &LoadReport, other: Option<&LoadReport>) -> Chart {
    let p50 = both(run, other, |run| series(run, "p50", Color::Blue, |point| point.p50_us));
    let p99 = both(run, other, |run| series(run, "p99", Color::Orange, |point| point.p99_us));
    let max = both(run, other, |run| series(run, "max", Color::Red, |point| point.max_us));
    let from = if run.options.loop_kind == "closed" { "were sent" } else { "were due" };
    Chart {
        title: "Latency over time".to_owned(),
        help: format!(
            "Of the replies that came at that time, counted from when their requests {from}. Percentiles take in up to \
             ten rows where one has too few samples."
        ),
        axis: Axis::Time,
        unit: Unit::Microseconds,
        logarithmic: true,
        lines: p50.chain(p99).chain(max).collect(),
        markers: Vec::new(),
    }
}

fn requests(run: &LoadReport, other: Option<&LoadReport>) -> Chart {
    // The last row may be cut short by the end: what is left of it makes its rate, if it is enough to tell.
    fn rate(run: &LoadReport, point: &Point, count: u64) -> Option<f64> {
        let length = run.series_step_seconds.min(run.seconds - point.t);
        (length > run.series_step_seconds / 4.0).then(|| count as f64 / length)
    }
    let offered = both(run, other, |run| {
        series(run, "offered", Color::Grey, |point| point.offered.and_then(|count| rate(run, point, count)))
    });
    let sent = both(run, other, |run| {
        let closed = run.options.loop_kind == "closed";
        series(run, "sent", Color::Grey, |point| rate(run, point, point.sent).filter(|_| closed))
    });
    let right = both(run, other, |run| {
        series(run, "answered", Color::Blue, |point| rate(run, point, point.right)).map(Line::filled)
    });
    let errors = both(run, other, |run| {
        let any = run.series.iter().any(|point| point.errors > 0);
        series(run, "errors", Color::Red, |point| rate(run, point, point.errors).filter(|_| any))
    });
    Chart {
        title: "Requests".to_owned(),
        help: "Offered and answered, each second.".to_owned(),
        axis: Axis::Time,
        unit: Unit::PerSecond,
        logarithmic: false,
        lines: offered.chain(sent).chain(right).chain(errors).collect(),
        markers: Vec::new(),
    }
}

fn connections(run: &LoadReport, other: Option<&LoadReport>) -> Chart {
    let line = |run: &LoadReport| {
        let open = |point: &Point| Some(point.connections as f64);
        series(run, "open", Color::Violet, open).map(Line::stepped).map(Line::filled)
    };
    Chart {
        title: "Connections".to_owned(),
        help: "Open from the generator to the server.".to_owned(),
        axis: Axis::Time,
        unit: Unit::Count,
        logarithmic: false,
        lines: both(run, other, line).collect(),
        markers: Vec::new(),
    }
}

fn tables(run: &LoadReport, other: Option<&LoadReport>) -> Vec<Table> {
    let table = |title: &str, rows_of: fn(&LoadReport) -> Vec<Vec<String>>| {
        let mut rows = rows_of(run);
        let mut head = Vec::new();
        if let Some(other) = other {
            let others = rows_of(other);
            for row in &mut rows {
                let same = others.iter().find(|theirs| theirs[0] == row[0]);
                row.push(same.map_or("–".to_owned(), |theirs| theirs[1].clone()));
            }
            head = ["", "this run", "other run"].map(str::to_owned).to_vec();
        }
        Table { title: title.to_owned(), head, rows, wide: false }
    };
    let mut tables = Vec::new();
    if let Some(find) = &run.find {
        let head = ["rate", "length", "value", "", "why"].map(str::to_owned).to_vec();
        let title = format!("The search: {}", find.answer());
        tables.push(Table { title, head, rows: find.rows(), wide: true });
    }
    tables.extend([
        table("The ledger", LoadReport::ledger_rows),
        table("Latency", LoadReport::latency_rows),
        table("The generator itself", LoadReport::generator_rows),
    ]);
    if !run.asserts.is_empty() {
        let row = |assert: &super::load::Assert| {
            let holds = if assert.holds { "holds" } else { "fails" };
            vec![assert.text.clone(), assert.value.clone(), holds.to_owned()]
        };
        let head = ["assert", "value", ""].map(str::to_owned).to_vec();
        let rows = run.asserts.iter().map(row).collect();
        tables.push(Table { title: "Asserts".to_owned(), head, rows, wide: false });
    }
    if !run.examples.is_empty() {
        let row = |example: &super::load::Example| {
            let at = format!("{:.3} s, connection {}", example.t, example.connection);
            vec![
                example.kind.clone(),
                at,
                example.request.clone(),
                example.expected.clone(),
                example.got.clone(),
            ]
        };
        let head = ["first", "at", "asked", "must be", "was"].map(str::to_owned).to_vec();
        let rows = run.examples.iter().map(row).collect();
        tables.push(Table { title: "The first error of each kind".to_owned(), head, rows, wide: true });
    }
    tables
}
