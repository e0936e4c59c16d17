//! `peer-ring`: two functions on two nodes that pass tokens round, over loopback.
//!
//! The limit is a gRPC stream alone whose other end sends everything back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;

use crate::Bench;
use crate::bare_stream;
use crate::modules::module;
use crate::node::{Access, LocalNode, Size};
use crate::report::{Figure, Report, Row, Unit};
use crate::ring::{Delivery, TOKEN, hops_per_second};
use crate::stats::{micros, quantile, warm_up};
use crate::watched::{Watcher, watched};

/// Moments that are remembered at the most.
const MOMENTS: usize = 4 << 20;

/// When handlers began, on either node.
#[derive(Default)]
struct Moments {
    is_on: AtomicBool,
    moments: Mutex<Vec<Instant>>,
}

impl Watcher for Moments {
    fn begins(&self) {
        if self.is_on.load(Ordering::Relaxed) {
            let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
            if moments.len() < MOMENTS {
                moments.push(Instant::now());
            }
        }
    }
}

pub(crate) async fn measure(bench: &Bench) -> Result<Report> {
    let relay = module(bench, "relay").await?;
    let size = Size::default();
    let mut report = Report::new("peer-ring");
    let mut hops = Vec::new();
    for tokens in [1, 64] {
        bench.progress.say(&format!("ring of two nodes, tokens: {tokens}"));
        let (here, there) = (LocalNode::start(&size).await?, LocalNode::start(&size).await?);
        let per_second = between(&here, &there, &relay, tokens, bench.seconds).await?;
        here.stop().await;
        there.stop().await;
        bench.progress.say(&format!("the limit: a gRPC stream, messages at once: {tokens}"));
        let limit = bare_stream::echo(TOKEN.as_bytes(), tokens, bench.seconds).await?;
        let limit_key = if tokens == 1 { "limit_hops_per_s".to_string() } else { format!("limit_hops_per_s_{tokens}") };
        report.add(
            Row::new(
                format!("hops between two nodes, tokens: {tokens}"),
                Figure::new(format!("hops_per_s_{tokens}"), per_second, Unit::PerSecond),
            )
            .limit(Figure::new(limit_key, limit.hops_per_second, Unit::PerSecond), &format!("ratio_{tokens}"))
            .aim(if tokens == 64 { "≥ 100,000/s" } else { "" }),
        );
        hops.extend(limit.hops);
    }
    bench.progress.say("the time of one hop");
    let times = hop_times(&relay, &size, bench.seconds).await?;
    for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
        let figure = |key, times: &[Duration]| Figure::new(key, micros(quantile(times, q)), Unit::Microseconds);
        report.add(
            Row::new(format!("time of a hop, one token, {name}"), figure(format!("hop_us_{name}"), &times))
                .limit(figure(format!("limit_hop_us_{name}"), &hops), &format!("hop_ratio_{name}"))
                .aim(if name == "p50" { "≤ 120 µs" } else { "" }),
        );
    }
    Ok(report)
}

async fn between(here: &LocalNode, there: &LocalNode, relay: &Bytes, tokens: usize, window: Duration) -> Result<f64> {
    meet(&here.access, &there.access).await?;
    hops_per_second((&here.access, &there.access), relay, tokens, window, Delivery::AtMostOnce).await
}

/// Lets two nodes send each other events.
pub(crate) async fn meet(here: &Access, there: &Access) -> Result<()> {
    here.meet(there).await?;
    there.meet(here).await
}

/// With one token, a hop is from the begin of one handler to the begin of the next.
async fn hop_times(relay: &Bytes, size: &Size, window: Duration) -> Result<Vec<Duration>> {
    let moments = Arc::new(Moments::default());
    let here = LocalNode::start_with(size, vec![watched(size, moments.clone())?]).await?;
    let there = LocalNode::start_with(size, vec![watched(size, moments.clone())?]).await?;
    let on = async {
        tokio::time::sleep(warm_up(window)).await;
        moments.is_on.store(true, Ordering::Relaxed);
        Ok(())
    };
    tokio::try_join!(between(&here, &there, relay, 1, window), on)?;
    moments.is_on.store(false, Ordering::Relaxed);
    here.stop().await;
    there.stop().await;
    let moments = moments.moments.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(moments.array_windows().map(|[one, next]| *next - *one).collect())
}
