//! Where results go, besides the terminal: options that the benchmark and the scorecard share, and
//! tables as both have them.

use std::fmt::Arguments;
use std::fs;
use std::io::{self, ErrorKind, Result, Write};
use std::path::PathBuf;

use serde_json::Value;

use crate::report::page::{Page, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct Outputs {
    /// Writes everything that was measured
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a page with all tables and plots
    #[arg(long, value_name = "FILE.html")]
    page: Option<PathBuf>,
    /// Writes the tables as the pages beside this program have them
    #[arg(long, value_name = "FILE.md")]
    markdown: Option<PathBuf>,
}

impl Outputs {
    /// Writes what was asked for.
    pub(crate) fn write(&self, json: &Value, page: &Page, markdown: &str) -> Result<()> {
        let (json, page) = (format!("{json:#}\n"), page.html()?);
        let all = [(&self.json, json.as_str()), (&self.page, &page), (&self.markdown, markdown)];
        all.into_iter().try_for_each(|(path, text)| path.iter().try_for_each(|path| fs::write(path, text)))
    }
}

/// A line for the terminal, or for whoever reads its place.
pub(crate) fn tell(line: Arguments<'_>) {
    tell_to(&mut io::stdout().lock(), line);
}

fn tell_to(output: &mut impl Write, line: Arguments<'_>) {
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("standard output: {error}"),
        _ => {}
    }
}

/// A table of whole width.
pub(crate) fn table<Head: IntoIterator<Item: Into<String>>>(
    title: impl Into<String>,
    head: Head,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Table {
    let head = head.into_iter().map(Into::into).collect();
    Table { title: title.into(), head, rows: rows.into_iter().collect(), wide: true }
}

/// The same for a page in Markdown, without its title.
pub(crate) fn markdown(Table { head, rows, .. }: &Table) -> String {
    let rule = vec!["---".to_owned(); head.len()];
    [head, &rule].into_iter().chain(rows).map(|row| format!("| {} |\n", row.join(" | "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipe_that_nobody_reads_is_no_failure() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(writer.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        tell_to(&mut writer, format_args!("a row"));
    }
}
