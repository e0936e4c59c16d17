//! Nodes whose link has ended: whether their process is gone, which is found out by asking their agents.
//!
//! ```text
//!  link ends -> suspected -> asked: the same process ------------------> not lost, its link will come again
//!                  ^    ^           another process of the node --+
//!                  |    +-- pause <-- no answer -----------------+
//!                  +------- pause <-- refused, the first time
//!                                     refused again ------------------> lost, as at its deadline
//! ```
//! A suspicion alone moves nothing, and ends when the node announces itself or has a link again. Another process of the
//! node will tell what it runs, and goes on with it: it is not raced. Where nothing can be found out, the deadline
//! decides.

use std::time::Duration;

use edgeless_api::error::Error;
use edgeless_api::id::NodeId;
use edgeless_api::node::{NodeKey, Presence};
use edgeless_daemon::engine::Millis;

use super::{Answer, Effect, Engine, Note, Op, Reply, Thing};

/// The pause between two questions: a process that is started again at once is back by then.
const PAUSE: Duration = Duration::from_millis(800);
/// So often in a row must nothing be there.
const REFUSALS: u32 = 2;
const GONE: &str = "its link has ended, and its process is gone";

/// What is known of a node whose link has ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Suspicion {
    /// How often in a row nothing was there.
    refusals: u32,
    /// The question that is under way.
    asking: Option<Op>,
    asks_at: Millis,
}

/// What is found at the address of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A process of some node.
    Process(Presence),
    /// No node: nothing listens there, or something else.
    Nothing,
    /// That cannot be told: no answer in time, or no way there.
    Unknown,
}

impl Engine {
    /// The key with which the link of a process must be signed.
    ///
    /// # Errors
    /// The domain does not know that process.
    pub fn key_for_link(&self, node: NodeId, nonce: u64) -> Result<Option<NodeKey>, Error> {
        let known = self.registry.nodes.get(&node).filter(|known| known.about.nonce == nonce);
        let known = known.ok_or_else(|| {
            Error::unavailable(format!("node {node} is not known here: its link is taken once it has registered"))
        })?;
        Ok(known.about.key())
    }

    /// A node has a link; one that it had before counts no more.
    pub(super) fn link_up(&mut self, id: NodeId, nonce: u64, link: u64) -> Answer {
        self.key_for_link(id, nonce)?;
        if let Some(node) = self.registry.nodes.get_mut(&id) {
            node.link = Some(link);
        }
        self.acquit(id);
        Ok(Reply::Done)
    }

    pub(super) fn link_lost(&mut self, id: NodeId, link: u64) {
        let Some(node) = self.registry.nodes.get_mut(&id).filter(|node| node.link == Some(link)) else { return };
        node.link = None;
        node.suspicion = Some(Suspicion::default());
        self.note(Note::Suspected { node: id });
        self.marked.insert(Thing::Node(id));
    }

    /// A node has shown that it is there.
    pub(super) fn acquit(&mut self, id: NodeId) {
        let suspicion = self.registry.nodes.get_mut(&id).and_then(|node| node.suspicion.take());
        if suspicion.is_some() {
            self.note(Note::Acquitted { node: id });
        }
    }

    /// Asks a suspected node, if it is time.
    pub(super) fn investigate(&mut self, id: NodeId) {
        let Some(node) = self.registry.nodes.get_mut(&id) else { return };
        let peer = node.peer();
        let Some(suspicion) = &mut node.suspicion else { return };
        if suspicion.asking.is_some() {
            return;
        }
        if self.now < suspicion.asks_at {
            self.timers.insert((suspicion.asks_at, Thing::Node(id)));
            return;
        }
        self.last_op += 1;
        let op = Op(self.last_op);
        suspicion.asking = Some(op);
        self.effects.push(Effect::Probe(op, peer));
    }

    pub(super) fn probed(&mut self, op: Op, id: NodeId, found: Found) {
        let Some(node) = self.registry.nodes.get_mut(&id) else { return };
        let nonce = node.about.nonce;
        let Some(suspicion) = node.suspicion.as_mut().filter(|suspicion| suspicion.asking == Some(op)) else { return };
        suspicion.asking = None;
        suspicion.asks_at = self.now + PAUSE;
        match found {
            Found::Process(presence) if presence == (Presence { node: id, nonce }) => return self.acquit(id),
            Found::Process(presence) if presence.node == id => suspicion.refusals = 0,
            // Somebody else has its address.
            Found::Process(_) | Found::Nothing => suspicion.refusals += 1,
            Found::Unknown => {}
        }
        if suspicion.refusals < REFUSALS {
            self.marked.insert(Thing::Node(id));
        } else {
            self.lose_node(id, GONE);
        }
    }
}
