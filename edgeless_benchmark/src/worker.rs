//! Where measurements run that are part of what they measure.

use anyhow::{Context, Result};
use tokio::task::JoinSet;

/// Runs a future as a task among those of the platform: the main thread would have to be woken for each
/// step. It ends with the future that this is.
pub(crate) async fn on_worker<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mut task = JoinSet::new();
    task.spawn(future);
    task.join_next().await.context("there is one task")??
}
