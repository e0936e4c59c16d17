//! `flood`: casts from a function on one node to a function on another, as fast as they are taken.
//!
//! The limit is a gRPC stream alone with messages of many payloads.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use edgeless_api::component::ComponentKind::Function;

use crate::Bench;
use crate::bare_stream::{self, Batch};
use crate::modules::module;
use crate::node::{LocalNode, Size};
use crate::process::resident_kib;
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::warm_up;

/// The size of a payload is that of the function `flood`.
const PAYLOAD: [u8; 100] = [b'x'; 100];
/// Payloads in a message of the limit.
const BATCH: usize = 64;
/// Events that are on their way at the least.
const LEAST: u64 = 500;
/// How long nothing may arrive while something is on its way.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked at what has arrived.
const LOOK: Duration = Duration::from_millis(1);

pub(crate) async fn measure(bench: &Bench) -> Result<Report> {
    bench.progress.say("a flood from node to node");
    let flood = flood(bench).await?;
    bench.progress.say("the limit: a gRPC stream");
    let limit = bare_stream::one_way(Batch::of(&PAYLOAD, BATCH), bench.seconds).await?;
    let mut report = Report::new("flood");
    report.add(
        Row::new(
            "events of 100 bytes from node to node",
            Figure::new("events_per_s", flood.per_second, Unit::PerSecond),
        )
        .limit(Figure::new("limit_events_per_s", limit, Unit::PerSecond), "ratio")
        .aim("≥ 300,000/s"),
    );
    report.add(Row::new("events lost", Figure::count("lost", flood.lost)).aim("0"));
    let growth = Figure::new("resident_growth_mib", flood.growth_kib as f64 / 1024.0, Unit::Mib);
    report.add(Row::new("growth of both nodes meanwhile, resident", growth));
    report.add(Row::new("events sent in all", Figure::count("sent", flood.sent)));
    Ok(report)
}

struct Flood {
    per_second: f64,
    sent: u64,
    lost: u64,
    growth_kib: u64,
}

async fn flood(bench: &Bench) -> Result<Flood> {
    let module = module(bench, "flood").await?;
    let size = Size::default();
    let (source, sink) = (LocalNode::start(&size).await?, LocalNode::start(&size).await?);
    let (here, there) = (&source.access, &sink.access);
    here.meet(there).await?;
    there.meet(here).await?;
    let spring = here.function("spring", &module, "").await?;
    let mouth = there.function("mouth", &module, "").await?;
    there.wire(Function, mouth, &[]).await?;
    here.wire(Function, spring, &[("out", mouth)]).await?;

    let own = std::process::id();
    let (before, mut most) = (resident_kib(own)?, 0);
    let begin = Look { at: Instant::now(), arrived: 0 };
    let (warm, mut sent) = (begin.at + warm_up(bench.seconds), 0);
    // The last look, the last that saw something arrive, the last before the measurement, its end.
    let (mut last, mut moved, mut first, mut end) = (begin, begin, begin, None);
    loop {
        let now = Look { at: Instant::now(), arrived: there.handled(mouth).await? };
        most = most.max(resident_kib(own)?);
        let arriving = now.arrived - last.arrived;
        last = now;
        if arriving > 0 {
            moved = now;
        }
        if now.at < warm {
            first = now;
        } else if end.is_none() && now.at >= warm + bench.seconds && now.arrived > first.arrived {
            end = Some(now);
        }
        // What is late at the end is waited for: it is not lost yet.
        let (on_the_way, is_stuck) = (sent - now.arrived, now.at - moved.at > PATIENCE);
        match end {
            Some(end) if on_the_way == 0 || is_stuck => {
                source.stop().await;
                sink.stop().await;
                let per_second = (end.arrived - first.arrived) as f64 / (end.at - first.at).as_secs_f64();
                return Ok(Flood { per_second, sent, lost: on_the_way, growth_kib: most.saturating_sub(before) });
            }
            Some(_) => {}
            None if is_stuck => {
                let (from, to) = (here.status(spring).await?, there.status(mouth).await?);
                bail!("no event arrived in {} s: {from:?} {to:?}", PATIENCE.as_secs())
            }
            None => {
                // The source never runs dry: it always has several times what arrives between two looks.
                let wanted = LEAST.max(4 * arriving);
                if on_the_way < wanted {
                    here.cast(spring, (wanted - on_the_way).to_string()).await?;
                    sent = now.arrived + wanted;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How many events had arrived, and when.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    arrived: u64,
}
