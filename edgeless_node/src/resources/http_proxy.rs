//! Passes HTTP requests on to a server behind the ingress, and its responses back.
//!
//! ```text
//!  client --request--> Upload ----> backend     each at the pace of who reads it,
//!         <----------- Download <-- backend     nothing is kept but what is on its way
//!         <=========== Tunnel ====> backend     once both have switched protocols
//! ```
//! The message is the client's and the backend's: what belongs to one connection only is left out, who
//! asked is added, and the rest is not touched.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use edgeless_daemon::Tasks;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming as Receiving, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Scheme};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use crate::backends::Entry;

/// How long a backend, which is on this machine, may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection to a backend is kept for the next request. Common servers close theirs after 5 s
/// and more: whoever closes first does not meet a request that is on its way.
const IDLE: Duration = Duration::from_secs(4);

/// How many connections to one backend are kept for the next request.
const MAX_IDLE: usize = 64;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Why there is no response of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the service cannot be reached")]
    Unreachable,
    #[error("the service did not answer with an HTTP response")]
    NoResponse,
    #[error("the service did not answer in time")]
    Late,
    #[error("the body cannot be read")]
    BodyBroken,
    #[error("the body did not arrive in time")]
    BodyLate,
}

/// What became of a request.
pub(super) enum Passed {
    /// It has a response.
    Answered(Response<Download>),
    /// The response with which the backend switches to another protocol, and the way there.
    Switched(Response<()>, Tunnel),
}

/// Passes requests on.
pub(super) struct Proxy {
    client: Client<HttpConnector, Upload>,
    /// How long a backend may take to begin its response.
    timeout: Duration,
    /// How long a client may pause within a body.
    read_timeout: Duration,
    tasks: Tasks,
}

impl Proxy {
    pub(super) fn new(timeout: Duration, read_timeout: Duration, tasks: Tasks) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .build(connector);
        Self { client, timeout, read_timeout, tasks }
    }

    /// Passes a request on. The permit is kept until the response, or the tunnel, has ended.
    pub(super) async fn pass(
        &self,
        backend: &Entry,
        head: Parts,
        host: HeaderValue,
        body: Receiving,
        peer: IpAddr,
        in_hand: OwnedSemaphorePermit,
    ) -> Result<Passed, ProxyError> {
        let protocol = wanted_protocol(&head);
        let turn = Arc::new(Turn::new());
        let upload = Upload {
            expected: head.headers.contains_key(header::EXPECT),
            wait: None,
            is_waiting: false,
            limit: self.read_timeout,
            turn: turn.clone(),
            tasks: self.tasks.clone(),
            body: Some(body),
        };
        let request = request_for(backend, head, host, peer, protocol.as_ref(), upload)?;
        let mut response = self.head(self.client.request(request), &turn).await.inspect_err(|error| {
            tracing::debug!(backend = backend.name(), %error, "a request was not answered by its backend");
        })?;
        let switched = hyper::upgrade::on(&mut response);
        let (mut head, body) = response.into_parts();
        // The server writes what its client understands.
        head.version = Version::HTTP_11;
        let answered_with = head.headers.get(header::UPGRADE).cloned();
        remove_hop_by_hop(&mut head.headers);
        match (head.status == StatusCode::SWITCHING_PROTOCOLS, protocol) {
            (false, _) => Ok(Passed::Answered(Response::from_parts(head, Download { body, _in_hand: in_hand }))),
            (true, Some(asked)) => {
                head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                head.headers.insert(header::UPGRADE, answered_with.unwrap_or(asked));
                Ok(Passed::Switched(Response::from_parts(head, ()), Tunnel { backend: switched, _in_hand: in_hand }))
            }
            // Nobody asked for it: the client would read the other protocol as HTTP.
            (true, None) => Err(ProxyError::NoResponse),
        }
    }

    /// Waits for the head of a response. The time in which a body is on its way does not count.
    async fn head(
        &self,
        response: impl Future<Output = Result<Response<Receiving>, hyper_util::client::legacy::Error>>,
        turn: &Turn,
    ) -> Result<Response<Receiving>, ProxyError> {
        let mut response = pin!(response);
        let mut left = self.timeout;
        loop {
            match tokio::time::timeout(left, response.as_mut()).await {
                Ok(head) => return head.map_err(|error| reason(&error)),
                Err(_) => match self.timeout.checked_sub(turn.waited()) {
                    Some(rest) if !rest.is_zero() => left = rest,
                    _ => return Err(ProxyError::Late),
                },
            }
        }
    }
}

fn reason(error: &hyper_util::client::legacy::Error) -> ProxyError {
    if error.is_connect() {
        return ProxyError::Unreachable;
    }
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(of_body) = error.downcast_ref::<ProxyError>() {
            return *of_body;
        }
        source = error.source();
    }
    ProxyError::NoResponse
}

