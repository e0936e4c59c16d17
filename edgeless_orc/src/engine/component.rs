//! One component: what is desired of it, what is the case, and how many replicas it has.
//!
//! Its row lists the instances that events go to. The row has an epoch of its own, raised at each
//! change, so that whoever hears of two knows which one is newer; the epoch of a start is raised
//! whenever a replica is placed, so that no two starts have the same.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use edgeless_api::component::{ComponentKind, ComponentSpec, StatePolicy, VOLUME};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::journal::Saved;
use edgeless_api::requirements::Requirements;
use edgeless_api::scale::Scale;
use edgeless_api::status::{ComponentStatus, InstanceStatus, State};
use edgeless_daemon::engine::{Millis, Ticket};

use super::leaving::Leaving;
use super::scaling::Trend;
use super::slot::{Fate, Place, Slot, Slots};
use super::{Engine, View};
use crate::registry::{Home, Registry};

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Start,
    Patch,
    Activate,
    Stop,
    Release,
}

/// What is known of a component beside what it is itself; it may be gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    /// Who has an output to it.
    pub(super) senders: BTreeSet<ComponentId>,
    /// Nodes whose senders were not yet told the latest row.
    pub(super) untold: BTreeSet<NodeId>,
    /// Nodes that it moved away from, and until when they forward what still comes there.
    pub(super) former: BTreeMap<NodeId, Millis>,
    /// Its last epoch, if it is gone. It may come again, and what is late must not be taken for new.
    pub(super) last_epoch: u64,
    /// That of its last row.
    pub(super) last_row: u64,
    pub(super) kept_until: Millis,
}

/// Above the blank line what is desired, below what is the case.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub(super) spec: ComponentSpec,
    pub(super) name: String,
    pub(super) requirements: Requirements,
    pub(super) scale: Scale,
    /// How many replicas it shall have now.
    pub(super) wanted: u32,
    /// The epoch that the controller named.
    pub(super) wanted_epoch: u64,
    pub(super) outputs: BTreeMap<String, ComponentId>,
    /// It shall emit.
    pub(super) is_wanted_active: bool,
    /// Its controller says when it shall emit; if not, its first patch does.
    pub(super) is_held: bool,
    /// Or, at the latest, this time.
    pub(super) opens_at: Option<Millis>,
    /// It shall be gone.
    pub(super) is_leaving: bool,
    /// It goes to another domain.
    pub(super) leaving: Option<Leaving>,
    /// What its next replica begins with, if it keeps state.
    pub(super) state: Option<Bytes>,

    /// Its replicas by number.
    pub(super) slots: Slots,
    /// Of the last start of any of them.
    pub(super) epoch: u64,
    /// Its starts up to this one were of what it was before it was superseded.
    pub(super) first_epoch: u64,
    /// The instances in its row.
    pub(super) listed: Vec<InstanceId>,
    /// Its row says that it runs nowhere because it is on its way to another node.
    pub(super) is_moving: bool,
    /// Newer than any row from before it was started again, here or in another domain.
    pub(super) row_epoch: u64,
    pub(super) row_since: Millis,
    /// It has run: from then on it waits for a node where it was refused before.
    pub(super) is_born: bool,
    /// Why it never ran.
    pub(super) refusal: Option<Error>,
    /// Why it has not the state that it had before it moved.
    pub(super) loss: Option<Error>,
    /// What it saved last, and the node where it did.
    pub(super) saved: Option<(NodeId, Saved)>,
    /// Nodes that may run it for all we know, and cannot be asked.
    pub(super) doubted: BTreeSet<Home>,
    pub(super) trend: Trend,
    pub(super) asks: Vec<(Ask, Ticket)>,
}

impl Component {
    /// What ran of a replica up to now is not what it shall be, wherever it comes to light.
    pub(super) fn outdate(&mut self, replica: u32) {
        if let Some(slot) = self.slots.get_mut(&replica) {
            slot.outdated = slot.epoch;
        }
    }

    pub(super) fn kind(&self) -> ComponentKind {
        self.spec.kind()
    }

    /// Where its state is kept, if it is a function.
    pub(super) fn state_policy(&self) -> Option<StatePolicy> {
        match &self.spec {
            ComponentSpec::Function(function) => Some(function.state.policy),
            ComponentSpec::Resource(_) => None,
        }
    }

