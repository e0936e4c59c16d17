//! What monitoring sees of an orchestrator.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::engine::Note;

/// Counters and gauges, fed by what the engine says.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) nodes: Gauge<u64, AtomicU64>,
    spawned: Counter,
    refused: Counter,
    stopped: Counter,
    nodes_lost: Counter,
    code_sent: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("edgeless_orc");
        let nodes = Gauge::default();
        registry.register("nodes", "Nodes on which components can be placed", nodes.clone());
        let mut counter = |name, help| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let spawned = counter("components_spawned", "Instances that were started");
        let refused = counter("components_refused", "Starts that were refused");
        let stopped = counter("components_stopped", "Components that were stopped as asked");
        let nodes_lost = counter("nodes_lost", "Nodes that were silent, restarted or said goodbye");
        let code_sent = counter("code_sent", "Starts that carried the code to a node");
        Self { registry, nodes, spawned, refused, stopped, nodes_lost, code_sent }
    }

    /// Counts a start that carries code.
    pub(crate) fn count_code(&self) {
        self.code_sent.inc();
    }

    pub(crate) fn count(&self, note: &Note) {
        let counter = match note {
            Note::Spawned { .. } => &self.spawned,
            Note::Refused { .. } => &self.refused,
            Note::Stopped { .. } => &self.stopped,
            Note::NodeLost { .. } => &self.nodes_lost,
            Note::Provider(..)
            | Note::NodeAdded { .. }
            | Note::NodeFailing { .. }
            | Note::Waiting { .. }
            | Note::Cordoned { .. }
            | Note::Moving { .. }
            | Note::Scaled { .. }
            | Note::InstanceFailing { .. } => return,
        };
        counter.inc();
    }
}

impl edgeless_daemon::status::Status for Metrics {
    /// It can do its work whenever it runs: a domain without nodes is an answer, not a failure.
    fn not_ready(&self) -> Option<String> {
        None
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}
