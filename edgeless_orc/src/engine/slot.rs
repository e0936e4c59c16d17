//! One replica of a component: where it is, what shall become of it, and its next step.
//!
//! ```text
//!  Nowhere -- place --> Trying -- created --> On -- wire --> activate
//!     ^                   |                   |
//!     +---- refused ------+--- node lost -----+      go: released -> gone
//! ```
//! A replica that moves is either replaced by another one, which is made ready first, or released and
//! placed again with the state that it saved: two instances that keep state would overwrite each other.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use edgeless_api::component::{Start, StartContext, Target};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::status::State;
use edgeless_daemon::engine::{Millis, Ticket};

use super::component::Component;
use super::saves::Wait;
use super::scaling::Load;
use super::{Engine, Lane};
use crate::registry::{Home, Stage};

/// What the outputs of an instance lead to: components where its node routes by rows, else instances.
pub(super) type Wiring = BTreeMap<String, Target>;

/// Where a replica is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Nowhere,
    /// A node was chosen.
    Trying(Attempt),
    /// A node runs it.
    On(Instance),
}

/// A node that was chosen, and how it goes.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) home: Home,
    pub(super) provider: String,
    /// How often the node did not answer.
    pub(super) unanswered: u32,
}

/// What runs, and what its node was told.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) home: Home,
    pub(super) id: InstanceId,
    /// What its node acknowledged; `None` while it may have taken over something since.
    pub(super) wiring: Option<Wiring>,
    pub(super) is_active: bool,
    /// It is as desired: wired and, if it shall, active.
    pub(super) is_settled: bool,
    /// How often its node was asked to release it: from the first time on there is no way back.
    pub(super) releases: u32,
}

impl Instance {
    pub(super) fn new(home: Home, id: InstanceId, wiring: Option<Wiring>, is_active: bool) -> Self {
        Self { home, id, wiring, is_active, is_settled: false, releases: 0 }
    }
}

/// What shall become of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It runs, wherever that is.
    Stay,
    /// It is released, then placed again.
    Move,
    /// It is released, then gone.
    Go,
}

/// One replica.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) fate: Fate,
    /// The replica that goes once this one is ready.
    pub(super) replaces: Option<u32>,
    /// The only node that it is tried on, as long as that does not fail.
    pub(super) pin: Option<NodeId>,
    /// Where it ran before it moved, until it runs elsewhere.
    pub(super) origin: Option<Home>,
    /// It has left that, and runs nowhere yet; not once no node has a place for it.
    pub(super) is_under_way: bool,
    /// What it saved there.
    pub(super) saved: Option<Bytes>,
    /// Who waits for it to have moved.
    pub(super) movers: Vec<Ticket>,
    /// Why it is not where they want it.
    pub(super) detour: Option<Error>,

    pub(super) place: Place,
    /// Of its last start.
    pub(super) epoch: u64,
    /// What was started up to this epoch is not what it shall be.
    pub(super) outdated: u64,
    /// It is placed nowhere else for a while.
    pub(super) awaits: Option<Wait>,
    /// Nodes that failed to start it since it was last placed.
    pub(super) tried: BTreeSet<Home>,
    /// Why it is not where it should be.
    pub(super) trouble: Option<Error>,
    /// The log says that it waits.
    pub(super) is_noted: bool,
    pub(super) load: Load,
    pub(super) lane: Lane,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            fate: Fate::Stay,
            replaces: None,
            pin: None,
            origin: None,
            is_under_way: false,
            saved: None,
            movers: Vec::new(),
            detour: None,
            place: Place::Nowhere,
            epoch: 0,
            outdated: 0,
            awaits: None,
            tried: BTreeSet::new(),
            trouble: None,
            is_noted: false,
            load: Load::default(),
            lane: Lane::default(),
        }
    }

    pub(super) fn home(&self) -> Option<Home> {
        match &self.place {
            Place::Nowhere => None,
            Place::Trying(attempt) => Some(attempt.home),
            Place::On(instance) => Some(instance.home),
        }
    }

    pub(super) fn instance(&self) -> Option<&Instance> {
        match &self.place {
            Place::On(instance) => Some(instance),
            Place::Nowhere | Place::Trying(_) => None,
        }
    }

    pub(super) fn instance_mut(&mut self) -> Option<&mut Instance> {
        match &mut self.place {
            Place::On(instance) => Some(instance),
            Place::Nowhere | Place::Trying(_) => None,
        }
    }

    pub(super) fn state(&self) -> State {
        match &self.place {
            Place::Nowhere => State::Waiting,
            Place::On(instance) if instance.is_active => State::Running,
            Place::Trying(_) | Place::On(_) => State::Starting,
        }
    }
}