    /// Whether two instances of it may run at once for a while.
    pub(super) fn may_overlap(&self) -> bool {
        self.state_policy().is_none_or(|policy| policy == StatePolicy::Transient)
    }

    /// Whether it leaves for another domain, or a replica of it has left its node, or is about to, and has another
    /// one to go to.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.leaving.is_some()
            || !self.is_leaving && self.slots.values().any(|slot| slot.fate == Fate::Move || slot.is_under_way)
    }

    pub(super) fn has_volumes(&self) -> bool {
        self.spec.annotations().keys().any(|key| key.starts_with(VOLUME))
    }

    /// How many replicas it has, apart from those that go or are only made ready to replace another.
    pub(super) fn count(&self) -> usize {
        let stays = |slot: &Slot| slot.fate != Fate::Go;
        let is_extra = |slot: &Slot| slot.replaces.and_then(|old| self.slots.get(&old)).is_some_and(stays);
        self.slots.values().filter(|slot| stays(slot) && !is_extra(slot)).count()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (u32, &Slot)> {
        let is_on = |slot: &Slot| matches!(slot.place, Place::On(_));
        self.slots.iter().filter(move |(_, slot)| is_on(slot)).map(|(replica, slot)| (*replica, slot))
    }

    pub(super) fn status(&self, component: ComponentId, registry: &Registry) -> ComponentStatus {
        let instances: Vec<InstanceStatus> =
            self.running().filter_map(|(_, slot)| instance_status(slot, registry)).collect();
        let state = match self.slots.values().map(Slot::state).min_by_key(|state| rank(*state)) {
            _ if self.is_leaving => State::Stopped,
            Some(state) => state,
            // The first event starts it.
            None => State::Waiting,
        };
        let trouble = self.slots.values().find_map(|slot| slot.trouble.as_ref()).or(self.refusal.as_ref());
        let first = instances.first().map(|one| one.instance).filter(|_| !self.is_leaving);
        ComponentStatus {
            component,
            name: self.name.clone(),
            state,
            instance: first,
            epoch: self.epoch,
            restarts: 0,
            reason: trouble.map(|error| error.message.clone()).unwrap_or_default(),
            log: Vec::new(),
            handled: instances.iter().map(|one| one.handled).sum(),
            dropped: 0,
            outputs: Vec::new(),
            limits: self.spec.limits(&self.name).unwrap_or_default(),
            usage: None,
            instances: if self.is_leaving { Vec::new() } else { instances },
        }
    }
}

/// One that runs says more of a component than one that does not.
fn rank(state: State) -> u8 {
    match state {
        State::Running => 0,
        State::Starting => 1,
        State::Waiting | State::Restarting | State::Failed | State::Stopped => 2,
    }
}

fn instance_status(slot: &Slot, registry: &Registry) -> Option<InstanceStatus> {
    let instance = slot.instance()?;
    let node = registry.at(instance.home);
    Some(InstanceStatus {
        instance: instance.id,
        state: slot.state(),
        handled: slot.load.handled,
        queued: slot.load.queued.into(),
        hostname: node.map(|node| node.about.capabilities.hostname().to_string()).unwrap_or_default(),
    })
}

impl Engine {
    /// Those of these components that are known.
    pub fn view(&self, ids: &[ComponentId]) -> Vec<View> {
        ids.iter().filter_map(|id| Some(self.view_of(*id, self.components.get(id)?))).collect()
    }

    /// What runs on a node, each component once.
    pub fn residents(&self, node: NodeId) -> Option<Vec<View>> {
        let residents: BTreeSet<_> = self.registry.nodes.get(&node)?.residents.iter().map(|(id, _)| *id).collect();
        Some(self.view(&residents.into_iter().collect::<Vec<_>>()))
    }

    fn view_of(&self, id: ComponentId, component: &Component) -> View {
        let peer = |(_, slot): (u32, &Slot)| {
            let instance = slot.instance()?;
            let node = self.registry.at(instance.home).filter(|node| node.about.native)?;
            Some((node.peer(), instance.id))
        };
        View {
            status: component.status(id, &self.registry),
            peers: component.running().filter_map(peer).collect(),
            loss: component.loss.as_ref().map(|loss| loss.message.clone()).unwrap_or_default(),
        }
    }
}
