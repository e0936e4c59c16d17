//! Decides what shall run where: it keeps what is desired and what is the case, and derives from
//! the difference what to do.
//!
//! ```text
//!  event -> what it touches is marked -> each marked thing takes its next step -> effects
//! ```
//! Level-triggered: a replica of a component or a node has one next step, which follows from its state
//! alone, so that a lost answer or a lost node needs no path of its own. At most one call is under way for
//! each replica, and for each node one that manages it, one that cleans it and one that tells it rows. No
//! clock, no I/O, a seeded random generator: the same events give the same effects.
//!
//! - `component`, `slot`: what is desired of a component and what is the case of each of its replicas.
//! - `requests`, `moves`, `leaving`: what others ask for; `replicas`: how many there are and where they go,
//!   `decisions`: why there; `scaling`: how many there shall be; `disk`, `restore`: what outlives the process;
//!   `steps`: what is done about it.
//! - `node`: how nodes come and go; `reports`: what they tell that they run; `rows`: what they are told of components;
//!   `loss`: what if one were lost; `suspicion`: whether one is whose link has ended; `saves`: what functions have saved
//!   there.

mod component;
mod decisions;
pub(crate) mod disk;
mod lane;
mod leaving;
mod loss;
mod moves;
mod node;
mod note;
mod replicas;
mod reports;
mod requests;
pub(crate) mod restore;
mod rows;
mod saves;
mod scaling;
mod slot;
mod snapshot;
mod steps;
mod suspicion;

#[cfg(test)]
mod simulation;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, Patch, Row, Start, StartContext,
};
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::domain_record;
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, DomainId, InstanceId, NodeId};
use edgeless_api::journal::Saved;
use edgeless_api::node::{NodeInfo, PeerUpdate, Registered, Registration};
use edgeless_api::status::{ComponentStatus, Limit, Placement};
use edgeless_api::url::Url;
use edgeless_daemon::engine::{Millis, Ticket};
use edgeless_daemon::store::Change;
use uuid::Uuid;

use crate::placement::{Placer, Strategy};
pub use crate::registry::Fault;
use crate::registry::{Home, Registry};
use component::{Component, Link};
use decisions::Decisions;
pub(crate) use lane::Lane;
use leaving::Left;
pub use note::Note;
pub use restore::Kept;
use slot::Wiring;
pub use snapshot::{ComponentState, Cursor, NodeState, Page};
pub use suspicion::Found;
pub(crate) use suspicion::Suspicion;

/// To sum up what the nodes have takes longer the more there are, and so does the pause before the next time: a
/// millisecond for so many. A few nodes are summed up at each change.
const NODES_PER_MILLI: u64 = 16;
/// So many instances are foreseen in one plan; beyond them, one for each component.
const FORESEEN: usize = 10_000;

/// What the engine is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The domain.
    pub domain: DomainId,
    /// A node that is silent for this time is lost.
    pub keep_alive: Duration,
    /// So long is waited for a lost node that alone has the state of a component.
    pub state_grace: Duration,
    /// How a node is chosen.
    pub strategy: &'static Strategy,
    /// Seeds whatever is random, also the nonce of a domain that is not kept.
    pub seed: u64,
    /// The most nodes.
    pub max_nodes: usize,
    /// The most components.
    pub max_components: usize,
}

/// Names a call at a node, from its effect to its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op(pub u64);