/// The protocol that a client wants to switch to, if it may.
fn wanted_protocol(head: &Parts) -> Option<HeaderValue> {
    let asked = head.version == Version::HTTP_11 && nominated(&head.headers).any(|name| name == header::UPGRADE);
    // Requests in HTTP/2 within a tunnel would pass by the ingress: no server needs that from its clients.
    let is_http2 = |value: &HeaderValue| value.as_bytes().to_ascii_lowercase().starts_with(b"h2c");
    head.headers.get(header::UPGRADE).filter(|value| asked && !is_http2(value)).cloned()
}

fn request_for(
    backend: &Entry,
    head: Parts,
    host: HeaderValue,
    peer: IpAddr,
    protocol: Option<&HeaderValue>,
    body: Upload,
) -> Result<Request<Upload>, ProxyError> {
    let Parts { method, uri, mut headers, .. } = head;
    remove_hop_by_hop(&mut headers);
    // Its body is asked for at once, so the client has been told to go on.
    headers.remove(header::EXPECT);
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    let for_whom = match joined(&headers, &X_FORWARDED_FOR) {
        Some(others) => HeaderValue::from_bytes(&[&others, &b", "[..], peer.to_string().as_bytes()].concat()),
        None => HeaderValue::try_from(peer.to_string()),
    };
    headers.insert(X_FORWARDED_FOR, for_whom.map_err(|_| ProxyError::NoResponse)?);
    headers.insert(X_FORWARDED_HOST, host.clone());
    // Only a proxy in front of this one knows of TLS there.
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    // The one by which the backend was chosen, also if there were several or none.
    headers.insert(header::HOST, host);

    let path = uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(backend.authority().clone()).path_and_query(path).build();
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri.map_err(|_| ProxyError::NoResponse)?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// All values of a header as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let values: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    (!values.is_empty()).then(|| values.join(&b", "[..]))
}

/// The headers that belong to one connection, by the words of the message.
fn nominated(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok())
}

/// Removes the headers that belong to one connection (RFC 9110, 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in nominated(headers).collect::<Vec<_>>() {
        headers.remove(name);
    }
    for name in [header::CONNECTION, header::TE, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// Since when it is the backend's turn to do something.
struct Turn {
    start: Instant,
    /// Milliseconds after the start, or [`Self::CLIENTS`].
    since: AtomicU64,
}

impl Turn {
    /// It is the turn of the client.
    const CLIENTS: u64 = u64::MAX;

    fn new() -> Self {
        Self { start: Instant::now(), since: AtomicU64::new(0) }
    }

    fn backend(&self) {
        let since = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(Self::CLIENTS);
        self.since.store(since, Ordering::Relaxed);
    }

    fn client(&self) {
        self.since.store(Self::CLIENTS, Ordering::Relaxed);
    }

    /// How long the backend has been waited for.
    fn waited(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            Self::CLIENTS => Duration::ZERO,
            since => self.start.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }
}

/// The body of a request on its way to a backend.
pub(super) struct Upload {
    body: Option<Receiving>,
    /// The client waits to be asked for the body.
    expected: bool,
    /// How long the client may pause.
    limit: Duration,
    wait: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
    turn: Arc<Turn>,
    tasks: Tasks,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = ProxyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        let this = self.get_mut();
        this.expected = false;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(context) {
            Poll::Ready(frame) => {
                this.is_waiting = false;
                this.turn.backend();
                let broken = matches!(frame, Some(Err(_)));
                if broken {
                    this.body = None;
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|_| ProxyError::BodyBroken)))
            }
            Poll::Pending => {
                let wait = this.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.limit)));
                if !this.is_waiting {
                    this.is_waiting = true;
                    this.turn.client();
                    wait.as_mut().reset(Instant::now() + this.limit);
                }
                ready!(wait.as_mut().poll(context));
                this.body = None;
                Poll::Ready(Some(Err(ProxyError::BodyLate)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// A backend may answer without the whole body; see [`discard`].
impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !self.expected && !body.is_end_stream()) {
            discard(&self.tasks, self.limit, body);
        }
    }
}

/// Takes in what is left of a body that nobody wants. To close the connection instead could destroy the
/// answer before the client has read it.
pub(super) fn discard(tasks: &Tasks, limit: Duration, mut body: Receiving) {
    let cancel = tasks.cancel().clone();
    tasks.helper("http-ingress discard", async move {
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        cancel.run_until_cancelled(tokio::time::timeout(limit, rest)).await;
    });
}

/// The body of a response on its way to a client.
pub(super) struct Download {
    body: Receiving,
    /// The request is in hand until then.
    _in_hand: OwnedSemaphorePermit,
}

impl Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection to a backend that no longer speaks HTTP.
pub(super) struct Tunnel {
    backend: OnUpgrade,
    _in_hand: OwnedSemaphorePermit,
}

impl Tunnel {
    /// Carries bytes both ways until both sides have ended, or one breaks. `received` came from the client
    /// already.
    pub(super) async fn carry(self, mut client: TcpStream, received: Bytes) {
        let carried = async {
            let mut backend = TokioIo::new(self.backend.await.map_err(std::io::Error::other)?);
            backend.write_all(&received).await?;
            tokio::io::copy_bidirectional(&mut client, &mut backend).await
        };
        if let Err(error) = carried.await {
            tracing::debug!(%error, "a connection that was passed on broke");
        }
    }
}
