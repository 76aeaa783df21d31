//! The file of `--config`: TOML, read as keys with their lines and values. What they mean, `layers` says.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

/// Longest file that is read, in bytes: more than any use of all options takes, and nothing that hurts when somebody names the
/// wrong file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A key of the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// The first line is 1.
    pub(super) line: usize,
    pub(super) item: Item,
}

/// What stands behind a key.
#[derive(Debug)]
pub(super) enum Item {
    Truth(bool),
    /// A number or a string, as it is written.
    Text(String),
    List(Vec<Item>),
    Table,
    /// A date or a time.
    Moment,
}

/// Reads a file.
///
/// # Errors
/// One line that names the file, and the line of it.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    let read = read.map_err(|error| format!("{}: {error}", path.display()))?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(format!("{}: longer than {} KiB", path.display(), MAX_FILE_BYTES >> 10));
    }
    entries(&text).map_err(|(line, message)| format!("{}:{line}: {message}", path.display()))
}

/// The keys of a file, in the order of their lines.
fn entries(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    let line = |span: Range<usize>| 1 + text[..span.start].matches('\n').count();
    let table = DeTable::parse(text).map_err(|error| {
        let message = error.message().split('\n').collect::<Vec<_>>().join(", ");
        (line(error.span().unwrap_or_default()), message)
    })?;
    let mut entries: Vec<Entry> = (table.get_ref().iter())
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            line: line(key.span()),
            item: item(value.get_ref()),
        })
        .collect();
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn item(value: &DeValue<'_>) -> Item {
    match value {
        DeValue::String(text) => Item::Text(text.to_string()),
        DeValue::Integer(number) => Item::Text(number.to_string()),
        DeValue::Float(number) => Item::Text(number.to_string()),
        DeValue::Boolean(truth) => Item::Truth(*truth),
        DeValue::Datetime(_) => Item::Moment,
        DeValue::Array(items) => Item::List(items.iter().map(|value| item(value.get_ref())).collect()),
        DeValue::Table(_) => Item::Table,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_with_their_lines_and_as_they_are_written() {
        let read = entries(
            "# a comment\nport = 0\n\nmax-line = \"64KiB\"\nbind = [\n'::1',\n\"127.0.0.1\"]\ninline = true\n",
        );
        let read: Vec<String> = read.unwrap().iter().map(|entry| format!("{entry:?}")).collect();
        assert_eq!(
            read,
            [
                "Entry { key: \"port\", line: 2, item: Text(\"0\") }",
                "Entry { key: \"max-line\", line: 4, item: Text(\"64KiB\") }",
                "Entry { key: \"bind\", line: 5, item: List([Text(\"::1\"), Text(\"127.0.0.1\")]) }",
                "Entry { key: \"inline\", line: 8, item: Truth(true) }",
            ]
        );
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        for (text, line) in [("port = 1\nport = 2\n", 2), ("a = 1\n\nb = \n", 3), ("a = \"", 1), ("x\n", 1)] {
            assert_eq!(entries(text).unwrap_err().0, line, "{text}");
        }
    }
}
