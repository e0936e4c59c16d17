//! Whether containers keep to their limits: processor time, bandwidth, memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use edgeless_api::InstanceId;
use edgeless_api::status::{ComponentStatus, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::docker;
use super::program::WEB_PORT;
use crate::http_client::{header, is_whole};
use crate::node::Access;
use crate::report::{Figure, Row, Unit};

/// What the two that share a core weigh.
const SHARES: [u64; 2] = [512, 1024];
/// How long both compute before it counts.
const SETTLE: Duration = Duration::from_millis(500);
/// How long the end of a container, or a transfer, is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Mbit/s.
const CAPS: [u32; 5] = [20, 50, 100, 200, 400];
/// The longest head of a response.
const HEAD: usize = 4 << 10;

/// A processor that this process may use.
pub(super) fn one_core() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = list.and_then(|list| list.trim().split([',', '-']).next());
    Ok(first.context("no Cpus_allowed_list in /proc/self/status")?.to_string())
}

/// Two containers that compute on one core, and what they weigh; then the weights the other way round.
pub(super) async fn cpu(access: &Access, hogs: [InstanceId; 2], window: Duration) -> Result<Vec<Row>> {
    for hog in hogs {
        access.cast(hog, "go").await?;
    }
    let mut rows = Vec::new();
    for (change, weights) in [("", SHARES), ("_changed", [SHARES[1], SHARES[0]])] {
        if !change.is_empty() {
            for (hog, weight) in hogs.into_iter().zip(weights) {
                access.limit(hog, "cpu_shares", &weight.to_string()).await?;
            }
        }
        tokio::time::sleep(SETTLE).await;
        let before = cpu_times(access, hogs).await?;
        tokio::time::sleep(window).await;
        let after = cpu_times(access, hogs).await?;
        let used = [0, 1].map(|hog: usize| match (after.get(hog), before.get(hog)) {
            (Some(after), Some(before)) => after.saturating_sub(*before).as_secs_f64(),
            _ => 0.0,
        });
        let all: f64 = used.iter().sum();
        if all <= 0.0 {
            bail!("two containers that should compute did not");
        }
        let sum: u64 = SHARES.iter().sum();
        let mut measured: Vec<_> = weights.into_iter().zip(used).collect();
        measured.sort_by_key(|(weight, _)| *weight);
        for (weight, used) in measured {
            let when = if change.is_empty() { "" } else { ", after a live change" };
            let due = Figure::new(format!("due_cpu_share_{weight}{change}"), weight as f64 / sum as f64, Unit::Share);
            let share = Figure::new(format!("cpu_share_{weight}{change}"), used / all, Unit::Share);
            rows.push(
                Row::new(format!("processor time of one of two on a core, cpu_shares: {weight}{when}"), share)
                    .limit(due, &format!("cpu_ratio_{weight}{change}"))
                    .aim("within 0.02"),
            );
        }
    }
    Ok(rows)
}

async fn cpu_times(access: &Access, hogs: [InstanceId; 2]) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for hog in hogs {
        let usage = access.status(hog).await?.usage;
        times.push(usage.context("a container that should compute does not run")?.cpu);
    }
    Ok(times)
}

