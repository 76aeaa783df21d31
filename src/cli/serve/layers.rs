//! Where the options come from: flags win over the environment, that over the file of `--config`, that over defaults.
//!
//! What stands in the file becomes arguments of the program, for the options that neither a flag nor the environment gives. So it
//! is parsed, checked and refused as flags are, an option that is added is in the file at once, and nothing here knows any.

use std::any::TypeId;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use tidemill::Error;

use super::arguments::{self, ServeArgs};
use super::file::{self, Entry, Item};
use crate::cli::{self, Cli, one_line};

/// What is about the file, and not in it.
const NOT_IN_FILE: [&str; 3] = ["config", "check", "help"];
/// A key that is no option and an option are about the same from this similarity on, by Jaro and Winkler.
const SIMILAR: f64 = 0.8;
/// The subcommand.
const SERVE: &str = "serve";

/// The arguments of the program, from which everything is read, once more whenever it is to be.
#[derive(Debug)]
pub(super) struct Layers {
    arguments: Vec<OsString>,
}

/// All options, and where each comes from.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) args: ServeArgs,
    pub(super) values: Vec<Value>,
}

/// The value of an option.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// The name of the option, without dashes.
    pub(super) key: String,
    /// As it is written, in TOML.
    pub(super) text: String,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Flag,
    /// The variable.
    Environment(String),
    /// The file, and the line in it.
    File(PathBuf, usize),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag => f.write_str("flag"),
            Source::Environment(variable) => write!(f, "environment, {variable}"),
            Source::File(_, line) => write!(f, "file, line {line}"),
            Source::Default => f.write_str("default"),
        }
    }
}

impl Layers {
    /// `arguments` are those of the program, which have `serve` behind its name.
    pub(super) fn new(arguments: Vec<OsString>) -> Layers {
        Layers { arguments }
    }

    /// Reads all layers. The file is read anew each time.
    ///
    /// # Errors
    /// One line that says what is wrong; if it is in the file, with that and its line.
    pub(super) fn read(&self) -> Result<Options, String> {
        let mut program = Cli::command();
        program.build();
        let given = parse(&program, self.arguments.clone()).map_err(|error| one_line(&error.to_string()))?;
        let path = given.get_one::<PathBuf>("config");
        let entries = path.map(|path| file::read(path)).transpose()?.unwrap_or_default();
        let path = path.cloned().unwrap_or_default();
        let additions = additions(&entries, &path, &program, &given)?;
        let matches = self.parse_with(&program, &additions).map_err(|error| {
            // Each value for itself is right: what is not is how they go together.
            let mut message = one_line(&error.to_string());
            for Addition { arg, line, .. } in &additions {
                if message.contains(&format!("'{arg}'")) {
                    message += &format!(" ({}:{line})", path.display());
                }
            }
            message
        })?;
        let lines: HashMap<&str, usize> =
            additions.iter().map(|addition| (key(addition.arg), addition.line)).collect();
        let args = ServeArgs::from_arg_matches(&matches).map_err(|error| one_line(&error.to_string()))?;
        let bounds = cli::pool_bounds(args.min_threads, args.max_threads);
        let values = options(&program).map(|arg| {
            let id = arg.get_id().as_str();
            let raw = matches.get_raw(id).into_iter().flatten();
            let mut texts: Vec<String> = raw.map(|text| text.to_string_lossy().into_owned()).collect();
            // The default of each is the other's.
            match id {
                "min_threads" => texts = vec![bounds.0.to_string()],
                "max_threads" => texts = vec![bounds.1.to_string()],
                _ => {}
            }
            let source = match (lines.get(key(arg)), matches.value_source(id), arg.get_env()) {
                (Some(line), ..) => Source::File(path.clone(), *line),
                (None, Some(ValueSource::CommandLine), _) => Source::Flag,
                (None, Some(ValueSource::EnvVariable), Some(variable)) => {
                    Source::Environment(variable.to_string_lossy().into_owned())
                }
                _ => Source::Default,
            };
            Value { key: key(arg).to_owned(), text: in_toml(arg, &texts), source }
        });
        Ok(Options { values: values.collect(), args })
    }

    /// Parses the arguments with those that the file adds.
    fn parse_with(&self, program: &Command, additions: &[Addition<'_>]) -> Result<ArgMatches, clap::Error> {
        let parsed = parse(program, self.arguments_with(additions.iter()));
        let Err(error) = &parsed else { return parsed };
        if !is_about_others(error) {
            return parsed;
        }
        // What a file says that is so anyway goes with everything, and needs nothing: as where all options are listed in it.
        let (same, needed): (Vec<_>, Vec<_>) = additions.iter().partition(|addition| addition.is_default());
        match parse(program, self.arguments_with(needed.into_iter())) {
            Ok(matches) if same.iter().all(|addition| addition.is_in_force(&matches)) => Ok(matches),
            _ => parsed,
        }
    }

    fn arguments_with<'a>(&self, additions: impl Iterator<Item = &'a Addition<'a>>) -> Vec<OsString> {
        let (mut flags, mut positional) = (Vec::new(), Vec::new());
        for Addition { arg, texts, .. } in additions {
            let to = if arg.is_positional() { &mut positional } else { &mut flags };
            to.extend(texts.iter().map(|text| written(arg, text)));
        }
        let (begin, rest) = self.arguments.split_at(self.arguments.len().min(2));
        let mut arguments = [begin, &flags, rest].concat();
        if !positional.is_empty() {
            let is_separated = rest.iter().any(|argument| argument == "--");
            arguments.extend((!is_separated).then(|| "--".into()));
            arguments.extend(positional);
        }
        arguments
    }
}

