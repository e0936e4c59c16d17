//! What the nodes have, and which nodes have it: changed when a node comes, goes, or announces something else.

use std::collections::BTreeMap;
use std::sync::Arc;

use edgeless_api::id::NodeId;
use edgeless_api::node::Registration;
use fixedbitset::FixedBitSet;

use super::random;
use super::slots::{Slot, Slots};

/// What one node has, as far as placement asks for it. Names are shared with the sets that they name.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) node: NodeId,
    pub(super) labels: Vec<Arc<str>>,
    runtimes: Vec<Arc<str>>,
    /// Provider and its class.
    pub(super) providers: Vec<(Arc<str>, Arc<str>)>,
}

impl About {
    pub(super) fn hostname(&self) -> &str {
        self.labels.iter().find_map(|label| label.strip_prefix("hostname=")).unwrap_or_default()
    }

    /// Whether an announcement says the same names.
    fn has_names_of(&self, about: &Registration) -> bool {
        let is_same =
            |own: &[Arc<str>], said: &[String]| own.iter().map(|name| &**name).eq(said.iter().map(|name| &**name));
        let providers = about.providers.iter().map(|said| (&*said.id, &*said.class_type));
        is_same(&self.labels, &about.capabilities.labels)
            && is_same(&self.runtimes, &about.capabilities.runtimes)
            && self.providers.iter().map(|(id, class)| (&**id, &**class)).eq(providers)
    }
}

/// The nodes that have a name in common, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeMap<Arc<str>, Slots>);

impl Names {
    fn insert(&mut self, name: &str, slot: Slot) -> Arc<str> {
        let name = self.0.get_key_value(name).map_or_else(|| Arc::from(name), |(known, _)| known.clone());
        self.0.entry(name.clone()).or_default().insert(slot);
        name
    }

    fn remove(&mut self, name: &str, slot: Slot) {
        if let Some(slots) = self.0.get_mut(name) {
            slots.remove(slot);
            if slots.is_empty() {
                self.0.remove(name);
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Slots> {
        self.0.get(name)
    }

    /// Leaves in a set only the nodes that have a name.
    pub(super) fn keep_in(&self, name: &str, set: &mut FixedBitSet) {
        match self.0.get(name) {
            Some(slots) => slots.keep_in(set),
            None => set.clear(),
        }
    }
}

/// What all nodes have.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) by_node: BTreeMap<NodeId, Slot>,
    about: Vec<Option<About>>,
    /// Slots whose node is gone.
    vacant: Vec<Slot>,
    pub(super) labels: Names,
    pub(super) runtimes: Names,
    pub(super) providers: Names,
    pub(super) classes: Names,
    pub(super) tee: FixedBitSet,
    pub(super) tpm: FixedBitSet,
    pub(super) global_state: FixedBitSet,
    /// Not of EDGELESS 1.x.
    pub(super) native: FixedBitSet,
    /// A node without any core hosts resources only.
    pub(super) with_core: FixedBitSet,
    /// How much work each can do, to the strategy that draws.
    weights: Vec<f64>,
}

impl Facts {
    pub(super) fn slot(&self, node: NodeId) -> Option<Slot> {
        self.by_node.get(&node).copied()
    }

    pub(super) fn about(&self, slot: Slot) -> Option<&About> {
        self.about.get(slot)?.as_ref()
    }

    pub(super) fn node(&self, slot: Slot) -> Option<NodeId> {
        self.about(slot).map(|about| about.node)
    }

    pub(super) fn weight(&self, slot: Slot) -> f64 {
        self.weights.get(slot).copied().unwrap_or_default()
    }

    /// Whether an announcement says anything new.
    pub(super) fn is_known(&self, about: &Registration) -> bool {
        let Some(slot) = self.slot(about.node) else { return false };
        let own = &about.capabilities;
        self.about(slot).is_some_and(|known| known.has_names_of(about))
            && self.tee.contains(slot) == own.is_tee_running
            && self.tpm.contains(slot) == own.has_tpm
            && self.global_state.contains(slot) == has_global_state(about)
            && self.native.contains(slot) == about.native
            && self.with_core.contains(slot) == (own.num_cpus > 0 && own.num_cores > 0)
            && self.weight(slot) == random::weight(own)
    }

    /// Takes over what a node announces, and tells its slot.
    pub(super) fn upsert(&mut self, about: &Registration) -> Slot {
        let slot = match self.slot(about.node) {
            Some(slot) => {
                self.forget_names(slot);
                slot
            }
            None => self.vacant.pop().unwrap_or(self.about.len()),
        };
        if slot >= self.about.len() {
            self.about.resize(slot + 1, None);
            self.weights.resize(slot + 1, 0.0);
        }
        let own = &about.capabilities;
        let known = About {
            node: about.node,
            labels: own.labels.iter().map(|name| self.labels.insert(name, slot)).collect(),
            runtimes: own.runtimes.iter().map(|name| self.runtimes.insert(name, slot)).collect(),
            providers: about
                .providers
                .iter()
                .map(|said| (self.providers.insert(&said.id, slot), self.classes.insert(&said.class_type, slot)))
                .collect(),
        };
        put(&mut self.tee, slot, own.is_tee_running);
        put(&mut self.tpm, slot, own.has_tpm);
        put(&mut self.global_state, slot, has_global_state(about));
        put(&mut self.native, slot, about.native);
        put(&mut self.with_core, slot, own.num_cpus > 0 && own.num_cores > 0);
        if let Some(place) = self.about.get_mut(slot) {
            *place = Some(known);
        }
        if let Some(place) = self.weights.get_mut(slot) {
            *place = random::weight(own);
        }
        self.by_node.insert(about.node, slot);
        slot
    }

    pub(super) fn remove(&mut self, node: NodeId) -> Option<Slot> {
        let slot = self.by_node.remove(&node)?;
        self.forget_names(slot);
        for set in [&mut self.tee, &mut self.tpm, &mut self.global_state, &mut self.native, &mut self.with_core] {
            put(set, slot, false);
        }
        self.vacant.push(slot);
        Some(slot)
    }

    fn forget_names(&mut self, slot: Slot) {
        let Some(known) = self.about.get_mut(slot).and_then(Option::take) else { return };
        known.labels.iter().for_each(|name| self.labels.remove(name, slot));
        known.runtimes.iter().for_each(|name| self.runtimes.remove(name, slot));
        for (provider, class) in &known.providers {
            self.providers.remove(provider, slot);
            self.classes.remove(class, slot);
        }
    }
}

/// An EDGELESS 1.x node keeps no state outside, whatever it says.
fn has_global_state(about: &Registration) -> bool {
    about.native && about.capabilities.has_global_state
}

/// Puts a slot into a set, or out of it.
pub(super) fn put(set: &mut FixedBitSet, slot: Slot, is_in: bool) {
    if is_in {
        set.grow_and_insert(slot);
    } else if slot < set.len() {
        set.remove(slot);
    }
}
