//! `neighbour`: a function that serves HTTP requests, alone and beside functions that take all they can get.

use std::time::{Duration, Instant};

use anyhow::Result;
use edgeless_api::InstanceId;
use edgeless_api::component::ComponentKind::Function;
use edgeless_api::status::ComponentStatus;
use serde_json::json;

use crate::Bench;
use crate::http;
use crate::modules::module;
use crate::node::{Access, ChildNode, Size};
use crate::open_loop;
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{millis, quantile};

/// What the function serves.
const PER_SECOND: u32 = 500;
/// How long the hogs run before their neighbour is measured.
const SETTLE: Duration = Duration::from_millis(100);
/// The processor time of a handler: short enough for the endless loop to meet it several times.
const CPU_LIMIT: Duration = Duration::from_secs(1);
/// Events for each hog: one that is stopped is set off again by the next.
const EVENTS: usize = 20;
/// How long it may take until the node has found out about a hog.
const PATIENCE: Duration = Duration::from_secs(20);

const MODES: [&str; 3] = ["loop", "memory", "flood"];

pub(crate) async fn measure(bench: &Bench) -> Result<Report> {
    let hog = module(bench, "hog").await?;
    let flood = module(bench, "flood").await?;
    let node = ChildNode::start(&Size { cpu_limit: CPU_LIMIT, ..Size::default() }).await?;
    let access = &node.access;
    http::serve(bench, access).await?;
    let p99 = async |window| {
        let latencies = open_loop::load(node.ingress, &http::request(), PER_SECOND, window).await?;
        anyhow::Ok(quantile(&latencies, 0.99))
    };
    bench.progress.say("the neighbour alone");
    p99(bench.seconds / 5).await?;
    let alone = p99(bench.seconds).await?;

    // Where a flood ends.
    let sink = access.function("sink", &flood, "").await?;
    access.wire(Function, sink, &[]).await?;
    let mut hogs = Vec::new();
    for mode in MODES {
        let id = access.function(mode, &hog, &format!("mode={mode}")).await?;
        access.wire(Function, id, &[("out", sink)]).await?;
        hogs.push(id);
    }
    bench.progress.say("the neighbour beside three hogs");
    for _ in 0..EVENTS {
        for id in &hogs {
            access.cast(*id, "go").await?;
        }
    }
    tokio::time::sleep(SETTLE).await;
    let (taken, began) = (access.handled(sink).await?, Instant::now());
    let beside = p99(bench.seconds).await?;
    let taken = access.handled(sink).await?.saturating_sub(taken) as f64 / began.elapsed().as_secs_f64();

    let mut report = Report::new("neighbour");
    let ms = |key: &str, time| Figure::new(key, millis(time), Unit::Milliseconds);
    report.add(
        Row::new(format!("p99 of {PER_SECOND} requests a second, beside hogs; limit: alone"), ms("p99_ms", beside))
            .limit(ms("p99_alone_ms", alone), "p99_growth")
            .aim("twice, or 2 ms more"),
    );
    bench.progress.say("what becomes of the hogs");
    for (mode, id) in MODES.into_iter().zip(hogs) {
        let fate = match mode {
            // Nothing is wrong with it but how much it says, and for that it has to wait.
            "flood" => {
                format!("{}: slowed to the {taken:.0} events/s that its target takes", told(&access.status(id).await?))
            }
            _ => named(access, id).await?,
        };
        report.add(Row::new(format!("hog: {mode}"), Figure::other(format!("hogs.{mode}"), json!(fate), fate)));
    }
    Ok(report)
}

/// What the node says of a hog, once it says why it stopped it.
async fn named(node: &Access, hog: InstanceId) -> Result<String> {
    let began = Instant::now();
    loop {
        let status = node.status(hog).await?;
        if !status.reason.is_empty() || began.elapsed() > PATIENCE {
            return Ok(told(&status));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn told(status: &ComponentStatus) -> String {
    // The rest is a backtrace.
    let reason = status.reason.lines().next().map(|reason| format!(", {reason}")).unwrap_or_default();
    format!("{}, restarts: {}{reason}", status.state, status.restarts)
}
