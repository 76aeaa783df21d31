//! The terminal: drawn anew with each look, given back however it ends.
//!
//! Three threads tell this one what happens: keys, signals, and answers of the server. What is drawn is a function of what is
//! known (`draw`), which a test draws without a terminal.

use std::io;
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Row, Table, Wrap};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::ask::Asked;
use super::history::{History, WINDOW_SECONDS};
use super::stats::{Connection, Stats};
use super::text::{bytes, count, seconds};
use crate::cli::{Failure, unblock};
use crate::report;

/// Connections that are asked for: more find no room.
const CONNECTIONS: &str = "/connections.json?top=10";

/// What happens.
enum News {
    /// A key was pressed that ends it, or a signal came that does.
    End,
    /// The terminal has another size.
    Resized,
    /// The server was asked.
    Answer(Result<(Box<Stats>, Vec<Connection>), String>),
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) history: History,
    pub(super) connections: Vec<Connection>,
    /// Why the last look brought nothing, and when the one before it did.
    pub(super) silent: Option<(String, Instant)>,
}

/// Draws until it is ended.
///
/// # Errors
/// One line: the terminal cannot be used.
pub(super) fn watch(asked: &Asked, every: Duration) -> Result<ExitCode, Failure> {
    let (tell, news) = mpsc::channel();
    listen(&tell, asked.clone(), every)
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    let mut terminal =
        ratatui::try_init().map_err(|error| Failure::failed(format!("cannot use the terminal: {error}")))?;
    let (mut known, mut answered_at) = (Known::default(), Instant::now());
    let mut drawn = Ok(());
    while let Ok(news) = news.recv() {
        match news {
            News::End => break,
            News::Resized => {}
            News::Answer(Ok((stats, connections))) => {
                known.history.add(*stats);
                (known.connections, known.silent, answered_at) = (connections, None, Instant::now());
            }
            News::Answer(Err(why)) => known.silent = Some((why, answered_at)),
        }
        drawn = terminal.draw(|frame| draw(frame, &known, &asked.address.to_string())).map(drop);
        if drawn.is_err() {
            break;
        }
    }
    ratatui::restore();
    drawn.map_err(|error| Failure::failed(format!("cannot draw: {error}")))?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the threads that tell what happens. They end with the process.
fn listen(tell: &Sender<News>, asked: Asked, every: Duration) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    unblock([Signal::SIGHUP]);
    let to = tell.clone();
    thread::Builder::new().name("tidemill-signal".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            // Nobody listens any more who could end.
            to.send(News::End).unwrap_or_default();
        }
    })?;
    let to = tell.clone();
    thread::Builder::new().name("tidemill-keys".to_owned()).spawn(move || {
        // A terminal that cannot be read any more has gone.
        while to.send(event::read().map_or(News::End, |event| heard(&event))).is_ok() {}
    })?;
    let to = tell.clone();
    thread::Builder::new().name("tidemill-ask".to_owned()).spawn(move || {
        loop {
            let asked_at = Instant::now();
            if to.send(News::Answer(look(&asked))).is_err() {
                return;
            }
            thread::sleep(every.saturating_sub(asked_at.elapsed()));
        }
    })?;
    Ok(())
}

/// What an event of the terminal means.
fn heard(event: &Event) -> News {
    match event {
        Event::Key(key) if key.kind == KeyEventKind::Press => {
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => News::End,
                KeyCode::Char('c' | 'd') if control => News::End,
                _ => News::Resized,
            }
        }
        _ => News::Resized,
    }
}

fn look(asked: &Asked) -> Result<(Box<Stats>, Vec<Connection>), String> {
    let stats = Stats::parse(&asked.get("/stats.json")?)?;
    let connections: Vec<Connection> = serde_json::from_str(&asked.get(CONNECTIONS)?)
        .map_err(|error| format!("/connections.json is not as it should be: {error}"))?;
    Ok((Box::new(stats), connections))
}

