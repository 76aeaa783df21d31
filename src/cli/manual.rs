//! `tidemill man` and `tidemill completions`: what the options say of themselves, for `man` and for shells.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Failure, print_bytes};

/// Print a manual page, as `man -l -` shows it, or write all of them.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The subcommand that the page is of [default: the program itself]
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
    /// Write the pages of the program and of all its subcommands into this directory, as tidemill.1, tidemill-serve.1 and so on
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

/// Print the completions for a shell.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Prints a page, or writes all.
pub(crate) fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    let program = program();
    if let Some(dir) = &args.dir {
        let of_dir = |error| Failure::of_file(dir, error);
        fs::create_dir_all(dir).map_err(of_dir)?;
        clap_mangen::generate_to(program, dir).map_err(of_dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = match &args.command {
        None => program,
        Some(name) => {
            let named = program.get_subcommands().find(|command| command.get_name() == name);
            let Some(command) = named else {
                let names: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
                let names = names.join(", ");
                return Err(Failure::usage(format!("there is no subcommand '{name}', but {names}")));
            };
            command.clone()
        }
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text).map_err(|error| Failure::failed(error.to_string()))?;
    print_bytes(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the completions for a shell.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut program(), "tidemill", &mut text);
    print_bytes(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The program with all that its subcommands have.
fn program() -> Command {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    program
}
