//! The one place that turns results into tables, JSON and pages.
//!
//! `load` is the document of a load run: it is what `--json` writes and what `--compare` and `--merge` read. `table` sets
//! text for a terminal, `page` is the skeleton of every page (title, tables, charts over an axis, markers with text),
//! `load_page` fills it for a load run, `simulation` for simulated ones, `server_stats` reads what the server says about itself.

pub(crate) mod load;
pub(crate) mod load_page;
pub(crate) mod page;
pub(crate) mod server_stats;
pub(crate) mod simulation;
pub(crate) mod table;

/// A number as people read it: three significant digits or so, thousands apart.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let rounded = value.round();
    if (value - rounded).abs() > 1e-9 && value.abs() < 100.0 {
        let text = format!("{value:.2}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{:.0}", rounded.abs());
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    if rounded < 0.0 { format!("-{grouped}") } else { grouped }
}

/// A length of time given in microseconds, in the unit that suits it.
pub(crate) fn microseconds(value: f64) -> String {
    let (scaled, unit) = match value {
        value if value < 1e3 => (value, "µs"),
        value if value < 1e6 => (value / 1e3, "ms"),
        value => (value / 1e6, "s"),
    };
    let decimals = match scaled {
        scaled if scaled < 10.0 => 2,
        scaled if scaled < 100.0 => 1,
        _ => 0,
    };
    format!("{scaled:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_set_for_people() {
        let values =
            [(0.0, "0"), (7.25, "7.25"), (0.5, "0.5"), (999.0, "999"), (1234.0, "1 234"), (1e6, "1 000 000")];
        for (value, text) in values {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn times_take_the_unit_that_suits_them() {
        let values = [
            (0.0, "0.00 µs"),
            (12.34, "12.3 µs"),
            (1234.0, "1.23 ms"),
            (250_000.0, "250 ms"),
            (2.5e6, "2.50 s"),
        ];
        for (value, text) in values {
            assert_eq!(microseconds(value), text);
        }
    }
}
