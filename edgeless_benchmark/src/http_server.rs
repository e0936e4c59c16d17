//! The limit of `http`: a server that does nothing but answer, in a process of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, body, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::programs::{Daemon, READY};

/// The command that runs it; not for users.
pub(crate) const COMMAND: &str = "serve-http";

/// The server as a child process.
pub(crate) async fn start(content_type: &str, body: &str) -> Result<(Daemon, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    let daemon = Daemon::of(command.args([COMMAND, content_type, body])).await?;
    let address = daemon.ready().split(' ').find_map(|word| word.parse().ok());
    let address = address.with_context(|| format!("no address in '{}'", daemon.ready()))?;
    Ok((daemon, address))
}

/// Answers every request with the same bytes, until the process is ended.
pub(crate) async fn serve(content_type: &str, body: &str) -> Result<Infallible> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let content_type = HeaderValue::from_str(content_type)?;
    let body = Bytes::copy_from_slice(body.as_bytes());
    eprintln!("{COMMAND}: {} {READY} it)", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream, content_type.clone(), body.clone()));
    }
}

async fn connection(stream: TcpStream, content_type: HeaderValue, body: Bytes) {
    let service = service_fn(|_: Request<body::Incoming>| {
        let mut response = Response::new(Full::new(body.clone()));
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
        async { Ok::<_, Infallible>(response) }
    });
    let mut builder = server::conn::http1::Builder::new();
    // A client that goes away in the middle is no concern of anybody.
    builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await.ok();
}
