//! The nodes as placement sees them, kept so that a question costs microseconds even if there are ten thousand:
//! a set of bits for each label, runtime, class and provider.
//!
//! The engine keeps it up to date: nodes that come, change and go, what is placed on them and what leaves them.
//! A clone is cheap: what nodes are is shared, and so is what they hold until either of the two changes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, NodeId, WorkflowId};
use edgeless_api::node::Registration;
use edgeless_api::requirements::Requirements;
use fixedbitset::FixedBitSet;

use super::Question;
use super::facts::{Facts, put};
use super::room::{Room, Share};
use super::rules::{Rule, rules};
use super::slots::{Slot, count, keep};

/// An instance of a component: its number among them, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant {
    /// The component.
    pub component: ComponentId,
    /// The number.
    pub replica: u32,
}

impl Tenant {
    /// The first instance of a component.
    pub fn first(component: ComponentId) -> Self {
        Self { component, replica: 0 }
    }
}

/// What an instance keeps of its node.
#[derive(Clone, Copy, Debug)]
struct Seat {
    workflow: WorkflowId,
    share: Share,
}

/// How many parts the workflows are kept in: a clone copies only those that it changes.
const SHARDS: usize = 256;

/// On which nodes a workflow runs, and how many of its components.
type Workflows = BTreeMap<WorkflowId, BTreeMap<Slot, u32>>;

/// The nodes.
#[derive(Clone, Debug)]
pub struct Index {
    facts: Arc<Facts>,
    ready: FixedBitSet,
    cordoned: FixedBitSet,
    rooms: Vec<Room>,
    seats: Vec<Arc<BTreeMap<Tenant, Seat>>>,
    workflows: Vec<Arc<Workflows>>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            facts: Arc::default(),
            ready: FixedBitSet::new(),
            cordoned: FixedBitSet::new(),
            rooms: Vec::new(),
            seats: Vec::new(),
            workflows: vec![Arc::default(); SHARDS],
        }
    }
}

impl Index {
    /// Takes over what a node announces, and its health. A node that is new is not ready.
    pub fn upsert(&mut self, about: &Registration) {
        if !self.facts.is_known(about) {
            let slot = Arc::make_mut(&mut self.facts).upsert(about);
            if slot >= self.rooms.len() {
                self.rooms.resize_with(slot + 1, Room::default);
                self.seats.resize_with(slot + 1, Arc::default);
            }
        }
        let room = self.facts.slot(about.node).and_then(|slot| self.rooms.get_mut(slot));
        if let Some(room) = room {
            room.update(about);
        }
    }

    /// Forgets a node and everything on it.
    pub fn remove(&mut self, node: NodeId) {
        let Some(slot) = self.facts.slot(node) else { return };
        let tenants: Vec<Tenant> =
            self.seats.get(slot).map(|seats| seats.keys().copied().collect()).unwrap_or_default();
        tenants.into_iter().for_each(|tenant| self.release(node, tenant));
        Arc::make_mut(&mut self.facts).remove(node);
        put(&mut self.ready, slot, false);
        put(&mut self.cordoned, slot, false);
        if let Some(room) = self.rooms.get_mut(slot) {
            *room = Room::default();
        }
    }

    /// Whether components may be placed on a node.
    pub fn set_ready(&mut self, node: NodeId, is_ready: bool) {
        if let Some(slot) = self.facts.slot(node) {
            put(&mut self.ready, slot, is_ready);
        }
    }

    /// Whether a node takes no new component. What runs there stays.
    pub fn set_cordoned(&mut self, node: NodeId, is_cordoned: bool) {
        if let Some(slot) = self.facts.slot(node) {
            put(&mut self.cordoned, slot, is_cordoned);
        }
    }

    /// Whether a node takes no new component.
    pub fn is_cordoned(&self, node: NodeId) -> bool {
        self.facts.slot(node).is_some_and(|slot| self.cordoned.contains(slot))
    }

    /// An instance is on a node, or is about to be. Said again, its reservations are replaced.
    pub fn occupy(&mut self, node: NodeId, tenant: Tenant, workflow: WorkflowId, requirements: &Requirements) {
        self.release(node, tenant);
        let Some(slot) = self.facts.slot(node) else { return };
        let (Some(room), Some(seats)) = (self.rooms.get_mut(slot), self.seats.get_mut(slot)) else { return };
        let share = Share::of(requirements);
        room.take(share);
        Arc::make_mut(seats).insert(tenant, Seat { workflow, share });
        if let Some(nodes) = self.workflow_mut(workflow) {
            *nodes.entry(workflow).or_default().entry(slot).or_default() += 1;
        }
    }

