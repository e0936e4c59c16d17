//! Measures the platform: the program `edgeless_benchmark`.
//!
//! Each command starts what it needs as child processes on free ports and ends it again. The programs
//! are those beside this one: build them in release mode, or the figures mean little.

mod footprint;
mod load;
mod programs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures the EDGELESS platform.
#[derive(Parser)]
#[command(
    name = "edgeless_benchmark",
    version,
    after_help = "Examples:
  edgeless_benchmark footprint                       a table
  edgeless_benchmark footprint --json                one JSON object
  edgeless_benchmark footprint --update README.md    writes the table into a file"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time until ready, memory when idle, size of the programs, time to start a workflow.
    Footprint {
        /// The function that is started: a module without outputs.
        #[arg(long, value_name = "FILE", default_value = "functions/noop/noop.wasm")]
        wasm: PathBuf,
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
        /// Replace the table between `<!-- measured:begin -->` and `<!-- measured:end -->` in FILE.
        #[arg(long, value_name = "FILE")]
        update: Option<PathBuf>,
    },
    /// Workflows that come and go: arrivals, lifetimes and shapes from a model, results as CSV.
    Load(load::Args),
}

fn main() -> ExitCode {
    let (wasm, json, update) = match Arguments::parse().command {
        Command::Footprint { wasm, json, update } => (wasm, json, update),
        Command::Load(args) => return load::run(args),
    };
    let measured = footprint::measure(&wasm).and_then(|footprint| {
        if let Some(file) = update {
            footprint::update(&file, &footprint.table())?;
        }
        if json { Ok(serde_json::to_string_pretty(&footprint)?) } else { Ok(footprint.table()) }
    });
    match measured {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("edgeless_benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}