/// A component that a controller wants.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What to start.
    pub spec: ComponentSpec,
    /// Its identity; made up for a controller that speaks only EDGELESS 1.2.
    pub context: StartContext,
    /// The controller will activate it. If not, its first patch does, or a second.
    pub is_held: bool,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// Time passes.
    Tick,
    /// A node announces itself. Nobody has checked yet whether it is the one that it says it is, and there.
    Announce(Ticket, Box<Registration>),
    /// A node announces itself: it has shown that it has the key that it names, and its agent URL answers.
    Register(Ticket, Box<Registration>),
    /// A node has a link, and has shown that it is the one that it says it is.
    LinkUp {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        node: NodeId,
        /// That of its process.
        nonce: u64,
        /// Tells this link from others of the node.
        link: u64,
    },
    /// The link of a node has ended.
    LinkLost {
        /// Which.
        node: NodeId,
        /// The link.
        link: u64,
    },
    /// An agent was asked which process it is.
    Probed(Op, NodeId, Found),
    /// A component is wanted.
    Start(Ticket, Box<Wanted>),
    /// A component shall have these outputs.
    Patch(Ticket, ComponentKind, Patch),
    /// Components shall emit.
    Activate(Ticket, Vec<ComponentId>),
    /// A component shall have these limits, wherever it runs next.
    Limit {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        id: ComponentId,
        /// What is different.
        changes: Annotations,
        /// The instances that have them already; empty: no node was asked.
        at: Vec<InstanceId>,
    },
    /// A component shall run on a node; of several replicas one that does not.
    Move {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        component: ComponentId,
        /// Where.
        node: NodeId,
    },
    /// A component shall no longer run on a node; of several replicas one that does.
    Evict {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        component: ComponentId,
        /// Where not.
        node: NodeId,
    },
    /// Nothing new shall be placed on a node, or shall again.
    Cordon {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        node: NodeId,
        /// Whether nothing shall.
        is_cordoned: bool,
    },
    /// Functions on a node have saved.
    Saved(Ticket, NodeId, Vec<Saved>),
    /// Nobody waits for a node any more that is gone.
    Forget(Ticket, NodeId),
    /// Components that have left the domain run there.
    Rows(Ticket, Vec<Row>),
    /// Events wait for components that may run nowhere.
    Wake(Ticket, Vec<ComponentId>),
    /// A component is not wanted any more.
    Stop(Ticket, ComponentKind, ComponentId),
    /// A component leaves for another domain: its instances end once they have handled what is queued, for which they
    /// have this time, and its state is handed over.
    Release(Ticket, ComponentId, Duration),
    /// No component is wanted any more.
    StopAll(Ticket),
    /// A controller follows the domain. For another one than before, the domain starts afresh.
    Follow {
        /// Who waits.
        ticket: Ticket,
        /// The nonce of the controller.
        controller: u64,
        /// The nonce of the domain if it starts afresh.
        nonce: u64,
    },
    /// A call has ended.
    Done(Op, Result<Outcome, Error>),
    /// Changes are on the disk, or could not be written.
    Persisted(Op, Result<(), Error>),
}

/// What a call yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// A component was started, and the node calls it so.
    Started(ComponentRef),
    /// An instance was released, and saved this last.
    Released(Option<Bytes>),
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Call a node; [`Event::Done`] must follow, with the same [`Op`].
    Call(Op, Peer, Call),
    /// Make changes durable; [`Event::Persisted`] must follow, with the same [`Op`].
    Persist(Op, Vec<Change>),
    /// Ask the agent of a node which process it is; [`Event::Probed`] must follow, with the same [`Op`].
    Probe(Op, Peer),
    /// Drop the connection to a node.
    Forget(NodeId),
    /// Answer a request.
    Reply(Ticket, Answer),
    /// Tell whoever follows the domain.
    Publish(DomainCapabilities),
    /// Tell whoever follows the rows of components to which other domains have outputs.
    PublishRows(Vec<Row>),
    /// Write to the log.
    Note(Note),
}

/// A node and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// Where it takes commands.
    pub agent_url: Url,
    /// It speaks our fields and services, not only EDGELESS 1.2.
    pub native: bool,
}

/// A call at a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Stop everything.
    Reset,
    /// Learn about another node.
    UpdatePeers(PeerUpdate),
    /// Start a component.
    Create(Box<Start>),
    /// Wire an instance.
    SetOutputs(ComponentKind, Patch),
    /// Let an instance emit.
    Activate(Uuid),
    /// Stop an instance.
    Stop(ComponentKind, InstanceId),
    /// Stop an instance that has moved, once it has handled what is queued for it.
    Release {
        /// The instance.
        instance: Uuid,
        /// The time that it has for that.
        grace: Duration,
    },
    /// Learn where components run.
    SetRows(Vec<Row>),
}

/// What a request is answered with.
pub type Answer = Result<Reply, Error>;

/// The answer to a request that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// It is done.
    Done,
    /// The component runs.
    Started(ComponentId),
    /// The node is known.
    Registered(Registered),
    /// The node is not known as it says it is. If what it says is true, [`Event::Register`] makes it known.
    ToBeChecked(Box<Registration>),
    /// The limits that were asked for.
    Limits(Vec<Limit>),
    /// The component has left, with this state.
    Released(Option<Bytes>),
    /// The domain works for the controller that asked.
    Owned {
        /// What the domain is known by.
        nonce: u64,
        /// It worked for another controller before.
        changes_hands: bool,
    },
}

