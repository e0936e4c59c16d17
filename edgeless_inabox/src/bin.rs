//! The program `edgeless_inabox`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use edgeless_api::Url;
use edgeless_daemon::{run, telemetry};
use edgeless_inabox::{Configs, Platform, layout};

const NAME: &str = "edgeless_inabox";

/// The whole EDGELESS platform in one process: a controller, an orchestrator and nodes.
///
/// Every controller.toml, orchestrator.toml and node*.toml in the configuration directory becomes a
/// daemon of this process. Where there is none of these files, nothing needs to be configured: the
/// daemons use the addresses of the deployment guide.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  edgeless_inabox                        run a controller, an orchestrator and a node
  edgeless_inabox -n 3                   the same with three nodes
  edgeless_inabox -t --initial-port 9000 write configuration files with ports from 9001 on
  edgeless_cli --controller-url http://127.0.0.1:7001 workflow list"
)]
struct Arguments {
    /// Write all configuration files and exit; files that exist are kept.
    #[arg(short, long)]
    templates: bool,
    /// Directory of the configuration files.
    #[arg(long, value_name = "DIRECTORY", default_value = "./")]
    config_path: PathBuf,
    /// How many nodes to run, or to write files for.
    #[arg(short, long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    num_of_nodes: u16,
    /// The port before the first that written files use; the domain is named after it.
    #[arg(long, value_name = "PORT", default_value_t = 7000, value_parser = clap::value_parser!(u16).range(1..=60000))]
    initial_port: u16,
    /// Have written files bind to this machine's address towards others instead of loopback.
    #[arg(short, long)]
    bind_to_nonloopback: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::init();
    if arguments.templates { write_templates(&arguments) } else { run_platform(&arguments) }
}

fn write_templates(arguments: &Arguments) -> ExitCode {
    let host = if arguments.bind_to_nonloopback { external_address() } else { IpAddr::from([127, 0, 0, 1]) };
    let files = layout::sequence(host, arguments.initial_port, arguments.num_of_nodes);
    if let Err(error) = std::fs::create_dir_all(&arguments.config_path) {
        return run::fail(NAME, &format!("cannot make {}: {error}", arguments.config_path.display()), 1);
    }
    match files.write(&arguments.config_path) {
        Ok(written) => {
            for (name, is_new) in written {
                eprintln!("{name}: {}", if is_new { "written" } else { "exists, kept" });
            }
            eprintln!("last port used: {}", files.last_port);
            ExitCode::SUCCESS
        }
        Err(error) => run::fail(NAME, &error, 1),
    }
}

/// This machine's address towards others.
fn external_address() -> IpAddr {
    let all = Url::of(([0, 0, 0, 0], 1).into());
    all.announced().bind_addr().map_or(IpAddr::from([127, 0, 0, 1]), |addr| addr.ip())
}

fn run_platform(arguments: &Arguments) -> ExitCode {
    let began = Instant::now();
    if !arguments.config_path.is_dir() {
        let reason = format!("--config-path: there is no directory {}", arguments.config_path.display());
        return run::fail(NAME, &reason, run::USAGE);
    }
    let configs = match Configs::load(&arguments.config_path) {
        Ok(Some(configs)) => {
            if arguments.num_of_nodes != 1 {
                eprintln!("{NAME}: the configuration files say which nodes there are: -n has no effect");
            }
            configs
        }
        Ok(None) => match Configs::parse(&layout::guide(arguments.num_of_nodes)) {
            Ok(configs) => configs,
            Err(error) => return run::fail(NAME, &error, run::USAGE),
        },
        Err(error) => return run::fail(NAME, &error, run::USAGE),
    };
    let start = async move {
        let platform = Platform::start(configs).await?;
        if !platform.until_ready(Duration::from_secs(5)).await {
            tracing::warn!("the controller does not know all nodes yet: it goes on looking for them");
        }
        tracing::info!("ready after {} ms", began.elapsed().as_millis());
        Ok(platform)
    };
    run::in_runtime(NAME, run::run(NAME, start))
}
