//! The controller in numbers, for monitoring.
//!
//! The engine is read once a second, so that a monitor that asks often costs it nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edgeless_daemon::engine::Inbox;
use edgeless_daemon::status::Status;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Summary};

/// The last summary that was read, and what the engine does not know.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    summary: Mutex<Summary>,
    code_sent: AtomicU64,
}

impl Metrics {
    fn last(&self) -> Summary {
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a start that carries code.
    pub(crate) fn count_code(&self) {
        self.code_sent.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads the engine again and again, until cancelled.
pub(crate) async fn refresh(metrics: std::sync::Arc<Metrics>, inbox: Inbox<Engine>, cancel: CancellationToken) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = seconds.tick() => {}
        }
        if let Ok(summary) = inbox.read(|engine, _| engine.summary()).await {
            *metrics.summary.lock().unwrap_or_else(PoisonError::into_inner) = summary;
        }
    }
}

impl Status for Metrics {
    fn not_ready(&self) -> Option<String> {
        let Summary { domains_in_reach, domains, .. } = self.last();
        (domains_in_reach == 0).then(|| format!("no orchestration domain is in reach; {domains} are known"))
    }

    fn metrics(&self) -> String {
        let Summary { domains_in_reach, domains, workflows, started, refused } = self.last();
        let code_sent = self.code_sent.load(Ordering::Relaxed);
        format!(
            "\
# TYPE edgeless_controller_domains gauge
# HELP edgeless_controller_domains Orchestration domains that are known.
edgeless_controller_domains {domains}
# TYPE edgeless_controller_domains_in_reach gauge
# HELP edgeless_controller_domains_in_reach Orchestration domains that can be given work.
edgeless_controller_domains_in_reach {domains_in_reach}
# TYPE edgeless_controller_workflows gauge
# HELP edgeless_controller_workflows Workflows that run.
edgeless_controller_workflows {workflows}
# TYPE edgeless_controller_workflows_started counter
# HELP edgeless_controller_workflows_started Workflows that were started.
edgeless_controller_workflows_started_total {started}
# TYPE edgeless_controller_workflows_refused counter
# HELP edgeless_controller_workflows_refused Workflows that were refused.
edgeless_controller_workflows_refused_total {refused}
# TYPE edgeless_controller_code_sent counter
# HELP edgeless_controller_code_sent Starts that carried the code to a domain.
edgeless_controller_code_sent_total {code_sent}
# EOF
"
        )
    }
}
