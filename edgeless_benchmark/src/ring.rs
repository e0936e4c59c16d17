//! `ring`: two functions on one node that pass tokens round.
//!
//! The limit is the same module on wasmtime alone, in the same kind of runtime, each instance a task that
//! reads a channel, with guests that can wait where they cast to, as they can on a node. What they reach that
//! can never wait stands beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use clap::ValueEnum;
use edgeless_api::InstanceId;
use edgeless_api::component::ComponentKind::Function;
use edgeless_api::component::FunctionClass;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wasmtime::InstancePre;

use crate::Bench;
use crate::bare::{self, Guest, Guests};
use crate::modules::module;
use crate::node::{Access, LocalNode, Size, class, start_class};
use crate::report::{Figure, Report, Row, Unit};
use crate::start::flushes;
use crate::stats::{self, millis, quantile};

/// How many tokens go round.
const TOKENS: [usize; 2] = [1, 64];
/// Tokens that a channel of the limit has room for: as many as the mailbox of a node.
const ROOM: usize = 512;
/// What is passed round.
pub(crate) const TOKEN: &str = "token";

/// How surely the events of the ring arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Delivery {
    /// In memory.
    #[default]
    AtMostOnce,
    /// On the disk until they are handled.
    AtLeastOnce,
}

impl Delivery {
    fn name(self) -> &'static str {
        match self {
            Self::AtMostOnce => "at-most-once",
            Self::AtLeastOnce => "at-least-once",
        }
    }
}

pub(crate) async fn measure(bench: &Bench, delivery: Delivery) -> Result<Report> {
    match delivery {
        Delivery::AtMostOnce => in_memory(bench).await,
        Delivery::AtLeastOnce => on_disk(bench).await,
    }
}

/// What is written down at each hop: beside it stands a flush of the disk, which one hop at a time cannot go below.
async fn on_disk(bench: &Bench) -> Result<Report> {
    let relay = module(bench, "relay").await?;
    let mut report = Report::new("ring");
    for tokens in TOKENS {
        bench.progress.say(&format!("ring of two functions, delivered at least once, tokens: {tokens}"));
        let node = LocalNode::start(&Size::default()).await?;
        let flush = millis(quantile(&flushes(node.directory())?, 0.5));
        let ring = (&node.access, &node.access);
        let hops = hops_per_second(ring, &relay, tokens, bench.seconds, Delivery::AtLeastOnce).await?;
        node.stop().await;
        let row = Row::new(
            format!("hops between two functions of one node, delivered at least once, tokens: {tokens}"),
            Figure::new(format!("sure_hops_per_s_{tokens}"), hops, Unit::PerSecond),
        );
        report.add(if tokens == 1 { row } else { row.aim("20,000") });
        report.add(Row::new(
            "a flush of the disk at that time, p50".to_string(),
            Figure::new(format!("flush_ms_{tokens}"), flush, Unit::Milliseconds),
        ));
    }
    Ok(report)
}

async fn in_memory(bench: &Bench) -> Result<Report> {
    let relay = module(bench, "relay").await?;
    let mut report = Report::new("ring");
    let bare = |guests| bare::prepare(&bare::plain_engine(), &relay, guests).map_err(bare::error);
    let (waiting, quick) = (bare(Guests::CanWait)?, bare(Guests::NeverWait)?);
    for tokens in TOKENS {
        bench.progress.say(&format!("ring of two functions, tokens: {tokens}"));
        let node = LocalNode::start(&Size::default()).await?;
        let ring = (&node.access, &node.access);
        let hops = hops_per_second(ring, &relay, tokens, bench.seconds, Delivery::AtMostOnce).await?;
        node.stop().await;
        bench.progress.say(&format!("the limit: wasmtime alone, tokens: {tokens}"));
        let reached = limit(&waiting, Guests::CanWait, tokens, bench.seconds).await?;
        let at_once = limit(&quick, Guests::NeverWait, tokens, bench.seconds).await?;
        report.add(
            Row::new(
                format!("hops between two functions of one node, tokens: {tokens}"),
                Figure::new(format!("hops_per_s_{tokens}"), hops, Unit::PerSecond),
            )
            .limit(
                Figure::new(format!("limit_hops_per_s_{tokens}"), reached, Unit::PerSecond),
                &format!("ratio_{tokens}"),
            )
            .aim("ratio 0.5"),
        );
        report.add(Row::new(
            format!("wasmtime alone with guests that can never wait, tokens: {tokens}"),
            Figure::new(format!("at_once_hops_per_s_{tokens}"), at_once, Unit::PerSecond),
        ));
    }
    Ok(report)
}

/// Two relays, on one node or on two, that send each other tokens.
pub(crate) async fn hops_per_second(
    (here, there): (&Access, &Access),
    relay: &Bytes,
    tokens: usize,
    window: Duration,
    delivery: Delivery,
) -> Result<f64> {
    let start = |name: &str| {
        let class = FunctionClass { binary: relay.clone().into(), ..class(name) };
        start_class(class, &[("delivery", delivery.name())])
    };
    let one = here.start(start("one")).await?;
    let other = there.start(start("other")).await?;
    here.wire(Function, one, &[("next", other)]).await?;
    there.wire(Function, other, &[("next", one)]).await?;
    for _ in 0..tokens {
        here.cast(one, TOKEN).await?;
    }
    let count = async || Ok(here.handled(one).await? + there.handled(other).await?);
    let hops = stats::rate(window, count).await?;
    here.stop(one).await?;
    there.stop(other).await?;
    Ok(hops)
}

async fn limit(relay: &InstancePre<bare::Data>, guests: Guests, tokens: usize, window: Duration) -> Result<f64> {
    let hops = Arc::new(AtomicU64::new(0));
    let (to_one, of_one) = mpsc::channel(ROOM);
    let (to_other, of_other) = mpsc::channel(ROOM);
    let mut tasks = JoinSet::new();
    for (inbox, out) in [(of_one, to_other), (of_other, to_one.clone())] {
        let mut guest = Guest::new(relay, out).await.map_err(bare::error)?;
        guest.init().await.map_err(bare::error)?;
        tasks.spawn(serve(guest, guests, inbox, hops.clone()));
    }
    for _ in 0..tokens {
        to_one.send(Bytes::from_static(TOKEN.as_bytes())).await?;
    }
    let measured = stats::rate(window, async || Ok(hops.load(Ordering::Relaxed)));
    tokio::select! {
        measured = measured => measured,
        // They serve for ever, unless one fails.
        Some(ended) = tasks.join_next() => { ended??; anyhow::bail!("an instance ended") }
    }
}

async fn serve(mut guest: Guest, guests: Guests, mut inbox: mpsc::Receiver<Bytes>, hops: Arc<AtomicU64>) -> Result<()> {
    while let Some(payload) = inbox.recv().await {
        let handled = match guests {
            Guests::CanWait => guest.handle(InstanceId::NONE, &payload).await,
            Guests::NeverWait => guest.handle_at_once(InstanceId::NONE, &payload),
        };
        handled.map_err(bare::error)?;
        hops.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
