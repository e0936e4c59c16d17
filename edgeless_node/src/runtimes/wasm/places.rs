//! Places: how many instances there may be.
//!
//! Two things bound them: what the operator allows, and how many mappings of memory the kernel allows a
//! process. A process that has used up its mappings can do next to nothing any more, so that instances
//! are refused before.

use std::sync::Arc;

use edgeless_api::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one instance takes at the most: in its memory what is before its data, its data, what is after,
/// and what is out of bounds; and its stack, and the page that guards it.
const MAPS_PER_INSTANCE: u32 = 6;
/// What is left for everything else: code, threads, the heap, files.
const OTHER_MAPS: u32 = 4096;
/// The kernel's default.
const DEFAULT_MAPS: u32 = 65_530;

/// The places of one engine.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    total: u32,
    /// What to say when there is none.
    limit: String,
}

/// The place of one instance.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Places {
    /// Places for so many instances, or for as many as the kernel has room for.
    pub(super) fn new(instances: u32) -> Self {
        Self::within(instances, max_map_count())
    }

    /// How many there are.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    fn within(instances: u32, maps: u32) -> Self {
        let mapped = (maps.saturating_sub(OTHER_MAPS) / MAPS_PER_INSTANCE).max(1);
        let (total, limit) = if mapped < instances {
            let why =
                format!("{mapped} WebAssembly instances: a process has {maps} memory maps (sysctl vm.max_map_count)");
            (mapped, why)
        } else {
            (instances, format!("{instances} WebAssembly instances (wasm_runtime.max_instances)"))
        };
        Self { free: Arc::new(Semaphore::new(total as usize)), total, limit }
    }

    /// A place.
    ///
    /// # Errors
    /// There is none, with the limit that is met.
    pub(super) fn take(&self) -> Result<Place, Error> {
        let taken = self.free.clone().try_acquire_owned();
        taken.map(Place).map_err(|_| Error::exhausted(format!("the node has room for {}", self.limit)))
    }
}

fn max_map_count() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT_MAPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_that_is_met_is_named() {
        let operator = Places::within(1, 65_530);
        let _place = operator.take().unwrap();
        assert!(operator.take().unwrap_err().to_string().contains("wasm_runtime.max_instances"));
        let kernel = Places::within(1000, 4096 + 6);
        let place = kernel.take().unwrap();
        assert!(kernel.take().unwrap_err().to_string().contains("vm.max_map_count"));
        drop(place);
        assert!(kernel.take().is_ok(), "a place is free again with its instance");
        assert!(Places::within(10_000, 65_530).total() == 10_000, "the kernel's default is enough for these");
    }
}
