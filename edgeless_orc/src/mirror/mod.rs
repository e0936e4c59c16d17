//! The optional export of the domain to Redis, for other programs, and what they ask for there.
//!
//! ```text
//!  engine <- read - Keeper (one task for each database) <-> Redis
//!  nodes -> service -> Queue ---^      |
//!  engine <- ask -- intents <----------+
//! ```
//! The engine knows nothing of it: the keeper looks when the engine's generation changed. Whatever Redis
//! does or does not do, the domain goes on; what changed meanwhile is written afterwards.
//! - [`document`]: the keys and values of the domain, pure; [`samples`]: those of measurements, pure.
//! - [`keeper`]: the loop around one database; [`domain`]: what it does for the mirror; [`database`]: its
//!   connection; [`reports`]: what nodes measured and is still to be written; [`dataset`]: files instead.
//! - [`intent`]: what may be asked for, and the way to the engine; [`metrics`]: what monitoring sees.

mod database;
mod dataset;
mod document;
mod domain;
mod intent;
mod keeper;
mod metrics;
mod reports;
mod samples;

use edgeless_api::error::Error;
use edgeless_api::id::{DomainId, NodeId};
use edgeless_api::node::{Health, Performance};
use edgeless_daemon::Tasks;
use edgeless_daemon::engine::Inbox;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::engine::Engine;
use database::Database;
use dataset::Dataset;
use domain::Mirror;
use keeper::Keeper;
pub(crate) use metrics::Metrics;
use reports::Queue;

/// Intents that wait for those before them.
const INTENTS: usize = 64;

/// Where what nodes measure goes; clones lead to the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reports {
    queues: Vec<Queue>,
    metrics: Metrics,
}

impl Reports {
    /// Takes what a node told, to be written soon. Never waits.
    pub(crate) fn add(&self, node: NodeId, health: Option<Health>, performance: Performance) {
        if self.queues.is_empty() {
            return;
        }
        self.metrics.samples_left_out.inc_by(performance.left_out);
        let report = reports::Report::new(node, health, performance);
        self.queues.iter().for_each(|queue| queue.add(report.clone()));
    }
}

/// Starts what the configuration asks for, and returns where to tell what nodes measure.
pub(crate) fn start(
    config: &Config,
    inbox: &Inbox<Engine>,
    tasks: &Tasks,
    metrics: &Metrics,
) -> Result<Reports, Error> {
    let (proxy, collector) = (config.proxy.database(), config.collector.database());
    let keep = config.proxy.keep_for();
    let mut queues = Vec::new();
    if let Some(url) = &proxy {
        let (intents, incoming) = mpsc::channel(INTENTS);
        let (ask, counted, cancel) = (inbox.clone(), metrics.clone(), tasks.cancel().clone());
        tasks.helper("intents", async move {
            cancel.run_until_cancelled(intent::obey(incoming, ask, counted)).await;
        });
        if let Some(settings) = &config.proxy.dataset_settings {
            let dataset = Dataset::open(settings, Queue::new(metrics.clone()), inbox.clone())?;
            let (queue, cancel) = (dataset.queue(), tasks.cancel().clone());
            queues.push(queue);
            tasks.helper("dataset", async move {
                cancel.run_until_cancelled(dataset.run()).await;
            });
        }
        let domain = DomainId(config.general.domain_id.clone());
        let mirror = Mirror::new(domain, inbox.clone(), intents);
        let database = Database::new("proxy", client("proxy.redis_url", url)?, metrics.clone());
        queues.push(spawn("mirror", Keeper::new(database, keep, Some(mirror), metrics.clone()), tasks));
    }
    // One database is written to once.
    if let Some(url) = collector.filter(|url| proxy.as_ref() != Some(url)) {
        let database = Database::new("collector", client("collector.redis_url", &url)?, metrics.clone());
        queues.push(spawn("collector", Keeper::new(database, keep, None, metrics.clone()), tasks));
    }
    Ok(Reports { queues, metrics: metrics.clone() })
}

/// A client for a URL that the key of the configuration has. No error shows it: there may be a password
/// in it.
pub(crate) fn client(key: &str, url: &str) -> Result<redis::Client, Error> {
    const FORM: &str = "redis://[[<user>]:<password>@]<host>[:<port>][/<database>]";
    let refused = |reason: &dyn std::fmt::Display| Error::rejected(format!("{key}: {reason}: write {FORM}"));
    if !url.starts_with("redis://") {
        return Err(refused(&"it is no URL of a Redis server"));
    }
    redis::Client::open(url).map_err(|error| refused(&error))
}

fn spawn(task: &'static str, keeper: Keeper, tasks: &Tasks) -> Queue {
    let (queue, cancel) = (keeper.queue(), tasks.cancel().clone());
    tasks.helper(task, async move {
        cancel.run_until_cancelled(keeper.run()).await;
    });
    queue
}
