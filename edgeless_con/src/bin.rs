//! `edgeless_con_d`: the controller as a program.

use std::process::ExitCode;

use clap::Parser;
use edgeless_con::Controller;

/// The controller of EDGELESS: takes workflows from users and gives each to an orchestration domain.
#[derive(Parser, Debug)]
#[command(
    name = "edgeless_con_d",
    version,
    after_help = "\
Examples:
  edgeless_con_d -t controller.toml    write a commented configuration, to be edited
  RUST_LOG=info edgeless_con_d         run with ./controller.toml and say what happens

Every key of the configuration can be set by an environment variable as well, such as
EDGELESS_CON__CONTROLLER_URL=http://127.0.0.1:8001."
)]
struct Arguments {
    #[command(flatten)]
    daemon: edgeless_daemon::run::Options,
}

fn main() -> ExitCode {
    edgeless_daemon::run::main::<Controller>(&Arguments::parse().daemon)
}
