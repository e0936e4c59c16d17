//! Where guests go on that burn their time slices: threads that run when no other wants to.
//!
//! A handler starts where its event arrives, next to everything else that the node does. One that is
//! still computing when its slice is over goes on here, where it gets whatever time the machine has
//! left. The threads are made when they are first needed.
//!
//! Only the guest has to give way: what the node does on its behalf takes locks that others wait for, and
//! is done with the usual priority.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// A slice that takes longer than this was hardly run at all: the machine always has something else to do.
const STARVED: Duration = Duration::from_millis(100);
/// Slices after that in which a guest need not give way, so that it comes to its end or to its limit.
const CONSOLATION: u32 = 8;

thread_local! {
    /// Whether this thread gives way at present.
    static GIVES_WAY: Cell<bool> = const { Cell::new(false) };
}

/// The threads.
#[derive(Debug, Default)]
pub(super) struct Background(OnceLock<Option<Runtime>>);

impl Background {
    /// Goes on with a guest. Dropped, the result takes the guest with it at the end of its slice.
    pub(super) fn go_on<R: Send + 'static>(
        &self,
        guest: impl Future<Output = R> + Send + 'static,
    ) -> AbortOnDropHandle<R> {
        AbortOnDropHandle::new(self.handle().spawn(async move {
            let mut guest = pin!(guest);
            let mut as_usual = 0;
            std::future::poll_fn(move |context| {
                if as_usual > 0 {
                    as_usual -= 1;
                    return guest.as_mut().poll(context);
                }
                let began = Instant::now();
                set_gives_way(true);
                let _usual = Usual;
                let polled = guest.as_mut().poll(context);
                if began.elapsed() > STARVED {
                    as_usual = CONSOLATION;
                }
                polled
            })
            .await
        }))
    }

    /// Drops something that takes a while to drop.
    pub(super) fn dispose(&self, large: impl Send + 'static) {
        self.handle().spawn(async move { drop(large) });
    }

    /// The runtime that this is called from if the machine has no room for more threads.
    fn handle(&self) -> Handle {
        match self.0.get_or_init(start) {
            Some(runtime) => runtime.handle().clone(),
            None => Handle::current(),
        }
    }
}

fn start() -> Option<Runtime> {
    let built = Builder::new_multi_thread().thread_name("wasm-background").enable_all().build();
    built.inspect_err(|error| tracing::warn!(%error, "no threads for guests that burn their time")).ok()
}

/// Whether threads of this process may give way and then go on as usual. Linux lets only those do so that
/// have `CAP_SYS_NICE` or a limit of `nice` that allows it; for all others the threads are threads like any,
/// among which the system shares its time.
static MAY_GIVE_WAY: LazyLock<bool> = LazyLock::new(may_give_way);

/// Tries it with a thread that is not needed any more, since it may be stuck then.
fn may_give_way() -> bool {
    let probe = std::thread::spawn(|| set_policy(true) && set_policy(false));
    probe.join().unwrap_or(false)
}

/// The guest does not run on.
struct Usual;

impl Drop for Usual {
    fn drop(&mut self) {
        set_gives_way(false);
    }
}

/// Does something on behalf of a guest, with the usual priority.
pub(super) fn on_behalf<R>(act: impl FnOnce() -> R) -> R {
    if !GIVES_WAY.get() {
        return act();
    }
    set_gives_way(false);
    let done = act();
    set_gives_way(true);
    done
}

/// The same for what takes several steps.
pub(super) async fn steps_on_behalf<F: Future>(steps: F) -> F::Output {
    let mut steps = pin!(steps);
    std::future::poll_fn(move |context| on_behalf(|| steps.as_mut().poll(context))).await
}

/// Lets the calling thread run only while the machine has nothing else to do, or as usual. A merely low
/// priority is not enough: the kernel would let it finish its turn of some milliseconds before one that
/// wakes.
#[cfg(target_os = "linux")]
fn set_policy(gives_way: bool) -> bool {
    let policy = if gives_way { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    let priority = libc::sched_param { sched_priority: 0 };
    #[expect(unsafe_code, reason = "no crate that is well kept offers this call")]
    // SAFETY: 0 is the calling thread, and the parameter outlives the call, which only reads it.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const priority) };
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn set_policy(_: bool) -> bool {
    false
}

fn set_gives_way(gives_way: bool) {
    if *MAY_GIVE_WAY && set_policy(gives_way) {
        GIVES_WAY.set(gives_way);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(Some(runtime)) = self.0.take() {
            // To wait for guests here would block whoever drops the node.
            runtime.shutdown_background();
        }
    }
}
