//! What the platform costs before it does anything, and what a start costs.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use edgeless_api::client::{Connection, Options, Workflows};
use edgeless_api::workflow::{Function, Workflow};
use edgeless_api::{FunctionClass, Url};
use serde::Serialize;

use crate::programs::{self, Daemon, configure, free_port};

/// How often the platform is brought up.
const STARTS: usize = 11;
/// How often a workflow is started.
const WORKFLOWS: usize = 500;
/// How long a platform is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(3);

const PROGRAMS: [&str; 5] = ["edgeless_con_d", "edgeless_orc_d", "edgeless_node_d", "edgeless_cli", "edgeless_inabox"];

/// The figures.
#[derive(Debug, Serialize)]
pub(crate) struct Footprint {
    /// From the start of `edgeless_inabox` until workflows can be started: median.
    inabox_ready_ms: f64,
    /// Resident memory of the whole platform in one process, idle.
    inabox_idle_mib: f64,
    /// Resident memory of a node alone, idle.
    node_idle_mib: f64,
    /// `workflow start` through three daemons, of one function whose module is on the node.
    start_ms_p50: f64,
    start_ms_p99: f64,
    /// Programs without symbols, MiB.
    stripped_mib: Vec<(String, f64)>,
    /// What it was measured on.
    machine: String,
}

pub(crate) fn measure(wasm: &Path) -> Result<Footprint> {
    let module = std::fs::read(wasm)
        .with_context(|| format!("{}: build it with `edgeless_cli function build`", wasm.display()))?;
    let (inabox_ready_ms, inabox_idle_mib) = inabox()?;
    let (node_idle_mib, starts) = daemons(module)?;
    let stripped = PROGRAMS.iter().map(|name| Ok((name.to_string(), stripped_mib(name)?)));
    Ok(Footprint {
        inabox_ready_ms,
        inabox_idle_mib,
        node_idle_mib,
        start_ms_p50: quantile(&starts, 0.5),
        start_ms_p99: quantile(&starts, 0.99),
        stripped_mib: stripped.collect::<Result<_>>()?,
        machine: machine(),
    })
}

/// The whole platform in one process: time until ready and memory.
fn inabox() -> Result<(f64, f64)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    let written = Command::new(programs::path("edgeless_inabox")?)
        .args(["-t", "--initial-port", "20000"])
        .current_dir(path)
        .stderr(std::process::Stdio::null())
        .status()?;
    if !written.success() {
        bail!("edgeless_inabox -t failed");
    }
    let ports = (20001..=20008).map(|port| Ok((port, free_port()?))).collect::<Result<Vec<(u16, u16)>>>()?;
    for file in ["controller.toml", "orchestrator.toml", "node.toml"] {
        let file = path.join(file);
        let mut text = std::fs::read_to_string(&file)?;
        for (from, to) in &ports {
            text = text.replace(&format!(":{from}\""), &format!(":{to}\""));
        }
        std::fs::write(file, text)?;
    }
    let mut ready = Vec::new();
    let mut idle_mib = 0.0;
    for round in 0..STARTS {
        let (daemon, took) = Daemon::start("edgeless_inabox", path)?;
        ready.push(took);
        if round + 1 == STARTS {
            std::thread::sleep(IDLE);
            idle_mib = mib(daemon.resident_kib()?);
        }
    }
    Ok((quantile(&ready, 0.5), idle_mib))
}

/// Three daemons: memory of the node, and the times of starts.
fn daemons(module: Vec<u8>) -> Result<(f64, Vec<Duration>)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    let (controller, orchestrator) = (free_port()?, free_port()?);
    configure("edgeless_con_d", path, "controller.toml", &[(7001, controller), (7011, orchestrator)])?;
    configure("edgeless_orc_d", path, "orchestrator.toml", &[(7011, orchestrator)])?;
    let own = [(7021, free_port()?), (7002, free_port()?), (7003, free_port()?), (7035, free_port()?)];
    configure("edgeless_node_d", path, "node.toml", &[own.as_slice(), &[(7011, orchestrator)]].concat())?;
    let _orchestrator = Daemon::start("edgeless_orc_d", path)?.0;
    let _controller = Daemon::start("edgeless_con_d", path)?.0;
    let node = Daemon::start("edgeless_node_d", path)?.0;
    std::thread::sleep(IDLE);
    let idle = mib(node.resident_kib()?);
    let url: Url = format!("http://127.0.0.1:{controller}").parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let starts = runtime.block_on(start_workflows(&url, module))?;
    Ok((idle, starts))
}

