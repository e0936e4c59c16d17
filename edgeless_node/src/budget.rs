//! Bounds the bytes that wait in queues, beside the number of events in them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Payloads below this are bounded well enough by their number.
const SMALL: usize = 1024;

/// The bytes that may wait in the queues of one component, or of one other node.
#[derive(Clone, Debug)]
pub struct Budget {
    kib: Arc<Semaphore>,
    all: u32,
}

/// The part of a budget that one payload uses, until it is dropped.
#[derive(Debug)]
pub struct Share(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let all = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Self { kib: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// The share of a payload of this size, if there is one now. A payload that is larger than the
    /// whole budget may have all of it.
    pub fn try_take(&self, bytes: usize) -> Option<Share> {
        if bytes < SMALL {
            return Some(Share(None));
        }
        self.kib.clone().try_acquire_many_owned(self.kib_of(bytes)).ok().map(|permit| Share(Some(permit)))
    }

    /// The share of a payload, as soon as there is one.
    pub async fn take(&self, bytes: usize) -> Share {
        match self.try_take(bytes) {
            Some(share) => share,
            // Fails only if the semaphore is closed, which nobody does.
            None => Share(self.kib.clone().acquire_many_owned(self.kib_of(bytes)).await.ok()),
        }
    }

    fn kib_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_payloads_share_and_small_ones_are_free() {
        let budget = Budget::new(4 << 10);
        let first = budget.try_take(3 << 10).unwrap();
        assert!(budget.try_take(2 << 10).is_none());
        assert!(budget.try_take(10).is_some());
        drop(first);
        assert!(budget.try_take(1 << 20).is_some(), "alone, anything fits");
    }
}
