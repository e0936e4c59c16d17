//! Stacks: what guests run on.
//!
//! A guest needs a stack from the beginning of a handler to its end, also while it waits in a host call.
//! Wasmtime leaves it with the guest afterwards, for the next handler. That is quick as long as there
//! are plenty; but stacks cost memory and places in the kernel's table of mappings, so that there are
//! fewer of them than instances. Once half of them are given out, guests hand theirs back after each
//! handler.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The stacks of one engine.
#[derive(Clone, Debug)]
pub(super) struct Stacks {
    free: Arc<Semaphore>,
    total: usize,
}

/// The right to a stack.
#[derive(Debug)]
pub(super) struct Stack(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Stacks {
    pub(super) fn new(total: u32) -> Self {
        let total = total as usize;
        Self { free: Arc::new(Semaphore::new(total)), total }
    }

    /// How many there are.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// A stack, as soon as there is one. `None` never happens: nobody closes the semaphore.
    pub(super) async fn wait(&self) -> Option<Stack> {
        self.free.clone().acquire_owned().await.ok().map(Stack)
    }

    /// A stack, if there is one.
    pub(super) fn get(&self) -> Option<Stack> {
        self.free.clone().try_acquire_owned().ok().map(Stack)
    }

    /// Whether guests should not keep theirs.
    pub(super) fn are_scarce(&self) -> bool {
        self.free.available_permits() < self.total / 2
    }
}
