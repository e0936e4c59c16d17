//! A gRPC stream alone, on loopback: what two nodes could at best send each other.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use edgeless_api::Url;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::stats;
use crate::worker::on_worker;

const METHOD: PathAndQuery = PathAndQuery::from_static("/limit.Limit/Exchange");
/// Messages that wait on their way to the stream.
const QUEUE: usize = 64;

/// A message: payloads that travel together.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Batch {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    payloads: Vec<Bytes>,
}

impl Batch {
    pub(crate) fn of(payload: &'static [u8], count: usize) -> Self {
        Self { payloads: vec![Bytes::from_static(payload); count] }
    }
}

/// What the other end does with messages.
#[derive(Clone)]
enum End {
    Echo,
    /// Counts their payloads.
    Sink(Arc<AtomicU64>),
}

type Answers = Pin<Box<dyn Stream<Item = Result<Batch, Status>> + Send>>;

impl StreamingService<Batch> for End {
    type Response = Batch;
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<Batch>>) -> Self::Future {
        let batches = request.into_inner();
        let answers: Answers = match self.clone() {
            Self::Echo => Box::pin(batches),
            Self::Sink(count) => Box::pin(batches.filter_map(move |batch| {
                match batch {
                    Ok(batch) => count.fetch_add(batch.payloads.len() as u64, Ordering::Relaxed),
                    Err(status) => return Some(Err(status)),
                };
                None
            })),
        };
        Box::pin(async { Ok(Response::new(answers)) })
    }
}

/// The service whose only method is [`METHOD`].
#[derive(Clone)]
struct Limit(End);

impl NamedService for Limit {
    const NAME: &'static str = "limit.Limit";
}

impl Service<http::Request<tonic::body::Body>> for Limit {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let end = self.0.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(ProstCodec::default()).streaming(end, request).await) })
    }
}

/// A stream to the other end.
struct Connected {
    out: mpsc::Sender<Batch>,
    back: Streaming<Batch>,
    /// The server; it ends with this.
    tasks: JoinSet<()>,
}

async fn connect(end: End) -> Result<Connected> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = Url::of(listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // If it fails, the stream does.
        Server::builder().add_service(Limit(end)).serve_with_incoming(incoming).await.ok();
    });
    let channel = Endpoint::from_shared(url.to_string())?.tcp_nodelay(true).connect().await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let (out, batches) = mpsc::channel(QUEUE);
    let request = Request::new(ReceiverStream::new(batches));
    let back = client.streaming(request, METHOD, ProstCodec::default()).await?.into_inner();
    Ok(Connected { out, back, tasks })
}

/// What came of an echo.
pub(crate) struct Echoed {
    pub(crate) hops_per_second: f64,
    /// How long each hop took: half of the way there and back. Only for one message at a time.
    pub(crate) hops: Vec<Duration>,
}

/// Messages that go there and back, so many at a time. There and back are two hops.
pub(crate) async fn echo(payload: &'static [u8], in_flight: usize, window: Duration) -> Result<Echoed> {
    on_worker(echo_here(payload, in_flight, window)).await
}

async fn echo_here(payload: &'static [u8], in_flight: usize, window: Duration) -> Result<Echoed> {
    let Connected { out, mut back, tasks: _server } = connect(End::Echo).await?;
    let batch = Batch::of(payload, 1);
    for _ in 0..in_flight {
        out.send(batch.clone()).await?;
    }
    let warm = Instant::now() + stats::warm_up(window);
    let (mut began, mut sent, mut hops) = (Instant::now(), Instant::now(), Vec::new());
    let mut count = 0_u64;
    loop {
        back.message().await?.context("the stream ended")?;
        let now = Instant::now();
        if now < warm {
            began = now;
        } else {
            count += 2;
            if in_flight == 1 {
                hops.push((now - sent) / 2);
            }
            if now >= warm + window {
                return Ok(Echoed { hops_per_second: count as f64 / (now - began).as_secs_f64(), hops });
            }
        }
        sent = Instant::now();
        out.send(batch.clone()).await?;
    }
}

/// Payloads one way, as fast as the stream takes them, so many in each message: how many a second.
pub(crate) async fn one_way(batch: Batch, window: Duration) -> Result<f64> {
    let count = Arc::new(AtomicU64::new(0));
    let Connected { out, back: _back, mut tasks } = connect(End::Sink(count.clone())).await?;
    // It ends with the stream.
    tasks.spawn(async move { while out.send(batch.clone()).await.is_ok() {} });
    stats::rate(window, async || Ok(count.load(Ordering::Relaxed))).await
}