/// Draws all that is known.
pub(super) fn draw(frame: &mut Frame<'_>, known: &Known, address: &str) {
    let area = frame.area();
    let figures = 5;
    // What does not fit is left out from the bottom.
    let charts = (area.height / 3).clamp(8, 16);
    let [head, middle, below] =
        Layout::vertical([Constraint::Length(figures), Constraint::Length(charts), Constraint::Min(0)])
            .areas(area);
    draw_head(frame, known, address, head);
    let Some(stats) = known.history.last() else { return };
    let [pool, waits] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(middle);
    draw_pool(frame, &known.history, pool);
    draw_waits(frame, &known.history, waits);
    let [decisions, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(below);
    draw_decisions(frame, stats, decisions);
    let stuck = u16::try_from(stats.stuck.len()).unwrap_or(u16::MAX).clamp(1, 6) + 2;
    let programs = stats.programs.as_ref().map_or(0, |_| 5);
    let heights = [Constraint::Length(stuck), Constraint::Length(programs), Constraint::Min(0)];
    let [stuck, programs, connections] = Layout::vertical(heights).areas(right);
    draw_stuck(frame, stats, stuck);
    if let Some(sums) = &stats.programs {
        let text = Paragraph::new(sums.lines().join("\n")).wrap(Wrap { trim: true });
        frame.render_widget(text.block(Block::bordered().title(" programs ")), programs);
    }
    draw_connections(frame, known, connections);
}

fn draw_head(frame: &mut Frame<'_>, known: &Known, address: &str, area: Rect) {
    let Some(stats) = known.history.last() else {
        let why = known.silent.as_ref().map_or("…", |(why, _)| why);
        return frame.render_widget(Paragraph::new(format!("tidemill at {address}: {why}")), area);
    };
    let (state, color) = match (&known.silent, stats.ready) {
        (Some(_), _) => ("no answer", Color::Red),
        (None, true) => (stats.state.as_str(), Color::Green),
        (None, false) => (stats.state.as_str(), Color::Yellow),
    };
    let news = match &known.silent {
        Some((why, since)) => format!("no answer for {}: {why}", seconds(since.elapsed().as_secs_f64())),
        None => stats.not_ready().unwrap_or_default(),
    };
    let recent = |counts: fn(&super::stats::Buckets) -> &[u64]| {
        let recent = known.history.recent(counts);
        let said = |value: Option<f64>| value.map_or("–".to_owned(), seconds);
        format!("p50 {} p99 {}", said(recent.p50), said(recent.p99))
    };
    let rate = known.history.rate(Stats::requests);
    let lines = vec![
        Line::from(vec![
            Span::from("tidemill ").bold(),
            Span::from(state.to_owned()).bold().fg(color),
            format!(
                "  {address}  {}  process {}  up {}  (q ends)",
                stats.version,
                stats.pid,
                seconds(stats.uptime_seconds)
            )
            .dim(),
        ]),
        Line::from(format!(
            "{}/s requests, {} pending, {} dropped   {} connections, {} rejected, {} held",
            report::number(rate.round()),
            count(stats.requests_pending),
            count(stats.requests_dropped_total),
            count(stats.connections),
            report::number(stats.rejected()),
            bytes(stats.held_bytes)
        )),
        Line::from(stats.pool_line()),
        Line::from(format!(
            "last {WINDOW_SECONDS:.0} s: wait {}, service {}",
            recent(|buckets| &buckets.queue_wait_seconds),
            recent(|buckets| &buckets.service_seconds)
        )),
        Line::from(news).fg(Color::Yellow),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

/// A line over time.
struct Drawn {
    name: &'static str,
    color: Color,
    points: Vec<(f64, f64)>,
}

fn draw_chart(frame: &mut Frame<'_>, title: &str, lines: &[Drawn], area: Rect) {
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points().map(|(_, value)| *value).fold(4.0, f64::max);
    let begin = points().map(|(at, _)| *at).fold(-60.0, f64::min);
    let mut names = vec![Span::from(format!(" {title}: "))];
    for line in lines {
        let now = line.points.last().map_or(0.0, |(_, value)| *value);
        names.push(format!("{} {} ", line.name, report::number(now)).fg(line.color));
    }
    let datasets = lines.iter().map(|Drawn { color, points, .. }| {
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(*color))
            .data(points)
    });
    let chart = Chart::new(datasets.collect())
        .block(Block::bordered().title(Line::from(names)))
        .legend_position(None)
        .x_axis(Axis::default().bounds([begin, 0.0]).labels([format!("{begin:.0} s"), "now".to_owned()]))
        .y_axis(Axis::default().bounds([0.0, most]).labels(["0".to_owned(), report::number(most)]));
    frame.render_widget(chart, area);
}

fn draw_pool(frame: &mut Frame<'_>, history: &History, area: Rect) {
    // However much is wanted, what is there is to be seen.
    let demand = history.line(|stats| stats.pool_demand.min(2 * stats.pool_max) as f64);
    let lines = [
        Drawn {
            name: "workers",
            color: Color::Blue,
            points: history.line(|stats| stats.pool_threads as f64),
        },
        Drawn { name: "busy", color: Color::Green, points: history.line(|stats| stats.pool_busy as f64) },
        Drawn { name: "demand", color: Color::Yellow, points: demand },
    ];
    draw_chart(frame, "pool", &lines, area);
}

fn draw_waits(frame: &mut Frame<'_>, history: &History, area: Rect) {
    let lines = [
        Drawn {
            name: "pending",
            color: Color::Gray,
            points: history.line(|stats| stats.requests_pending as f64),
        },
        Drawn {
            name: "waiting",
            color: Color::Magenta,
            points: history.line(|stats| stats.pool_waiting as f64),
        },
    ];
    draw_chart(frame, "work", &lines, area);
}

fn draw_decisions(frame: &mut Frame<'_>, stats: &Stats, area: Rect) {
    let row = |decided: &super::stats::Decided| Row::new([stats.ago(decided), decided.words.clone()]);
    let rows = stats.decisions.iter().rev().map(row);
    let table = Table::new(rows, [Constraint::Length(8), Constraint::Fill(1)]);
    frame.render_widget(table.block(Block::bordered().title(" last decisions ")), area);
}

fn draw_stuck(frame: &mut Frame<'_>, stats: &Stats, area: Rect) {
    let row = |stuck: &super::stats::Stuck| {
        Row::new([stuck.worker.clone(), seconds(stuck.age_seconds), stuck.peer().to_owned()])
    };
    let none = [Row::new(["none"])];
    let rows = stats.stuck.iter().map(row).chain(none.into_iter().filter(|_| stats.stuck.is_empty()));
    let table = Table::new(rows, [Constraint::Length(14), Constraint::Length(8), Constraint::Fill(1)]);
    frame.render_widget(table.block(Block::bordered().title(" stuck handlers ")), area);
}

fn draw_connections(frame: &mut Frame<'_>, known: &Known, area: Rect) {
    let row = |connection: &Connection| {
        Row::new([
            connection.peer.clone(),
            seconds(connection.age_seconds),
            connection.state.replace('_', " "),
            bytes(connection.held_bytes),
        ])
    };
    let widths = [Constraint::Fill(1), Constraint::Length(8), Constraint::Length(11), Constraint::Length(10)];
    let table = Table::new(known.connections.iter().map(row), widths);
    frame.render_widget(table.block(Block::bordered().title(" connections that hold most ")), area);
}
