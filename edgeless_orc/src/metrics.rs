//! What monitoring sees of an orchestrator.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::engine::{Fault, Note};
use crate::mirror;

/// What becomes of an event at the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Forwarded {
    /// The node of its target took it.
    HandedOver,
    /// Its target is not known here.
    UnknownAlias,
    /// Its target ran nowhere for too long.
    NoInstance,
    /// Nobody says where the node of its target is.
    NoAddress,
    /// Too many wait for the same node.
    QueueFull,
    /// The node of its target cannot be reached; it may have got it.
    Unreachable,
    /// The node of its target refused it.
    Refused,
    /// It would come back.
    Loop,
    /// It is for another node than this forwarder.
    Misaddressed,
    /// It answers a call that nobody waits for.
    UnknownCall,
    /// It answers a call that another one has.
    Forged,
    /// It cannot be understood.
    Malformed,
}

impl EncodeLabelValue for Forwarded {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::HandedOver => "handed over",
            Self::UnknownAlias => "unknown target",
            Self::NoInstance => "no instance",
            Self::NoAddress => "no address",
            Self::QueueFull => "queue full",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Loop => "loop",
            Self::Misaddressed => "misaddressed",
            Self::UnknownCall => "unknown call",
            Self::Forged => "forged reply",
            Self::Malformed => "malformed",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: Forwarded,
}

impl EncodeLabelValue for Fault {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Id => "id",
            Self::Key => "key",
            Self::Address => "address",
            Self::Limit => "limit",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    reason: Fault,
}

/// Counters and gauges, fed by what the engine says.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) nodes: Gauge<u64, AtomicU64>,
    spawned: Counter,
    refused: Counter,
    stopped: Counter,
    nodes_lost: Counter,
    nodes_refused: Family<FaultLabels, Counter>,
    code_sent: Counter,
    forwarded: Family<OutcomeLabels, Counter>,
    pub(crate) mirror: mirror::Metrics,
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
        let nodes_refused = Family::<FaultLabels, Counter>::default();
        for reason in [Fault::Id, Fault::Key, Fault::Address, Fault::Limit] {
            drop(nodes_refused.get_or_create(&FaultLabels { reason }));
        }
        registry.register(
            "nodes_refused",
            "Registrations that were refused, by what they have wrong",
            nodes_refused.clone(),
        );
        let forwarded = Family::default();
        registry.register("events", "Events at the forwarder, by what became of them", forwarded.clone());
        let mirror = mirror::Metrics::default();
        mirror.register(&mut registry);
        Self { registry, nodes, spawned, refused, stopped, nodes_lost, nodes_refused, code_sent, forwarded, mirror }
    }

    /// Counts an event at the forwarder.
    pub(crate) fn count_forwarded(&self, outcome: Forwarded) {
        self.forwarded.get_or_create(&OutcomeLabels { outcome }).inc();
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
            Note::NodeRefused { fault, .. } => {
                self.nodes_refused.get_or_create(&FaultLabels { reason: *fault }).inc();
                return;
            }
            Note::Provider(..)
            | Note::NodeAdded { .. }
            | Note::Forgotten { .. }
            | Note::Suspected { .. }
            | Note::Acquitted { .. }
            | Note::Adopted { .. }
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
