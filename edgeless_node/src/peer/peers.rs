//! The other nodes that a node knows, and the link to each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

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
    own_url: Arc<OnceLock<Url>>,
    known: papaya::HashMap<NodeId, Known<T>>,
}

/// A node that is known.
struct Known<T: Ticket> {
    link: Link<T>,
    /// Only the node itself has said where it is.
    is_hearsay: AtomicBool,
}

impl<T: Ticket> std::fmt::Debug for Peers<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("node", &self.node).field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl<T: Ticket + Sync> Peers<T> {
    /// Nobody yet. What comes from those that follow goes to `deliver`.
    pub fn new(node: NodeId, options: Options, deliver: Arc<dyn Deliver>) -> Self {
        Self { node, options, deliver, own_url: Arc::default(), known: papaya::HashMap::new() }
    }

    /// Where this node takes events: said to those that it dials, which may not know it.
    pub fn set_own_url(&self, url: Url) {
        // It does not change while the node runs.
        self.own_url.get_or_init(|| url);
    }

    /// Learns of a node, or that it has moved: what is known of it then stays. Nothing is sent to it
    /// before there is an event for it. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// There are too many.
    pub fn add(&self, node: NodeId, url: &Url) -> Result<(), Error> {
        self.learn(node, url, false)
    }

    fn learn(&self, node: NodeId, url: &Url, is_hearsay: bool) -> Result<(), Error> {
        let known = self.known.pin();
        if !known.contains_key(&node) && known.len() >= NODES {
            self.forget_hearsay();
            if known.len() >= NODES {
                return Err(Error::exhausted(format!("this node knows {NODES} others and can know no more")));
            }
        }
        // Of two that are added at once, the second finds the first.
        let found = known.get_or_insert_with(node, || Known {
            link: self.link(node, url.clone()),
            is_hearsay: AtomicBool::new(is_hearsay),
        });
        if !is_hearsay {
            found.is_hearsay.store(false, Ordering::Relaxed);
            found.link.set_url(url);
        }
        Ok(())
    }

    fn link(&self, node: NodeId, url: Url) -> Link<T> {
        Link::new(self.node, node, url, self.options, self.deliver.clone(), self.own_url.clone())
    }

    /// Makes room: nodes that nobody has vouched for are known for as long as they are of use.
    fn forget_hearsay(&self) {
        for (node, known) in &self.known.pin() {
            if known.is_hearsay.load(Ordering::Relaxed) && known.link.is_idle() {
                self.remove(*node);
            }
        }
    }

    /// Forgets a node. What was on its way to it may have run; what was not is dropped.
    pub fn remove(&self, node: NodeId) {
        if let Some(known) = self.known.pin().remove(&node) {
            known.link.close();
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
        self.known.pin().get(&node).map(|known| known.link.clone()).ok_or(Dropped::UnknownPeer)
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
        if let (Err(_), Some(url)) = (self.get(hello.node), &hello.invocation_url)
            && hello.node != self.node
        {
            // Nodes learn of each other when they have something to say: it says where it can be answered.
            self.learn(hello.node, url, true)?;
        }
        // Or one after the other: the same link may be taken a moment later.
        let unknown = |_| Error::unavailable(format!("{:?} is not known here yet", hello.node));
        self.get(hello.node).map_err(unknown)?.accept(&hello, frames)
    }
}
