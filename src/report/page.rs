//! The skeleton of every page: a title, tables, and charts over an axis with markers. One file, nothing from the network.
//!
//! Whoever has results fills a [`Page`]; how it looks is decided here, in the style and script beside this file, and in those that the live
//! page of the admin address has, too (`src/page`). The
//! charts are drawn by uPlot, whose licence stands next to it and goes into every page.

use serde::Serialize;

const STYLE: &str = concat!(include_str!("../page/shared.css"), include_str!("page.css"));
const SCRIPT: &str = concat!(include_str!("../page/shared.js"), include_str!("page.js"));
const UPLOT: &str = include_str!("uplot/uPlot.iife.min.js");
const UPLOT_STYLE: &str = include_str!("uplot/uPlot.min.css");
const UPLOT_LICENSE: &str = include_str!("uplot/LICENSE");

/// Everything on a page.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Page {
    pub(crate) title: String,
    pub(crate) subtitle: String,
    /// When, by what.
    pub(crate) footer: String,
    pub(crate) verdict: Option<Verdict>,
    /// The few numbers that matter most.
    pub(crate) figures: Vec<Figure>,
    pub(crate) charts: Vec<Chart>,
    pub(crate) tables: Vec<Table>,
}

/// How it ended, and why.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) text: String,
    pub(crate) tone: Tone,
    pub(crate) reasons: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tone {
    Good,
    Bad,
    Doubtful,
}

/// A large number with a name; `note` is what it compares with.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) note: String,
}

/// Rows of cells; the first column is text, the others are numbers.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    /// Cells are prose or bytes: the table takes the whole width.
    pub(crate) wide: bool,
}

/// What the horizontal axis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Axis {
    /// Seconds; all charts over time zoom together.
    Time,
    /// 1 / (1 - p), drawn on a logarithmic scale and labelled with percentiles.
    Percentile,
}

/// What the values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    Microseconds,
    PerSecond,
    Count,
}

#[derive(Debug, Serialize)]
pub(crate) struct Chart {
    pub(crate) title: String,
    /// What to look for.
    pub(crate) help: String,
    pub(crate) axis: Axis,
    pub(crate) unit: Unit,
    pub(crate) logarithmic: bool,
    pub(crate) lines: Vec<Line>,
    pub(crate) markers: Vec<Marker>,
}

/// One series. Lines of one chart may have different `x`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) x: Vec<f64>,
    pub(crate) y: Vec<Option<f64>>,
    /// Which of the page's colours; lines that belong together in two runs share it.
    pub(crate) color: Color,
    /// Of the run that this one is compared with.
    pub(crate) other: bool,
    /// The value holds until the next point.
    pub(crate) stepped: bool,
    pub(crate) filled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Color {
    Blue,
    Orange,
    Red,
    Green,
    Grey,
    Violet,
}

/// A moment with something to say, shown when the pointer is near.
#[derive(Debug, Serialize)]
pub(crate) struct Marker {
    pub(crate) x: f64,
    pub(crate) text: String,
    pub(crate) color: Color,
}

impl Line {
    pub(crate) fn new(name: &str, color: Color, x: Vec<f64>, y: Vec<Option<f64>>) -> Self {
        Self { name: name.to_owned(), x, y, color, other: false, stepped: false, filled: false }
    }

    pub(crate) fn stepped(self) -> Self {
        Self { stepped: true, ..self }
    }

    pub(crate) fn filled(self) -> Self {
        Self { filled: true, ..self }
    }

    /// The same line of the run that this one is compared with.
    pub(crate) fn other(self) -> Self {
        Self { name: format!("{} · other run", self.name), other: true, filled: false, ..self }
    }
}

impl Page {
    /// The whole file.
    pub(crate) fn html(&self) -> Result<String, serde_json::Error> {
        // Inside a script element only `<` can end it or start a comment.
        let data = serde_json::to_string(self)?.replace('<', "\\u003c");
        let title = escape(&self.title);
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>{UPLOT_STYLE}\n{STYLE}</style>\n<main id=\"page\"></main>\n\
             <noscript>This page draws its charts with JavaScript.</noscript>\n\
             <script type=\"application/json\" id=\"data\">{data}</script>\n\
             <script>/*! uPlot\n{UPLOT_LICENSE}*/\n{UPLOT}</script>\n<script>{SCRIPT}</script>\n</html>\n"
        ))
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out_of_the_page() {
        let title = "</title></script><script>alert(1)</script>".to_owned();
        let html = Page { title, ..Page::default() }.html().expect("strings can be written as JSON");
        assert!(!html.contains("<script>alert") && !html.contains("</title></script>"));
    }

    #[test]
    fn nothing_is_fetched() {
        let html = Page::default().html().expect("strings can be written as JSON");
        for word in ["src=", "href=", "@import", "url(", "fetch(", "XMLHttpRequest"] {
            assert!(!html.contains(word), "{word}");
        }
        assert!(html.contains("Permission is hereby granted"), "the licence of uPlot goes with it");
    }
}
