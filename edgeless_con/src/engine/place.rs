//! A component in one domain: how far it is, and what the domain was told.

use bytes::Bytes;
use edgeless_api::component::{ComponentRef, Row};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::ComponentId;
use edgeless_daemon::engine::Millis;

use super::run::pause;

/// The most instances of a component that are heard of.
const MAX_INSTANCES: usize = 1000;
/// A domain counts the epochs of its rows below this many bits, and the controller its places above them,
/// so that a row of a later place is newer whatever the domains counted.
const COUNTED_BY_DOMAIN: u32 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is not in the domain.
    Absent,
    /// It was asked for and no answer came: it may be there.
    Unsure,
    /// It is there and lacks its outputs.
    Created,
    /// It has its outputs and emits nothing before the place it had before is gone.
    Held,
    /// It has its outputs.
    Wired,
    /// It may emit.
    Active,
    /// The domain has handed over its state and runs it no more.
    Released,
}

/// A component in one domain.
#[derive(Debug)]
pub(super) struct Place {
    /// Which of the workflow's domains that is.
    pub(super) site: usize,
    /// No other place of the component has or had the same.
    pub(super) epoch: u64,
    /// What the domain knows it by: the id of the component, unless the domain speaks only EDGELESS 1.2.
    pub(super) known_as: ComponentId,
    pub(super) step: Step,
    /// The domain must be told its outputs again.
    pub(super) is_stale: bool,
    /// The domain was told that others have outputs to it.
    pub(super) is_exported: bool,
    /// How many signs of life its domain had given when it last may have been started there.
    pub(super) started_at_sign: u64,
    /// The domain was asked to hand it over and may have done so.
    pub(super) may_be_gone: bool,
    /// The epoch under which an effect of it is under way.
    pub(super) busy: Option<u64>,
    pub(super) failures: u32,
    pub(super) retry_at: Millis,
    pub(super) trouble: String,
    /// Where the domain runs it, as it said last.
    pub(super) row: Option<Row>,
    /// How often others were told that it runs nowhere, or runs again, which its domain did not count.
    pub(super) uncounted: u64,
    /// The state that it is to begin with; `None`: what its domain knows.
    pub(super) state: Option<Bytes>,
}

impl Place {
    pub(super) fn new(site: usize, epoch: u64, id: ComponentId) -> Self {
        Self {
            site,
            epoch,
            known_as: id,
            step: Step::Absent,
            is_stale: false,
            is_exported: false,
            started_at_sign: 0,
            may_be_gone: false,
            busy: None,
            failures: 0,
            retry_at: Millis(0),
            trouble: String::new(),
            row: None,
            uncounted: 0,
            state: None,
        }
    }

    /// The domain may run it, or is about to.
    pub(super) fn is_anything(&self) -> bool {
        self.busy.is_some() || !matches!(self.step, Step::Absent | Step::Released)
    }

    /// The domain has restarted, as its last sign of life says, and yet may run it.
    ///
    /// The new process may have been there for as long as the old one had said nothing, and may have done all that
    /// was answered since. What was answered before that only the old one has done, if no sign of life waits to be taken
    /// note of for longer than a domain takes to restart.
    pub(super) fn may_be_in_new_process(&self, signs: u64) -> bool {
        !matches!(self.step, Step::Absent | Step::Released) && self.started_at_sign.saturating_add(1) >= signs
    }

    /// It has its outputs.
    pub(super) fn is_wired(&self) -> bool {
        matches!(self.step, Step::Held | Step::Wired | Step::Active)
    }

    pub(super) fn forget_failures(&mut self) {
        self.failures = 0;
        self.retry_at = Millis(0);
        self.trouble.clear();
    }

