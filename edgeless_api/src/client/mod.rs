//! The calling side of the services, one file for each that is called.
//!
//! A [`Connection`] is made without waiting and connects when it is first used, again and again if
//! need be. Every call has a deadline.

mod component;
mod controller;
mod guest;
mod link;
mod node;
mod operations;
mod orchestrator;
mod session;

use std::time::Duration;

use futures_util::StreamExt;
use tonic::transport::{Channel, Endpoint};

pub use component::Components;
pub use controller::{DomainRegistry, Workflows};
pub use guest::{Guest, GuestHost};
pub use link::{NodeLink, NodePresence, OpenLink};
pub use node::{Invocation, NodeManagement, PeerStream};
pub use operations::Operations;
pub use orchestrator::{Domain, NodeRegistry};
pub use session::Session;

use crate::Limits;
use crate::error::{Code, Error};
use crate::server::{LINK_WINDOW, Values};
use crate::url::Url;
use crate::wire::error::Fault;

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

/// A way to reach one peer; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    url: Url,
    /// What is expected there.
    peer: &'static str,
    channel: Channel,
    limits: Limits,
}

fn bare_endpoint(url: &Url, options: Options) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(url.to_string())
        .map_err(|error| Error::rejected(format!("'{url}' is not an address: {error}")))?;
    Ok(endpoint.connect_timeout(options.connect).tcp_nodelay(true))
}

fn endpoint(url: &Url, options: Options) -> Result<Endpoint, Error> {
    Ok(bare_endpoint(url, options)?
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5)))
}

impl Connection {
    /// A connection that is opened by its first use. Panics outside a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be part of a request.
    pub fn lazy(url: &Url, options: Options) -> Result<Self, Error> {
        let endpoint = endpoint(url, options)?.timeout(options.deadline);
        Ok(Self::over(&endpoint, url, options))
    }

    /// The same for a link to another node: nothing on it has a deadline, it is found out when the
    /// other side is gone, and much may be on its way.
    ///
    /// # Errors
    /// The address cannot be part of a request.
    pub fn for_link(url: &Url, options: Options) -> Result<Self, Error> {
        let endpoint = endpoint(url, options)?
            .keep_alive_while_idle(true)
            .initial_stream_window_size(LINK_WINDOW)
            .initial_connection_window_size(LINK_WINDOW);
        Ok(Self::over(&endpoint, url, options))
    }

    /// The same to a guest, which may compute for as long as its calls have time and answer nothing
    /// meanwhile: that is no reason to think that it is gone.
    ///
    /// # Errors
    /// The address cannot be part of a request.
    pub fn to_guest(url: &Url, options: Options) -> Result<Self, Error> {
        let endpoint = bare_endpoint(url, options)?.timeout(options.deadline);
        Ok(Self::over(&endpoint, url, options))
    }

    /// The same to a guest that the caller does not look after otherwise: the session tells when it is
    /// gone, and one that comes after it is not taken for it.
    ///
    /// # Errors
    /// The address cannot be part of a request.
    pub fn to_server_of_guest(url: &Url, options: Options) -> Result<(Self, Session), Error> {
        let session = Session::default();
        let endpoint = bare_endpoint(url, options)?.timeout(options.deadline);
        let channel = endpoint.connect_with_connector_lazy(session.connector(url));
        Ok((Self { url: url.clone(), peer: "daemon", channel, limits: options.limits }, session))
    }

    fn over(endpoint: &Endpoint, url: &Url, options: Options) -> Self {
        Self { url: url.clone(), peer: "daemon", channel: endpoint.connect_lazy(), limits: options.limits }
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
        let fault = Fault::of(&status);
        let error = Error::from(status);
        let (url, peer) = (&self.url, self.peer);
        let other = || format!("{url} answers, but is not what was expected there: an EDGELESS {peer}");
        match fault {
            Fault::Closed => Error::unavailable(format!(
                "cannot reach {url}: it closed the connection: it has just stopped, or is not an EDGELESS {peer}"
            )),
            Fault::NoGrpc if error.code == Code::Unavailable => Error::unavailable(other()),
            Fault::NoGrpc => Error::rejected(other()),
            Fault::NoService => Error::unimplemented(format!("{} that offers this", other())),
            Fault::Other if error.code == Code::Timeout => Error::timeout(format!("{url} did not answer in time")),
            Fault::Other if error.code == Code::Unavailable => error.context(format!("cannot reach {url}")),
            Fault::Other | Fault::Said => error,
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// The error of a call to a server that answers every connection with these bytes.
    async fn error_of_call(answer: &'static [u8]) -> (Url, Error) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::of(listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut peer, _)) = listener.accept().await {
                drop(peer.read(&mut [0; 1024]).await);
                drop(peer.write_all(answer).await);
            }
        });
        let workflows = Workflows::new(Connection::lazy(&url, Options::default()).unwrap());
        (url, workflows.list().await.unwrap_err())
    }

    /// Which of the two is known depends on what is read first.
    #[tokio::test]
    async fn what_is_no_daemon_is_told_from_one_that_is_away() {
        let (url, error) = error_of_call(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        let other =
            Error::rejected(format!("{url} answers, but is not what was expected there: an EDGELESS controller"));
        assert!(error == other || error == closed(&url), "{error:?}");
        let (url, error) = error_of_call(b"").await;
        assert_eq!(error, closed(&url));
    }

    fn closed(url: &Url) -> Error {
        Error::unavailable(format!(
            "cannot reach {url}: it closed the connection: it has just stopped, or is not an EDGELESS controller"
        ))
    }

    #[tokio::test]
    async fn errors_without_a_word_of_the_peer_say_what_was_expected() {
        let url: Url = "http://a:1".parse().unwrap();
        let connection = Connection::lazy(&url, Options::default()).unwrap().to("node");
        let other = "http://a:1 answers, but is not what was expected there: an EDGELESS node";
        let missing = |code| tonic::Status::new(code, "grpc-status header missing, mapped from HTTP status code 404");
        for (status, error) in [
            (missing(tonic::Code::Unimplemented), Error::rejected(other)),
            (missing(tonic::Code::Unavailable), Error::unavailable(other)),
            (tonic::Status::unimplemented(""), Error::unimplemented(format!("{other} that offers this"))),
            (tonic::Status::unimplemented("not yet"), Error::unimplemented("not yet")),
            (tonic::Status::cancelled("late"), Error::timeout("http://a:1 did not answer in time")),
            (tonic::Status::deadline_exceeded("domain d: silent"), Error::timeout("domain d: silent")),
            (tonic::Status::unavailable("later"), Error::unavailable("later")),
        ] {
            assert_eq!(connection.error(status), error);
        }
    }
}
