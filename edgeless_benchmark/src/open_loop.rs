//! HTTP requests at a fixed rate, whatever the server does: each latency counts from when its request
//! should have been sent, so that one that waits for others is as late as its user would find it.
//!
//! Threads that sleep, not tasks: timers of tasks are too coarse for latencies of less than a millisecond.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::oneshot;

use crate::http_client::{PATIENCE, is_whole};

/// Connections that take turns.
const CONNECTIONS: u32 = 32;

/// Sends so many requests a second; the latencies, in any order.
pub(crate) async fn load(
    address: SocketAddr,
    request: &[u8],
    per_second: u32,
    window: Duration,
) -> Result<Vec<Duration>> {
    let period = Duration::from_secs(1) / per_second;
    // In time for the first to be ready.
    let begin = Instant::now() + Duration::from_millis(20);
    let mut connections = Vec::new();
    for turn in 0..CONNECTIONS {
        let request = request.to_vec();
        let (done, latencies) = oneshot::channel();
        std::thread::Builder::new().name(format!("open-loop-{turn}")).spawn(move || {
            let every = period * CONNECTIONS;
            done.send(connection(address, &request, begin + period * turn, every, begin + window)).ok();
        })?;
        connections.push(latencies);
    }
    let mut all = Vec::new();
    for latencies in connections {
        all.extend(latencies.await??);
    }
    Ok(all)
}

fn connection(
    address: SocketAddr,
    request: &[u8],
    first: Instant,
    every: Duration,
    until: Instant,
) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut latencies = Vec::new();
    let mut response = Vec::new();
    let mut buffer = [0; 4096];
    let mut intended = first;
    while intended < until {
        std::thread::sleep(intended.saturating_duration_since(Instant::now()));
        stream.write_all(request)?;
        response.clear();
        while !is_whole(&response)? {
            match stream.read(&mut buffer)? {
                0 => bail!("the server closed a connection"),
                length => response.extend(buffer.iter().take(length)),
            }
        }
        latencies.push(intended.elapsed());
        intended += every;
    }
    Ok(latencies)
}
