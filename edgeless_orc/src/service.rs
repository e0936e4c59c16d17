//! Turns requests into events of the engine and its answers into answers.
//!
//! What a component did and logged is known by its node only, so that it is asked there: all nodes
//! at once, each for a short time, so that a node that does not answer costs its own lines only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, Patch, Row, Start, StartContext,
};
use edgeless_api::dead::{DeadLetters, Letters, Resolved, Treatment};
use edgeless_api::domain::{DomainCapabilities, DomainState};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, DomainId, InstanceId, NodeId};
use edgeless_api::journal::Saved;
use edgeless_api::node::{Hello, NodeInfo, Registered, Registration};
use edgeless_api::server::{Components, Domain, Held, NodeLink, NodeRegistry, Values};
use edgeless_api::status::{ComponentStatus, Limit, LogLine, OutputBooks, Placement, State, Usage};
use edgeless_api::url::Url;
use edgeless_daemon::binaries::Binaries;
use edgeless_daemon::engine::{Inbox, Ticket};
use futures_util::future::join_all;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};
use uuid::Uuid;

use crate::border::Border;
use crate::dead;
use crate::doorman::Doorman;
use crate::engine::{Engine, Event, Peer, Reply, View, Wanted};
use crate::limits::Limiter;
use crate::logs::{self, Follow};
use crate::mirror::Reports;
use crate::owner::{Listening, Owner};
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
    /// The rows that have changed for other domains.
    pub(crate) rows: broadcast::Sender<Vec<Row>>,
    /// Bounds those who follow the domain.
    pub(crate) watchers: Arc<Semaphore>,
    /// Where rows go out and patches come in.
    pub(crate) border: Border,
    /// The controller that the domain works for.
    pub(crate) owner: Owner,
    /// Looks at nodes before they are let in.
    pub(crate) doorman: Doorman,
    /// The code of the components.
    pub(crate) binaries: Binaries,
    /// Where what nodes measure goes; the engine has no use for it.
    pub(crate) reports: Reports,
}

impl Service {
    pub(crate) async fn ask(&self, event: impl FnOnce(Ticket) -> Event) -> Result<Reply, Error> {
        self.inbox.ask(event).await?
    }

    pub(crate) async fn done(&self, event: impl FnOnce(Ticket) -> Event) -> Result<(), Error> {
        match self.ask(event).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn view(&self, ids: Vec<Uuid>) -> Result<Vec<View>, Error> {
        let ids: Vec<ComponentId> = ids.into_iter().map(ComponentId).collect();
        self.inbox.read(move |engine, _| engine.view(&ids)).await
    }

    /// What the nodes know of these components, added to what is known here.
    pub(crate) async fn complete(&self, views: Vec<View>) -> Vec<ComponentStatus> {
        let answers: Answers = join_all(
            by_peer(&views)
                .into_iter()
                .map(|(peer, instances)| async move { (peer.node, self.status_at(&peer, &instances).await) }),
        )
        .await
        .into_iter()
        .collect();
        let whole = |view: View| {
            let loss = view.loss.clone();
            let mut status = merged(view, &answers);
            if status.reason.is_empty() {
                status.reason = loss;
            }
            status
        };
        views.into_iter().map(whole).collect()
    }
}

/// What each node that was asked says of its instances.
type Answers = BTreeMap<NodeId, Result<Vec<ComponentStatus>, Error>>;

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
    let context = start.context.unwrap_or_else(|| {
        let name = match &start.spec {
            ComponentSpec::Function(function) => &function.class.id,
            ComponentSpec::Resource(resource) => &resource.class_type,
        };
        StartContext::new(ComponentId::random(), 0, name)
    });
    Wanted { spec: start.spec, context, is_held }
}

#[async_trait]
impl Components for Service {
    async fn start(&self, start: Start) -> Result<ComponentRef, Error> {
        self.border.admit_controller()?;
        self.begin(start).await.map(ComponentRef::Component)
    }

    async fn stop(&self, kind: ComponentKind, id: ComponentRef) -> Result<(), Error> {
        self.border.admit_controller()?;
        self.halt(kind, component(id)?).await
    }

