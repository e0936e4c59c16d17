//! What became of an event, and whoever is told.

use crate::metrics::Dropped;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// A handler took it.
    Handled,
    /// Its time was up before a handler took it.
    Expired,
    /// No handler took it.
    Dropped(Dropped),
    /// Its node was lost with it: it may have been handled.
    Unknown,
    /// An EDGELESS 1.x node took it, and says no more.
    HandedOver,
}

/// Whoever sent an event, and is told its fate exactly once.
pub trait Ticket: Send + 'static {
    /// This is what became of it.
    fn settle(self, fate: Fate);
}
