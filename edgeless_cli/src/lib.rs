//! The command line of the platform.
//!
//! [`opts`] is what was typed, [`plan`] is what was decided from it, and [`commands`] does it, one
//! file for each noun. What a command found out is one value, which [`output`] writes as text or as
//! JSON. Whatever goes wrong is a [`failure::Failure`], which knows its exit code.

mod cargo;
mod commands;
mod config;
mod failure;
mod image;
mod json;
mod opts;
mod output;
mod plan;
mod workflow_file;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::opts::Opts;
use crate::output::Console;

/// Does what the arguments of this process ask for.
pub fn run() -> ExitCode {
    let opts = Opts::parse();
    let console = Console::of_process(opts.output);
    let ended = plan::decide(opts, std::env::var(config::VARIABLE).ok()).and_then(|plan| commands::run(plan, &console));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.lines().iter().for_each(|line| console.error(line));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Reads a workflow file and the files that it names: the warnings about it.
///
/// # Errors
/// What is wrong with it, each with file and place.
pub fn check_workflow(path: &Path) -> Result<Vec<String>, Vec<String>> {
    let loaded = workflow_file::load(path);
    loaded.map(|loaded| loaded.warnings).map_err(|failure| failure.lines())
}