/// A component as the engine sees it, and who can say more.
#[derive(Clone, Debug)]
pub struct View {
    /// Where it stands.
    pub status: ComponentStatus,
    /// Its instances whose nodes can be asked.
    pub peers: Vec<(Peer, InstanceId)>,
    /// Why it has not the state that it should have; empty: it has.
    pub loss: String,
}

/// What a call was for.
#[derive(Clone, Debug)]
enum Job {
    Manage(NodeId, Management),
    Clean(Home, ComponentKind),
    /// With the epochs of the rows in it.
    Route(Home, Vec<(ComponentId, u64)>),
    Create(ComponentId, u32, ComponentKind, Home),
    /// With the epochs of the rows in it.
    Wire(ComponentId, u32, Wiring, Vec<(ComponentId, u64)>),
    Activate(ComponentId, u32),
    Release(ComponentId, u32),
    Stop(ComponentId, u32),
}

/// A call that makes a node part of the domain.
#[derive(Clone, Copy, Debug)]
enum Management {
    Reset,
    Tell(NodeId),
}

/// What takes steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Node(NodeId),
    Component(ComponentId),
    Slot(ComponentId, u32),
}

impl Thing {
    const FIRST: Self = Self::Node(NodeId(Uuid::nil()));
}

/// Desired against actual, for one domain.
#[derive(Clone, Debug)]
pub struct Engine {
    settings: Settings,
    now: Millis,
    domain: domain_record::Domain,
    registry: Registry,
    placer: Placer,
    /// Why what runs is where it is.
    decisions: Decisions,
    components: BTreeMap<ComponentId, Component>,
    /// By component, which may be gone: who has an output to it, and its last epoch.
    links: BTreeMap<ComponentId, Link>,
    /// Where components of other domains run.
    foreign: BTreeMap<ComponentId, Row>,
    /// The components to which other domains have outputs.
    exported: BTreeSet<ComponentId>,
    /// Those whose rows have changed.
    unpublished: BTreeSet<ComponentId>,
    /// The components that have left for other domains.
    left: Left,
    /// The replicas that wait for a place.
    homeless: BTreeSet<(ComponentId, u32)>,
    /// Calls that managed a node when it was lost. Before they end it is not managed again: a late
    /// reset would stop what was started since.
    farewells: BTreeMap<NodeId, Op>,
    /// By request: how many components are still to be activated.
    activations: BTreeMap<Ticket, usize>,
    /// What outlives the process; `None`: nothing.
    disk: Option<Box<disk::Disk>>,
    /// What waited for the disk and may go out now.
    released: Vec<Effect>,
    /// The replicas that ran on nodes which have not come since a restart.
    awaited: BTreeMap<NodeId, BTreeSet<(ComponentId, u32)>>,
    /// They are lost if they have not come by then.
    settles_at: Millis,
    jobs: BTreeMap<Op, Job>,
    last_op: u64,
    /// What may have a step to take.
    marked: BTreeSet<Thing>,
    /// What may have a step to take later.
    timers: BTreeSet<(Millis, Thing)>,
    published: Option<DomainCapabilities>,
    /// When the next may be published.
    publishes_at: Millis,
    /// What was published may no longer be true.
    is_outdated: bool,
    effects: Vec<Effect>,
    /// Raised whenever something that a snapshot shows may have changed.
    generation: u64,
}

impl Engine {
    /// An engine that knows no node and no component.
    pub fn new(settings: Settings) -> Self {
        Self {
            now: Millis::default(),
            domain: domain_record::Domain { nonce: settings.seed, ..Default::default() },
            registry: Registry::new(settings.keep_alive, settings.max_nodes),
            placer: Placer::new(settings.strategy, settings.seed),
            settings,
            decisions: Decisions::default(),
            components: BTreeMap::new(),
            links: BTreeMap::new(),
            foreign: BTreeMap::new(),
            exported: BTreeSet::new(),
            unpublished: BTreeSet::new(),
            left: Left::default(),
            homeless: BTreeSet::new(),
            farewells: BTreeMap::new(),
            activations: BTreeMap::new(),
            disk: None,
            released: Vec::new(),
            awaited: BTreeMap::new(),
            settles_at: Millis::default(),
            jobs: BTreeMap::new(),
            last_op: 0,
            marked: BTreeSet::new(),
            timers: BTreeSet::new(),
            published: None,
            publishes_at: Millis::default(),
            is_outdated: false,
            effects: Vec::new(),
            generation: 0,
        }
    }

