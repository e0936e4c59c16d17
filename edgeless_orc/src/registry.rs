//! The nodes of the domain: what they announced, until when it holds, and how far each has been
//! made part of the domain.
//!
//! Plain data: the engine decides what follows from a change. A node is known by its id and an
//! incarnation, which differs from one process of that node to the next. That it is the node which it says it is,
//! it shows with its key, or it is found at the agent URL where it was.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use edgeless_api::component::{ComponentKind, Start};
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::domain_record as record;
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::node::Registration;
use edgeless_api::url::Url;
use edgeless_daemon::engine::Millis;
use uuid::Uuid;

use crate::engine::{Lane, Peer, Suspicion};
use crate::identities::Identities;

/// The longest name that a node may give to anything.
const NAME: usize = 256;
/// The most providers, labels or runtimes that a node may have.
const NAMES: usize = 1024;
/// The most strays that are removed one by one.
const STRAYS: usize = 1024;

/// One process of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Home {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
}

/// How far a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It shall stop whatever it ran for someone before us.
    Resetting,
    /// It shall tell what it runs: that is taken over, or stopped.
    Reporting,
    /// It is being told of the other nodes.
    Meeting,
    /// Components may be placed on it.
    Ready,
}

/// Something that a node may run and nobody wants.
#[derive(Clone, Debug)]
pub(crate) enum Stray {
    /// An instance to be stopped.
    Known(ComponentKind, InstanceId),
    /// A start whose outcome is unknown. Its repeat tells what to stop.
    Unknown(Box<Start>),
}

/// A node of the domain.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) about: Registration,
    pub(crate) incarnation: u64,
    pub(crate) stage: Stage,
    /// The replicas that run there or are being started there.
    pub(crate) residents: BTreeSet<(ComponentId, u32)>,
    /// Those that run, by their instance.
    pub(crate) running: BTreeMap<Uuid, (ComponentId, u32)>,
    /// The nodes that may send events to it or get some from it, as far as they were told of each other.
    acquaintances: BTreeSet<NodeId>,
    /// The components whose rows it must be told.
    pub(crate) owed: BTreeSet<ComponentId>,
    /// Those whose rows it is being told.
    pub(crate) telling_rows: BTreeSet<ComponentId>,
    /// The nodes about which it must be told the latest: that they are there, or gone.
    pub(crate) strangers: BTreeSet<NodeId>,
    /// The one that it is being told about.
    pub(crate) telling: Option<NodeId>,
    /// What it may run and should not.
    strays: VecDeque<Stray>,
    /// It may run something that nobody can name; only a reset, or a report, is sure to end that.
    pub(crate) is_doubtful: bool,
    /// It was asked what it runs, and has not told since.
    pub(crate) is_asked: bool,
    /// Its reset, and what it is told of others.
    pub(crate) management: Lane,
    /// The removal of its strays.
    pub(crate) cleaning: Lane,
    /// The rows that it is told.
    pub(crate) routing: Lane,
    /// Its link, while it has one.
    pub(crate) link: Option<u64>,
    /// Its link has ended, and it was not heard since.
    pub(crate) suspicion: Option<Suspicion>,
    deadline: Millis,
}

impl Node {
    fn new(about: Registration, deadline: Millis) -> Self {
        Self {
            incarnation: 0,
            stage: if reports(&about) { Stage::Reporting } else { Stage::Resetting },
            residents: BTreeSet::new(),
            running: BTreeMap::new(),
            acquaintances: BTreeSet::new(),
            owed: BTreeSet::new(),
            telling_rows: BTreeSet::new(),
            strangers: BTreeSet::new(),
            telling: None,
            strays: VecDeque::new(),
            is_doubtful: false,
            is_asked: false,
            management: Lane::default(),
            cleaning: Lane::default(),
            routing: Lane::default(),
            link: None,
            suspicion: None,
            deadline,
            about,
        }
    }

    pub(crate) fn home(&self) -> Home {
        Home { node: self.about.node, incarnation: self.incarnation }
    }

