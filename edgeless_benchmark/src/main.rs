//! Measures the platform: the program `edgeless_benchmark`.
//!
//! Each measurement starts what it needs, in this process or as child processes on free ports, ends it again
//! and gives a [`Report`]. Every figure stands beside a limit measured in the same run, where there is
//! one. The programs are those beside this one: build them in release mode, or the figures mean nothing.
//!
//! - One file for each measurement; `bare`, `bare_stream` and `http_server` are limits.
//! - `programs`, `node`, `platform`, `modules`: what is measured; `http_client`, `open_loop`: what loads it;
//!   `watched`: what sees into it.
//! - `load`: the workload generator, for a platform that runs already.
//! - `containers`: a folder, since it brings its own guests; its limits are in there.
//! - `worker`: where measurements run; `stats`, `process`: figures; `report`, `progress`: what the user sees.

mod bare;
mod bare_stream;
mod chaos;
mod cold;
mod containers;
mod density;
mod domains;
mod flood;
mod footprint;
mod http;
mod http_client;
mod http_server;
mod load;
mod modules;
mod neighbour;
mod node;
mod open_loop;
mod orchestrate;
mod peer_ring;
mod platform;
mod process;
mod programs;
mod progress;
mod report;
mod ring;
mod start;
mod stats;
mod watched;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use progress::Progress;
use report::Report;

/// Measures the EDGELESS platform.
#[derive(Parser)]
#[command(
    name = "edgeless_benchmark",
    version,
    after_help = "Examples:
  edgeless_benchmark footprint                       a table
  edgeless_benchmark ring --json                     one JSON object
  edgeless_benchmark http --seconds 10               longer measurements
  edgeless_benchmark http --update FILE              writes the table into a file"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// Replace the table between `<!-- measured:COMMAND:begin -->` and `<!-- measured:COMMAND:end -->` in FILE.
    #[arg(long, global = true, value_name = "FILE")]
    update: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Measure(Measurement),
    /// Workflows that come and go: arrivals, lifetimes and shapes from a model, results as CSV.
    Load(load::Args),
}

#[derive(Subcommand)]
enum Measurement {
    /// Time until ready, memory when idle, size of the programs, time to start a workflow.
    Footprint {
        /// The function that is started: a module without outputs.
        #[arg(long, value_name = "FILE", default_value = "functions/noop/noop.wasm")]
        wasm: PathBuf,
    },
    /// Events between two functions of one node, and on wasmtime alone.
    Ring {
        /// How surely the events arrive.
        #[arg(long, value_enum, default_value_t)]
        delivery: ring::Delivery,
        #[command(flatten)]
        options: Options,
    },
    /// Events between two functions of two nodes, and over a bare stream.
    PeerRing(Options),
    /// Casts from one node to another, as fast as they are taken, and over a bare stream.
    Flood(Options),
    /// HTTP requests to a function, and to a bare server.
    Http(Options),
    /// `workflow start` through three daemons.
    Start(Options),
    /// New instances until their first event is handled, and on wasmtime alone.
    Cold(Options),
    /// Memory of many idle instances on one node.
    Density {
        /// How many.
        #[arg(long, value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..))]
        instances: u32,
        #[command(flatten)]
        options: Options,
    },
    /// A function that serves requests beside functions that take all they can get.
    Neighbour(Options),
    /// An orchestrator with many nodes: to place a component, to replace lost nodes, memory.
    Orchestrate(orchestrate::Domain),
    /// A controller with many domains: to start many workflows, and to replace a domain that is lost.
    Domains(domains::Size),
    /// Daemons that are killed while workflows come and go: what is lost, and how long it takes to recover.
    Chaos(chaos::Storm),
    /// Functions and services in containers: events, starts, and whether they keep to their limits.
    Containers(Options),
    /// The guest of EDGELESS 1.x in the containers that are measured.
    #[command(name = containers::program::RELAY, hide = true)]
    ServeRelay,
    /// The web server in the containers that are measured.
    #[command(name = containers::program::WEB, hide = true)]
    ServeWeb,
    /// The bare server that `http` compares with.
    #[command(name = http_server::COMMAND, hide = true)]
    ServeHttp { content_type: String, body: String },
}

