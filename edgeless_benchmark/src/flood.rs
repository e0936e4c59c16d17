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
/// Events that the source is told to cast at a time.
const ROUND: u64 = 1_000;
/// Events that are on their way at the least: more than arrive between two looks.
const BACKLOG: u64 = 4 * ROUND;
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
        .limit(Figure::new("limit_events_per_s", limit, Unit::PerSecond), "ratio"),
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
    let spring = here.function("spring", &module, "").await?;
    let mouth = there.function("mouth", &module, "").await?;
    there.wire(Function, mouth, &[]).await?;
    here.wire(Function, spring, &[("out", mouth)]).await?;

    let own = std::process::id();
    let (before, mut most) = (resident_kib(own)?, 0);
    let (warm, mut sent) = (Instant::now() + warm_up(bench.seconds), 0);
    // When the warm-up was over and at the end: the moment, and what had arrived.
    let (mut first, mut last) = ((Instant::now(), 0), (Instant::now(), 0));
    let mut moved = Instant::now();
    loop {
        let now = (Instant::now(), there.handled(mouth).await?);
        let is_over = now.0 >= warm + bench.seconds;
        most = most.max(resident_kib(own)?);
        if now.1 > last.1 {
            moved = now.0;
        }
        if now.0 < warm {
            first = now;
        }
        if now.0 < warm + bench.seconds || last.0 < warm {
            last = now;
        }
        // The last ones are waited for: they are late, not lost.
        let on_the_way = sent - now.1;
        if is_over && (on_the_way == 0 || moved.elapsed() > PATIENCE) {
            if last.1 == first.1 {
                bail!("no event arrived in {} s: take more with --seconds", bench.seconds.as_secs_f64());
            }
            let per_second = (last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64();
            source.stop().await;
            sink.stop().await;
            return Ok(Flood { per_second, sent, lost: on_the_way, growth_kib: most.saturating_sub(before) });
        }
        // The source always has more at hand.
        if !is_over && on_the_way < BACKLOG {
            here.cast(spring, ROUND.to_string()).await?;
            sent += ROUND;
        } else {
            tokio::time::sleep(LOOK).await;
        }
    }
}
