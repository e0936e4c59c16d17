//! What operators do with nodes and components.
//!
//! A drain is a stream that works while its reader waits: each step asks the engine to move one replica
//! away from the node, and is over when that runs elsewhere. Whoever goes away leaves the rest where it is.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::decision::Decision;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_api::operations::{DrainProgress, Relocation};
use edgeless_api::server::{Operations, Values};
use edgeless_api::status::ComponentStatus;
use edgeless_daemon::engine::Inbox;
use futures_util::stream;

use crate::engine::{Engine, Event, View};
use crate::service::Service;

/// How often it is tried to move what cannot be moved at present.
const TRIES: u32 = 20;
/// The pause between two of these.
const PAUSE: Duration = Duration::from_millis(500);

fn unknown(node: NodeId) -> Error {
    Error::not_found(format!("node {node} is not known in this domain"))
}

#[async_trait]
impl Operations for Service {
    async fn cordon(&self, node: NodeId, cordoned: bool) -> Result<(), Error> {
        self.done(|ticket| Event::Cordon { ticket, node, is_cordoned: cordoned }).await
    }

    async fn forget(&self, node: NodeId) -> Result<(), Error> {
        self.done(|ticket| Event::Forget(ticket, node)).await
    }

    async fn drain(&self, node: NodeId) -> Result<Values<DrainProgress>, Error> {
        // One that is gone is empty, and is left as it is.
        residents(&self.inbox, node).await?;
        self.cordon(node, true).await?;
        let left = residents(&self.inbox, node).await?;
        let progress = DrainProgress { total: u32::try_from(left.len()).unwrap_or(u32::MAX), ..Default::default() };
        let drain = Drain { inbox: self.inbox.clone(), node, left: left.into(), progress, has_begun: false };
        Ok(Box::pin(stream::unfold(drain, Drain::next)))
    }

    async fn residents(&self, node: NodeId) -> Result<Vec<ComponentStatus>, Error> {
        let views = self.inbox.read(move |engine, _| engine.residents(node)).await?.ok_or_else(|| unknown(node))?;
        Ok(self.complete(views).await)
    }

    async fn plan_loss(&self, node: NodeId) -> Result<Vec<Relocation>, Error> {
        self.inbox.read(move |engine, _| engine.plan_loss(node)).await?
    }

    async fn why(&self, component: ComponentId) -> Result<Decision, Error> {
        self.inbox.read(move |engine, _| engine.why(component)).await?
    }

    async fn move_component(&self, component: ComponentId, node: NodeId) -> Result<(), Error> {
        self.done(|ticket| Event::Move { ticket, component, node }).await
    }
}

/// What runs on a node, or is being started there: each replica once.
async fn residents(inbox: &Inbox<Engine>, node: NodeId) -> Result<Vec<(ComponentId, String)>, Error> {
    let views = inbox.read(move |engine, _| engine.residents(node)).await?.ok_or_else(|| unknown(node))?;
    let each = |view: View| {
        let own = view.status.instances.iter().filter(|one| one.instance.node == node).count().max(1);
        std::iter::repeat_n((view.status.component, view.status.name), own)
    };
    Ok(views.into_iter().flat_map(each).collect())
}

/// The removal of everything from a node.
struct Drain {
    inbox: Inbox<Engine>,
    node: NodeId,
    left: VecDeque<(ComponentId, String)>,
    progress: DrainProgress,
    has_begun: bool,
}

impl Drain {
    async fn next(mut self) -> Option<(Result<DrainProgress, Error>, Self)> {
        if std::mem::replace(&mut self.has_begun, true) {
            let (id, name) = self.left.pop_front()?;
            self.progress.component = name;
            match self.evict(id).await {
                Ok(()) => {
                    self.progress.moved += 1;
                    self.progress.reason = String::new();
                }
                Err(error) => self.progress.reason = error.message,
            }
        }
        Some((Ok(self.progress.clone()), self))
    }

    /// Moves one replica away. What is being started or moved already is waited for.
    async fn evict(&self, component: ComponentId) -> Result<(), Error> {
        let node = self.node;
        let mut tries = 0;
        loop {
            let evicted = self.inbox.ask(|ticket| Event::Evict { ticket, component, node }).await?;
            tries += 1;
            match evicted {
                Ok(_) => return Ok(()),
                Err(error) if error.code == Code::Unavailable && tries < TRIES => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }
}
