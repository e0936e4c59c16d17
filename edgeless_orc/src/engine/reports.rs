//! What nodes tell that they run, and what follows from it.
//!
//! ```text
//!  comes, or comes again -> asked -> tells: what is wanted is taken over, all else is stopped -> meets the others
//!  ready, but in doubt ---> asked -> tells: what is not wanted is stopped
//! ```
//! Before a node has told, nothing is done about what ran there. A report that was not asked for is of no use: it may
//! be older than what is known. Of two instances of a replica the one with the newer epoch goes on.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::node::Running;

use super::component::Component;
use super::slot::{Fate, Instance, Place, Slot};
use super::{Engine, Note, Thing};
use crate::placement::Tenant;
use crate::registry::{Home, Stage, Stray};

impl Engine {
    /// Whether a node shall tell what it runs, in its next announcement.
    pub(super) fn ask_for_report(&mut self, id: NodeId) -> bool {
        let Some(node) = self.registry.nodes.get_mut(&id) else { return false };
        node.is_asked = node.is_to_report();
        node.is_asked
    }

    /// These replicas may run on a node that has not told yet what it runs.
    pub(super) fn expect(&mut self, id: NodeId, residents: BTreeSet<(ComponentId, u32)>) {
        let Some(home) = self.registry.nodes.get(&id).map(|node| node.home()) else { return };
        let components: BTreeSet<ComponentId> = residents.iter().map(|(component, _)| *component).collect();
        for (component, replica) in residents {
            self.rehome(component, replica, home);
        }
        // It may take events elsewhere than before.
        components.into_iter().for_each(|component| self.renew_row(component));
    }

    /// A replica is where it was, in another process.
    fn rehome(&mut self, id: ComponentId, replica: u32, home: Home) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        // Nobody answers any more what the process before was asked.
        slot.lane.clear();
        match &mut slot.place {
            Place::Nowhere => return,
            Place::Trying(attempt) => attempt.home = home,
            Place::On(instance) => {
                (instance.home, instance.wiring, instance.is_settled) = (home, None, false);
            }
        }
        let tenant = Tenant { component: id, replica };
        self.placer.nodes.occupy(home.node, tenant, component.spec.workflow(), &component.requirements);
        if let Some(node) = self.registry.nodes.get_mut(&home.node) {
            node.residents.insert((id, replica));
        }
        self.marked.insert(Thing::Slot(id, replica));
    }

    /// A node tells all that it runs.
    pub(super) fn take_report(&mut self, id: NodeId, mut report: Vec<Running>) {
        let Some(node) = self.registry.nodes.get_mut(&id).filter(|node| node.is_asked) else { return };
        (node.is_asked, node.is_doubtful) = (false, false);
        let home = node.home();
        if node.stage == Stage::Reporting {
            let expected = node.residents.clone();
            report.sort_by_key(|running| Reverse(running.epoch));
            self.registry.meet(id);
            for running in &report {
                self.adopt(home, running);
            }
            self.miss(home, expected);
        }
        self.remove_surplus(home, &report);
        self.marked.insert(Thing::Node(id));
    }

    /// Takes an instance over if it is the one of its replica.
    fn adopt(&mut self, home: Home, running: &Running) {
        let (id, replica) = (running.component, running.replica);
        let is_it = |component: &&Component| {
            let slot = component.slots.get(&replica);
            component.kind() == running.kind
                && running.epoch > component.first_epoch
                && slot.is_some_and(|slot| slot.accepts(home, running.epoch))
        };
        let Some(component) = self.components.get(&id).filter(is_it) else { return };
        if self.registry.at(home).is_some_and(|node| node.running.values().any(|known| *known == (id, replica))) {
            return;
        }
        let instance = InstanceId { node: home.node, function: running.instance };
        self.note(Note::Adopted { component: id, name: component.name.clone(), instance, epoch: running.epoch });
        self.settle_in(home, running);
        // What it leads to is not known: it is told again.
        self.runs(id, replica, Instance::new(home, instance, None, running.is_active));
    }

    fn settle_in(&mut self, home: Home, running: &Running) {
        let (id, replica) = (running.component, running.replica);
        let Some(component) = self.components.get_mut(&id) else { return };
        component.epoch = component.epoch.max(running.epoch);
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        slot.epoch = running.epoch;
        if slot.home().is_none() {
            slot.lane.clear();
            slot.is_under_way = false;
            // It was lost with its instance.
            component.loss = None;
            let tenant = Tenant { component: id, replica };
            self.placer.nodes.occupy(home.node, tenant, component.spec.workflow(), &component.requirements);
            self.homeless.remove(&(id, replica));
            if let Some(node) = self.registry.nodes.get_mut(&home.node) {
                node.residents.insert((id, replica));
            }
        }
    }

    /// What should run on a node and does not is lost; but what was asked of the node before may come to its end yet,
    /// so that it is asked again: a repeat returns the first result.
    fn miss(&mut self, home: Home, expected: BTreeSet<(ComponentId, u32)>) {
        let Some(node) = self.registry.at(home) else { return };
        let found: BTreeSet<(ComponentId, u32)> = node.running.values().copied().collect();
        for (id, replica) in expected.difference(&found) {
            if self.slot_mut(*id, *replica).is_some_and(Slot::is_in_hand) {
                self.marked.insert(Thing::Slot(*id, *replica));
                continue;
            }
            let error = Error::unavailable(format!("node {} does not run it any more", home.node));
            self.lose_instance(*id, *replica, error);
        }
    }

    /// Has everything stopped that a node runs and nobody wants.
    fn remove_surplus(&mut self, home: Home, report: &[Running]) {
        let is_being_started = |running: &Running| {
            let component = self.components.get(&running.component);
            let slot = component.and_then(|component| component.slots.get(&running.replica));
            slot.is_some_and(|slot| matches!(&slot.place, Place::Trying(attempt) if attempt.home == home))
        };
        let surplus: Vec<&Running> = report.iter().filter(|running| !is_being_started(running)).collect();
        let Some(node) = self.registry.nodes.get_mut(&home.node) else { return };
        let known = node.settle_strays();
        for running in surplus {
            if !known.contains(&running.instance) {
                let instance = InstanceId { node: home.node, function: running.instance };
                node.add_stray(Stray::Known(running.kind, instance));
            }
        }
    }
}

impl Slot {
    /// Whether its node was asked to start or to release it, for all we know: from then on there is no way back.
    fn is_in_hand(&mut self) -> bool {
        match &mut self.place {
            Place::Nowhere => false,
            Place::Trying(_) => true,
            Place::On(_) if self.fate == Fate::Stay => false,
            Place::On(instance) => {
                instance.releases = instance.releases.max(1);
                true
            }
        }
    }

    /// Whether it can be that an instance at a node is that of this replica, and no other is.
    fn accepts(&self, home: Home, epoch: u64) -> bool {
        let is_free = match &self.place {
            Place::Nowhere => self.fate == Fate::Stay && self.replaces.is_none() && self.pin.is_none(),
            Place::Trying(_) | Place::On(_) => self.home() == Some(home),
        };
        is_free && epoch >= self.epoch && epoch > self.outdated
    }
}
