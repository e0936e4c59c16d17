//! The serving side of the services: a trait for each, in terms of this crate's types, and one
//! [`Server`] that puts them on a listener.

mod admission;
mod component;
mod controller;
mod guest;
mod link;
mod node;
mod operations;
mod orchestrator;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::{Connected, TcpIncoming};

pub use admission::Admission;
pub use component::Components;
pub use controller::{DomainRegistry, Workflows};
pub use guest::{GuestFunction, GuestHost};
pub use link::{Held, NodeLink};
pub use node::{Invocation, NodeManagement, PeerStream};
pub use operations::Operations;
pub use orchestrator::{Domain, NodeRegistry};

use crate::Limits;
use crate::error::Error;

/// Values that a service sends one after the other.
pub type Values<T> = Pin<Box<dyn Stream<Item = Result<T, Error>> + Send>>;

/// The bytes that may be on their way over a link: what fits into a tenth of a second at 40 MB/s.
pub(crate) const LINK_WINDOW: u32 = 4 << 20;

/// Several services on one port.
pub struct Server {
    routes: Routes,
    /// Of the connections; `None`: what HTTP/2 begins with.
    window: Option<u32>,
    limits: Limits,
    admission: Admission,
    cancel: CancellationToken,
}

impl Server {
    /// A server that stops when `cancel` says so: it takes no new request, ends its streams and
    /// finishes the requests in hand.
    pub fn new(limits: Limits, cancel: CancellationToken) -> Self {
        Self {
            routes: Routes::default(),
            window: None,
            limits,
            admission: Admission::new(usize::MAX, |_| true),
            cancel,
        }
    }

    /// Serves only those that are admitted; the connections of others are closed.
    #[must_use]
    pub fn admit(self, admission: Admission) -> Self {
        Self { admission, ..self }
    }

    /// Serves until it is cancelled.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        // Whoever is gone without a word is found out: streams may be silent for long.
        let keep_alive = Some(Duration::from_secs(10));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        self.serve_all(incoming, |stream| stream.peer_addr().ok().map(|peer| peer.ip()), keep_alive).await
    }

    /// Serves at a Unix socket until it is cancelled.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve_unix(self, listener: UnixListener) -> Result<(), Error> {
        // The kernel tells who is gone; who is silent may be busy, or not be let run.
        self.serve_all(UnixListenerStream::new(listener), |_| None, None).await
    }

    async fn serve_all<I: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static>(
        self,
        incoming: impl Stream<Item = std::io::Result<I>>,
        peer: impl Fn(&I) -> Option<IpAddr>,
        keep_alive: Option<Duration>,
    ) -> Result<(), Error> {
        let admission = self.admission;
        let incoming = incoming.filter_map(|connection| {
            let admitted = match connection {
                Ok(connection) => {
                    let peer = peer(&connection);
                    admission.admit(connection, peer).map(Ok)
                }
                Err(error) => Some(Err(error)),
            };
            std::future::ready(admitted)
        });
        tonic::transport::Server::builder()
            .max_concurrent_streams(1024)
            .initial_stream_window_size(self.window)
            .initial_connection_window_size(self.window)
            .http2_keepalive_interval(keep_alive)
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .add_routes(self.routes)
            .serve_with_incoming_shutdown(incoming, self.cancel.cancelled_owned())
            .await
            .map_err(Error::bug)
    }

    fn adapter<T>(&self, service: Arc<T>) -> Adapter<T> {
        Adapter { service, cancel: self.cancel.clone() }
    }
}

/// Puts a trait of ours behind a generated one.
struct Adapter<T> {
    service: Arc<T>,
    cancel: CancellationToken,
}

type Wire<T> = Result<tonic::Response<T>, tonic::Status>;
type WireStream<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;

impl<T> Adapter<T> {
    /// Values of ours as messages, until the server stops.
    fn stream<V: 'static, M: From<V> + 'static>(&self, values: Values<V>) -> tonic::Response<WireStream<M>> {
        let messages = values.map(|value| value.map(M::from).map_err(Into::into));
        tonic::Response::new(Box::pin(messages.take_until(self.cancel.clone().cancelled_owned())))
    }
}

fn empty<T>(done: Result<(), Error>) -> Wire<T>
where
    T: Default,
{
    done.map(|()| tonic::Response::new(T::default())).map_err(Into::into)
}

fn answer<T>(value: Result<T, Error>) -> Wire<T> {
    value.map(tonic::Response::new).map_err(Into::into)
}
