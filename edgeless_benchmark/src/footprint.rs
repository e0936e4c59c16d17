//! `footprint`: what the platform costs before it does anything, and what a start costs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use serde_json::json;

use crate::modules;
use crate::platform::{Platform, workflow};
use crate::process::resident_kib;
use crate::programs::{self, Daemon, free_port};
use crate::progress::Progress;
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{millis, quantile};

/// How often the platform is brought up.
const STARTS: usize = 11;
/// How often a workflow is started.
const WORKFLOWS: usize = 500;
/// How long a platform is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(3);

const PROGRAMS: [&str; 5] = ["edgeless_con_d", "edgeless_orc_d", "edgeless_node_d", "edgeless_cli", "edgeless_inabox"];

pub(crate) async fn measure(progress: &Progress, wasm: &Path) -> Result<Report> {
    let module = modules::read(wasm)?;
    progress.say("the platform in one process");
    let (ready, inabox_idle) = inabox().await?;
    progress.say("three daemons");
    let (node_idle, starts) = daemons(&module).await?;
    progress.say("the size of the programs");
    let mut report = Report::new("footprint");
    let mut add = |what: &str, key: &str, value: f64, unit: Unit, aim: &'static str| {
        report.add(Row::new(what, Figure::new(key, value, unit)).aim(aim));
    };
    let ms = |times: &[Duration], q| millis(quantile(times, q));
    add("`edgeless_inabox` until ready, p50", "inabox_ready_ms", ms(&ready, 0.5), Unit::Milliseconds, "< 1 s");
    add("whole platform in one process, idle, resident", "inabox_idle_mib", inabox_idle, Unit::Mib, "< 40 MiB");
    add("node alone, idle, resident", "node_idle_mib", node_idle, Unit::Mib, "< 25 MiB");
    let start = "`workflow start` through three daemons, module known";
    add(&format!("{start}, p50"), "start_ms_p50", ms(&starts, 0.5), Unit::Milliseconds, "< 5 ms");
    add(&format!("{start}, p99"), "start_ms_p99", ms(&starts, 0.99), Unit::Milliseconds, "");
    let sizes = PROGRAMS.iter().map(|name| Ok((*name, stripped_mib(name)?))).collect::<Result<Vec<_>>>()?;
    let shown: Vec<_> = sizes.iter().map(|(name, mib)| format!("{name} {mib:.1}")).collect();
    let sizes = Figure::other("stripped_mib", json!(sizes), shown.join(", "));
    report.add(Row::new("size of the stripped programs, MiB", sizes));
    Ok(report)
}

/// The whole platform in one process: times until ready and memory, MiB.
async fn inabox() -> Result<(Vec<Duration>, f64)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    let templates = &mut Command::new(programs::path("edgeless_inabox")?);
    programs::run(templates.args(["-t", "--initial-port", "20000"]).current_dir(path)).await?;
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
    let mut idle = 0.0;
    for round in 0..STARTS {
        let daemon = Daemon::start("edgeless_inabox", path).await?;
        ready.push(daemon.took());
        if round + 1 == STARTS {
            tokio::time::sleep(IDLE).await;
            idle = mib(resident_kib(daemon.pid())?);
        }
    }
    Ok((ready, idle))
}

/// Three daemons: memory of the node, MiB, and the times of starts.
async fn daemons(module: &Bytes) -> Result<(f64, Vec<Duration>)> {
    let platform = Platform::start().await?;
    tokio::time::sleep(IDLE).await;
    let idle = mib(resident_kib(platform.node.pid())?);
    let (workflows, workflow) = (&platform.workflows, workflow(module)?);
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
    Ok((idle, starts))
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

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
