//! The bar that shows how far a run is. It is there only when standard error is a terminal.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::load::progress::Progress;

/// Length of the bar, in steps: finer than a terminal is wide.
const WHOLE: u64 = 1000;

/// Shows the progress on a terminal.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub(super) fn new() -> Self {
        // Drawn on standard error, and hidden by the library unless that is a terminal.
        let bar = ProgressBar::new(WHOLE);
        let style = ProgressStyle::with_template("{bar:32.cyan/blue.dim} {percent:>3}%  {msg}")
            .expect("the template is a constant that parses");
        bar.set_style(style.progress_chars("━━─"));
        Self { bar }
    }

    pub(super) fn show(&self, progress: &Progress) {
        let errors = match progress.errors {
            0 => "no errors".to_owned(),
            1 => "1 ERROR".to_owned(),
            many => format!("{many} ERRORS"),
        };
        let left = progress.left().map_or_else(String::new, |left| format!(" · {} s left", left.as_secs()));
        self.bar.set_position(crate::load::whole(progress.share() * WHOLE as f64));
        self.bar.set_message(format!("{}/s · {errors}{left}", crate::report::number(progress.rate())));
    }

    /// Writes a line to standard error, where there is no bar too.
    pub(super) fn say(&self, line: &str) {
        // Whoever closed it does not want to read it.
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{line}")));
    }

    /// Writes a line above the bar, where there is one.
    pub(super) fn tell(&self, line: &str) {
        self.bar.println(line);
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
