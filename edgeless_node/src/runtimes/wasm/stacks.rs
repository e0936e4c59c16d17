//! Stacks: what guests run on.
//!
//! A guest needs a stack from the beginning of a handler to its end, also while it waits in a host call.
//! Wasmtime leaves it with the guest afterwards, for the next handler. That is quick, and a number of
//! guests may keep theirs so. But stacks cost memory and places in the kernel's table of mappings, so
//! that there are fewer of them than instances: all other guests borrow one for each handler.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Guests that keep their stack.
const KEPT: u32 = 256;

/// The stacks of one engine.
#[derive(Clone, Debug)]
pub(super) struct Stacks {
    to_lend: Arc<Semaphore>,
    to_keep: Arc<Semaphore>,
    /// How many are there to be lent.
    lent: u32,
}

/// The right to a stack.
#[derive(Debug)]
pub(super) enum Stack {
    /// For one handler.
    Lent(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit),
    /// For all handlers.
    Kept(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit),
}

impl Stacks {
    /// Stacks for so many guests at once, beside those that keep theirs.
    pub(super) fn new(lent: u32) -> Self {
        Self { to_lend: semaphore(lent), to_keep: semaphore(KEPT), lent }
    }

    /// How many there are in all.
    pub(super) fn total(lent: u32) -> u32 {
        lent.saturating_add(KEPT)
    }

    /// How many there are to be lent.
    pub(super) fn lent(&self) -> u32 {
        self.lent
    }

    /// A stack for one handler, as soon as there is one. `None` never happens: nobody closes the
    /// semaphore.
    pub(super) async fn wait(&self) -> Option<Stack> {
        self.to_lend.clone().acquire_owned().await.ok().map(Stack::Lent)
    }

    /// A stack for one handler, if there is one.
    pub(super) fn get(&self) -> Option<Stack> {
        self.to_lend.clone().try_acquire_owned().ok().map(Stack::Lent)
    }

    /// The right to keep a stack, if there is one.
    pub(super) fn keep(&self) -> Option<Stack> {
        self.to_keep.clone().try_acquire_owned().ok().map(Stack::Kept)
    }
}

fn semaphore(permits: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits as usize))
}