/// Transfers at caps that are changed while the container runs.
pub(super) async fn bandwidth(
    access: &Access,
    service: InstanceId,
    container: &str,
    length: usize,
    say: impl Fn(&str),
) -> Result<Vec<Row>> {
    let web = SocketAddr::new(docker::address(container)?, WEB_PORT);
    let mut rows = Vec::new();
    let mut worst: f64 = 0.0;
    for (direction, annotation) in [("up", "network_bandwidth_up"), ("down", "network_bandwidth_down")] {
        for cap in CAPS {
            say(&format!("bandwidth: {cap} Mbit/s {direction}"));
            access.limit(service, annotation, &format!("{cap}mbit")).await?;
            let moved = async {
                match direction {
                    "up" => get(web, length).await,
                    _ => post(web, length).await,
                }
            };
            // Slower than a quarter of its cap is broken.
            let due = Duration::from_secs_f64(length as f64 * 8.0 / (f64::from(cap) * 1e6));
            let took = tokio::time::timeout(PATIENCE + 4 * due, moved).await.context("a transfer does not end")??;
            let rate = length as f64 * 8.0 / took.as_secs_f64() / 1e6;
            worst = worst.max((rate / f64::from(cap) - 1.0).abs());
            let figure = |key: &str, value| Figure::new(format!("{key}.{direction}_{cap}"), value, Unit::MbitPerSecond);
            rows.push(
                Row::new(
                    format!("a transfer of {} MB at a cap, {direction}", length / 1_000_000),
                    figure("bandwidth", rate),
                )
                .limit(figure("bandwidth_cap", f64::from(cap)), &format!("bandwidth_ratio.{direction}_{cap}"))
                .aim("within 10 %"),
            );
        }
        access.limit(service, annotation, "none").await?;
    }
    rows.push(
        Row::new(
            "how far the worst of these is from its cap",
            Figure::new("bandwidth_worst_error", worst, Unit::Share),
        )
        .aim("≤ 0.1"),
    );
    Ok(rows)
}

/// What the container sends.
async fn get(web: SocketAddr, length: usize) -> Result<Duration> {
    let mut stream = TcpStream::connect(web).await?;
    let request = format!("GET /bytes/{length} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    let began = Instant::now();
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = vec![0; 256 << 10];
    let mut head = Vec::new();
    let mut taken = 0;
    let mut in_body = false;
    loop {
        let count = stream.read(&mut buffer).await?;
        let read = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            bail!("the web server sent {taken} bytes of {length}: {}", String::from_utf8_lossy(&head));
        }
        if in_body {
            taken += count;
        } else {
            head.extend_from_slice(read);
            if let Some(end) = head.windows(4).position(|end| end == b"\r\n\r\n") {
                in_body = true;
                taken = head.len() - end - 4;
                head.truncate(end + 4);
                let said = header(&head, b"content-length").and_then(|text| std::str::from_utf8(text).ok());
                if said.and_then(|text| text.parse().ok()) != Some(length) {
                    bail!("the web server does not say that it sends {length} bytes");
                }
            } else if head.len() > HEAD {
                bail!("the web server answers with more than {HEAD} bytes before the body");
            }
        }
        if in_body && taken >= length {
            return Ok(began.elapsed());
        }
    }
}

/// What the container receives.
async fn post(web: SocketAddr, length: usize) -> Result<Duration> {
    let mut stream = TcpStream::connect(web).await?;
    let head = format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let began = Instant::now();
    stream.write_all(head.as_bytes()).await?;
    let chunk = vec![b'x'; 64 << 10];
    let mut left = length;
    while left > 0 {
        let part = chunk.get(..left.min(chunk.len())).unwrap_or_default();
        stream.write_all(part).await?;
        left -= part.len();
    }
    let mut response = Vec::new();
    while !is_whole(&response)? {
        if stream.read_buf(&mut response).await? == 0 {
            bail!("the web server closed the connection");
        }
    }
    // It says how much it took.
    if !response.ends_with(format!("\r\n\r\n{length}").as_bytes()) {
        bail!("the web server took less than {length} bytes: {}", String::from_utf8_lossy(&response));
    }
    Ok(began.elapsed())
}

/// Waits until a container that was killed for the memory that it wanted has its so manieth replacement;
/// what its node says of it.
pub(super) async fn killed(access: &Access, hog: InstanceId, times: u64) -> Result<ComponentStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = access.status(hog).await?;
        if status.restarts >= times && status.state == State::Running {
            return Ok(status);
        }
        if Instant::now() > until {
            bail!("a container that takes all memory is not reported as killed: {status:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
