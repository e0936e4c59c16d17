//! Changes what components may use while they run.
//!
//! The node of a component is asked first: it knows what can be asked for, and tells what its kernel
//! has. What it grants is then kept by the engine, for wherever the component runs next. Requests
//! about one component have their turn one after the other, so that what is kept last is what its node
//! was asked for last. A request that is not answered may have been granted; to repeat it is harmless.

use std::time::Duration;

use edgeless_api::component::Annotations;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, InstanceId};
use edgeless_api::status::Limit;
use edgeless_daemon::engine::{Inbox, Ticket};
use edgeless_daemon::turns::Turns;
use uuid::Uuid;

use crate::engine::{Engine, Event, Peer, Reply};
use crate::shell::Links;

/// The time that a node has to change limits.
const CHANGE: Duration = Duration::from_secs(8);

/// Changes limits; clones share its turns.
#[derive(Clone)]
pub(crate) struct Limiter {
    inbox: Inbox<Engine>,
    links: Links,
    turns: Turns<ComponentId>,
}

impl Limiter {
    pub(crate) fn new(inbox: Inbox<Engine>, links: Links) -> Self {
        Self { inbox, links, turns: Turns::default() }
    }

    /// Changes limits of a component, and tells all that it has then. Ends only when it is done, also
    /// when nobody waits for it any more: what the node has granted must be kept.
    pub(crate) async fn limits(&self, id: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let me = self.clone();
        tokio::spawn(async move { me.change(id, changes).await }).await.map_err(Error::bug)?
    }

    async fn change(self, id: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let _turn = self.turns.turn(id).await;
        let view = self.inbox.read(move |engine, _| engine.view(&[id]).pop()).await?;
        let unknown = || Error::not_found(format!("component {id} is not known in this domain"));
        let view = view.ok_or_else(unknown)?;
        if view.status.instances.is_empty() {
            return self.keep(|ticket| Event::Limit { ticket, id, changes, at: Vec::new() }).await;
        }
        let is_asked = |at: InstanceId| view.peers.iter().any(|(_, instance)| *instance == at);
        if let Some(plain) = view.status.instances.iter().find(|one| !is_asked(one.instance)) {
            return Err(Error::unimplemented(format!(
                "node {} speaks only EDGELESS 1.2: limits of what it runs cannot be changed",
                plain.instance.node
            )));
        }
        let mut limits = Vec::new();
        for (peer, instance) in &view.peers {
            limits = self.at_node(peer, instance.function, changes.clone()).await?;
        }
        if !changes.is_empty() {
            let at = view.peers.into_iter().map(|(_, instance)| instance).collect();
            self.keep(|ticket| Event::Limit { ticket, id, changes, at }).await?;
        }
        Ok(limits)
    }

    async fn at_node(&self, peer: &Peer, instance: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let link = self.links.to(peer)?;
        let late = || Error::timeout(format!("{} did not answer in {} seconds", peer.agent_url, CHANGE.as_secs()));
        let answer = tokio::time::timeout(CHANGE, link.components.limits(instance, changes)).await;
        answer.unwrap_or_else(|_| Err(late())).map_err(|error| match error.code {
            // It is about to be placed again.
            Code::NotFound => Error::unavailable(format!("node {} does not run it any more: try again", peer.node)),
            _ => error,
        })
    }

    async fn keep(&self, event: impl FnOnce(Ticket) -> Event) -> Result<Vec<Limit>, Error> {
        match self.inbox.ask(event).await?? {
            Reply::Limits(limits) => Ok(limits),
            other => Err(Error::bug(format!("the engine answered {other:?} to a question about limits"))),
        }
    }
}
