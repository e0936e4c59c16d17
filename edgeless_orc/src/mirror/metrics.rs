//! What monitoring sees of the export to Redis.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    database: &'static str,
}

/// Gauges and counters; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    connected: Family<Of, Gauge<u64, AtomicU64>>,
    failures: Family<Of, Counter>,
    /// Keys of the mirror that were set or removed.
    pub(crate) written: Counter,
    /// Samples and lines of logs that were written.
    pub(crate) samples: Counter,
    /// Those that were not, for want of room or because they were unfit.
    pub(crate) samples_left_out: Counter,
    /// Intents that were carried out.
    pub(crate) intents: Counter,
    /// Those that were not.
    pub(crate) intents_refused: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("redis_connected", "Whether a database can be used, 0 or 1", self.connected.clone());
        registry.register("redis_failures", "Attempts to use a database that failed", self.failures.clone());
        registry.register("mirror_keys_written", "Keys of the mirror that were set or removed", self.written.clone());
        registry.register(
            "samples_written",
            "Samples and log entries of nodes that were written",
            self.samples.clone(),
        );
        let help = "Samples and log entries of nodes that were left out: too many, or unfit";
        registry.register("samples_left_out", help, self.samples_left_out.clone());
        registry.register("intents_obeyed", "Intents that were carried out", self.intents.clone());
        registry.register("intents_refused", "Intents that were not carried out", self.intents_refused.clone());
    }

    /// Whether a database can be used.
    pub(crate) fn set_connected(&self, database: &'static str, is_connected: bool) {
        self.connected.get_or_create_owned(&Of { database }).set(u64::from(is_connected));
    }

    /// An attempt to use a database failed.
    pub(crate) fn count_failure(&self, database: &'static str) {
        self.failures.get_or_create_owned(&Of { database }).inc();
    }
}
