//! The command that becomes a program: split into words, looked for, and started with what is to be its own.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Access, access};

use super::leased::Mode;

/// Variables of the server's that say something to it alone, or begin so.
const OF_THE_SERVER: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", "TIDEMILL_UPGRADE"];
/// As much of a script's first line as the kernel looks at, in bytes.
const FIRST_LINE_BYTES: u64 = 256;

/// A command that was found.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// As it was given.
    pub(super) text: String,
    /// What is executed, and its arguments.
    words: Vec<OsString>,
    /// What is put before them when it is started.
    launcher: Vec<OsString>,
    /// Variables that it does not get.
    withheld: Vec<OsString>,
}

/// What a program gets for its standard streams.
pub(super) struct Streams {
    pub(super) stdin: Stdio,
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
}

impl Program {
    /// Splits `text` as a POSIX shell does, and looks for the program in `PATH` as it does.
    ///
    /// # Errors
    /// What the command must be.
    pub(super) fn find(text: &str, launcher: Vec<OsString>) -> Result<Program, String> {
        let words = shlex::split(text).ok_or("a command whose quotes are closed")?;
        let Some(name) = words.first() else { return Err("a command".to_owned()) };
        let path = look_for(name)?;
        if let Some(interpreter) = interpreter(&path)
            && !is_executable(&interpreter)
        {
            let interpreter = interpreter.display();
            return Err(format!(
                "a program that can be run: its first line names {interpreter}, which cannot"
            ));
        }
        let words =
            std::iter::once(path.into_os_string()).chain(words.into_iter().skip(1).map(OsString::from));
        let names = env::vars_os().map(|(name, _)| name);
        let is_ours =
            |name: &OsString| OF_THE_SERVER.iter().any(|own| name.as_bytes().starts_with(own.as_bytes()));
        Ok(Program {
            text: text.to_owned(),
            words: words.collect(),
            launcher,
            withheld: names.filter(is_ours).collect(),
        })
    }

    /// Starts it as the program of this number, in a process group of its own. `environment` comes besides what is the same for all.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn start(
        &self,
        number: u64,
        mode: Mode,
        environment: Vec<(&'static str, OsString)>,
        streams: Streams,
    ) -> io::Result<Child> {
        let mut words = self.launcher.iter().chain(&self.words);
        let first = words.next().map_or(OsStr::new(""), OsString::as_os_str);
        let mut command = Command::new(first);
        command.args(words).stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
        self.withheld.iter().for_each(|name| {
            command.env_remove(name);
        });
        let mode = match mode {
            Mode::Shared => "shared",
            Mode::Leased => "leased",
        };
        command.envs(environment).env("TIDEMILL_MODE", mode).env("TIDEMILL_PROGRAM", number.to_string());
        command.process_group(0).spawn()
    }
}

/// The file of this name, as a shell finds it.
fn look_for(name: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match is_executable(&path) {
            true => Ok(path),
            false if path.exists() => Err(format!("a program that can be run: {name} is not executable")),
            false => Err(format!("a program that is there: {name} is not")),
        };
    }
    let places = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let found = env::split_paths(&places).map(|place| place.join(name)).find(|path| is_executable(path));
    found.ok_or_else(|| format!("a program that is found in PATH: {name} is not"))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

/// What the first line of a script says that is to run it.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut begin = Vec::new();
    File::open(path).ok()?.take(FIRST_LINE_BYTES).read_to_end(&mut begin).ok()?;
    let line = begin.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let word = line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).find(|word| !word.is_empty())?;
    Some(OsString::from_vec(word.to_vec()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let found = Program::find(r#"sh -c 'echo "a b"' x\ y "" # not this"#, vec![]).unwrap();
        assert_eq!(found.words[1..], ["-c", "echo \"a b\"", "x y", ""]);
        assert!(Path::new(&found.words[0]).is_absolute());
    }

    #[test]
    fn what_cannot_be_run_is_said() {
        for (command, why) in [
            ("", "a command"),
            ("sh -c 'open", "a command whose quotes are closed"),
            ("no-such-program x", "a program that is found in PATH: no-such-program is not"),
            ("/no/such/program", "a program that is there: /no/such/program is not"),
            ("/etc/passwd", "a program that can be run: /etc/passwd is not executable"),
            ("/usr", "a program that can be run: /usr is not executable"),
        ] {
            assert_eq!(Program::find(command, vec![]).unwrap_err(), why);
        }
    }
}