    /// An instance is not on a node any more. Nothing if it was not.
    pub fn release(&mut self, node: NodeId, tenant: Tenant) {
        let Some(slot) = self.facts.slot(node) else { return };
        let (Some(room), Some(seats)) = (self.rooms.get_mut(slot), self.seats.get_mut(slot)) else { return };
        if !seats.contains_key(&tenant) {
            return;
        }
        let Some(Seat { workflow, share }) = Arc::make_mut(seats).remove(&tenant) else { return };
        room.give_back(share);
        let Some(workflows) = self.workflow_mut(workflow) else { return };
        let Some(nodes) = workflows.get_mut(&workflow) else { return };
        if let Some(components) = nodes.get_mut(&slot) {
            *components -= 1;
            if *components == 0 {
                nodes.remove(&slot);
            }
        }
        if nodes.is_empty() {
            workflows.remove(&workflow);
        }
    }

    /// The number of instances on a node.
    pub fn components(&self, node: NodeId) -> u32 {
        self.facts.slot(node).and_then(|slot| self.room(slot)).map(Room::components).unwrap_or_default()
    }

    /// The host name of a node; may be empty.
    pub fn hostname(&self, node: NodeId) -> &str {
        let about = self.facts.slot(node).and_then(|slot| self.facts.about(slot));
        about.map(super::facts::About::hostname).unwrap_or_default()
    }

    /// The part of the workflows that one is in; `None` for components of no workflow, which have nothing in common.
    fn workflow_mut(&mut self, workflow: WorkflowId) -> Option<&mut Workflows> {
        if workflow == WorkflowId::NONE {
            return None;
        }
        self.workflows.get_mut(shard(workflow)).map(Arc::make_mut)
    }

    /// The nodes with components of a workflow, and how many each has.
    pub(super) fn nodes_of(&self, workflow: WorkflowId) -> impl Iterator<Item = (Slot, u32)> {
        let nodes = self.workflows.get(shard(workflow)).and_then(|workflows| workflows.get(&workflow));
        nodes.into_iter().flatten().map(|(slot, components)| (*slot, *components))
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(super) fn room(&self, slot: Slot) -> Option<&Room> {
        self.rooms.get(slot)
    }

    pub(super) fn ready(&self) -> &FixedBitSet {
        &self.ready
    }

    pub(super) fn cordoned(&self) -> &FixedBitSet {
        &self.cordoned
    }

    /// Leaves in a set only the node that is asked for, if one is.
    pub(super) fn keep_asked(&self, set: &mut FixedBitSet, question: &Question<'_>) {
        if let Some(node) = question.only {
            keep(set, self.facts.slot(node).into_iter());
        }
    }

    pub(super) fn take_out(&self, set: &mut FixedBitSet, nodes: &[NodeId]) {
        for slot in nodes.iter().filter_map(|node| self.facts.slot(*node)) {
            put(set, slot, false);
        }
    }

    /// The nodes that can run a component.
    ///
    /// # Errors
    /// None can; the message counts, rule by rule, how many are left.
    pub(super) fn feasible(&self, question: &Question<'_>) -> Result<FixedBitSet, Error> {
        let mut left = self.ready.clone();
        let mut before = count(&left);
        let name = question.name;
        if before == 0 {
            return Err(Error::rejected(format!(
                "no node for '{name}': the domain has no node; start a node whose orchestrator_url names this orchestrator"
            )));
        }
        let mut counts: Vec<(Rule<'_>, usize, usize)> = Vec::new();
        for rule in rules(question) {
            rule.narrow(&mut left, self, question);
            let after = count(&left);
            if !rule.is_tacit() || after < before {
                counts.push((rule, after, before));
            }
            if after == 0 {
                return Err(refusal(name, &counts));
            }
            before = after;
        }
        Ok(left)
    }
}

fn shard(workflow: WorkflowId) -> usize {
    workflow.0.as_bytes().first().copied().unwrap_or_default().into()
}

fn refusal(name: &str, counts: &[(Rule<'_>, usize, usize)]) -> Error {
    let count = |(n, (rule, after, before)): (usize, &(Rule<'_>, usize, usize))| {
        let nodes = if n == 0 { " nodes" } else { "" };
        format!("{after} of {before}{nodes} {rule}")
    };
    let counts: Vec<String> = counts.iter().enumerate().map(count).collect();
    Error::rejected(format!("no node for '{name}': {}; add such a node or ask for less", counts.join(", ")))
}