async fn start_workflows(controller: &Url, module: Vec<u8>) -> Result<Vec<Duration>> {
    let workflows = Workflows::new(Connection::lazy(controller, Options::default())?);
    let function = Function {
        name: "function".to_string(),
        class: FunctionClass {
            id: "function".to_string(),
            function_type: edgeless_api::component::RUST_WASM.to_string(),
            version: "0.1".to_string(),
            binary: module.into(),
            ..FunctionClass::default()
        },
        outputs: [].into(),
        annotations: [].into(),
    };
    let workflow = Workflow::new(vec![function], vec![], [].into())?;
    // The first start compiles the module.
    let first = workflows.start(workflow.clone(), None).await?;
    workflows.stop(first.workflow).await?;
    let mut starts = Vec::new();
    for _ in 0..WORKFLOWS {
        let began = Instant::now();
        let started = workflows.start(workflow.clone(), None).await?;
        starts.push(began.elapsed());
        workflows.stop(started.workflow).await?;
    }
    Ok(starts)
}

/// The size of a program without symbols.
fn stripped_mib(program: &str) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let stripped = directory.path().join(program);
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(programs::path(program)?).status();
    let size = match status {
        Ok(status) if status.success() => std::fs::metadata(stripped)?.len(),
        _ => bail!("`strip` failed: install binutils"),
    };
    Ok(mib(size >> 10))
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// A quantile, in milliseconds.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index between 0 and the number of values"
)]
fn quantile(times: &[Duration], quantile: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    let index = ((times.len().saturating_sub(1)) as f64 * quantile).round() as usize;
    times.get(index).copied().unwrap_or_default().as_secs_f64() * 1000.0
}

fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{count} cores, {model}")
}

impl Footprint {
    /// The figures as a table in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| what | measured | aim |\n|---|---|---|\n");
        let mut row = |what: &str, measured: String, aim: &str| {
            // A String never fails to be written to.
            writeln!(table, "| {what} | {measured} | {aim} |").ok();
        };
        row("`edgeless_inabox` until ready (median)", format!("{:.0} ms", self.inabox_ready_ms), "< 1 s");
        row("whole platform in one process, idle, resident", format!("{:.1} MiB", self.inabox_idle_mib), "< 40 MiB");
        row("node alone, idle, resident", format!("{:.1} MiB", self.node_idle_mib), "< 25 MiB");
        let start = format!("{:.2} ms (p99 {:.2} ms)", self.start_ms_p50, self.start_ms_p99);
        row("`workflow start` through three daemons, module known", start, "< 5 ms");
        let sizes: Vec<_> = self.stripped_mib.iter().map(|(name, mib)| format!("{name} {mib:.1}")).collect();
        row("size of the stripped programs, MiB", sizes.join(", "), "");
        writeln!(table, "\nMeasured on {}.", self.machine).ok();
        table
    }
}

const BEGIN: &str = "<!-- measured:begin -->";
const END: &str = "<!-- measured:end -->";

/// Replaces the table in a file.
pub(crate) fn update(file: &Path, table: &str) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let marked = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = marked.with_context(|| format!("{} lacks {BEGIN} … {END}", file.display()))?;
    std::fs::write(file, format!("{before}{BEGIN}\n{table}{END}{after}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let times: Vec<_> = (1..=101).rev().map(Duration::from_millis).collect();
        assert_eq!((quantile(&times, 0.5), quantile(&times, 0.99), quantile(&[], 0.5)), (51.0, 100.0, 0.0));
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("README.md");
        std::fs::write(&file, format!("a\n{BEGIN}\nold\n{END}\nb")).unwrap();
        update(&file, "new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("a\n{BEGIN}\nnew\n{END}\nb"));
        std::fs::write(&file, "no marks").unwrap();
        assert!(update(&file, "new").is_err());
    }
}
