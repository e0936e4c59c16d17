//! A client that costs little, because it shares the processors with the server that it loads.
//!
//! One thread for all connections; a request is bytes that are ready, and of a response no more is read
//! than its status and its length.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// The largest response that is read.
const LARGEST: usize = 64 << 10;

/// What came of it.
#[derive(Default)]
pub(crate) struct Load {
    /// One for each request.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) took: Duration,
}

impl Load {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }
}

/// Sends the same request again and again over so many connections at once.
pub(crate) async fn load(address: SocketAddr, request: &[u8], clients: usize, window: Duration) -> Result<Load> {
    let request = request.to_vec();
    let (done, load) = oneshot::channel();
    std::thread::Builder::new().name("http-client".to_string()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let load =
            runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(all(address, request, clients, window)));
        done.send(load).ok();
    })?;
    load.await?
}

async fn all(address: SocketAddr, request: Vec<u8>, clients: usize, window: Duration) -> Result<Load> {
    let request: Arc<[u8]> = request.into();
    let mut streams = Vec::new();
    for _ in 0..clients {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let began = Instant::now();
    let client = |stream| client(stream, request.clone(), began + window);
    let mut clients: JoinSet<_> = streams.into_iter().map(client).collect();
    let mut load = Load::default();
    let finish = async {
        while let Some(latencies) = clients.join_next().await {
            load.latencies.extend(latencies??);
        }
        anyhow::Ok(())
    };
    // One clock for all: one for each request would cost as much as the request.
    tokio::time::timeout(window + PATIENCE, finish).await.context("the server does not answer")??;
    load.took = began.elapsed();
    Ok(load)
}

async fn client(mut stream: TcpStream, request: Arc<[u8]>, until: Instant) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    let mut response = Vec::with_capacity(4096);
    loop {
        let sent = Instant::now();
        if sent >= until {
            return Ok(latencies);
        }
        exchange(&mut stream, &request, &mut response).await?;
        latencies.push(sent.elapsed());
    }
}

/// Sends a request, and reads the response, which has to be 200.
pub(crate) async fn exchange(stream: &mut TcpStream, request: &[u8], response: &mut Vec<u8>) -> Result<()> {
    stream.write_all(request).await?;
    response.clear();
    while !is_whole(response)? {
        if stream.read_buf(response).await? == 0 {
            bail!("the server closed a connection: {}", String::from_utf8_lossy(response));
        }
    }
    Ok(())
}

/// Whether a response is all there. Any status but 200 is an error.
pub(crate) fn is_whole(response: &[u8]) -> Result<bool> {
    let Some(end) = response.windows(4).position(|end| end == b"\r\n\r\n") else {
        if response.len() > LARGEST {
            bail!("the server answers with more than {LARGEST} bytes");
        }
        return Ok(false);
    };
    let (head, body) = response.split_at(end + 4);
    if !head.starts_with(b"HTTP/1.1 200 ") {
        bail!("the server answers: {}", String::from_utf8_lossy(response));
    }
    let length = header(head, b"content-length").context("a response does not say how long it is")?;
    let length: usize = std::str::from_utf8(length)?.trim().parse()?;
    Ok(body.len() >= length)
}

/// The value of a header.
pub(crate) fn header<'h>(head: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (key, value) = line.split_at_checked(name.len())?;
        value.strip_prefix(b": ").filter(|_| key.eq_ignore_ascii_case(name)).map(<[u8]>::trim_ascii)
    })
}

/// One request on a connection of its own, and the whole response.
pub(crate) async fn once(address: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let mut response = Vec::new();
    let answered = tokio::time::timeout(PATIENCE, exchange(&mut stream, request, &mut response)).await;
    answered.context("the server does not answer")??;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_with_the_last_byte_of_its_body() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Type: a\r\ncontent-length: 2\r\n\r\nok";
        for length in 0..response.len() {
            assert!(!is_whole(&response[..length]).unwrap(), "{length} bytes");
        }
        assert!(is_whole(response).unwrap());
        assert_eq!(header(response, b"content-type"), Some(b"a".as_slice()));
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let refusal = is_whole(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy").unwrap_err();
        assert!(refusal.to_string().ends_with("busy"), "{refusal}");
        assert!(is_whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "no length");
        assert!(is_whole(&[b'x'; LARGEST + 1]).is_err());
    }
}
