//! Changes what components may use while they run.
//!
//! The domain of a component is asked first: it asks the node, which may refuse. What is granted is
//! then kept by the engine, for the case that the domain loses everything and is given the workflow
//! again. Requests about one component have their turn one after the other, so that what is kept last
//! is what its domain was asked for last.

use std::time::Duration;

use edgeless_api::component::Annotations;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::ComponentId;
use edgeless_api::status::Limit;
use edgeless_daemon::engine::Inbox;
use edgeless_daemon::turns::Turns;

use crate::engine::{Answer, Engine, Event, Peer};
use crate::shell::Peers;

/// The time that a domain has to change limits: a little more than it gives its nodes.
const CHANGE: Duration = Duration::from_secs(12);

/// Changes limits; clones share its turns.
#[derive(Clone, Debug)]
pub(crate) struct Limiter {
    inbox: Inbox<Engine>,
    peers: Peers,
    turns: Turns<ComponentId>,
}

impl Limiter {
    pub(crate) fn new(inbox: Inbox<Engine>, peers: Peers) -> Self {
        Self { inbox, peers, turns: Turns::default() }
    }

    /// Changes limits of a component, and tells all that it has then. Ends only when it is done, also
    /// when nobody waits for it any more: what the domain has granted must be kept.
    pub(crate) async fn limits(&self, id: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let me = self.clone();
        tokio::spawn(async move { me.change(id, changes).await }).await.map_err(Error::bug)?
    }

    async fn change(self, id: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let _turn = self.turns.turn(id).await;
        let view = self.inbox.read(move |engine, _| engine.part(id)).await??;
        let peer = view.peer.map_err(Error::unavailable)?;
        let limits = self.in_domain(&peer, id, changes.clone()).await?;
        if changes.is_empty() {
            return Ok(limits);
        }
        match self.inbox.ask(|ticket| Event::Limit { ticket, part: view.part, changes }).await?? {
            Answer::Limited => Ok(limits),
            _ => Err(Error::bug("the controller gave the answer to another question")),
        }
    }

    async fn in_domain(&self, peer: &Peer, id: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let link = self.peers.link(peer)?;
        let late = || Error::timeout(format!("no answer within {} s", CHANGE.as_secs()));
        let answer = tokio::time::timeout(CHANGE, link.components.limits(id.0, changes)).await;
        answer.unwrap_or_else(|_| Err(late())).map_err(|error| match error.code {
            Code::NotFound => {
                Error::unavailable(format!("the domain {} does not run it yet: try again in a moment", peer.domain))
            }
            // What a node says speaks for itself.
            Code::Rejected | Code::Exhausted => error,
            _ => error.context(format!("domain {}", peer.domain)),
        })
    }
}