    /// Where the instances of each of these components would go, if they were started now in this order.
    ///
    /// # Errors
    /// One cannot be placed, or asks for what cannot be understood.
    pub fn plan(&self, items: &[(String, ComponentSpec)]) -> Result<Vec<Placement>, Error> {
        let mut placer = self.placer.clone();
        let mut placements = Vec::new();
        for (nth, (name, spec)) in (0..).zip(items) {
            let most = FORESEEN.saturating_sub(placements.len());
            let places = self.foresee(&mut placer, (nth, name), spec, most)?;
            placements.extend(places.into_iter().map(|place| Placement {
                name: name.clone(),
                domain: self.settings.domain.clone(),
                node: place.node,
                hostname: self.placer.nodes.hostname(place.node).to_string(),
            }));
        }
        Ok(placements)
    }

    /// The nodes.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let info = |node: &crate::registry::Node| NodeInfo {
            node: node.about.node,
            domain: self.settings.domain.clone(),
            agent_url: node.about.agent_url.clone(),
            invocation_url: node.about.invocation_url.clone(),
            capabilities: node.about.capabilities.clone(),
            providers: node.about.providers.clone(),
            components: u32::try_from(node.residents.len()).unwrap_or(u32::MAX),
            native: node.about.native,
            cordoned: self.registry.is_cordoned(node.about.node),
            suspected: node.suspicion.is_some(),
        };
        self.registry.nodes.values().map(info).collect()
    }

    /// What the domain is known by to its controller.
    pub fn nonce(&self) -> u64 {
        self.domain.nonce
    }

    /// Where a component runs now; `None`: it is not one of the domain.
    pub fn row_of(&self, component: ComponentId) -> Option<Row> {
        self.components.contains_key(&component).then(|| self.row(component))
    }

    /// Where a node takes events, and where commands.
    pub fn contact(&self, node: NodeId) -> Option<(Url, Url)> {
        let about = &self.registry.nodes.get(&node)?.about;
        Some((about.invocation_url.clone(), about.agent_url.clone()))
    }

    /// Where a node takes events.
    pub fn locate(&self, node: NodeId) -> Option<Url> {
        self.registry.nodes.get(&node).map(|node| node.about.invocation_url.clone())
    }

    /// Lets everything that is marked take its step.
    fn settle(&mut self) {
        while let Some(thing) = self.marked.pop_first() {
            self.touch(thing);
            match thing {
                Thing::Node(id) => self.step_node(id),
                Thing::Component(id) => self.step_component(id),
                Thing::Slot(id, replica) => self.step_slot(id, replica),
            }
        }
    }

    fn pass_time(&mut self) {
        self.end_wait();
        self.left.expire(self.now);
        for id in self.registry.silent(self.now) {
            self.lose_node(id, "it was silent for too long");
        }
        let later = self.timers.split_off(&(self.now + Duration::from_millis(1), Thing::FIRST));
        let due = std::mem::replace(&mut self.timers, later);
        self.marked.extend(due.into_iter().map(|(_, thing)| thing));
        self.publish();
    }

    /// Sends a call to a node. `None`: the node is gone.
    fn call(&mut self, node: NodeId, job: Job, call: Call) -> Option<Op> {
        let peer = self.registry.nodes.get(&node)?.peer();
        self.last_op += 1;
        let op = Op(self.last_op);
        self.jobs.insert(op, job);
        self.effects.push(Effect::Call(op, peer, call));
        Some(op)
    }

    fn done(&mut self, op: Op, result: Result<Outcome, Error>) {
        match self.jobs.remove(&op) {
            Some(Job::Manage(node, management)) => self.managed(op, node, management, result.map(drop)),
            Some(Job::Clean(home, kind)) => self.cleaned(op, home, kind, result),
            Some(Job::Route(home, epochs)) => self.routed(op, home, epochs, result.map(drop)),
            Some(Job::Create(id, replica, kind, home)) => self.created(op, (id, replica), kind, home, result),
            Some(Job::Wire(id, replica, wiring, epochs)) => {
                self.wired(op, (id, replica), wiring, epochs, result.map(drop));
            }
            Some(Job::Activate(id, replica)) => self.activated(op, id, replica, result.map(drop)),
            Some(Job::Release(id, replica)) => {
                let state = result.map(|outcome| match outcome {
                    Outcome::Released(state) => state,
                    Outcome::Done | Outcome::Started(_) => None,
                });
                self.released(op, id, replica, state);
            }
            Some(Job::Stop(id, replica)) => self.stopped(op, id, replica, result.map(drop)),
            None => {}
        }
    }

    fn publish(&mut self) {
        if !self.is_outdated || self.now < self.publishes_at {
            return;
        }
        self.is_outdated = false;
        let pause = self.registry.nodes.len() as u64 / NODES_PER_MILLI;
        self.publishes_at = self.now + Duration::from_millis(pause);
        let capabilities = self.registry.capabilities();
        if self.published.as_ref() != Some(&capabilities) {
            self.published = Some(capabilities.clone());
            self.effects.push(Effect::Publish(capabilities));
        }
    }

    fn reply(&mut self, ticket: Ticket, answer: Answer) {
        self.effects.push(Effect::Reply(ticket, answer));
    }

    fn note(&mut self, note: Note) {
        self.effects.push(Effect::Note(note));
    }
}

