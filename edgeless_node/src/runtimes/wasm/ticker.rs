//! The clock of time slices.
//!
//! A thread of its own moves the epoch of the engine on, because guests may keep every thread of
//! the runtime busy. It ticks only while a guest runs, and for a moment after, so that a node with
//! nothing to do does nothing and a busy one wakes no thread for each event. A guest is charged for the
//! ticks that pass while it runs, and for none that pass while it waits.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
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
}

#[derive(Debug)]
struct Shared {
    /// How often it ticked.
    ticks: AtomicU64,
    /// A guest ran since the last tick. Mostly read, so that guests on several processors do not wait for
    /// each other.
    is_used: AtomicBool,
    parked: AtomicBool,
    ended: AtomicBool,
    /// Who ticks; known once it does.
    thread: OnceLock<Thread>,
}

impl Shared {
    /// A guest runs: the clock has to tick.
    fn wake(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::SeqCst);
            if self.parked.load(Ordering::SeqCst)
                && let Some(thread) = self.thread.get()
            {
                thread.unpark();
            }
        }
    }
}

impl Ticker {
    /// Starts the thread.
    ///
    /// # Errors
    /// The machine has no room for a thread.
    pub(super) fn start(engine: Engine) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            ticks: AtomicU64::new(0),
            is_used: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let seen = shared.clone();
        let spawned = thread::Builder::new().name("wasm-ticker".to_string()).spawn(move || tick(&engine, &seen));
        let handle = spawned.map_err(|error| Error::exhausted(format!("cannot start a thread: {error}")))?;
        // It does not park before it has ticked for a while.
        shared.thread.set(handle.thread().clone()).ok();
        Ok(Self { shared })
    }

    /// The clock of one guest.
    pub(super) fn clock(&self) -> Clock {
        Clock(Arc::new(Time { shared: self.shared.clone(), charged: AtomicU64::new(0), met: AtomicBool::new(false) }))
    }

    /// Runs what enters a guest, with the clock ticking while it does.
    pub(super) async fn run<F: Future>(&self, clock: &Clock, guest: F) -> F::Output {
        let mut guest = pin!(guest);
        std::future::poll_fn(move |context| {
            self.shared.wake();
            clock.resume();
            guest.as_mut().poll(context)
        })
        .await
    }
}

/// Counts the ticks that pass while one guest runs.
#[derive(Clone, Debug)]
pub(super) struct Clock(Arc<Time>);

#[derive(Debug)]
struct Time {
    shared: Arc<Shared>,
    /// Up to which tick the guest was charged.
    charged: AtomicU64,
    /// Whether a tick met it, and nobody has asked since.
    met: AtomicBool,
}

impl Clock {
    /// The guest runs from now on: what passed while it waited is not charged.
    fn resume(&self) {
        self.0.charged.store(self.0.shared.ticks.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether the clock ticked while the guest ran. However often it did counts as one slice: the system
    /// may have let others run meanwhile.
    pub(super) fn charge(&self) -> bool {
        // It may be all that runs, for longer than the clock lingers.
        self.0.shared.wake();
        let now = self.0.shared.ticks.load(Ordering::Relaxed);
        let has_ticked = self.0.charged.swap(now, Ordering::Relaxed) != now;
        if has_ticked {
            self.0.met.store(true, Ordering::Relaxed);
        }
        has_ticked
    }

    /// Whether a tick met the guest since this was asked last.
    pub(super) fn take_met(&self) -> bool {
        self.0.met.load(Ordering::Relaxed) && self.0.met.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.shared.thread.get() {
            thread.unpark();
        }
    }
}

fn tick(engine: &Engine, shared: &Shared) {
    let mut idle = 0;
    while !shared.ended.load(Ordering::SeqCst) {
        idle = if shared.is_used.swap(false, Ordering::SeqCst) { 0 } else { idle + 1 };
        if idle > LINGER {
            shared.parked.store(true, Ordering::SeqCst);
            // Looked at again after the flag is up: whoever ran before it did not wake us.
            if !shared.is_used.load(Ordering::SeqCst) && !shared.ended.load(Ordering::SeqCst) {
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
