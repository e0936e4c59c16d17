//! Where guests go on that burn their time slices: threads of the lowest priority.
//!
//! A handler starts where its event arrives, next to everything else that the node does. One that is
//! still computing when its slice is over goes on here, where it gets whatever time the machine has
//! left. The threads are made when they are first needed.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// The lowest priority that Unix knows.
const NICEST: i32 = 19;

/// The threads.
#[derive(Debug, Default)]
pub(super) struct Background(OnceLock<Option<Runtime>>);

impl Background {
    /// Where to spawn what may take its time; the runtime that this is called from if the machine has
    /// no room for more threads.
    pub(super) fn handle(&self) -> Handle {
        match self.0.get_or_init(start) {
            Some(runtime) => runtime.handle().clone(),
            None => Handle::current(),
        }
    }
}

fn start() -> Option<Runtime> {
    let built = Builder::new_multi_thread()
        .thread_name("wasm-background")
        .on_thread_start(|| {
            // On Linux this is the priority of the calling thread alone.
            if let Err(error) = rustix::process::setpriority_process(None, NICEST) {
                tracing::warn!(%error, "cannot lower the priority of a thread");
            }
        })
        .enable_time()
        .build();
    built.inspect_err(|error| tracing::warn!(%error, "no threads for guests that burn their time")).ok()
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(Some(runtime)) = self.0.take() {
            // To wait for guests here would block whoever drops the node.
            runtime.shutdown_background();
        }
    }
}
