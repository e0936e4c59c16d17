//! Turns requests into events of the engine and its answers into answers.
//!
//! What a component did and logged is known by its node only, so that it is asked there: all nodes
//! at once, each for a short time, so that a node that does not answer costs its own lines only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::component::{Annotations, ComponentKind, ComponentRef, ComponentSpec, Patch, Start, StartContext};
use edgeless_api::domain::{DomainCapabilities, DomainState};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, DomainId};
use edgeless_api::node::{NodeInfo, Registered, Registration};
use edgeless_api::server::{Components, Domain, NodeRegistry, Values};
use edgeless_api::status::{ComponentStatus, Limit, LogLine, Placement};
use edgeless_daemon::binaries::Binaries;
use edgeless_daemon::engine::{Inbox, Ticket};
use futures_util::future::join_all;
use futures_util::stream;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::engine::{Engine, Event, Peer, Reply, View, Wanted};
use crate::limits::Limiter;
use crate::logs::{self, Follow};
use crate::mirror::Reports;
use crate::owner::Owner;
use crate::shell::Links;

/// The time that a node has to say how its components are.
pub(crate) const ASK: Duration = Duration::from_secs(2);

/// The services of an orchestrator.
pub(crate) struct Service {
    pub(crate) inbox: Inbox<Engine>,
    pub(crate) links: Links,
    pub(crate) limiter: Limiter,
    pub(crate) domain: DomainId,
    pub(crate) keep_alive: Duration,
    pub(crate) capabilities: watch::Receiver<DomainCapabilities>,
    /// Bounds those who follow the domain.
    pub(crate) watchers: Arc<Semaphore>,
    /// The controller that the domain works for.
    pub(crate) owner: Owner,
    /// The code of the components.
    pub(crate) binaries: Binaries,
    /// Where what nodes measure goes; the engine has no use for it.
    pub(crate) reports: Reports,
}

impl Service {
    async fn ask(&self, event: impl FnOnce(Ticket) -> Event) -> Result<Reply, Error> {
        self.inbox.ask(event).await?
    }

