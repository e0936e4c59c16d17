//! The orchestrator as a program.

use std::process::ExitCode;

use clap::Parser;
use edgeless_daemon::run::{self, Options};
use edgeless_orc::Orchestrator;

/// Places the components of an orchestration domain on its nodes.
#[derive(Parser)]
#[command(name = "edgeless_orc_d", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    run::main::<Orchestrator>(&Arguments::parse().options)
}
