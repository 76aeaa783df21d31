//! The order of modules in `src/ARCHITECTURE.md`: every module of the crate has its place, and uses only what stands to its left.

use std::fs;
use std::path::{Path, PathBuf};

const MAP: &str = include_str!("../../src/ARCHITECTURE.md");
/// What is in no order: the crate itself, and what is not in it unless it is tested or fuzzed.
const BESIDE: [&str; 2] = ["lib", "fuzzing"];

/// The modules from left to right.
fn order() -> Vec<&'static str> {
    let line =
        MAP.lines().find(|line| line.starts_with("`address ")).expect("the order is a line of its own");
    line.trim_matches('`').split_whitespace().filter(|word| *word != "|").collect()
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files of a folder, those in folders within it too.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The Rust files of the top-level modules, each with the name of its module.
fn modules() -> Vec<(String, PathBuf)> {
    let files = files(&source()).into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let named = files.map(|path| {
        let first = path.strip_prefix(source()).unwrap().iter().next().unwrap();
        (Path::new(first).file_stem().unwrap().to_str().unwrap().to_owned(), path)
    });
    named.filter(|(module, _)| !BESIDE.contains(&module.as_str())).collect()
}

/// What `code` names of the crate, without what its comments and its tests do.
fn used(code: &str) -> impl Iterator<Item = &str> {
    assert!(!code.contains("crate::{"), "imports of several modules at once are not understood here");
    let code = code.split("mod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.flat_map(|line| line.split("crate::").skip(1)).map(|rest| {
        let end = rest.find(|letter: char| !(letter.is_ascii_lowercase() || letter == '_'));
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[test]
fn every_module_has_its_place_and_uses_only_what_stands_to_its_left() {
    let order = order();
    let place = |module: &str| order.iter().position(|name| *name == module);
    let modules = modules();
    let gone: Vec<_> =
        order.iter().filter(|name| !modules.iter().any(|(module, _)| module == *name)).collect();
    assert!(gone.is_empty(), "the order names what is not there: {gone:?}");
    for (module, path) in &modules {
        let Some(own) = place(module) else { panic!("{module} is not in the order") };
        let code = fs::read_to_string(path).unwrap();
        for name in used(&code) {
            let right = place(name).is_some_and(|place| place > own);
            assert!(!right, "{} uses {name}, which stands to the right of {module}", path.display());
        }
    }
}
