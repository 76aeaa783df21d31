//! Manual pages and completions, as `man` and the shells take them.

use std::fs;
use std::process::{Command, Stdio};

use crate::examples::missing;
use crate::support::{Ended, program, scratch};

/// Whether a program is installed.
fn has(name: &str) -> bool {
    Command::new("sh")
        .arg("-c")
        .arg(format!("command -v {name}"))
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success()
}

#[track_caller]
fn output(arguments: &[&str]) -> String {
    let ended = Ended::of(program().args(arguments));
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), ""));
    ended.stdout
}

#[test]
fn a_page_of_each_subcommand_tells_every_option() {
    let help = output(&["serve", "--help"]);
    let page = output(&["man", "serve"]);
    assert!(page.contains(".TH tidemill-serve 1"), "{page}");
    let options = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let options: Vec<&str> = options.map(|line| line.split([' ', '=']).next().unwrap()).collect();
    assert!(options.len() > 25, "{help}");
    for option in options {
        let written = option.replace('-', "\\-");
        assert!(page.contains(&format!("\\-\\-{written}")), "--{option} is not in the page");
    }
    assert!(page.contains("MAX_THREADS"), "the environment is in it");
    assert!(output(&["man"]).contains("tidemill\\-serve(1)"), "the page of the program names the others");
    let ended = Ended::of(program().args(["man", "sreve"]));
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("sreve") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
}

#[test]
fn all_pages_are_written_and_man_has_nothing_to_say_about_them() {
    let dir = scratch("man");
    output(&["man", "--dir", dir.to_str().unwrap()]);
    let mut names: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in
        ["tidemill.1", "tidemill-client.1", "tidemill-load.1", "tidemill-serve.1", "tidemill-simulate.1"]
    {
        assert!(names.contains(&name.to_owned()), "{name} is not among {names:?}");
    }
    if !has("groff") {
        return missing("groff is not installed");
    }
    for name in names {
        let ended =
            Ended::of(Command::new("groff").args(["-man", "-ww", "-Tutf8", "-z"]).arg(dir.join(&name)));
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), ""), "{name}");
    }
}

/// Has bash complete `words`, the last of which is begun.
fn complete_in_bash(words: &[&str]) -> String {
    let script = scratch("completions").join("tidemill.bash");
    fs::write(&script, output(&["completions", "bash"])).unwrap();
    let count = words.len() - 1;
    let line = format!(
        "source '{}'; COMP_WORDS=({}); COMP_CWORD={count}; _tidemill tidemill '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        words[count],
        words[count - 1]
    );
    let ended = Ended::of(Command::new("bash").arg("-c").arg(line));
    assert_eq!(ended.stderr, "");
    ended.stdout
}

#[test]
fn shells_complete_subcommands_options_and_values() {
    if has("bash") {
        assert_eq!(complete_in_bash(&["tidemill", "ser"]), "serve\n");
        assert_eq!(complete_in_bash(&["tidemill", "serve", "--max-t"]), "--max-threads\n");
        assert_eq!(complete_in_bash(&["tidemill", "serve", "--log-format", "j"]), "json\n");
    } else {
        missing("bash is not installed");
    }
    for (shell, check) in [("zsh", "-n"), ("fish", "-n")] {
        let script = scratch("completions").join("tidemill");
        fs::write(&script, output(&["completions", shell])).unwrap();
        if !has(shell) {
            missing(&format!("{shell} is not installed"));
            continue;
        }
        let ended = Ended::of(Command::new(shell).arg(check).arg(&script));
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), ""), "{shell}");
    }
    let ended = Ended::of(program().args(["completions", "tcsh"]));
    assert_eq!(ended.status.code(), Some(2));
}
