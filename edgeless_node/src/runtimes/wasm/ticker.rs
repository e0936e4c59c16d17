//! The clock of time slices.
//!
//! A thread of its own moves the epoch of the engine on, because guests may keep every thread of
//! the runtime busy. It ticks only while a guest runs, and for a moment after, so that a node with
//! nothing to do does nothing and a busy one wakes no thread for each event. A guest is charged for the
//! ticks that pass while it runs, and for none that pass while it waits.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use edgeless_api::Error;
use wasmtime::Engine;

/// The length of a time slice.
pub(super) const SLICE: Duration = Duration::from_millis(10);
/// Ticks without a guest after which the clock stops.
const LINGER: u32 = 10;

/// The clock of one engine.
#[derive(Debug)]
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug)]
struct Shared {
    /// How often it ticked.
    ticks: AtomicU64,
    running: AtomicUsize,
    parked: AtomicBool,
    ended: AtomicBool,
}

impl Ticker {
    /// Starts the thread.
    ///
    /// # Errors
    /// The machine has no room for a thread.
    pub(super) fn start(engine: Engine) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            ticks: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let seen = shared.clone();
        let spawned = thread::Builder::new().name("wasm-ticker".to_string()).spawn(move || tick(&engine, &seen));
        let handle = spawned.map_err(|error| Error::exhausted(format!("cannot start a thread: {error}")))?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// The clock of one guest.
    pub(super) fn clock(&self) -> Clock {
        Clock { shared: self.shared.clone(), charged: Arc::default(), burned: Arc::default() }
    }

    /// Runs what enters a guest, with the clock ticking while it does.
    pub(super) async fn run<F: Future>(&self, clock: &Clock, guest: F) -> F::Output {
        let mut guest = pin!(guest);
        std::future::poll_fn(move |context| {
            let _running = self.running();
            clock.resume();
            guest.as_mut().poll(context)
        })
        .await
    }

    fn running(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running(&self.shared.running)
    }
}

/// Counts the ticks that pass while one guest runs.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    shared: Arc<Shared>,
    /// Up to which tick the guest was charged.
    charged: Arc<AtomicU64>,
    /// Whether it used up a slice and has not been asked since.
    burned: Arc<AtomicBool>,
}

impl Clock {
    /// The guest runs from now on: what passed while it waited is not charged.
    fn resume(&self) {
        self.charged.store(self.shared.ticks.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The ticks that passed while the guest ran and that it was not charged for yet.
    pub(super) fn charge(&self) -> u64 {
        let now = self.shared.ticks.load(Ordering::Relaxed);
        let ticks = now.saturating_sub(self.charged.swap(now, Ordering::Relaxed));
        if ticks > 0 {
            self.burned.store(true, Ordering::Relaxed);
        }
        ticks
    }

    /// Whether the guest used up a slice since this was asked last.
    pub(super) fn take_burned(&self) -> bool {
        self.burned.load(Ordering::Relaxed) && self.burned.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// A guest that runs; also when it panics, it runs no more.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &Engine, shared: &Shared) {
    let mut idle = 0;
    while !shared.ended.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) > 0 {
            idle = 0;
        } else {
            idle += 1;
        }
        if idle > LINGER {
            shared.parked.store(true, Ordering::SeqCst);
            // Looked at again after the flag is up: whoever ran before it did not wake us.
            if shared.running.load(Ordering::SeqCst) == 0 && !shared.ended.load(Ordering::SeqCst) {
                thread::park();
            }
            shared.parked.store(false, Ordering::SeqCst);
            idle = 0;
        }
        thread::sleep(SLICE);
        shared.ticks.fetch_add(1, Ordering::Relaxed);
        engine.increment_epoch();
    }
}
