//! How the fate of an event gets from whoever handled it back to its link.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use edgeless_api::peer::Fate as Said;

use super::receiving::Receipt;
use crate::fate::Fate;
use crate::metrics::Dropped;

/// Where fates are put until the next frame takes them. Apart from the session, so that whoever
/// settles waits for nobody who reads or writes a frame.
#[derive(Debug, Default)]
pub struct Desk {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) settled: Vec<(Receipt, Said)>,
    /// Who is to be woken: whoever writes frames, or dials for them.
    pub(super) writer: Option<Waker>,
}

impl Desk {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the writer look at what there is.
    pub(super) fn wake(&self) {
        let writer = self.lock().writer.take();
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

/// The duty to say what became of an event. Dropped, it says that the target was being stopped.
#[derive(Debug)]
pub struct Settler {
    desk: Arc<Desk>,
    receipt: Receipt,
    fate: Fate,
}

impl Settler {
    pub(super) fn new(desk: &Arc<Desk>, receipt: Receipt) -> Self {
        Self { desk: desk.clone(), receipt, fate: Fate::Dropped(Dropped::Stopping) }
    }

    /// Says it.
    pub fn settle(mut self, fate: Fate) {
        self.fate = fate;
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        let mut desk = self.desk.lock();
        desk.settled.push((self.receipt, self.fate.into()));
        let writer = desk.writer.take();
        drop(desk);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
