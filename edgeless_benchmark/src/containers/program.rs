//! What this program does as the program of a container: a guest of EDGELESS 1.x, and a web server.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::client::{self, Connection, Options};
use edgeless_api::event::Reply;
use edgeless_api::guest::{Boot, Goal, Tell};
use edgeless_api::server::{GuestFunction, Server};
use edgeless_api::{Error, InstanceId, Limits};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_LENGTH;
use hyper::service::service_fn;
use hyper::{Request, Response, server};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The commands that run it; not for users.
pub(crate) const RELAY: &str = "serve-relay";
pub(crate) const WEB: &str = "serve-web";

/// Where the guest listens.
pub(super) const RELAY_PORT: u16 = 7101;
/// Where the web server listens.
pub(super) const WEB_PORT: u16 = 8080;

/// What a long body is made of.
const CHUNK: &[u8] = &[b'x'; 64 << 10];

/// Serves a function that does what `functions/relay` does, by unary calls alone.
pub(crate) async fn relay() -> Result<Infallible> {
    let listener = TcpListener::bind(("0.0.0.0", RELAY_PORT)).await?;
    let server = Server::new(Limits::default(), CancellationToken::new());
    server.guest_function(Arc::new(Relay::default())).serve(listener).await?;
    bail!("the server has ended")
}

#[derive(Default)]
struct Relay {
    node: OnceLock<(client::GuestHost, InstanceId)>,
}

#[async_trait]
impl GuestFunction for Relay {
    async fn boot(&self, boot: Boot) -> Result<bool, Error> {
        let url = boot.host.parse()?;
        let node = client::GuestHost::new(Connection::lazy(&url, Options::default())?, "")?;
        self.node.set((node, boot.id)).map_err(|_| Error::rejected("booted already"))?;
        // It knows no tokens, as those that EDGELESS 1.x comes with.
        Ok(false)
    }

    async fn init(&self, _payload: String, _state: Bytes) -> Result<(), Error> {
        Ok(())
    }

    async fn cast(&self, _source: InstanceId, payload: Bytes) -> Result<(), Error> {
        let (node, own) = self.node.get().ok_or_else(|| Error::rejected("not booted"))?;
        node.tell(*own, Tell::Cast(Goal::Output("next".to_string()), payload)).await
    }

    async fn call(&self, _source: InstanceId, payload: Bytes) -> Result<Reply, Error> {
        Ok(Reply::Message(payload))
    }

    async fn stop(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Serves `GET /bytes/N`, and takes whatever is sent to it.
pub(crate) async fn web() -> Result<Infallible> {
    let listener = TcpListener::bind(("0.0.0.0", WEB_PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let builder = server::conn::http1::Builder::new();
            // A client that goes away in the middle is no concern of anybody.
            builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await.ok();
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let wanted = request.uri().path().strip_prefix("/bytes/").and_then(|count| count.parse().ok());
    if let Some(wanted) = wanted {
        let mut response = Response::new(long(wanted));
        response.headers_mut().insert(CONTENT_LENGTH, wanted.into());
        return Ok(response);
    }
    let mut taken = 0;
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        taken += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(Response::new(Full::new(taken.to_string().into()).boxed()))
}

fn long(wanted: usize) -> Body {
    let whole = std::iter::repeat_n(CHUNK, wanted / CHUNK.len());
    let rest = CHUNK.get(..wanted % CHUNK.len()).filter(|rest| !rest.is_empty());
    let frames = whole.chain(rest).map(|bytes| Ok(Frame::data(Bytes::from_static(bytes))));
    StreamBody::new(tokio_stream::iter(frames)).boxed()
}
