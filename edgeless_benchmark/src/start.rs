//! `start`: `workflow start` through the three daemons, of a function whose module is on the node.
//!
//! Beside it stands a flush of a small file to the disk: what a start costs at the least once it is to
//! survive a crash.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use edgeless_api::client::Workflows;
use edgeless_api::workflow::Workflow;
use tokio::task::JoinSet;

use crate::Bench;
use crate::modules::module;
use crate::platform::{Platform, workflow};
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{millis, quantile};

/// Clients at once, for the number of starts in a second.
const CLIENTS: usize = 16;
/// How often the disk is flushed.
const FLUSHES: usize = 50;

pub(crate) async fn measure(bench: &Bench) -> Result<Report> {
    let workflow = workflow(&module(bench, "noop").await?)?;
    let platform = Platform::start().await?;
    // The first start compiles the module.
    starts(platform.workflows.clone(), workflow.clone(), Duration::ZERO).await?;
    bench.progress.say("workflows, one after the other");
    let times = starts(platform.workflows.clone(), workflow.clone(), bench.seconds).await?;
    bench.progress.say(&format!("workflows, clients: {CLIENTS}"));
    let began = Instant::now();
    let mut clients: JoinSet<_> =
        (0..CLIENTS).map(|_| starts(platform.workflows.clone(), workflow.clone(), bench.seconds)).collect();
    let mut started = 0;
    while let Some(times) = clients.join_next().await {
        started += times??.len();
    }
    let per_second = started as f64 / began.elapsed().as_secs_f64();
    bench.progress.say("flushes of the disk");
    let flush = quantile(&flushes(platform.directory.path())?, 0.5);

    let mut report = Report::new("start");
    let ms = |key: &str, time| Figure::new(key, millis(time), Unit::Milliseconds);
    report.add(
        Row::new("`workflow start`, p50; beside it a flush of the disk", ms("ms_p50", quantile(&times, 0.5)))
            .limit(ms("flush_ms", flush), "flush_ratio")
            .aim("≤ 1.5 ms"),
    );
    report.add(Row::new("`workflow start`, p99", ms("ms_p99", quantile(&times, 0.99))));
    let per_second = Figure::new("per_s", per_second, Unit::PerSecond);
    report.add(Row::new(format!("starts and stops, clients: {CLIENTS}"), per_second));
    Ok(report)
}

/// Starts and stops workflows for a while, at least one: how long each start took.
async fn starts(workflows: Workflows, workflow: Workflow, window: Duration) -> Result<Vec<Duration>> {
    let until = Instant::now() + window;
    let mut times = Vec::new();
    loop {
        let began = Instant::now();
        let started = workflows.start(workflow.clone(), None).await?;
        times.push(began.elapsed());
        workflows.stop(started.workflow).await?;
        if Instant::now() >= until {
            return Ok(times);
        }
    }
}

/// How long it takes until a few bytes are on the disk.
pub(crate) fn flushes(directory: &Path) -> Result<Vec<Duration>> {
    let mut file = std::fs::File::create(directory.join("flush"))?;
    let mut flush = || {
        let began = Instant::now();
        file.write_all(&[1; 200])?;
        file.sync_all()?;
        Ok(began.elapsed())
    };
    (0..FLUSHES).map(|_| flush()).collect()
}