/// What the file gives for an option that neither a flag nor the environment gives.
struct Addition<'a> {
    arg: &'a Arg,
    line: usize,
    texts: Vec<String>,
}

impl Addition<'_> {
    fn is_default(&self) -> bool {
        self.arg
            .get_default_values()
            .iter()
            .map(|text| text.to_string_lossy().into_owned())
            .eq(self.texts.iter().cloned())
    }

    fn is_in_force(&self, matches: &ArgMatches) -> bool {
        let raw = matches.get_raw(self.arg.get_id().as_str()).into_iter().flatten();
        raw.map(|text| text.to_string_lossy().into_owned()).eq(self.texts.iter().cloned())
    }
}

/// Looks at each value of the file, and tells which of them count.
fn additions<'a>(
    entries: &[Entry],
    path: &Path,
    program: &'a Command,
    given: &ArgMatches,
) -> Result<Vec<Addition<'a>>, String> {
    let mut additions = Vec::new();
    for Entry { key, line, item } in entries {
        let in_file = |message: String| format!("{}:{line}: {message}", path.display());
        let Some(arg) = options(program).find(|arg| self::key(arg) == key) else {
            return Err(in_file(no_option(key, program)));
        };
        let texts = texts(arg, item).map_err(|message| in_file(format!("{key}: {message}")))?;
        for text in &texts {
            check(program, arg, &written(arg, text)).map_err(in_file)?;
        }
        let wins = given.value_source(arg.get_id().as_str());
        let overruled = matches!(wins, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        if !overruled && !texts.is_empty() {
            additions.push(Addition { arg, line: *line, texts });
        }
    }
    Ok(additions)
}

/// Whether an error is about how options go together.
fn is_about_others(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict)
}

impl Options {
    /// Whether anybody has said anything about an option.
    pub(super) fn is_given(&self, key: &str) -> bool {
        let mut values = self.values.iter();
        values.any(|value| value.key == key && !matches!(value.source, Source::Default))
    }

    /// `key = value  # source` for each option.
    pub(super) fn listing(&self) -> String {
        let line = |Value { key, text, source }: &Value| format!("{key} = {text}  # {source}\n");
        self.values.iter().map(line).collect()
    }

    /// What the library says of a setting, in the words of where that comes from.
    pub(super) fn in_options(&self, error: &Error) -> String {
        let Error::Setting { name, value, must } = error else { return error.to_string() };
        let key = arguments::option_of(name);
        let source = self.values.iter().find(|value| value.key == key).map(|value| &value.source);
        let said = match source {
            Some(Source::File(path, line)) => format!("{}:{line}: {key}", path.display()),
            _ => format!("--{key}"),
        };
        format!("{said} is {value}, but must be {}", must.replace("max_threads", "--max-threads"))
    }
}

