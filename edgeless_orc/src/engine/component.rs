//! One component: what is desired of it, what is the case, and its next step.
//!
//! ```text
//!  Nowhere -- place --> Trying -- created --> On -- wire --> activate
//!     ^                   |                   |
//!     +---- refused ------+--- node lost -----+      stop: -> Nowhere -> forgotten
//! ```
//! The epoch is raised whenever a place is given up, so that whoever hears of two places knows
//! which one is newer.

use std::collections::{BTreeMap, BTreeSet};

use edgeless_api::component::{ComponentKind, ComponentSpec, Row, Start, StartContext, Target};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId};
use edgeless_api::requirements::Requirements;
use edgeless_api::status::{ComponentStatus, State};
use edgeless_daemon::engine::{Millis, Ticket};

use super::{Engine, Lane};
use crate::registry::Home;

/// What the outputs of an instance lead to.
pub(super) type Wiring = BTreeMap<String, Target>;

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Start,
    Patch,
    Activate,
    Stop,
}

/// What is known of a component beside what it is itself.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Who has an output to it.
    pub(super) senders: BTreeSet<ComponentId>,
    /// Its last epoch, if it is gone. It may come again, and what is late must not be taken for new.
    pub(super) last_epoch: u64,
    pub(super) kept_until: Millis,
}

/// Where a component is.
#[derive(Debug)]
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
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) home: Home,
    pub(super) id: InstanceId,
    /// What its node acknowledged; `None` while it may have taken over something since.
    pub(super) wiring: Option<Wiring>,
    pub(super) is_active: bool,
}

/// Above the blank line what is desired, below what is the case.
#[derive(Debug)]
pub(super) struct Component {
    pub(super) spec: ComponentSpec,
    pub(super) name: String,
    pub(super) requirements: Requirements,
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

    pub(super) place: Place,
    pub(super) epoch: u64,
    /// The epoch in which it was last known to be nowhere.
    pub(super) vacant_epoch: u64,
    /// It has run: from then on it waits for a node where it was refused before.
    pub(super) is_born: bool,
    /// The log says that it waits.
    pub(super) is_noted: bool,
    /// Nodes that failed to start it since it was last placed.
    pub(super) tried: BTreeSet<Home>,
    /// Nodes that may run it for all we know, and cannot be asked.
    pub(super) doubted: BTreeSet<Home>,
    /// Why it is not where it should be.
    pub(super) trouble: Option<Error>,
    pub(super) lane: Lane,
    pub(super) asks: Vec<(Ask, Ticket)>,
}

impl Component {
    pub(super) fn kind(&self) -> ComponentKind {
        self.spec.kind()
    }

    pub(super) fn home(&self) -> Option<Home> {
        match &self.place {
            Place::Nowhere => None,
            Place::Trying(attempt) => Some(attempt.home),
            Place::On(instance) => Some(instance.home),
        }
    }

    pub(super) fn row(&self, component: ComponentId) -> Row {
        match &self.place {
            Place::On(instance) => Row::new(component, self.epoch, vec![instance.id]),
            Place::Nowhere | Place::Trying(_) => Row::new(component, self.vacant_epoch, vec![]),
        }
    }

    pub(super) fn status(&self, component: ComponentId) -> ComponentStatus {
        let (state, instance) = match &self.place {
            _ if self.is_leaving => (State::Stopped, None),
            Place::Nowhere => (State::Waiting, None),
            Place::Trying(_) => (State::Starting, None),
            Place::On(instance) if instance.is_active => (State::Running, Some(instance.id)),
            Place::On(instance) => (State::Starting, Some(instance.id)),
        };
        ComponentStatus {
            component,
            name: self.name.clone(),
            state,
            instance,
            epoch: self.epoch,
            restarts: 0,
            reason: self.trouble.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
            log: Vec::new(),
            handled: 0,
            dropped: 0,
            outputs: Vec::new(),
            limits: self.spec.limits(&self.name).unwrap_or_default(),
            usage: None,
            instances: Vec::new(),
        }
    }

    pub(super) fn start(&self, component: ComponentId, attempt: &Attempt) -> Box<Start> {
        let context =
            StartContext { provider: attempt.provider.clone(), ..StartContext::new(component, self.epoch, &self.name) };
        Box::new(Start { spec: self.spec.clone(), context: Some(context) })
    }

    /// Gives up its place.
    pub(super) fn vacate(&mut self) {
        self.place = Place::Nowhere;
        self.epoch += 1;
    }
}

/// What a component does next.
pub(super) enum Step {
    /// Nothing, until something changes.
    Rest,
    /// Nothing, because all is as desired.
    Settled,
    Place,
    Create(Attempt),
    /// Gives up a start whose outcome is unknown.
    Abandon(Attempt),
    Wire(Wiring),
    Activate,
    Stop(InstanceId),
    Forget,
}

impl Engine {
    /// Decides the next step of a component, from its state alone.
    pub(super) fn next_step(&self, component: &Component) -> Step {
        let instance = match (&component.place, component.is_leaving) {
            (Place::Nowhere, true) => return Step::Forget,
            (Place::Nowhere, false) => return Step::Place,
            (Place::Trying(attempt), true) => return Step::Abandon(attempt.clone()),
            (Place::Trying(attempt), false) => return Step::Create(attempt.clone()),
            (Place::On(instance), true) => return Step::Stop(instance.id),
            (Place::On(instance), false) => instance,
        };
        // A lost node takes its residents along, so that there is one.
        let Some(node) = self.registry.at(instance.home) else { return Step::Rest };
        let wiring = self.wiring(component, node.about.native);
        // An EDGELESS 1.2 node takes an empty mapping for a mistake.
        let is_wired = instance.wiring.as_ref() == Some(&wiring) || (wiring.is_empty() && !node.about.native);
        if !is_wired {
            let targets = wiring.values().flat_map(instances);
            return if targets.into_iter().all(|target| node.knows(target.node)) {
                Step::Wire(wiring)
            } else {
                Step::Rest
            };
        }
        if component.is_wanted_active && !instance.is_active { Step::Activate } else { Step::Settled }
    }

    /// What the outputs of a component shall lead to now. Our nodes are told of components and where
    /// they run, EDGELESS 1.2 nodes of the instances that there are.
    fn wiring(&self, component: &Component, is_native: bool) -> Wiring {
        let target = |(channel, id): (&String, &ComponentId)| {
            let row = match self.components.get(id) {
                Some(target) => target.row(*id),
                None => {
                    let epoch = self.links.get(id).map(|link| link.last_epoch).unwrap_or_default();
                    Row::new(*id, epoch, vec![])
                }
            };
            let target = match row.instances.first() {
                _ if is_native => Target::Row(row),
                Some(instance) => Target::Instance(*instance),
                None => return None,
            };
            Some((channel.clone(), target))
        };
        component.outputs.iter().filter_map(target).collect()
    }
}

fn instances(target: &Target) -> Vec<InstanceId> {
    match target {
        Target::Instance(instance) => vec![*instance],
        Target::Row(row) => row.instances.clone(),
        Target::Component(_) => vec![],
    }
}