    /// How to reach it.
    pub(crate) fn peer(&self) -> Peer {
        Peer { node: self.about.node, agent_url: self.about.agent_url.clone(), native: self.about.native }
    }

    /// Whether it has been told the latest about another node. It need not be told about itself.
    pub(crate) fn knows(&self, other: NodeId) -> bool {
        !self.strangers.contains(&other) && self.telling != Some(other)
    }

    /// Whether it must still be told where a component runs.
    pub(crate) fn owes(&self, id: ComponentId) -> bool {
        self.owed.contains(&id) || self.telling_rows.contains(&id)
    }

    /// Whether it tells what it runs when it is asked to.
    pub(crate) fn reports(&self) -> bool {
        reports(&self.about)
    }

    /// Whether it shall be asked what it runs.
    pub(crate) fn is_to_report(&self) -> bool {
        self.stage == Stage::Reporting || (self.is_doubtful && self.reports())
    }

    /// What it is known to run and should not, and what is wanted by now is not among it any more.
    pub(crate) fn settle_strays(&mut self) -> BTreeSet<Uuid> {
        let running = &self.running;
        let instance = |stray: &Stray| match stray {
            Stray::Known(_, instance) => Some(instance.function),
            Stray::Unknown(_) => None,
        };
        self.strays.retain(|stray| instance(stray).is_none_or(|instance| !running.contains_key(&instance)));
        self.strays.iter().filter_map(instance).collect()
    }

    pub(crate) fn first_stray(&self) -> Option<&Stray> {
        self.strays.front()
    }

    pub(crate) fn take_stray(&mut self) -> Option<Stray> {
        self.strays.pop_front()
    }

    /// It may run something that nobody can name, also if it is about to tell what it ran before.
    pub(crate) fn doubt(&mut self) {
        (self.is_doubtful, self.is_asked) = (true, false);
    }

    pub(crate) fn has_strays(&self) -> bool {
        !self.strays.is_empty() || self.cleaning.under_way().is_some()
    }

    /// What is wanted there is no stray, whatever a call says that was given up.
    pub(crate) fn add_stray(&mut self, stray: Stray) {
        if let Stray::Known(_, instance) = &stray
            && self.running.contains_key(&instance.function)
        {
            return;
        }
        if self.strays.len() < STRAYS {
            self.strays.push_back(stray);
        } else {
            self.doubt();
        }
    }
}

/// What an announcement that is refused has wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The id: it is reserved, or that of a node that is there.
    Id,
    /// The key: it is not the one to which the id is bound, or did not make the signature.
    Key,
    /// The agent URL: nothing answers there.
    Address,
    /// Something else: it says more than is taken, or the domain is full.
    Limit,
}

/// Why an announcement is refused.
pub(crate) type Refusal = (Fault, Error);

/// What an announcement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The node is new.
    New,
    /// The node is known, and it is another process than before.
    Restarted,
    /// The node is still there.
    Refreshed,
    /// The node says goodbye.
    Leaving,
    /// It says nothing about a process that is known.
    Stale,
}

/// The nodes of the domain, in the order of their ids.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Those that speak only EDGELESS 1.2.
    plain: BTreeSet<NodeId>,
    /// On which nothing new is placed, also when they come back.
    cordoned: BTreeSet<NodeId>,
    identities: Identities,
    /// Of which nodes there is something else to remember than before.
    changed: BTreeSet<NodeId>,
    /// When each of them is lost unless it announces itself again.
    deadlines: BTreeSet<(Millis, NodeId)>,
    pub(crate) keep_alive: Duration,
    limit: usize,
    incarnations: u64,
}

impl Registry {
    pub(crate) fn new(keep_alive: Duration, limit: usize) -> Self {
        Self {
            nodes: BTreeMap::new(),
            plain: BTreeSet::new(),
            cordoned: BTreeSet::new(),
            identities: Identities::of_domain(limit),
            changed: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            keep_alive,
            limit,
            incarnations: 0,
        }
    }