fn parse(
    program: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<ArgMatches, clap::Error> {
    let mut matches = program.clone().try_get_matches_from(arguments)?;
    let (_, of_serve) = matches.remove_subcommand().expect("the arguments begin with a subcommand");
    Ok(of_serve)
}

fn serve(program: &Command) -> &Command {
    program.find_subcommand(SERVE).expect("the program has this subcommand")
}

/// The options of `tidemill serve` that a file may have.
fn options(program: &Command) -> impl Iterator<Item = &Arg> {
    serve(program).get_arguments().filter(|arg| !NOT_IN_FILE.contains(&key(arg)))
}

/// What an option is called in a file.
fn key(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_else(|| arg.get_id().as_str())
}

fn no_option(key: &str, program: &Command) -> String {
    if NOT_IN_FILE.contains(&key) {
        return format!("{key}: can only be given as a flag");
    }
    let wanted = key.replace('_', "-").to_lowercase();
    let similar = options(program).map(|arg| (strsim::jaro_winkler(&wanted, self::key(arg)), self::key(arg)));
    let nearest = similar
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    match nearest {
        Some((_, nearest)) => format!("{key}: there is no such option; did you mean {nearest}?"),
        None => format!("{key}: there is no such option"),
    }
}

/// The values that stand in the file for an option: none, one, or for a list several.
fn texts(arg: &Arg, item: &Item) -> Result<Vec<String>, String> {
    let takes_values = arg.get_action().takes_values();
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    let is_list_in_one = arg.get_value_names().is_some_and(|names| names.iter().any(|name| name == "LIST"));
    match item {
        Item::Truth(true) if !takes_values => Ok(vec![String::new()]),
        Item::Truth(false) if !takes_values => Ok(Vec::new()),
        Item::Table => Err("is a table, but each option is a key of its own".to_owned()),
        _ if !takes_values => Err("must be true or false".to_owned()),
        Item::Truth(truth) => Err(format!("takes a value, not {truth}")),
        Item::Moment => Err("takes no date and no time".to_owned()),
        // As it is listed where it is not set.
        Item::Text(text) if text.is_empty() && arg.get_default_values().is_empty() => Ok(Vec::new()),
        Item::Text(text) => Ok(vec![text.clone()]),
        Item::List(_) if !is_list && !is_list_in_one => Err("takes one value, not a list".to_owned()),
        Item::List(items) => {
            let mut all = Vec::new();
            for item in items {
                match item {
                    Item::Text(text) => all.push(text.clone()),
                    _ => return Err("is a list of strings".to_owned()),
                }
            }
            Ok(if is_list { all } else { vec![all.join(",")] })
        }
    }
}

/// An option with a value, as an argument.
fn written(arg: &Arg, text: &str) -> OsString {
    match arg.get_long() {
        None => text.into(),
        Some(long) if arg.get_action().takes_values() => format!("--{long}={text}").into(),
        Some(long) => format!("--{long}").into(),
    }
}

/// Has the option's own parser look at its value.
fn check(program: &Command, arg: &Arg, written: &OsString) -> Result<(), String> {
    let mut arguments = vec!["tidemill".into(), SERVE.into()];
    arguments.extend(arg.is_positional().then(|| "--".into()));
    arguments.push(written.clone());
    let Err(error) = parse(program, arguments) else { return Ok(()) };
    // What goes with it is not here.
    if is_about_others(&error) {
        return Ok(());
    }
    let message = one_line(&error.to_string()).replace(&format!("'{arg}'"), &format!("'{}'", key(arg)));
    Err(match error.get(ContextKind::SuggestedValue) {
        Some(ContextValue::String(value)) => format!("{message}; did you mean {value}?"),
        _ => message,
    })
}

/// What is in force for an option, as a file would have it.
fn in_toml(arg: &Arg, texts: &[String]) -> String {
    if !arg.get_action().takes_values() {
        return texts.first().map_or("false", String::as_str).to_owned();
    }
    let is_text = arg.get_value_parser().type_id() == TypeId::of::<String>();
    let value = |text: &String| {
        // As a number only what is read as the same again.
        let number = text.parse::<u64>().is_ok_and(|number| !is_text && number.to_string() == *text);
        if number { text.clone() } else { toml::Value::String(text.clone()).to_string() }
    };
    match (arg.get_action(), texts) {
        (ArgAction::Append, texts) => format!("[{}]", texts.iter().map(value).collect::<Vec<_>>().join(", ")),
        (_, [text, ..]) => value(text),
        (_, []) => "\"\"".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::fs;

    use super::*;

    /// Width of a line of the example.
    const WIDTH: usize = 100;
    const HEAD: &str = "\
        # Options of `tidemill serve --config FILE`, all of them, each as it is by default.\n\
        #\n\
        # Take the `#` away to set one. Flags win over the environment, which wins over this file.\n\
        # `tidemill serve --config FILE --check` says what would be in force, and where it comes from.\n\
        # SIGHUP has a running server read the file again.\n";

    /// `text` as comments, its words in lines.
    fn comment(example: &mut String, text: &str) {
        let mut line = "#".to_owned();
        for word in text.split_whitespace() {
            if line.len() + word.len() >= WIDTH {
                example.push_str(&(std::mem::replace(&mut line, "#".to_owned()) + "\n"));
            }
            line += " ";
            line += word;
        }
        example.push_str(&(line + "\n"));
    }

    /// The example, as the options tell it. `UPDATE_EXAMPLE=1 cargo test --bin tidemill example` writes it.
    #[test]
    fn the_example_is_what_the_options_say_of_themselves() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deploy/tidemill.toml");
        let mut program = Cli::command();
        program.build();
        let mut example = HEAD.to_owned();
        for arg in options(&program) {
            let mut text =
                arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
            if let Some(variable) = arg.get_env() {
                write!(text, " (in the environment {})", variable.display()).unwrap();
            }
            let defaults = arg.get_default_values();
            let mut texts: Vec<String> =
                defaults.iter().map(|text| text.to_string_lossy().into_owned()).collect();
            match arg.get_id().as_str() {
                "min_threads" => texts = vec![cli::pool_bounds(None, None).0.to_string()],
                "max_threads" => texts = vec![cli::pool_bounds(None, None).1.to_string()],
                _ => {}
            }
            example.push('\n');
            comment(&mut example, &text);
            writeln!(example, "#{} = {}", key(arg), in_toml(arg, &texts)).unwrap();
        }
        if std::env::var_os("UPDATE_EXAMPLE").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &example).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == example,
            "{} is not what the options say: UPDATE_EXAMPLE=1 cargo test --bin tidemill example",
            path.display()
        );
    }
}
