//! Components that leave for another domain: their instances end, their state is handed over, and what was answered
//! is remembered for a while.
//!
//! ```text
//!  row without instances, moving -> senders told -> instances released -> state kept -> component gone -> answer
//! ```
//! Whoever asked may not have heard the answer, and asks again: nobody else has the state by then. A start of the
//! same epoch takes the release back, and begins with that state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::component::StatePolicy;
use edgeless_api::domain_record as record;
use edgeless_api::error::Error;
use edgeless_api::id::ComponentId;
use edgeless_daemon::engine::{Millis, Ticket};

use super::component::{Ask, Component};
use super::slot::{Fate, Place, Slot};
use super::{Engine, Reply};

/// Answers are remembered this long, so many, and so many bytes of states; the oldest go first.
const KEPT_FOR: Duration = Duration::from_secs(300);
const KEPT: usize = 1024;
const KEPT_BYTES: usize = 64 << 20;

/// The state that a component left behind, or why it is lost.
pub(super) type Legacy = Result<Option<Bytes>, Error>;

/// How a component leaves.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    /// The time that its instances have for what is queued.
    pub(super) grace: Duration,
    /// What its instance saved.
    pub(super) state: Option<Bytes>,
    /// Why that cannot be had.
    pub(super) loss: Option<Error>,
}

/// A state that cannot be had any more.
pub(super) fn lost(why: impl std::fmt::Display) -> Error {
    Error::not_found(format!("state lost: {why}"))
}

#[derive(Clone, Debug)]
struct Kept {
    /// That of the last start before.
    epoch: u64,
    since: Millis,
    legacy: Legacy,
}

impl Kept {
    fn size(&self) -> usize {
        self.legacy.as_ref().map_or(0, |state| state.as_ref().map_or(0, Bytes::len))
    }
}

/// The components that have left, and with what.
#[derive(Clone, Debug, Default)]
pub(super) struct Left {
    kept: BTreeMap<ComponentId, Kept>,
    /// Oldest first; one that was forgotten meanwhile has another time or is not there.
    order: VecDeque<(Millis, ComponentId)>,
    bytes: usize,
    /// Of which there is something else to keep than before.
    changed: BTreeSet<ComponentId>,
}

impl Left {
    fn keep(&mut self, now: Millis, id: ComponentId, epoch: u64, legacy: Legacy) {
        self.forget(id);
        let kept = Kept { epoch, since: now, legacy };
        self.bytes += kept.size();
        self.kept.insert(id, kept);
        self.order.push_back((now, id));
        self.changed.insert(id);
        self.expire(now);
    }

    /// Something has left before a restart.
    pub(super) fn restore(&mut self, id: ComponentId, left: record::Left) {
        self.keep(Millis::default(), id, left.epoch, left.legacy.map_err(Error::not_found));
        self.changed.clear();
    }

    /// Of which there is something else to keep than at the last look.
    pub(super) fn changes(&mut self) -> BTreeSet<ComponentId> {
        std::mem::take(&mut self.changed)
    }

    /// What is to be kept; `None`: nothing.
    pub(super) fn record(&self, id: ComponentId) -> Option<record::Left> {
        let kept = self.kept.get(&id)?;
        let legacy = kept.legacy.clone().map_err(|loss| loss.message);
        Some(record::Left { epoch: kept.epoch, legacy })
    }

    /// Forgets what is too old or too much.
    pub(super) fn expire(&mut self, now: Millis) {
        while let Some((since, id)) = self.order.front().copied() {
            let is_it = self.kept.get(&id).is_some_and(|kept| kept.since == since);
            let is_over = since + KEPT_FOR <= now || self.kept.len() > KEPT || self.bytes > KEPT_BYTES;
            if is_it && !is_over {
                return;
            }
            self.order.pop_front();
            if is_it {
                self.forget(id);
            }
        }
    }

    fn forget(&mut self, id: ComponentId) {
        if let Some(kept) = self.kept.remove(&id) {
            self.bytes -= kept.size();
            self.changed.insert(id);
        }
    }

    pub(super) fn contains(&self, id: ComponentId) -> bool {
        self.kept.contains_key(&id)
    }

