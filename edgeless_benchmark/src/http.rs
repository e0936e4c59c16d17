//! `http`: keep-alive clients, http-ingress, a function, and its reply.
//!
//! The limit is a bare hyper server in a process of its own, which answers with the same bytes and is
//! loaded by the same client.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use edgeless_api::InstanceId;
use edgeless_api::component::ComponentKind::{Function, Resource};

use crate::Bench;
use crate::http_client::{self, Load, header};
use crate::http_server;
use crate::modules::module;
use crate::node::{Access, ChildNode, Size};
use crate::process;
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{micros, millis, quantile, warm_up};

/// How many clients there are.
const CLIENTS: [usize; 3] = [1, 16, 256];
/// The number of clients whose latencies, and whose limit, are reported.
const MAIN: usize = 16;
/// The host that the ingress takes requests for.
const HOST: &str = "demo.edgeless.local";

/// What is asked again and again.
pub(crate) fn request() -> Vec<u8> {
    format!("GET /hello HTTP/1.1\r\nhost: {HOST}\r\n\r\n").into_bytes()
}

/// A function that answers the requests of the ingress.
pub(crate) async fn serve(bench: &Bench, node: &Access) -> Result<InstanceId> {
    let hello = node.function("hello", &module(bench, "http_hello").await?, "").await?;
    node.wire(Function, hello, &[]).await?;
    let ingress = node.resource("http-ingress", &[("host", HOST)]).await?;
    node.wire(Resource, ingress, &[("new_request", hello)]).await?;
    Ok(hello)
}

pub(crate) async fn measure(bench: &Bench) -> Result<Report> {
    let mut report = Report::new("http");
    let node = ChildNode::start(&Size::default()).await?;
    serve(bench, &node.access).await?;
    let answer = http_client::once(node.ingress, &request()).await?;

    let mut loads = Vec::new();
    for clients in CLIENTS {
        bench.progress.say(&format!("requests to a function, clients: {clients}"));
        loads.push((clients, loaded(node.ingress, node.daemon.pid(), clients, bench.seconds).await?));
    }
    drop(node);
    bench.progress.say("the limit: a bare hyper server");
    let (server, address) = limit(&answer).await?;
    let (limit, limit_cpu) = loaded(address, server.pid(), MAIN, bench.seconds).await?;

    let per_second = |key: &str, load: &Load| Figure::new(key, load.per_second(), Unit::PerSecond);
    let latency =
        |key: &str, load: &Load, q| Figure::new(key, millis(quantile(&load.latencies, q)), Unit::Milliseconds);
    let processor = |key: &str, cpu: Duration| Figure::new(key, micros(cpu), Unit::Microseconds);
    for (clients, (load, cpu)) in &loads {
        let row = Row::new(format!("requests, clients: {clients}"), per_second(&format!("req_per_s_{clients}"), load));
        if *clients != MAIN {
            report.add(row);
            continue;
        }
        report.add(row.limit(per_second("limit_req_per_s", &limit), "ratio").aim("ratio 0.33"));
        for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
            let row = Row::new(
                format!("time of a request, clients: {clients}, {name}"),
                latency(&format!("ms_{name}"), load, q),
            );
            let limit = latency(&format!("limit_ms_{name}"), &limit, q);
            report.add(row.limit(limit, &format!("{name}_ratio")).aim(if name == "p99" { "≤ 3 ms" } else { "" }));
        }
        let row = Row::new(
            format!("processor time of a request in the server, clients: {clients}"),
            processor("cpu_us_per_req", *cpu),
        );
        report.add(row.limit(processor("limit_cpu_us_per_req", limit_cpu), "cpu_ratio").aim("≤ 20 µs"));
    }
    Ok(report)
}

/// The load, and the processor time that each request took in the server.
async fn loaded(address: SocketAddr, pid: u32, clients: usize, window: Duration) -> Result<(Load, Duration)> {
    http_client::load(address, &request(), clients, warm_up(window)).await?;
    let before = process::cpu(pid)?;
    let load = http_client::load(address, &request(), clients, window).await?;
    let cpu = process::cpu(pid)?.saturating_sub(before);
    let requests = u32::try_from(load.latencies.len().max(1))?;
    Ok((load, cpu / requests))
}

/// A server that answers as the function did.
async fn limit(answer: &[u8]) -> Result<(crate::programs::Daemon, SocketAddr)> {
    let text = std::str::from_utf8(answer)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer has a head")?;
    let content_type = header(head.as_bytes(), b"content-type").unwrap_or(b"text/plain");
    let (server, address) = http_server::start(std::str::from_utf8(content_type)?, body).await?;
    let length = http_client::once(address, &request()).await?.len();
    anyhow::ensure!(length == answer.len(), "the limit answers with {length} bytes instead of {}", answer.len());
    Ok((server, address))
}
