//! `lookup`, by a plain socket and by Postfix's `postmap`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection as Database;

use super::{client, example, stop};
use crate::support::{Serving, in_parallel, scratch};

/// The example with a table of entries, and the table's file.
fn lookup(entries: &[(&str, &str)]) -> (Serving, PathBuf) {
    let file = scratch("lookup").join("table.sqlite");
    let serving = example("lookup", &[file.to_str().unwrap()]);
    insert(&file, entries);
    (serving, file)
}

fn insert(file: &Path, entries: &[(&str, &str)]) {
    let mut database = Database::open(file).unwrap();
    let transaction = database.transaction().unwrap();
    for entry in entries {
        transaction.execute("INSERT INTO entries VALUES (?, ?)", *entry).unwrap();
    }
    transaction.commit().unwrap();
}

#[test]
fn entries_are_found_as_tcp_table_says() {
    let long = "x".repeat(4096);
    let (lookup, file) =
        lookup(&[("a@b", "c d%e\n"), ("k k", "v"), ("100%", "ä"), ("empty", ""), ("long", &long)]);
    let replies = lookup.connect().exchange(
        b"get a@b\nget a%40b\r\nget k%20k\nget k k\nget 100%25\nget empty\nget \nget no\nget 100%\nget %2\nget %+1\nput a b\n\nget long\n",
    );
    let expected = "200 c%20d%25e%0A\n200 c%20d%25e%0A\n200 v\n200 v\n200 %C3%A4\n200 \n500 not%20found\n500 not%20found\n\
        400 the%20key%20is%20encoded%20wrongly\n400 the%20key%20is%20encoded%20wrongly\n400 the%20key%20is%20encoded%20wrongly\n\
        400 only%20get%20is%20known\n400 only%20get%20is%20known\n400 the%20value%20is%20too%20long\n";
    assert_eq!(String::from_utf8(replies).unwrap(), expected);
    // What is written meanwhile is found, while a writer holds the file.
    insert(&file, &[("later", "1")]);
    let writer = Database::open(&file).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE; INSERT INTO entries VALUES ('unfinished', '1')").unwrap();
    in_parallel(8, |_| {
        let replies = lookup.connect().exchange(&b"get later\nget unfinished\n".repeat(50));
        assert_eq!(String::from_utf8(replies).unwrap(), "200 1\n500 not%20found\n".repeat(50));
    });
    stop(lookup);
}

#[test]
fn postmap_is_served() {
    let (lookup, file) =
        lookup(&[("user@example.org", "a, b"), ("100% 'x'", "ü%"), ("example.org", "smtp:[::1]:25")]);
    let settings = file.with_file_name("postfix");
    fs::create_dir_all(&settings).unwrap();
    fs::write(settings.join("main.cf"), "compatibility_level = 3.6\n").unwrap();
    let table = format!("tcp:{}", lookup.address);
    for (key, printed, status) in [
        ("user@example.org", "a, b\n", 0),
        ("100% 'x'", "ü%\n", 0),
        ("example.org", "smtp:[::1]:25\n", 0),
        ("nobody", "", 1),
    ] {
        // It lies where only root's search path leads.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("postmap");
        command.env("PATH", path).arg("-c").arg(&settings).args(["-q", key, &table]);
        let Some(ended) = client(&mut command) else { return };
        assert_eq!((ended.stdout.as_str(), ended.status.code()), (printed, Some(status)), "{key}: {ended:?}");
    }
    stop(lookup);
}