    async fn patch(&self, kind: ComponentKind, patch: Patch) -> Result<(), Error> {
        self.border.admit_controller()?;
        self.wire(kind, self.border.incoming(patch)).await
    }

    async fn activate(&self, ids: Vec<Uuid>) -> Result<(), Error> {
        self.border.admit_controller()?;
        self.open(ids.into_iter().map(ComponentId).collect()).await
    }

    async fn set_rows(&self, rows: Vec<Row>) -> Result<(), Error> {
        self.border.admit_controller()?;
        let rows = self.border.inward(rows);
        self.ask(|ticket| Event::Rows(ticket, rows)).await.map(drop)
    }

    async fn release(&self, component: Uuid, grace: Duration) -> Result<Option<Bytes>, Error> {
        self.border.admit_controller()?;
        self.hand_over(ComponentId(component), grace).await
    }

    async fn status(&self, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        Ok(self.complete(self.view(ids).await?).await)
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

    async fn dead_letters(&self, ids: Vec<Uuid>, most: usize) -> Result<DeadLetters, Error> {
        Ok(dead::letters(&self.links, by_peer(&self.view(ids).await?), most).await)
    }

    async fn resolve_dead(&self, ids: Vec<Uuid>, letters: Letters, treatment: Treatment) -> Result<Resolved, Error> {
        Ok(dead::resolve(&self.links, by_peer(&self.view(ids).await?), &letters, treatment).await)
    }
}

/// What controllers ask for, and a parent in its own way.
impl Service {
    pub(crate) async fn begin(&self, mut start: Start) -> Result<ComponentId, Error> {
        if let ComponentSpec::Function(function) = &mut start.spec {
            function.class.binary = self.binaries.keep(std::mem::take(&mut function.class.binary))?;
        }
        let wanted = Box::new(wanted(start));
        match self.ask(|ticket| Event::Start(ticket, wanted)).await? {
            Reply::Started(id) => Ok(id),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn halt(&self, kind: ComponentKind, id: ComponentId) -> Result<(), Error> {
        self.done(|ticket| Event::Stop(ticket, kind, id)).await
    }

    pub(crate) async fn wire(&self, kind: ComponentKind, patch: Patch) -> Result<(), Error> {
        self.done(|ticket| Event::Patch(ticket, kind, patch)).await
    }

    pub(crate) async fn open(&self, ids: Vec<ComponentId>) -> Result<(), Error> {
        self.done(|ticket| Event::Activate(ticket, ids)).await
    }

    /// Whether one of these components is still there.
    pub(crate) async fn is_any_left(&self, ids: &[Uuid]) -> bool {
        self.view(ids.to_vec()).await.is_ok_and(|views| !views.is_empty())
    }

    /// Lets a component go to another domain, and tells the state that it saved last.
    pub(crate) async fn hand_over(&self, id: ComponentId, grace: Duration) -> Result<Option<Bytes>, Error> {
        match self.ask(|ticket| Event::Release(ticket, id, grace)).await? {
            Reply::Released(state) => Ok(state),
            other => Err(unexpected(&other)),
        }
    }

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
    for (peer, instance) in views.iter().flat_map(|view| &view.peers) {
        peers.entry(peer.node).or_insert_with(|| (peer.clone(), vec![])).1.push(instance.function);
    }
    peers.into_values().collect()
}

/// Where a component stands: its places as the orchestrator knows them, the rest as its nodes do.
fn merged(view: View, answers: &Answers) -> ComponentStatus {
    let mut status = view.status;
    let mut told = Vec::new();
    for (peer, instance) in view.peers {
        match said(instance, answers.get(&peer.node)) {
            Some(Ok(at_node)) => told.push(at_node),
            Some(Err(reason)) => status.reason = reason,
            None => {}
        }
    }
    let Some(first) = told.first() else { return status };
    // Of several, the one that runs says how the component is.
    let best = told.iter().find(|one| one.state == State::Running).unwrap_or(first);
    status.state = best.state;
    if status.reason.is_empty() {
        let failed = told.iter().find(|one| !one.reason.is_empty());
        status.reason = failed.map(|one| one.reason.clone()).unwrap_or_default();
    }
    // A node that did not find out in time leaves what was asked for.
    if !first.limits.is_empty() {
        status.limits = first.limits.clone();
    }
    status.usage = told.iter().filter_map(|one| one.usage).reduce(add_usage);
    status.handled = told.iter().map(|one| one.handled).sum();
    for one in &mut status.instances {
        if let Some(at_node) = told.iter().find(|at_node| at_node.instance == Some(one.instance)) {
            one.state = at_node.state;
            one.handled = at_node.handled;
        }
    }
    for at_node in told {
        status.restarts += at_node.restarts;
        status.dropped += at_node.dropped;
        status.log.extend(at_node.log);
        at_node.outputs.into_iter().for_each(|books| add_books(&mut status.outputs, books));
    }
    status.log.sort_by_key(|line| line.at);
    status
}

/// What a node says of an instance; `None`: it was not asked.
fn said(
    instance: InstanceId,
    answer: Option<&Result<Vec<ComponentStatus>, Error>>,
) -> Option<Result<ComponentStatus, String>> {
    let node = instance.node;
    Some(match answer? {
        Ok(statuses) => statuses
            .iter()
            .find(|at_node| at_node.instance == Some(instance))
            .cloned()
            .ok_or_else(|| format!("node {node} does not know its instance")),
        Err(error) => Err(format!("node {node} does not say how it is: {error}")),
    })
}

fn add_usage(one: Usage, other: Usage) -> Usage {
    Usage {
        cpu: one.cpu + other.cpu,
        memory: one.memory + other.memory,
        processes: one.processes + other.processes,
        received: one.received + other.received,
        sent: one.sent + other.sent,
    }
}

/// Adds the books of an output of one instance to those of the others.
fn add_books(all: &mut Vec<OutputBooks>, books: OutputBooks) {
    let Some(sum) = all.iter_mut().find(|known| known.output == books.output) else { return all.push(books) };
    sum.produced += books.produced;
    sum.handled += books.handled;
    sum.queued += books.queued;
    sum.in_flight += books.in_flight;
    sum.delayed += books.delayed;
    sum.expired += books.expired;
    sum.unknown += books.unknown;
    sum.handed_over += books.handed_over;
    for (cause, count) in books.dropped {
        *sum.dropped.entry(cause).or_default() += count;
    }
}

/// A controller that follows the domain, until this is dropped.
struct Follower {
    /// The nonce of the domain while it works for this controller.
    nonce: u64,
    _held: (OwnedSemaphorePermit, Listening),
}

impl Service {
    /// A controller follows the domain from now on. For another one than before, the domain starts afresh.
    async fn follow(&self, controller: u64) -> Result<Follower, Error> {
        self.border.admit_controller()?;
        let permit = self.watchers.clone().try_acquire_owned().map_err(|_| {
            Error::exhausted("too many follow this domain already: raise limits.max_watchers of its orchestrator")
        })?;
        let listening = self.owner.listen(controller)?;
        let nonce = rand::random();
        match self.ask(|ticket| Event::Follow { ticket, controller, nonce }).await? {
            Reply::Owned { nonce, changes_hands } => {
                if changes_hands {
                    tracing::warn!("another controller follows this domain: what ran for the one before is stopped");
                    self.border.start_afresh();
                }
                Ok(Follower { nonce, _held: (permit, listening) })
            }
            other => Err(unexpected(&other)),
        }
    }
}

#[async_trait]
impl Domain for Service {
    async fn watch(&self, controller: u64) -> Result<Values<DomainState>, Error> {
        let follower = self.follow(controller).await?;
        let mut capabilities = self.capabilities.clone();
        capabilities.mark_changed();
        let (domain, nonce, keep_alive) = (self.domain.clone(), follower.nonce, self.keep_alive);
        let state = move |capabilities: DomainCapabilities| DomainState {
            domain: domain.clone(),
            nonce,
            capabilities,
            lifetime: keep_alive.saturating_mul(3),
        };
        let states =
            stream::unfold((capabilities, state, follower), move |(mut capabilities, state, held)| async move {
                match tokio::time::timeout(keep_alive, capabilities.changed()).await {
                    Ok(Err(_)) => None,
                    Ok(Ok(())) | Err(_) => {
                        let now = state(capabilities.borrow_and_update().clone());
                        Some((Ok(now), (capabilities, state, held)))
                    }
                }
            });
        Ok(Box::pin(states))
    }

    async fn plan(&self, items: Vec<(String, ComponentSpec)>) -> Result<Vec<Placement>, Error> {
        self.inbox.read(move |engine, _| engine.plan(&items)).await?
    }

    async fn nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        self.inbox.read(|engine, _| engine.nodes()).await
    }

    async fn watch_rows(&self, controller: u64) -> Result<Values<Vec<Row>>, Error> {
        let held = self.follow(controller).await?;
        let changes = self.rows.subscribe();
        let inbox = self.inbox.clone();
        let border = self.border.clone();
        let begin = (true, changes, inbox, border, held);
        let rows = stream::try_unfold(begin, |(is_new, mut changes, inbox, border, held)| async move {
            let changed = if is_new { None } else { next_rows(&mut changes).await };
            let rows = match changed {
                Some(rows) => rows,
                // All of them, at first and whenever some changes were missed.
                None => inbox.read(|engine, _| engine.exported_rows()).await?,
            };
            Ok(Some((border.outgoing(rows), (false, changes, inbox, border, held))))
        });
        Ok(Box::pin(rows))
    }
}

#[async_trait]
impl NodeRegistry for Service {
    async fn update_node(&self, mut node: Registration) -> Result<Registered, Error> {
        let (id, health) = (node.node, node.health.clone());
        let (performance, is_leaving) = (std::mem::take(&mut node.performance), node.leaving);
        let answer = match self.ask(|ticket| Event::Announce(ticket, Box::new(node))).await? {
            Reply::ToBeChecked(node) => {
                self.doorman.check(&node).await?;
                let answer = self.ask(|ticket| Event::Register(ticket, node)).await?;
                self.doorman.let_in(id);
                answer
            }
            answer => answer,
        };
        match answer {
            Reply::Registered(registered) => {
                self.reports.add(id, (!is_leaving).then_some(health), performance);
                Ok(registered)
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn wake(&self, components: Vec<ComponentId>) -> Result<(), Error> {
        self.done(|ticket| Event::Wake(ticket, components)).await
    }

    async fn saved(&self, node: NodeId, states: Vec<Saved>) -> Result<(), Error> {
        self.done(|ticket| Event::Saved(ticket, node, states)).await
    }

    async fn locate(&self, node: NodeId) -> Result<Option<Url>, Error> {
        match self.border.locate(node) {
            Some(forwarder) => Ok(Some(forwarder)),
            None => self.inbox.read(move |engine, _| engine.locate(node)).await,
        }
    }
}

#[async_trait]
impl NodeLink for Service {
    async fn hold(&self, hello: Hello) -> Result<Held, Error> {
        let Hello { node, nonce, .. } = hello;
        let key = self.inbox.read(move |engine, _| engine.key_for_link(node, nonce)).await??;
        self.doorman.check_link(&hello, key)?;
        let link = rand::random();
        // If whoever asks is gone before the answer, it has ended.
        let held = HeldLink { inbox: self.inbox.clone(), node, link };
        self.done(|ticket| Event::LinkUp { ticket, node, nonce, link }).await?;
        Ok(Box::new(held))
    }
}

/// A link of a node, until this is dropped.
struct HeldLink {
    inbox: Inbox<Engine>,
    node: NodeId,
    link: u64,
}

impl Drop for HeldLink {
    fn drop(&mut self) {
        let (inbox, node, link) = (self.inbox.clone(), self.node, self.link);
        // There may be no room at once, as when many nodes are lost together. One that stops needs not hear of it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { inbox.tell(Event::LinkLost { node, link }).await.ok() });
        }
    }
}

/// The rows that change next; `None`: some changes were missed.
async fn next_rows(changes: &mut broadcast::Receiver<Vec<Row>>) -> Option<Vec<Row>> {
    match changes.recv().await {
        Ok(rows) => Some(rows),
        Err(broadcast::error::RecvError::Lagged(_)) => {
            *changes = changes.resubscribe();
            None
        }
        // The orchestrator stops, which ends this stream.
        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
    }
}
