//! The calling side of the services, one file for each that is called.
//!
//! A [`Connection`] is made without waiting and connects when it is first used, again and again if
//! need be. Every call has a deadline.

mod component;
mod controller;
mod node;
mod orchestrator;

use std::time::Duration;

use futures_util::StreamExt;
use tonic::transport::{Channel, Endpoint};

pub use component::Components;
pub use controller::{DomainRegistry, Workflows};
pub use node::{Invocation, NodeManagement};
pub use orchestrator::{Domain, NodeRegistry};

use crate::Limits;
use crate::error::{Code, Error};
use crate::server::Values;
use crate::url::Url;

/// How to call a peer.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The time that a call may take until its answer begins.
    pub deadline: Duration,
    /// The time that connecting may take.
    pub connect: Duration,
    /// The largest message that is accepted.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), connect: Duration::from_secs(2), limits: Limits::default() }
    }
}

/// How tonic speaks of an answer that is not one of gRPC.
const NO_GRPC: [&str; 2] = ["grpc-status header missing", "missing grpc-status trailer"];

/// A way to reach one peer; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    url: Url,
    /// What is expected there.
    peer: &'static str,
    channel: Channel,
    limits: Limits,
}

impl Connection {
    /// A connection that is opened by its first use.
    ///
    /// # Errors
    /// The address cannot be part of a request.
    pub fn lazy(url: &Url, options: Options) -> Result<Self, Error> {
        let endpoint = Endpoint::from_shared(url.to_string())
            .map_err(|error| Error::rejected(format!("'{url}' is not an address: {error}")))?
            .connect_timeout(options.connect)
            .timeout(options.deadline)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        Ok(Self { url: url.clone(), peer: "daemon", channel: endpoint.connect_lazy(), limits: options.limits })
    }

    /// Where the peer is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The same connection, with what is expected there.
    fn to(self, peer: &'static str) -> Self {
        Self { peer, ..self }
    }

    /// An error of a call, with the address of the peer where that helps.
    fn error(&self, status: tonic::Status) -> Error {
        // Without a source it is the peer itself that says so.
        let is_ours = std::error::Error::source(&status).is_some();
        let is_bare = status.message().is_empty();
        let is_no_grpc = !is_ours && NO_GRPC.iter().any(|text| status.message().contains(text));
        let grpc = status.code();
        let error = Error::from(status);
        let other = || format!("{} answers, but is not what was expected there: an EDGELESS {}", self.url, self.peer);
        match error.code {
            // A proxy says so, or the answer was cut off.
            Code::Unavailable if is_no_grpc => Error::unavailable(other()),
            _ if is_no_grpc && grpc == tonic::Code::Unknown => Error::unavailable(other()),
            _ if is_no_grpc => Error::rejected(other()),
            // A service that the peer has not.
            Code::Unimplemented if is_bare => Error::unimplemented(format!("{} that offers this", other())),
            Code::Unavailable if is_ours => error.context(format!("cannot reach {}", self.url)),
            Code::Timeout => Error::timeout(format!("{} did not answer in time", self.url)),
            _ => error,
        }
    }

    /// Messages of a stream as values of ours.
    fn values<M: Send + 'static, V: 'static>(
        &self,
        messages: tonic::Streaming<M>,
        convert: impl Fn(M) -> Result<V, Error> + Send + 'static,
    ) -> Values<V> {
        let connection = self.clone();
        Box::pin(messages.map(move |message| match message {
            Ok(message) => convert(message),
            Err(status) => Err(connection.error(status)),
        }))
    }
}