/// What the measurements have in common.
#[derive(Args)]
struct Options {
    /// The length of each measurement.
    #[arg(long, value_name = "N", default_value = "3", value_parser = seconds)]
    seconds: Duration,
    /// Where the functions are that are measured.
    #[arg(long, value_name = "DIR", default_value = "functions")]
    functions: PathBuf,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "give a number of seconds from 0.01 to 3600".to_string())
}

/// A measurement that goes on.
struct Bench {
    seconds: Duration,
    functions: PathBuf,
    progress: Progress,
}

impl From<Options> for Bench {
    fn from(Options { seconds, functions }: Options) -> Self {
        Self { seconds, functions, progress: Progress::new() }
    }
}

async fn measure(measurement: Measurement) -> Result<Report> {
    match measurement {
        Measurement::Footprint { wasm } => footprint::measure(&Progress::new(), &wasm).await,
        Measurement::Ring { delivery, options } => ring::measure(&options.into(), delivery).await,
        Measurement::PeerRing(options) => peer_ring::measure(&options.into()).await,
        Measurement::Flood(options) => flood::measure(&options.into()).await,
        Measurement::Http(options) => http::measure(&options.into()).await,
        Measurement::Start(options) => start::measure(&options.into()).await,
        Measurement::Cold(options) => cold::measure(&options.into()).await,
        Measurement::Density { instances, options } => density::measure(&options.into(), instances as usize).await,
        Measurement::Neighbour(options) => neighbour::measure(&options.into()).await,
        Measurement::Orchestrate(domain) => orchestrate::measure(domain).await,
        Measurement::Domains(size) => domains::measure(size).await,
        Measurement::Chaos(storm) => chaos::measure(storm).await,
        Measurement::Containers(options) => containers::measure(&options.into()).await,
        Measurement::ServeRelay => match containers::program::relay().await? {},
        Measurement::ServeWeb => match containers::program::web().await? {},
        Measurement::ServeHttp { content_type, body } => match http_server::serve(&content_type, &body).await? {},
    }
}

/// A signal ended the program, which tells of it by the code that shells use.
struct Interrupted {
    code: u8,
}

/// Measures, unless a signal comes first: what was started ends with its future, children too.
async fn run(measurement: Measurement) -> Result<Result<Report, Interrupted>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        report = measure(measurement) => report.map(Ok),
        _ = interrupt.recv() => Ok(Err(Interrupted { code: 130 })),
        _ = terminate.recv() => Ok(Err(Interrupted { code: 143 })),
    }
}

fn print(report: &Report, json: bool, update: Option<PathBuf>) -> Result<()> {
    if let Some(file) = update {
        report.update(&file)?;
    }
    match json {
        true => println!("{}", serde_json::to_string_pretty(&report.json())?),
        false => print!("{}", report.table()),
    }
    Ok(())
}

fn main() -> ExitCode {
    let Arguments { command, json, update } = Arguments::parse();
    let measurement = match command {
        Command::Load(_) if update.is_some() => {
            eprintln!("edgeless_benchmark: --update is for measurements: give load --output FILE");
            return ExitCode::from(2);
        }
        Command::Load(load) => return load::run(load, json),
        Command::Measure(measurement) => measurement,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ended = runtime.block_on(run(measurement));
        // What is measured in this process may be busy for ever: nobody waits for it.
        runtime.shutdown_background();
        ended
    });
    let printed = match ended {
        Ok(Ok(report)) => print(&report, json, update),
        Ok(Err(Interrupted { code })) => return ExitCode::from(code),
        Err(error) => Err(error),
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgeless_benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}