    /// What an announcement means.
    ///
    /// # Errors
    /// It cannot be accepted.
    pub(crate) fn judge(&self, about: &Registration) -> Result<Arrival, Refusal> {
        check(about)?;
        let known = self.nodes.get(&about.node);
        self.check_key(about)?;
        if let Some(known) =
            known.filter(|known| known.about.key().is_none() && about.key().is_some() && !about.leaving)
        {
            return Err(keyless(&known.about));
        }
        Ok(match known {
            // Also with its key: it may be a copy of its directory.
            Some(known) if known.about.agent_url != about.agent_url && !about.leaving => {
                return Err(in_use(&known.about));
            }
            Some(known) if known.about.agent_url != about.agent_url => Arrival::Stale,
            Some(known) if known.about.nonce == about.nonce && about.leaving => Arrival::Leaving,
            Some(known) if known.about.nonce == about.nonce => Arrival::Refreshed,
            // The goodbye of a process that another one has replaced, or that was given up.
            _ if about.leaving => Arrival::Stale,
            Some(_) => Arrival::Restarted,
            None if self.nodes.len() >= self.limit => {
                let full = Error::exhausted(format!(
                    "the domain has {} nodes, and takes no more: raise limits.max_nodes of its orchestrator",
                    self.limit
                ));
                return Err((Fault::Limit, full));
            }
            None => Arrival::New,
        })
    }

    /// Whether a node only says again what it was admitted with.
    pub(crate) fn is_repeat(&self, about: &Registration) -> bool {
        self.nodes.get(&about.node).is_some_and(|known| known.about.repeats(about))
    }

    /// An id that is bound to a key is taken with that key only.
    fn check_key(&self, about: &Registration) -> Result<(), Refusal> {
        let id = about.node;
        match self.identities.key(id) {
            Some(key) if about.key() != Some(key) => Err((
                Fault::Key,
                Error::rejected(format!(
                    "node id {id} is bound to another key: choose another node_id; or, if this is that node and its key \
                     is lost, wait until the domain has lost it and let it be known anew: `edgeless_cli node forget {id}`"
                )),
            )),
            _ => Ok(()),
        }
    }

    /// All nodes, but of what runs there only that on one of them.
    pub(crate) fn excerpt(&self, id: NodeId) -> Self {
        let part = |(other, node): (&NodeId, &Node)| {
            let is_whole = *other == id;
            let node = Node {
                residents: if is_whole { node.residents.clone() } else { BTreeSet::new() },
                running: if is_whole { node.running.clone() } else { BTreeMap::new() },
                // A node without residents would be reset.
                is_doubtful: false,
                incarnation: node.incarnation,
                stage: node.stage,
                ..Node::new(node.about.clone(), node.deadline)
            };
            (*other, node)
        };
        Self {
            nodes: self.nodes.iter().map(part).collect(),
            plain: self.plain.clone(),
            cordoned: self.cordoned.clone(),
            // Nobody comes or goes there.
            identities: Identities::of_domain(0),
            changed: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            ..*self
        }
    }

    /// Adds a node, and tells whom of the others this concerns.
    pub(crate) fn add(&mut self, now: Millis, about: Registration) -> BTreeSet<NodeId> {
        self.incarnations += 1;
        let id = about.node;
        self.admit(&about);
        let deadline = now + self.lifetime(&about);
        if !about.native {
            self.plain.insert(id);
        }
        self.deadlines.insert((deadline, id));
        let node = Node { incarnation: self.incarnations, ..Node::new(about, deadline) };
        self.nodes.insert(id, node);
        let others = self.to_be_told(id);
        self.make_stranger(id, &others);
        others
    }

    /// Removes a node, and whom of the others this concerns.
    pub(crate) fn remove(&mut self, id: NodeId) -> Option<(Node, BTreeSet<NodeId>)> {
        let others = self.to_be_told(id);
        let node = self.nodes.remove(&id)?;
        self.identities.lose(id);
        self.deadlines.remove(&(node.deadline, id));
        self.plain.remove(&id);
        let others = &others | &node.acquaintances;
        self.make_stranger(id, &others);
        for other in &node.acquaintances {
            if let Some(other) = self.nodes.get_mut(other) {
                other.acquaintances.remove(&id);
            }
        }
        Some((node, others))
    }