    async fn done(&self, event: impl FnOnce(Ticket) -> Event) -> Result<(), Error> {
        match self.ask(event).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn view(&self, ids: Vec<Uuid>) -> Result<Vec<View>, Error> {
        let ids: Vec<ComponentId> = ids.into_iter().map(ComponentId).collect();
        self.inbox.read(move |engine, _| engine.view(&ids)).await
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::bug(format!("the engine answered {reply:?} to a question about something else"))
}

fn component(id: ComponentRef) -> Result<ComponentId, Error> {
    match id {
        ComponentRef::Component(id) => Ok(id),
        ComponentRef::Instance(id) => {
            Err(Error::rejected(format!("{id} is an instance: an orchestrator knows components, ask its node")))
        }
    }
}

/// What an EDGELESS 1.2 controller asks for gets an identity here; its requests are never repeated.
fn wanted(start: Start) -> Wanted {
    let is_held = start.context.is_some();
    let context = start.context.unwrap_or_else(|| StartContext {
        component: ComponentId::random(),
        epoch: 0,
        name: match &start.spec {
            ComponentSpec::Function(function) => function.class.id.clone(),
            ComponentSpec::Resource(resource) => resource.class_type.clone(),
        },
        provider: String::new(),
    });
    Wanted { spec: start.spec, context, is_held }
}

#[async_trait]
impl Components for Service {
    async fn start(&self, mut start: Start) -> Result<ComponentRef, Error> {
        if let ComponentSpec::Function(function) = &mut start.spec {
            function.class.binary = self.binaries.keep(std::mem::take(&mut function.class.binary))?;
        }
        let wanted = Box::new(wanted(start));
        match self.ask(|ticket| Event::Start(ticket, wanted)).await? {
            Reply::Started(id) => Ok(ComponentRef::Component(id)),
            other => Err(unexpected(&other)),
        }
    }

    async fn stop(&self, kind: ComponentKind, id: ComponentRef) -> Result<(), Error> {
        let id = component(id)?;
        self.done(|ticket| Event::Stop(ticket, kind, id)).await
    }

    async fn patch(&self, kind: ComponentKind, patch: Patch) -> Result<(), Error> {
        self.done(|ticket| Event::Patch(ticket, kind, patch)).await
    }

    async fn activate(&self, ids: Vec<Uuid>) -> Result<(), Error> {
        let ids = ids.into_iter().map(ComponentId).collect();
        self.done(|ticket| Event::Activate(ticket, ids)).await
    }

    async fn status(&self, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        let views = self.view(ids).await?;
        let answers: BTreeMap<_, _> = join_all(
            by_peer(&views)
                .into_iter()
                .map(|(peer, instances)| async move { (peer.node, self.status_at(&peer, &instances).await) }),
        )
        .await
        .into_iter()
        .collect();
        let merge = |view: View| match view.peer.as_ref().and_then(|peer| answers.get(&peer.node)) {
            Some(answer) => merged(view.status, answer),
            None => view.status,
        };
        Ok(views.into_iter().map(merge).collect())
    }

    async fn logs(&self, ids: Vec<Uuid>, follow: bool) -> Result<Values<LogLine>, Error> {
        if follow {
            let ids = ids.into_iter().map(ComponentId).collect();
            return Ok(Follow::new(self.inbox.clone(), self.links.clone(), ids).lines());
        }
        let views = self.view(ids).await?;
        let streams = join_all(by_peer(&views).into_iter().map(|(peer, instances)| async move {
            let lines = logs::of(&self.links, &peer, &instances, false).await;
            lines.unwrap_or_else(|error| Box::pin(stream::iter([Ok(logs::missing(&peer, &error))])))
        }))
        .await;
        Ok(Box::pin(stream::select_all(streams)))
    }

    async fn limits(&self, id: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error> {
        self.limiter.limits(ComponentId(id), changes).await
    }
}

impl Service {
    async fn status_at(&self, peer: &Peer, instances: &[Uuid]) -> Result<Vec<ComponentStatus>, Error> {
        let link = self.links.to(peer)?;
        tokio::time::timeout(ASK, link.components.status(instances)).await.unwrap_or_else(|_| Err(late(peer)))
    }
}

pub(crate) fn late(peer: &Peer) -> Error {
    Error::timeout(format!("{} did not answer in {} seconds", peer.agent_url, ASK.as_secs()))
}

/// The instances to ask each node about.
fn by_peer(views: &[View]) -> Vec<(Peer, Vec<Uuid>)> {
    let mut peers: BTreeMap<_, (Peer, Vec<Uuid>)> = BTreeMap::new();
    for view in views {
        if let (Some(peer), Some(instance)) = (&view.peer, view.status.instance) {
            peers.entry(peer.node).or_insert_with(|| (peer.clone(), vec![])).1.push(instance.function);
        }
    }
    peers.into_values().collect()
}

/// Where a component stands: its place as the orchestrator knows it, the rest as its node does.
fn merged(own: ComponentStatus, answer: &Result<Vec<ComponentStatus>, Error>) -> ComponentStatus {
    let Some(instance) = own.instance else { return own };
    match answer {
        Ok(statuses) => match statuses.iter().find(|at_node| at_node.instance == Some(instance)) {
            Some(at_node) => ComponentStatus {
                component: own.component,
                name: own.name,
                epoch: own.epoch,
                instance: own.instance,
                // A node that did not find out in time leaves what was asked for.
                limits: if at_node.limits.is_empty() { own.limits } else { at_node.limits.clone() },
                ..at_node.clone()
            },
            None => ComponentStatus { reason: format!("node {} does not know its instance", instance.node), ..own },
        },
        Err(error) => {
            ComponentStatus { reason: format!("node {} does not say how it is: {error}", instance.node), ..own }
        }
    }
}

#[async_trait]
impl Domain for Service {
    async fn watch(&self, controller: u64) -> Result<Values<DomainState>, Error> {
        let permit = self.watchers.clone().try_acquire_owned().map_err(|_| {
            Error::exhausted("too many follow this domain already: raise limits.max_watchers of its orchestrator")
        })?;
        let listening = self.owner.listen(controller)?;
        if listening.changes_hands {
            tracing::warn!("another controller follows this domain: what ran for the one before is stopped");
            self.inbox.tell(Event::StopAll).await?;
        }
        let mut capabilities = self.capabilities.clone();
        capabilities.mark_changed();
        let (domain, nonce, keep_alive) = (self.domain.clone(), listening.nonce, self.keep_alive);
        let state = move |capabilities: DomainCapabilities| DomainState {
            domain: domain.clone(),
            nonce,
            capabilities,
            lifetime: keep_alive.saturating_mul(3),
        };
        let states = stream::unfold(
            (capabilities, state, (permit, listening)),
            move |(mut capabilities, state, held)| async move {
                match tokio::time::timeout(keep_alive, capabilities.changed()).await {
                    Ok(Err(_)) => None,
                    Ok(Ok(())) | Err(_) => {
                        let now = state(capabilities.borrow_and_update().clone());
                        Some((Ok(now), (capabilities, state, held)))
                    }
                }
            },
        );
        Ok(Box::pin(states))
    }

    async fn plan(&self, items: Vec<(String, ComponentSpec)>) -> Result<Vec<Placement>, Error> {
        self.inbox.read(move |engine, _| engine.plan(&items)).await?
    }

    async fn nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        self.inbox.read(|engine, _| engine.nodes()).await
    }
}

#[async_trait]
impl NodeRegistry for Service {
    async fn update_node(&self, mut node: Registration) -> Result<Registered, Error> {
        let (id, health) = (node.node, node.health.clone());
        let (performance, is_leaving) = (std::mem::take(&mut node.performance), node.leaving);
        match self.ask(|ticket| Event::Register(ticket, Box::new(node))).await? {
            Reply::Registered(registered) => {
                self.reports.add(id, (!is_leaving).then_some(health), performance);
                Ok(registered)
            }
            other => Err(unexpected(&other)),
        }
    }
}
