//! Places: how many instances there may be.
//!
//! Two things bound them: what the operator allows, and how many mappings of memory the kernel allows a
//! process. A process that has used up its mappings can do next to nothing any more, so that instances
//! are refused before.

use std::sync::Arc;

use edgeless_api::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one instance takes at the most: its stack and heap before and after its data, its data, and what
/// is out of bounds beyond.
const MAPS_PER_INSTANCE: u32 = 4;
/// A stack and the page that guards it.
const MAPS_PER_STACK: u32 = 2;
/// What is left for everything else: code, threads, the heap, files.
const OTHER_MAPS: u32 = 4096;
/// The kernel's default.
const DEFAULT_MAPS: u32 = 65_530;

/// The places of one engine.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// What to say when there is none.
    limit: String,
}

/// The place of one instance.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Places {
    /// Places for so many instances, or for as many as the kernel has room for.
    pub(super) fn new(instances: u32, stacks: u32) -> Self {
        Self::within(instances, stacks, max_map_count())
    }

    fn within(instances: u32, stacks: u32, maps: u32) -> Self {
        let room = maps.saturating_sub(OTHER_MAPS).saturating_sub(stacks.saturating_mul(MAPS_PER_STACK));
        let mapped = (room / MAPS_PER_INSTANCE).max(1);
        let (places, limit) = if mapped < instances {
            let why =
                format!("{mapped} WebAssembly instances: a process has {maps} memory maps (sysctl vm.max_map_count)");
            (mapped, why)
        } else {
            (instances, format!("{instances} WebAssembly instances (wasm_runtime.max_instances)"))
        };
        Self { free: Arc::new(Semaphore::new(places as usize)), limit }
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
        let operator = Places::within(1, 16, 65_530);
        let _place = operator.take().unwrap();
        assert!(operator.take().unwrap_err().to_string().contains("wasm_runtime.max_instances"));
        let kernel = Places::within(1000, 16, 4096 + 32 + 4);
        let place = kernel.take().unwrap();
        assert!(kernel.take().unwrap_err().to_string().contains("vm.max_map_count"));
        drop(place);
        assert!(kernel.take().is_ok(), "a place is free again with its instance");
    }
}