    /// Takes over what a known node announces and returns what it announced before, and whom of the others
    /// this concerns.
    pub(crate) fn refresh(&mut self, now: Millis, about: Registration) -> Option<(Registration, BTreeSet<NodeId>)> {
        let deadline = now + self.lifetime(&about);
        let id = about.node;
        self.admit(&about);
        let node = self.nodes.get_mut(&id)?;
        self.deadlines.remove(&(node.deadline, id));
        self.deadlines.insert((deadline, id));
        node.deadline = deadline;
        let has_moved = node.about.invocation_url != about.invocation_url;
        let before = std::mem::replace(&mut node.about, about);
        if !has_moved {
            return Some((before, BTreeSet::new()));
        }
        let others = &node.acquaintances.clone() | &self.to_be_told(id);
        self.make_stranger(id, &others);
        Some((before, others))
    }

    /// The nodes that must be told of a node before they can do with it: those of ours learn of each other
    /// from rows, and from who dials them.
    fn to_be_told(&self, id: NodeId) -> BTreeSet<NodeId> {
        let is_native = self.nodes.get(&id).is_some_and(|node| node.about.native);
        let mut others = if is_native { self.plain.clone() } else { self.nodes.keys().copied().collect() };
        others.remove(&id);
        others
    }

    /// These nodes must be told about this one.
    fn make_stranger(&mut self, id: NodeId, others: &BTreeSet<NodeId>) {
        for other in others {
            if let Some(node) = self.nodes.get_mut(other) {
                node.strangers.insert(id);
            }
        }
    }

    /// One of two nodes was told of the other.
    pub(crate) fn acquaint(&mut self, one: NodeId, other: NodeId) {
        if one == other {
            return;
        }
        for (own, other) in [(one, other), (other, one)] {
            if self.nodes.contains_key(&other)
                && let Some(node) = self.nodes.get_mut(&own)
            {
                node.acquaintances.insert(other);
            }
        }
    }

    /// Whoever is forgotten for a node is no longer cordoned either.
    fn admit(&mut self, about: &Registration) {
        let (is_news, forgotten) = self.identities.admit(about.node, about.key(), &about.invocation_url);
        if is_news {
            self.changed.insert(about.node);
        }
        if let Some(forgotten) = forgotten {
            self.cordoned.remove(&forgotten);
            self.changed.insert(forgotten);
        }
    }

