//! The tasks of a daemon: each has a name and a policy, all have one end.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How a daemon ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything ended by itself.
    Clean,
    /// The time was up; these tasks were still running.
    Forced {
        /// Their names.
        tasks: Vec<String>,
    },
}

/// A vital task died, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub task: &'static str,
    /// Why it ended.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the task '{}' ended: {}", self.task, self.reason)
    }
}

/// The tasks of one daemon; clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Tasks {
    cancel: CancellationToken,
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<u64, &'static str>>>,
    failed: watch::Sender<Option<Failure>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            cancel: CancellationToken::new(),
            tracker: TaskTracker::new(),
            running: Arc::default(),
            failed: watch::Sender::new(None),
        }
    }
}

impl Tasks {
    /// Tells every task to end.
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Runs a task whose end, before the daemon is stopped, stops the daemon.
    pub fn vital<E: fmt::Display>(
        &self,
        task: &'static str,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let failed = self.failed.clone();
        let cancel = self.cancel.clone();
        self.spawn(task, async move {
            let reason = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(Ok(())) => "nothing is left to do".to_string(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it panicked".to_string(),
            };
            if !cancel.is_cancelled() {
                failed.send_replace(Some(Failure { task, reason }));
            }
        });
    }

    /// Runs a task that the daemon can live without; if it panics, that is logged.
    pub fn helper(&self, task: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn(task, async move {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                tracing::error!(task, "a task panicked");
            }
        });
    }

    fn spawn(&self, task: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let running = self.running.clone();
        let key = {
            let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
            let key = running.last_key_value().map_or(0, |(key, _)| key + 1);
            running.insert(key, task);
            key
        };
        self.tracker.spawn(async move {
            future.await;
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        });
    }

    /// Resolves when a vital task dies, and names it; never otherwise.
    pub async fn failed(&self) -> Failure {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(failure) = failed.borrow_and_update().clone() {
                return failure;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends all tasks and waits for them, at most for `grace`.
    pub async fn stop(&self, grace: Duration) -> Stopped {
        self.cancel.cancel();
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_ok() {
            return Stopped::Clean;
        }
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        Stopped::Forced { tasks: running.values().map(|name| name.to_string()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_vital_task_is_told_with_its_name() {
        let tasks = Tasks::default();
        tasks.vital("server", async { Err("the socket is gone") });
        assert_eq!(tasks.failed().await, Failure { task: "server", reason: "the socket is gone".into() });
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_in_time_is_named() {
        let tasks = Tasks::default();
        tasks.helper("stubborn", std::future::pending());
        let cancel = tasks.cancel().clone();
        tasks.helper("polite", async move { cancel.cancelled().await });
        assert_eq!(tasks.stop(Duration::from_secs(1)).await, Stopped::Forced { tasks: vec!["stubborn".into()] });
    }
}
