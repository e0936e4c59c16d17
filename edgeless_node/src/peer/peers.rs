//! The other nodes that a node knows, and the link to each.

use std::sync::Arc;

use async_trait::async_trait;
use edgeless_api::peer::Frame;
use edgeless_api::server::{PeerStream, Values};
use edgeless_api::{Error, Event, NodeId, Url};
use futures_util::StreamExt;

use super::link::{Deliver, Link, Options};
use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;

/// Nodes that a node may know at once.
const NODES: usize = 4096;

/// The other nodes that a node knows.
pub struct Peers<T: Ticket> {
    node: NodeId,
    options: Options,
    deliver: Arc<dyn Deliver>,
    known: papaya::HashMap<NodeId, Link<T>>,
}

impl<T: Ticket> std::fmt::Debug for Peers<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("node", &self.node).field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl<T: Ticket + Sync> Peers<T> {
    /// Nobody yet. What comes from those that follow goes to `deliver`.
    pub fn new(node: NodeId, options: Options, deliver: Arc<dyn Deliver>) -> Self {
        Self { node, options, deliver, known: papaya::HashMap::new() }
    }

    /// Learns of a node, or that it has moved: what is known of it then stays. Must be called in a
    /// tokio runtime.
    ///
    /// # Errors
    /// There are too many.
    pub fn add(&self, node: NodeId, url: &Url) -> Result<(), Error> {
        let known = self.known.pin();
        if let Some(link) = known.get(&node) {
            link.set_url(url);
            return Ok(());
        }
        if known.len() >= NODES {
            return Err(Error::exhausted(format!("this node knows {NODES} others and can know no more")));
        }
        // Of two that are added at once, the second finds the first.
        let link = known
            .get_or_insert_with(node, || Link::new(self.node, node, url.clone(), self.options, self.deliver.clone()));
        link.set_url(url);
        Ok(())
    }

    /// Forgets a node. What was on its way to it may have run; what was not is dropped.
    pub fn remove(&self, node: NodeId) {
        if let Some(link) = self.known.pin().remove(&node) {
            link.close();
        }
    }

    /// All that are known.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.known.pin().keys().copied().collect()
    }

    /// The way to a node.
    ///
    /// # Errors
    /// It is not known.
    pub fn get(&self, node: NodeId) -> Result<Link<T>, Dropped> {
        self.known.pin().get(&node).cloned().ok_or(Dropped::UnknownPeer)
    }

    /// Puts an event on its way, as [`Link::send`] does.
    ///
    /// # Errors
    /// Its node is not known, or takes no more.
    pub async fn send(&self, event: Event, ticket: T) -> Result<(), Dropped> {
        match self.get(event.target.node) {
            Ok(link) => link.send(event, ticket).await,
            Err(cause) => {
                ticket.settle(Fate::Dropped(cause));
                Err(cause)
            }
        }
    }
}

#[async_trait]
impl<T: Ticket + Sync> PeerStream for Peers<T> {
    async fn link(&self, mut frames: Values<Frame>) -> Result<Values<Frame>, Error> {
        let first = tokio::time::timeout(self.options.connect, frames.next()).await;
        let first = first.map_err(|_| Error::timeout("there was no hello in time"))?;
        let first = first.ok_or_else(|| Error::rejected("there was no hello"))??;
        let hello = first.hello.ok_or_else(|| Error::rejected("the first frame has no hello"))?;
        // Nodes learn of each other one after the other: the same link may be taken a moment later.
        let unknown = |_| Error::unavailable(format!("{:?} is not known here yet", hello.node));
        self.get(hello.node).map_err(unknown)?.accept(&hello, frames)
    }
}