    /// Of which nodes there is something else to remember than at the last look.
    pub(crate) fn changes(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.changed)
    }

    /// What is to be remembered of a node; `None`: nothing.
    pub(crate) fn record(&self, id: NodeId) -> Option<record::Node> {
        self.knows(id).then(|| record::Node {
            key: self.identities.key(id),
            is_cordoned: self.is_cordoned(id),
            invocation_url: self.invocation_url(id).cloned(),
        })
    }

    /// A node was there before the orchestrator was started again.
    pub(crate) fn restore(&mut self, id: NodeId, node: record::Node) {
        self.identities.restore(id, node.key, node.invocation_url);
        if node.is_cordoned {
            self.cordoned.insert(id);
        }
    }

    /// Where a node takes events, or took them last.
    pub(crate) fn invocation_url(&self, id: NodeId) -> Option<&Url> {
        self.identities.invocation_url(id)
    }

    /// Removes what is known of a node that is gone; tells whether there was anything.
    pub(crate) fn forget(&mut self, id: NodeId) -> bool {
        self.changed.insert(id);
        self.cordoned.remove(&id);
        self.identities.forget(id)
    }

    /// Whether a node is there, or was.
    pub(crate) fn knows(&self, id: NodeId) -> bool {
        self.identities.knows(id)
    }

    /// Places nothing new on a node, or does again; tells whether that is a change.
    pub(crate) fn cordon(&mut self, id: NodeId, is_cordoned: bool) -> bool {
        self.changed.insert(id);
        if is_cordoned { self.cordoned.insert(id) } else { self.cordoned.remove(&id) }
    }

    pub(crate) fn is_cordoned(&self, id: NodeId) -> bool {
        self.cordoned.contains(&id)
    }

    /// After a reset, a node must be told about the others.
    pub(crate) fn meet(&mut self, id: NodeId) {
        let others = self.to_be_told(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.stage = Stage::Meeting;
            node.is_doubtful = false;
            node.strangers = others;
        }
    }

    /// A new incarnation of a node that is about to be reset.
    pub(crate) fn renew(&mut self, id: NodeId) {
        self.incarnations += 1;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.incarnation = self.incarnations;
            node.stage = Stage::Resetting;
        }
    }

    fn lifetime(&self, about: &Registration) -> Duration {
        match about.lifetime {
            Some(announced) if about.native => announced.min(self.keep_alive),
            // The deadline of an EDGELESS 1.2 node is absolute, and its clock may be behind: it
            // would be lost at each refresh, and everything on it with it.
            Some(announced) => announced.max(self.keep_alive),
            None => self.keep_alive,
        }
    }

    /// The nodes whose deadline has passed.
    pub(crate) fn silent(&self, now: Millis) -> Vec<NodeId> {
        self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, id)| *id).collect()
    }

    /// The process of a node that runs at present.
    pub(crate) fn at(&self, home: Home) -> Option<&Node> {
        self.nodes.get(&home.node).filter(|node| node.incarnation == home.incarnation)
    }

    /// What the nodes have together on which components may be placed.
    pub(crate) fn capabilities(&self) -> DomainCapabilities {
        let mut sum = DomainCapabilities::default();
        let is_open = |node: &&Node| node.stage == Stage::Ready && !self.is_cordoned(node.about.node);
        for node in self.nodes.values().filter(is_open) {
            sum.add(&node.about.capabilities, &node.about.providers);
        }
        sum
    }
}

/// Whether a node tells what it runs when it is asked to.
fn reports(about: &Registration) -> bool {
    about.native && about.reports
}

fn in_use(known: &Registration) -> Refusal {
    let (id, at) = (known.node, &known.agent_url);
    (Fault::Id, Error::rejected(format!("node id {id} is in use by the node at {at}: choose another node_id")))
}

/// Nobody can tell whether a node without a key is the one that shows one now: whoever does may be a stranger who
/// gives the address of that node.
fn keyless(known: &Registration) -> Refusal {
    let (id, at) = (known.node, &known.agent_url);
    (
        Fault::Id,
        Error::rejected(format!(
            "node id {id} is in use by the node at {at}, which has no key: choose another node_id; or, if this is that \
             node, brought up to date, wait until the domain has lost the former process"
        )),
    )
}

fn check(about: &Registration) -> Result<(), Refusal> {
    if about.node == NodeId::NONE || about.node.0.is_nil() {
        let reserved = format!("'{}' is a reserved node id: choose another node_id", about.node);
        return Err((Fault::Id, Error::rejected(reserved)));
    }
    let own = &about.capabilities;
    let outputs = about.providers.iter().map(|provider| provider.outputs.len()).max().unwrap_or_default();
    let most = [own.labels.len(), own.runtimes.len(), about.providers.len(), outputs].into_iter().max();
    if most > Some(NAMES) {
        let many = format!("more than {NAMES} labels, runtimes, providers or outputs of a provider");
        return Err((Fault::Limit, Error::exhausted(many)));
    }
    let names = own.labels.iter().chain(&own.runtimes).chain([&own.model_name_cpu, &own.model_name_gpu]);
    let of_providers = about.providers.iter().flat_map(|own| own.outputs.iter().chain([&own.id, &own.class_type]));
    match names.chain(of_providers).find(|name| name.len() > NAME) {
        Some(name) => {
            let start: String = name.chars().take(40).collect();
            Err((Fault::Limit, Error::exhausted(format!("the name '{start}…' is longer than {NAME} bytes"))))
        }
        None => Ok(()),
    }
}
