//! Who may connect, and how often: for servers whose clients are not trusted.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Bounds the connections of each peer, so that none takes the descriptors of all others.
#[derive(Clone)]
pub struct Admission(Arc<Shared>);

struct Shared {
    /// Whether a peer at this address may connect at all.
    is_welcome: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
    each: usize,
    connections: Mutex<HashMap<Option<IpAddr>, usize>>,
}

impl Admission {
    /// Admits peers at addresses that are welcome, each with so many connections at a time. Those at a Unix
    /// socket count as one peer.
    pub fn new(each: usize, is_welcome: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared { is_welcome: Box::new(is_welcome), each, connections: Mutex::default() }))
    }

    /// A connection, if it is admitted: it counts until it is dropped.
    pub(super) fn admit<I>(&self, connection: I, peer: Option<IpAddr>) -> Option<Admitted<I>> {
        let peer = peer.map(|address| address.to_canonical());
        if peer.is_some_and(|address| !(self.0.is_welcome)(address)) {
            return None;
        }
        let mut connections = self.0.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(peer).or_default();
        if *count >= self.0.each {
            return None;
        }
        *count += 1;
        drop(connections);
        Some(Admitted { connection, _place: Place { admission: self.clone(), peer } })
    }
}

/// A connection that is admitted.
pub(super) struct Admitted<I> {
    connection: I,
    _place: Place,
}

struct Place {
    admission: Admission,
    peer: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.admission.0.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.peer);
            }
        }
    }
}

impl<I: Connected> Connected for Admitted<I> {
    type ConnectInfo = I::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.connection.connect_info()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Admitted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Admitted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_so_many_connections_and_no_more() {
        let (one, other, unwelcome) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), [9, 0, 0, 1].into());
        let admission = Admission::new(2, |address| address.to_string().starts_with("10."));
        let admit = |peer| admission.admit((), Some(peer));
        let (first, _second) = (admit(one), admit(one));
        assert!(first.is_some() && admit(one).is_none());
        assert!(admit(other).is_some(), "others are not concerned");
        assert!(admit(unwelcome).is_none());
        assert!(admission.admit((), None).is_some(), "a socket has no address");
        drop(first);
        assert!(admit(one).is_some(), "a place that is free is given again");
    }
}