impl edgeless_daemon::engine::Engine for Engine {
    type Event = Event;
    type Effect = Effect;
    type Answer = Answer;

    fn on(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        self.now = now;
        let may_be_quiet = matches!(event, Event::Tick | Event::Announce(..) | Event::Register(..));
        match event {
            Event::Tick => self.pass_time(),
            Event::Announce(ticket, about) => {
                let answer = self.announce(*about);
                self.reply(ticket, answer);
            }
            Event::Register(ticket, about) => {
                let answer = self.register(*about);
                self.reply(ticket, answer);
            }
            Event::LinkUp { ticket, node, nonce, link } => {
                let answer = self.link_up(node, nonce, link);
                self.reply(ticket, answer);
            }
            Event::LinkLost { node, link } => self.link_lost(node, link),
            Event::Probed(op, node, found) => self.probed(op, node, found),
            Event::Start(ticket, wanted) => self.start(ticket, *wanted),
            Event::Patch(ticket, kind, patch) => self.patch(ticket, kind, patch),
            Event::Activate(ticket, ids) => self.activate(ticket, ids),
            Event::Limit { ticket, id, changes, at } => {
                let limits = self.keep_limits(id, changes, &at);
                self.reply(ticket, limits.map(Reply::Limits));
            }
            Event::Move { ticket, component, node } => self.move_to(ticket, component, node),
            Event::Evict { ticket, component, node } => self.evict(ticket, component, node),
            Event::Cordon { ticket, node, is_cordoned } => {
                let answer = self.cordon(node, is_cordoned);
                self.reply(ticket, answer);
            }
            Event::Saved(ticket, node, states) => {
                let answer = self.saved(node, states);
                self.reply(ticket, answer);
            }
            Event::Forget(ticket, node) => {
                let answer = self.forget_node(node);
                self.reply(ticket, answer);
            }
            Event::Rows(ticket, rows) => {
                self.learn_all(rows);
                self.reply(ticket, Ok(Reply::Done));
            }
            Event::Wake(ticket, ids) => {
                self.wake(&ids);
                self.reply(ticket, Ok(Reply::Done));
            }
            Event::Stop(ticket, kind, id) => self.stop(ticket, kind, id),
            Event::Release(ticket, id, grace) => self.release_component(ticket, id, grace),
            Event::StopAll(ticket) => {
                self.stop_all();
                self.reply(ticket, Ok(Reply::Done));
            }
            Event::Follow { ticket, controller, nonce } => {
                let answer = self.follow(controller, nonce);
                self.reply(ticket, Ok(answer));
            }
            Event::Done(op, result) => self.done(op, result),
            Event::Persisted(op, result) => self.persisted(op, result),
        }
        self.settle();
        self.publish_rows();
        self.keep();
        let shows_nothing =
            |effect: &Effect| matches!(effect, Effect::Reply(..) | Effect::Note(Note::NodeRefused { .. }));
        let is_quiet = may_be_quiet && !self.is_outdated && self.effects.iter().all(shows_nothing);
        self.generation += u64::from(!is_quiet);
        std::mem::take(&mut self.effects)
    }

    fn tick() -> Event {
        Event::Tick
    }
}
