//! `load`: a workload of workflows that come and go, against a platform that runs already.
//!
//! [`arrivals`] says when workflows come and end, [`shapes`] what they look like; both are pure and
//! repeat for the same seed. [`driver`] does it, [`dataset`] writes it down as CSV, and [`summary`] is
//! what it came to.

mod arrivals;
mod dataset;
mod driver;
mod shapes;
mod summary;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use edgeless_api::Url;

use arrivals::{Arrivals, Model, Times};
use dataset::{Additional, Dataset};
use driver::Experiment;
use shapes::{Shapes, WorkflowType};
use summary::{Summary, Tally};

/// What the process ends with when something that was typed, or a file, is wrong.
const USAGE: u8 = 2;
/// After Ctrl-C.
const INTERRUPTED: u8 = 130;

/// What to do.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  edgeless_benchmark load -w help                             what workflows there are
  edgeless_benchmark load -w 'matrix-mul-chain;template' > m.json
  edgeless_benchmark load -w 'matrix-mul-chain;m.json' -d 60 -i 2 -l 10 --output load.csv
  edgeless_benchmark load --arrival-model single -w 'json-spec;examples/pipeline/workflow.json' --json")]
pub(crate) struct Args {
    /// Where the controller is.
    #[arg(short, long, value_name = "URL", default_value = "http://127.0.0.1:7001")]
    controller_url: Url,
    /// When workflows arrive and how long they live.
    #[arg(long, value_enum, value_name = "MODEL", default_value_t = Model::Poisson)]
    arrival_model: Model,
    /// How long workflows arrive, seconds: incr-and-keep only.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    warmup: f64,
    /// How long the experiment takes, seconds.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 30.0)]
    duration: f64,
    /// How long a workflow lives, seconds: the mean or, unless it is poisson, exactly.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 5.0)]
    lifetime: f64,
    /// The time between two arrivals, seconds: the mean or, unless it is poisson, exactly.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 5.0)]
    interarrival: f64,
    /// Leave the workflows running that have not ended before the experiment.
    #[arg(short, long)]
    keep_workflows: bool,
    /// The file of the model trace: lines `arrival,end` in seconds, arrivals in order.
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    workload_trace: OsString,
    /// What makes the experiment the same again.
    #[arg(short, long, value_name = "NUMBER", default_value_t = 42)]
    seed: u64,
    /// What workflows look like; `help` lists the types, `NAME;template` prints a file to begin with.
    #[arg(
        short,
        long,
        value_name = "TYPE",
        default_value = "single;functions/noop/function.json;functions/noop/noop.wasm"
    )]
    wf_type: WorkflowType,
    /// Write requests, responses and ends to FILE as CSV.
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    output: OsString,
    /// Go on with the file, which must have the same header, instead of beginning anew.
    #[arg(long)]
    append: bool,
    /// The values of further columns, in front of the others.
    #[arg(long, value_name = "FIELDS", default_value = "", hide_default_value = true)]
    additional_fields: String,
    /// The names of these columns.
    #[arg(long, value_name = "NAMES", default_value = "", hide_default_value = true)]
    additional_header: String,
}

/// Does it, and says how the process shall end.
pub(crate) fn run(args: Args, json: bool) -> ExitCode {
    let prepared = match prepare(args) {
        Ok(Prepared::Text(text)) => {
            print(&text);
            return ExitCode::SUCCESS;
        }
        Ok(Prepared::Experiment(experiment)) => experiment,
        Err(error) => return fail(&error, USAGE),
    };
    let tally = match experiment(*prepared) {
        Ok(tally) => tally,
        Err(error) => return fail(&error, 1),
    };
    let (failed, interrupted) = (tally.failed_stops > 0 || tally.output_failed, tally.interrupted);
    if tally.unanswered > 0 {
        eprintln!(
            "edgeless_benchmark: {} starts were not answered in time and may yet have succeeded: see `edgeless_cli workflow list`",
            tally.unanswered
        );
    }
    let summary = Summary::from(tally);
    match json.then(|| serde_json::to_string_pretty(&summary)).transpose() {
        Ok(json) => print(&json.unwrap_or_else(|| summary.text())),
        Err(error) => return fail(&error.into(), 1),
    }
    match (interrupted, failed) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    }
}

/// Prints a text. Whoever closed the pipe has read all that was wanted.
fn print(text: &str) {
    writeln!(std::io::stdout(), "{}", text.trim_end()).ok();
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("edgeless_benchmark: {error:#}");
    ExitCode::from(code)
}

/// What remains to be done when all that was typed has been read.
enum Prepared {
    /// To print something.
    Text(String),
    /// To run.
    Experiment(Box<Experiment>),
}

fn prepare(args: Args) -> Result<Prepared> {
    let (load, files) = match args.wf_type {
        WorkflowType::Help => return Ok(Prepared::Text(shapes::help())),
        WorkflowType::Template(template) => return Ok(Prepared::Text(template()?)),
        WorkflowType::Load(load, files) => (load, files),
    };
    let times = Times {
        warmup: args.warmup,
        duration: args.duration,
        lifetime: args.lifetime,
        interarrival: args.interarrival,
    };
    times.check()?;
    let has_trace = !args.workload_trace.is_empty();
    let arrivals = match (args.arrival_model, has_trace) {
        (Model::Trace, true) => Arrivals::listed(arrivals::read_trace(Path::new(&args.workload_trace))?, times),
        (Model::Trace, false) => bail!("--arrival-model trace needs --workload-trace FILE"),
        (_, true) => bail!("--workload-trace is for --arrival-model trace only"),
        (model, false) => Arrivals::new(model, times, args.seed),
    };
    let shapes = Shapes::new(load(&files)?, args.seed);
    // Last, so that no mistake costs an earlier file its content.
    let additional = Additional { fields: &args.additional_fields, header: &args.additional_header };
    let dataset = Dataset::open(Path::new(&args.output), args.append, additional, args.seed)?;
    Ok(Prepared::Experiment(Box::new(Experiment {
        controller: args.controller_url,
        arrivals,
        shapes,
        duration: Duration::from_secs_f64(args.duration),
        keep: args.keep_workflows,
        dataset,
    })))
}

fn experiment(experiment: Experiment) -> Result<Tally> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(experiment.run())
}
