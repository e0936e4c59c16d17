//! The program `edgeless_node_d`.

use std::process::ExitCode;

use clap::Parser;
use edgeless_daemon::run::{self, Options};
use edgeless_node::Node;
use edgeless_node::resources::CLASSES;

/// The node of the EDGELESS platform: runs functions and resources and carries their events.
#[derive(Parser)]
#[command(
    name = "edgeless_node_d",
    version,
    after_help = "Examples:
  edgeless_node_d -t node.toml              write a configuration
  RUST_LOG=info edgeless_node_d             run with ./node.toml and say what happens
  edgeless_node_d --available-resources     what resources a node can offer"
)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Print the classes of resources that a node can offer, and exit.
    #[arg(short, long)]
    available_resources: bool,
    /// Print them as JSON.
    #[arg(short, long, requires = "available_resources")]
    output_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.available_resources {
        print_resources(arguments.output_json)
    } else {
        run::main::<Node>(&arguments.options)
    }
}

fn print_resources(as_json: bool) -> ExitCode {
    if as_json {
        return match serde_json::to_string_pretty(&CLASSES) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => run::fail("edgeless_node_d", &error, 1),
        };
    }
    for class in CLASSES {
        println!("{} (version {}): {}", class.class_type, class.version, class.description);
        println!("  outputs: [{}]", class.outputs.join(", "));
        for key in class.configurations {
            let default = key.default.map(|default| format!(" (default '{default}')")).unwrap_or_default();
            println!("  {}{default}: {}", key.name, key.description);
        }
    }
    ExitCode::SUCCESS
}
