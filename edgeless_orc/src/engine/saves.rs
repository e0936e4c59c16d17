//! What functions have saved, as their nodes tell: copies that are kept here, and who waits for a lost node.
//!
//! ```text
//!  node lost -- nothing was saved there, or it is kept elsewhere, too --> placed at once
//!      \------- it has the only copy --> waits for that node --> it is back: goes on there
//!                                                \--> the time is over: placed elsewhere, and says what is missing
//! ```
//! A function that has never saved anything has nothing to wait for.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use edgeless_api::component::StatePolicy;
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_api::journal::{Saved, SavedState};
use edgeless_daemon::engine::Millis;

use super::component::Component;
use super::leaving::lost;
use super::slot::{Place, Slot};
use super::{Answer, Engine, Reply, Thing};
use crate::registry::Stage;

/// A replica waits for a node that has its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) node: NodeId,
    pub(super) until: Millis,
}

impl Component {
    /// What is kept here of its state.
    pub(super) fn copy(&self) -> Option<Bytes> {
        self.saved.as_ref()?.1.state.clone()
    }

    /// The node that alone has what it saved.
    fn keeper(&self, slot: &Slot) -> Option<NodeId> {
        let is_alone = self.state_policy() == Some(StatePolicy::NodeLocal) && slot.saved.is_none();
        self.saved.as_ref().filter(|_| is_alone).map(|(node, _)| *node)
    }

    /// The wait of a replica that ran on a node and does not any more.
    pub(super) fn wait_for(&self, slot: &Slot, node: NodeId, until: Millis) -> Option<Wait> {
        let has_it = !self.is_leaving && self.keeper(slot) == Some(node);
        has_it.then_some(Wait { node, until })
    }

    /// A replica is about to run on a node: it has its state there, or is told what it lacks.
    pub(super) fn judge_state(&mut self, replica: u32, node: NodeId) {
        let Some(keeper) = self.slots.get(&replica).and_then(|slot| self.keeper(slot)) else { return };
        let Some((_, saved)) = &self.saved else { return };
        self.loss = (keeper != node).then(|| {
            let SavedState { syncs, at, .. } = saved.about;
            lost(format!("it runs without its state: {syncs} syncs, the last at {}, are on node {keeper}", clock(at)))
        });
    }

    /// A replica runs on a node: what it began with is there as well.
    pub(super) fn settle_state(&mut self, replica: u32, node: NodeId) {
        let Some(slot) = self.slots.get(&replica) else { return };
        if self.state_policy() != Some(StatePolicy::NodeLocal) || self.saved.as_ref().is_none_or(|(at, _)| *at == node)
        {
            return;
        }
        let epoch = slot.epoch;
        match (slot.saved.is_some(), &mut self.saved) {
            (true, Some((at, saved))) => {
                *at = node;
                // None of the saves of this instance was told yet.
                saved.about = SavedState { epoch, syncs: 0, ..saved.about };
            }
            _ => self.saved = None,
        }
    }
}

/// The time of a day, UTC.
fn clock(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

impl Engine {
    /// Functions on a node have saved.
    pub(super) fn saved(&mut self, node: NodeId, states: Vec<Saved>) -> Answer {
        for saved in states {
            let is_copy = saved.state.is_some();
            let kept = self.keep_saved(node, saved);
            if is_copy {
                kept?;
            }
        }
        Ok(Reply::Done)
    }

    fn keep_saved(&mut self, node: NodeId, mut saved: Saved) -> Result<(), Error> {
        let id = saved.component;
        let component = self.components.get_mut(&id).ok_or_else(|| super::requests::unknown(id))?;
        let (name, about) = (&component.name, saved.about);
        if about.epoch < component.epoch {
            return Err(Error::rejected(format!(
                "'{name}' was placed again meanwhile: epoch {} is older than {}",
                about.epoch, component.epoch
            )));
        }
        match component.state_policy() {
            Some(StatePolicy::NodeLocal) => saved.state = None,
            Some(StatePolicy::Replicated) if saved.state.is_some() => {}
            _ => return Err(Error::rejected(format!("no copy is kept of the state of '{name}'"))),
        }
        let rank = |about: SavedState| (about.epoch, about.syncs);
        if component.saved.as_ref().is_some_and(|(_, known)| rank(known.about) > rank(about)) {
            // It was overtaken.
            return Ok(());
        }
        component.saved = Some((node, saved));
        for (_, slot) in component.slots.iter_mut() {
            // What it began with is older.
            if slot.epoch == about.epoch && matches!(slot.place, Place::On(_)) {
                slot.saved = None;
            }
        }
        self.marked.insert(Thing::Component(id));
        // That may be heard only now that its node was given up.
        self.await_keeper(id);
        Ok(())
    }

    /// What runs nowhere waits for the node that alone has its state: from now on, for what was before is not known.
    pub(super) fn await_keeper(&mut self, id: ComponentId) {
        let (grace, until) = (self.settings.state_grace, self.now + self.settings.state_grace);
        if grace.is_zero() {
            return;
        }
        let Some(component) = self.components.get_mut(&id) else { return };
        let Some(node) = component.saved.as_ref().map(|(node, _)| *node) else { return };
        let is_nowhere = |(_, slot): &(&u32, &Slot)| matches!(slot.place, Place::Nowhere) && slot.awaits.is_none();
        let wait = |(replica, slot): (&u32, &Slot)| Some((*replica, component.wait_for(slot, node, until)?));
        let waits: Vec<_> = component.slots.iter().filter(is_nowhere).filter_map(wait).collect();
        for (replica, wait) in waits {
            if let Some(slot) = component.slots.get_mut(&replica) {
                slot.awaits = Some(wait);
                self.homeless.insert((id, replica));
            }
        }
    }

    /// The wait of a replica that is not over.
    pub(super) fn wait_of(&self, slot: &Slot) -> Option<Wait> {
        slot.awaits.filter(|wait| self.now < wait.until)
    }

    /// Whether a node that is waited for is there, and takes what is placed on it.
    pub(super) fn is_back(&self, wait: Wait) -> bool {
        self.registry.nodes.get(&wait.node).is_some_and(|node| node.stage == Stage::Ready)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_of_a_save_is_that_of_its_day() {
        let at = UNIX_EPOCH + Duration::from_secs(3 * 86_400 + 12 * 3600 + 3 * 60 + 7);
        assert_eq!(clock(at), "12:03:07 UTC");
    }
}