    /// The epoch in which a component left.
    pub(super) fn epoch(&self, id: ComponentId) -> Option<u64> {
        self.kept.get(&id).map(|kept| kept.epoch)
    }

    fn legacy(&self, id: ComponentId) -> Option<&Legacy> {
        self.kept.get(&id).map(|kept| &kept.legacy)
    }

    /// A component is started again: with what it left if it is the one that left, else that is of no use any more.
    pub(super) fn take(&mut self, id: ComponentId, epoch: u64) -> Legacy {
        let legacy = self.kept.get(&id).filter(|kept| kept.epoch == epoch).map(|kept| kept.legacy.clone());
        self.forget(id);
        legacy.unwrap_or(Ok(None))
    }
}

impl Component {
    /// What it leaves behind, once nothing of it is left.
    fn legacy(&self, leaving: Leaving) -> Legacy {
        match leaving.loss {
            Some(loss) => Err(loss),
            None => Ok(self.copy().or(leaving.state).or_else(|| self.state.clone())),
        }
    }

    /// A replica is gone: what it had saved, or was to begin with, is kept.
    pub(super) fn inherit(&mut self, slot: &Slot) {
        let keeps_state = !self.may_overlap();
        match (&mut self.leaving, slot.saved.clone()) {
            (Some(leaving), Some(saved)) => leaving.state = Some(saved),
            // It runs again when something comes for it.
            (None, Some(saved)) if keeps_state => self.state = Some(saved),
            _ => {}
        }
    }

    /// Its state cannot be had.
    pub(super) fn lose_state(&mut self, loss: Error) {
        match &mut self.leaving {
            Some(leaving) => leaving.loss = Some(loss),
            None => self.loss = Some(loss),
        }
    }
}

impl Engine {
    /// A component leaves for another domain.
    pub(super) fn release_component(&mut self, ticket: Ticket, id: ComponentId, grace: Duration) {
        if let Some(answer) = self.begin_to_leave(ticket, id, grace).unwrap_or_else(|error| Some(Err(error))) {
            self.reply(ticket, answer.map(Reply::Released));
        }
    }

    /// `None`: the answer follows.
    fn begin_to_leave(&mut self, ticket: Ticket, id: ComponentId, grace: Duration) -> Result<Option<Legacy>, Error> {
        let Some(component) = self.components.get(&id) else {
            return self.left.legacy(id).cloned().map(Some).ok_or_else(|| super::requests::unknown(id));
        };
        if component.leaving.is_some() {
            self.wait(id, Ask::Release, ticket)?;
            return Ok(None);
        }
        self.can_leave(component)?;
        self.wait(id, Ask::Release, ticket)?;
        self.leave(id, grace);
        Ok(None)
    }

    fn can_leave(&self, component: &Component) -> Result<(), Error> {
        let name = &component.name;
        if component.is_leaving {
            return Err(Error::unavailable(format!("'{name}' is being stopped")));
        }
        if component.may_overlap() {
            return Ok(());
        }
        for slot in component.slots.values() {
            let node = slot.instance().and_then(|instance| self.registry.at(instance.home));
            if let Some(plain) = node.filter(|node| !node.about.native) {
                return Err(Error::rejected(format!(
                    "the state of '{name}' does not travel: node {} speaks only EDGELESS 1.2 and cannot hand it over",
                    plain.about.node
                )));
            }
            // The node that ran it may have kept its state, and may come back.
            let is_known = slot.instance().is_some() || slot.saved.is_some();
            if component.is_born && !is_known {
                return Err(Error::unavailable(format!(
                    "'{name}' does not run at present, and what it knew may be on the node that ran it: try again when \
                     it runs, or stop the workflow and start it to begin anew"
                )));
            }
        }
        Ok(())
    }

