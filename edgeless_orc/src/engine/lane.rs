//! One call at a time, and a pause after each that fails.

use std::time::Duration;

use edgeless_daemon::engine::Millis;

use super::Op;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// The calls about one thing, of which there is one at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lane {
    under_way: Option<Op>,
    failures: u32,
    free_at: Millis,
}

/// Whether a lane can take a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Free,
    /// A call is under way; its end is the time to look again.
    Busy,
    /// The pause lasts until then.
    Until(Millis),
}

impl Lane {
    pub(crate) fn gate(&self, now: Millis) -> Gate {
        match self.under_way {
            Some(_) => Gate::Busy,
            None if now < self.free_at => Gate::Until(self.free_at),
            None => Gate::Free,
        }
    }

    pub(crate) fn under_way(&self) -> Option<Op> {
        self.under_way
    }

    pub(crate) fn begin(&mut self, op: Option<Op>) {
        self.under_way = op;
    }

    /// Whether this is the end of the call that is under way; any other was given up.
    pub(crate) fn end(&mut self, op: Op) -> bool {
        let is_current = self.under_way == Some(op);
        if is_current {
            self.under_way = None;
        }
        is_current
    }

    /// Gives up the call that is under way and any pause.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Ends a pause, and keeps count of what led to it.
    pub(crate) fn hurry(&mut self) {
        self.free_at = Millis::default();
    }

    pub(crate) fn recover(&mut self) {
        self.failures = 0;
    }

    /// Pauses, longer each time, and tells how often it failed in a row.
    pub(crate) fn back_off(&mut self, now: Millis) -> u32 {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.free_at = now + pause;
        self.failures
    }
}
