//! `density`: what many idle instances cost on one node.
//!
//! The limit is as many instances of the same module on wasmtime alone, with the engine of a node, in this
//! process.

use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use edgeless_api::InstanceId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Bench;
use crate::bare::{self, Guest, Guests};
use crate::modules::module;
use crate::node::{Access, ChildNode, Size};
use crate::process::{maps, resident_kib, threads};
use crate::report::{Figure, Report, Row, Unit};
use crate::worker::on_worker;

/// Starts under way at once.
const CLIENTS: usize = 16;

pub(crate) async fn measure(bench: &Bench, instances: usize) -> Result<Report> {
    let module = module(bench, "noop").await?;
    let size = Size { instances: instances + 1, memory_mib: 16, ..Size::default() };
    let node = ChildNode::start(&size).await?;
    let pid = node.daemon.pid();
    // The first one pays for the module.
    node.access.function("first", &module, "").await?;
    let before = resident_kib(pid)?;
    bench.progress.say(&format!("{instances} instances"));
    let began = Instant::now();
    let started = start_all(&node.access, &module, instances).await?;
    let took = began.elapsed();
    let last = started.last().context("there must be at least one instance: --instances 1")?;
    // It answers: they are there, and idle.
    node.access.status(*last).await?;
    let kib = resident_kib(pid)?.saturating_sub(before) as f64 / started.len() as f64;
    let (threads, maps) = (threads(pid)?, maps(pid)?);
    drop(node);

    bench.progress.say("the limit: instances on wasmtime alone");
    let limit = on_worker(async move { limit(&module, &size, instances).await }).await?;
    let mut report = Report::new("density");
    report.add(
        Row::new("resident memory of an idle instance", Figure::new("kib_per_instance", kib, Unit::Kib))
            .limit(Figure::new("limit_kib_per_instance", limit.kib_each, Unit::Kib), "kib_ratio")
            .aim("≤ 32 KiB"),
    );
    report.add(
        Row::new(
            format!("starts, clients: {CLIENTS}"),
            Figure::new("start_per_s", started.len() as f64 / took.as_secs_f64(), Unit::PerSecond),
        )
        .limit(Figure::new("limit_start_per_s", limit.per_second, Unit::PerSecond), "start_ratio"),
    );
    report.add(Row::new("threads of the node", Figure::count("threads", threads)).aim("≤ 32"));
    report.add(
        Row::new("areas of its memory", Figure::count("maps", maps))
            .limit(Figure::count("limit_maps", limit.maps), "maps_ratio")
            .aim("< 65,530"),
    );
    report.add(Row::new("instances", Figure::count("instances", started.len() as u64)));
    Ok(report)
}

async fn start_all(node: &Access, module: &Bytes, instances: usize) -> Result<Vec<InstanceId>> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (node, module) = (node.clone(), module.clone());
        let share = (client..instances).step_by(CLIENTS).len();
        clients.spawn(async move {
            let mut started = Vec::new();
            for _ in 0..share {
                started.push(node.function("idle", &module, "").await?);
            }
            anyhow::Ok(started)
        });
    }
    let mut all = Vec::new();
    while let Some(started) = clients.join_next().await {
        all.extend(started??);
    }
    Ok(all)
}

struct Limit {
    kib_each: f64,
    per_second: f64,
    maps: u64,
}

async fn limit(module: &Bytes, size: &Size, instances: usize) -> Result<Limit> {
    let engine = bare::node_engine(size).map_err(bare::error)?;
    let module = bare::prepare(&engine, module, Guests::CanWait).map_err(bare::error)?;
    let (out, _in) = mpsc::channel(1);
    let own = std::process::id();
    let _first = Guest::new(&module, out.clone()).await.map_err(bare::error)?;
    let before = resident_kib(own)?;
    let began = Instant::now();
    let mut guests = Vec::with_capacity(instances);
    for _ in 0..instances {
        guests.push(Guest::new(&module, out.clone()).await.map_err(bare::error)?);
    }
    let took = began.elapsed();
    let count = guests.len() as f64;
    Ok(Limit {
        kib_each: resident_kib(own)?.saturating_sub(before) as f64 / count,
        per_second: count / took.as_secs_f64(),
        maps: maps(own)?,
    })
}