/// The replicas of a component by number. Most have one: a map that holds them in place would reserve the
/// room for many.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots(BTreeMap<u32, Box<Slot>>);

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, replica: &u32) -> Option<&Slot> {
        self.0.get(replica).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, replica: &u32) -> Option<&mut Slot> {
        self.0.get_mut(replica).map(Box::as_mut)
    }

    pub(super) fn insert(&mut self, replica: u32, slot: Slot) {
        self.0.insert(replica, Box::new(slot));
    }

    pub(super) fn remove(&mut self, replica: &u32) -> Option<Slot> {
        self.0.remove(replica).map(|slot| *slot)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &u32> {
        self.0.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Slot> {
        self.0.values().map(Box::as_ref)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&u32, &Slot)> {
        self.0.iter().map(|(replica, slot)| (replica, slot.as_ref()))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&u32, &mut Slot)> {
        self.0.iter_mut().map(|(replica, slot)| (replica, slot.as_mut()))
    }
}

impl Component {
    /// Whether events may be sent to a replica.
    pub(super) fn is_listed(&self, slot: &Slot) -> bool {
        let is_ready = slot.fate == Fate::Stay && slot.instance().is_some();
        is_ready && slot.replaces.and_then(|old| self.slots.get(&old)).is_none_or(|old| old.fate == Fate::Go)
    }

    /// The replica that takes the place of this one.
    pub(super) fn successor(&self, replica: u32) -> Option<u32> {
        self.slots.iter().find(|(_, slot)| slot.replaces == Some(replica)).map(|(replica, _)| *replica)
    }

    pub(super) fn start(&self, component: ComponentId, replica: u32, attempt: &Attempt) -> Box<Start> {
        let (epoch, saved) =
            self.slots.get(&replica).map_or((self.epoch, None), |slot| (slot.epoch, slot.saved.clone()));
        // Nothing is saved that is not in the copy, where there is one.
        let state = self.copy().or(saved);
        let context = StartContext {
            provider: attempt.provider.clone(),
            replica,
            reports_load: self.scale.is_multiple() || self.scale.min == 0,
            state,
            ..StartContext::new(component, epoch, &self.name)
        };
        Box::new(Start { spec: self.spec.clone(), context: Some(context) })
    }
}

/// What a replica does next.
pub(super) enum Step {
    /// Nothing, until something changes.
    Rest,
    /// Nothing before this time, unless something changes.
    Wait(Millis),
    /// Nothing, because all is as desired.
    Settled,
    Place,
    Create(Attempt),
    /// Gives up a start whose outcome is unknown.
    Abandon(Attempt),
    Wire(Wiring),
    Activate,
    /// Events go to it from now on, and no longer to the replica that it replaces.
    TakeOver(u32),
    Release(InstanceId),
    Stop(InstanceId),
    Drop,
}

impl Engine {
    /// Decides the next step of a replica, from its state alone.
    pub(super) fn next_step(&self, id: ComponentId, component: &Component, slot: &Slot) -> Step {
        let is_going = component.is_leaving || slot.fate == Fate::Go;
        let instance = match &slot.place {
            Place::Nowhere if is_going => return Step::Drop,
            Place::Nowhere => {
                return match self.wait_of(slot) {
                    Some(wait) if !self.is_back(wait) => Step::Wait(wait.until),
                    _ => Step::Place,
                };
            }
            Place::Trying(attempt) if self.is_awaited(attempt.home) => return Step::Rest,
            Place::Trying(attempt) if is_going => return Step::Abandon(attempt.clone()),
            Place::Trying(attempt) if self.is_to_report(attempt.home) => return Step::Rest,
            Place::Trying(attempt) => return Step::Create(attempt.clone()),
            Place::On(instance) if self.is_awaited(instance.home) => return Step::Rest,
            Place::On(instance) if component.is_leaving && component.leaving.is_none() => {
                return Step::Stop(instance.id);
            }
            Place::On(instance) => instance,
        };
        // A lost node takes its residents along, so that there is one.
        let Some(node) = self.registry.at(instance.home) else { return Step::Rest };
        if node.stage == Stage::Reporting {
            return Step::Rest;
        }
        let is_native = node.about.native;
        if slot.fate != Fate::Stay {
            return match self.told_at(id, component) {
                Some(at) if self.now < at => Step::Wait(at),
                _ if is_native => Step::Release(instance.id),
                _ => Step::Stop(instance.id),
            };
        }
        let wiring = self.wiring(component, is_native);
        // An EDGELESS 1.2 node takes an empty mapping for a mistake.
        let is_wired = instance.wiring.as_ref() == Some(&wiring) || (wiring.is_empty() && !is_native);
        if !is_wired {
            let knows = |target: &Target| match target {
                Target::Instance(instance) => node.knows(instance.node),
                // The row brings the addresses along.
                Target::Component(_) | Target::Row(_) => true,
            };
            return if wiring.values().all(knows) { Step::Wire(wiring) } else { Step::Rest };
        }
        match slot.replaces.and_then(|old| Some((old, component.slots.get(&old)?.fate))) {
            Some((_, Fate::Go)) => return Step::Rest,
            Some((old, _)) => return Step::TakeOver(old),
            None => {}
        }
        if component.is_wanted_active && !instance.is_active { Step::Activate } else { Step::Settled }
    }

    /// Whether it is to be heard what a node runs before anything is done about it.
    fn is_to_report(&self, home: Home) -> bool {
        self.registry.at(home).is_some_and(|node| node.stage == Stage::Reporting)
    }

    /// What the outputs of a component shall lead to now. Our nodes are told of components, and by rows where
    /// they run, EDGELESS 1.2 nodes of the instances that there are.
    fn wiring(&self, component: &Component, is_native: bool) -> Wiring {
        let target = |(channel, id): (&String, &ComponentId)| {
            if is_native {
                return Some((channel.clone(), Target::Component(*id)));
            }
            let instance = self.listed(*id).first().copied()?;
            Some((channel.clone(), Target::Instance(instance)))
        };
        component.outputs.iter().filter_map(target).collect()
    }
}