    pub(super) fn failed(&mut self, now: Millis, error: &Error) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + pause(self.failures);
        self.trouble.clone_from(&error.message);
    }

    /// The domain has lost it: it is to be created again.
    pub(super) fn begin_again(&mut self, epoch: u64, id: ComponentId) {
        // An effect that is under way is heard of yet, though its result does not count.
        let (busy, state, started_at_sign) = (self.busy, self.state.take(), self.started_at_sign);
        *self = Self { busy, state, started_at_sign, ..Self::new(self.site, epoch, id) };
    }

    /// The effect of a component has ended. `None`: it was none of this place; otherwise whether its result
    /// still counts.
    pub(super) fn finished(&mut self, epoch: u64) -> Option<bool> {
        self.busy.take_if(|busy| *busy == epoch)?;
        Some(self.epoch == epoch)
    }

    /// Takes note of where the domain runs it. True if that is new.
    pub(super) fn heard(&mut self, mut row: Row) -> bool {
        let counted = row.epoch & ((1 << COUNTED_BY_DOMAIN) - 1);
        match row.epoch >> COUNTED_BY_DOMAIN {
            // It counts from nothing, and knows nothing of places that the component had before.
            0 => row.epoch = self.first_epoch().saturating_add(counted),
            place if place < self.epoch => return false,
            _ => {}
        }
        let is_older = self.row.as_ref().is_some_and(|known| known.epoch > row.epoch || *known == row);
        if is_older || row.instances.len() > MAX_INSTANCES || self.step == Step::Absent {
            return false;
        }
        self.row = Some(row);
        true
    }

    /// Where it runs, as others are told: nowhere before the domain has said it, or while it is `parked`.
    pub(super) fn row(&self, id: ComponentId, parked: bool) -> Row {
        let nowhere = || Row::new(id, self.first_epoch().saturating_sub(1), Vec::new());
        let mut row = self.row.clone().unwrap_or_else(nowhere);
        row.epoch = row.epoch.saturating_add(self.uncounted);
        if parked { Row { moving: true, ..Row::new(id, row.epoch, Vec::new()) } } else { row }
    }

    /// Others are to be told that it runs nowhere, or that it does again: news to whoever knows where it was.
    pub(super) fn park(&mut self) {
        self.uncounted += 1;
    }

    fn first_epoch(&self) -> u64 {
        self.epoch.checked_shl(COUNTED_BY_DOMAIN).unwrap_or(u64::MAX)
    }
}

/// What a domain knows a component by, of an answer to its start.
pub(super) fn component_of(answer: Result<ComponentRef, Error>) -> Result<ComponentId, Error> {
    answer.and_then(|id| match id {
        ComponentRef::Component(id) => Ok(id),
        ComponentRef::Instance(id) => Err(Error::bug(format!("the orchestrator answered with an instance, {id}"))),
    })
}

/// Whether the same request may succeed later.
pub(super) fn may_pass(error: &Error) -> bool {
    matches!(error.code, Code::Unavailable | Code::Timeout)
}

#[cfg(test)]
mod tests {
    use edgeless_api::InstanceId;

    use super::*;

    fn place(epoch: u64) -> Place {
        Place { step: Step::Wired, ..Place::new(0, epoch, ComponentId::random()) }
    }

    #[test]
    fn a_row_of_a_later_place_is_newer_whatever_the_domains_count() {
        let id = ComponentId::random();
        let row = |epoch| Row::new(id, epoch, vec![InstanceId::NONE]);
        let (mut first, mut second) = (place(1), place(2));
        let unknown = first.row(id, false);
        assert!(first.heard(row(900)));
        let known = first.row(id, false);
        first.park();
        let parked = first.row(id, true);
        first.park();
        let again = first.row(id, false);
        assert!(first.heard(row(901)));
        let moved = first.row(id, false);
        assert!(second.heard(row(1)));
        let epochs = [&unknown, &known, &parked, &again, &moved, &second.row(id, false)].map(|row| row.epoch);
        assert!(epochs.is_sorted_by(|earlier, later| earlier < later), "{epochs:?}");
        assert!(unknown.instances.is_empty() && parked.instances.is_empty());
    }

    #[test]
    fn a_row_that_is_not_new_changes_nothing() {
        let id = ComponentId::random();
        let row = |epoch, count| Row::new(id, epoch, vec![InstanceId::NONE; count]);
        let mut own = place(3);
        assert!(own.heard(row(5, 1)) && !own.heard(row(5, 1)), "a repeat");
        assert!(own.heard(row(5, 2)), "an address more");
        assert!(!own.heard(row(4, 1)), "late");
        assert!(!own.heard(row(2 << 32, 1)), "of a place before");
        assert!(own.heard(row(3 << 32 | 6, 1)), "of a domain that knows its place");
        assert!(!own.heard(row(3 << 32 | 7, 2000)), "absurd");
        own.begin_again(4, id);
        assert!(!own.heard(row(3 << 32 | 8, 1)), "lost since");
    }
}