    fn leave(&mut self, id: ComponentId, grace: Duration) {
        let Some(component) = self.components.get_mut(&id) else { return };
        component.is_leaving = true;
        component.leaving = Some(Leaving { grace, state: None, loss: None });
        let mut movers = Vec::new();
        for (_, slot) in component.slots.iter_mut() {
            (slot.replaces, slot.pin) = (None, None);
            movers.append(&mut slot.movers);
        }
        let gone = Error::unavailable(format!("'{}' leaves for another domain", component.name));
        for ticket in movers {
            self.reply(ticket, Err(gone.clone()));
        }
        let replicas: Vec<u32> =
            self.components.get(&id).into_iter().flat_map(|own| own.slots.keys().copied()).collect();
        for replica in replicas {
            self.let_go(id, replica, Fate::Go);
        }
        self.refresh_row(id);
        self.hurry(id);
    }

    /// Nothing is left of a component that was to leave: what it had is kept, and told.
    pub(super) fn has_left(&mut self, id: ComponentId, component: &Component) -> Option<Legacy> {
        let legacy = component.legacy(component.leaving.clone()?);
        self.left.keep(self.now, id, component.wanted_epoch, legacy.clone());
        Some(legacy)
    }

    /// A component that took back what it had left does not run after all: nobody else has that.
    pub(super) fn give_back(&mut self, id: ComponentId, component: &Component) {
        if let Some(state) = &component.state {
            self.left.keep(self.now, id, component.wanted_epoch, Ok(Some(state.clone())));
        }
    }

    /// A replica that moves is gone before it was asked for its state.
    pub(super) fn state_is_gone(&mut self, id: ComponentId, replica: u32, why: impl std::fmt::Display) {
        // What is kept elsewhere is still there.
        let is_kept = |policy| matches!(policy, StatePolicy::Global | StatePolicy::Replicated);
        if self.components.get(&id).is_some_and(|component| !component.state_policy().is_some_and(is_kept)) {
            self.state_is_lost(id, replica, why);
        }
    }

    /// A replica with a state that moves cannot be asked for it any more.
    pub(super) fn state_is_lost(&mut self, id: ComponentId, replica: u32, why: impl std::fmt::Display) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let is_leaving = component.leaving.is_some();
        if component.may_overlap() || (component.is_leaving && !is_leaving) {
            return;
        }
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        let moves = is_leaving || slot.fate == Fate::Move;
        if !moves || !matches!(slot.place, Place::On(_)) {
            return;
        }
        let loss = lost(why);
        // What it began with is older than what it knew.
        slot.saved = None;
        if !is_leaving {
            slot.detour.get_or_insert_with(|| loss.clone().context("it has moved and begins anew"));
        }
        component.lose_state(loss);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> ComponentId {
        ComponentId(Uuid::from_u128(n))
    }

    #[test]
    fn what_has_left_is_remembered_for_a_time_and_up_to_a_number_and_a_size() {
        let mut left = Left::default();
        let state = || Ok(Some(Bytes::from_static(b"1234")));
        left.keep(Millis(0), id(1), 7, state());
        left.keep(Millis(1000), id(2), 8, state());
        assert_eq!((left.legacy(id(1)), left.epoch(id(2)), left.bytes), (Some(&state()), Some(8), 8));
        left.expire(Millis(300_000));
        assert_eq!((left.contains(id(1)), left.contains(id(2)), left.bytes), (false, true, 4));

        // One that comes back and leaves again is as young as that.
        assert_eq!(left.take(id(2), 8), state());
        left.keep(Millis(300_500), id(2), 9, Ok(None));
        left.expire(Millis(301_000));
        assert_eq!((left.legacy(id(2)), left.bytes, left.order.len()), (Some(&Ok(None)), 0, 1));
        assert_eq!(left.take(id(2), 10), Ok(None), "newer than what has left");
        assert!(!left.contains(id(2)));

        for n in 0..=KEPT as u128 {
            left.keep(Millis(301_000), id(n), 1, Ok(None));
        }
        assert_eq!((left.kept.len(), left.contains(id(0)), left.contains(id(1))), (KEPT, false, true));
        left.keep(Millis(301_001), id(5000), 1, Ok(Some(vec![0; KEPT_BYTES - 1].into())));
        left.keep(Millis(301_001), id(5001), 1, state());
        assert_eq!((left.contains(id(5000)), left.contains(id(5001)), left.bytes), (false, true, 4));
        assert!(left.order.len() <= KEPT + 1);
    }
}
