//! A connection to a peer whose memory of the caller ends with it.
//!
//! Connections are opened as they are needed until the session begins; from then on there is none after
//! the one that is open.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codegen::{Service, http::Uri};

use crate::url::Url;

/// What the caller and its peer have said to each other over one connection; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Session(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    has_begun: bool,
    /// Cancelled when the last connection is closed.
    closed: CancellationToken,
}

impl Session {
    fn state<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on the peer is only who is connected.
    pub fn begin(&self) {
        self.state(|state| state.has_begun = true);
    }

    /// Resolves when the last connection is closed.
    pub async fn ended(&self) {
        let closed = self.state(|state| state.closed.clone());
        closed.cancelled().await;
    }

    pub(super) fn connector(&self, url: &Url) -> Connector {
        Connector { session: self.clone(), host: url.host().trim_matches(['[', ']']).to_string(), port: url.port() }
    }
}

/// Opens the connections of a session.
#[derive(Clone)]
pub(super) struct Connector {
    session: Session,
    host: String,
    port: u16,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Watched>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { session, host, port } = self.clone();
        Box::pin(async move {
            let gone = || io::Error::new(io::ErrorKind::ConnectionReset, "connection closed");
            if session.state(|state| state.has_begun) {
                return Err(gone());
            }
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            let closed = CancellationToken::new();
            let watched = Watched { stream, _closed: closed.clone().drop_guard() };
            session.state(|state| match state.has_begun {
                true => Err(gone()),
                false => {
                    state.closed = closed;
                    Ok(TokioIo::new(watched))
                }
            })
        })
    }
}

/// A connection that tells when it is closed.
pub(super) struct Watched {
    stream: TcpStream,
    _closed: DropGuard,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_session_has_one_connection_and_ends_with_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::of(listener.local_addr().unwrap());
        let session = Session::default();
        let connect = || session.connector(&url).call(Uri::from_static("http://a"));
        // As often as it takes, before.
        drop(connect().await.unwrap());
        session.ended().await;
        let connection = connect().await.unwrap();
        session.begin();
        let refused = connect().await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset);
        let soon = Duration::from_millis(1);
        assert!(tokio::time::timeout(soon, session.ended()).await.is_err(), "it is open");
        drop(connection);
        session.ended().await;
    }
}
