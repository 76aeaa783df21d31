//! Where results go, besides the terminal: options that the benchmark and the scorecard share.

use std::fs;
use std::io::Result;
use std::path::PathBuf;

use serde_json::Value;

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
    pub(crate) fn write(&self, json: &Value, page: &str, markdown: &str) -> Result<()> {
        let json = format!("{json:#}\n");
        let all = [(&self.json, json.as_str()), (&self.page, page), (&self.markdown, markdown)];
        all.into_iter().try_for_each(|(path, text)| path.iter().try_for_each(|path| fs::write(path, text)))
    }
}
