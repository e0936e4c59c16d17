//! What the node measures, as OpenMetrics text.
//!
//! Series of single instances are kept up to a limit; beyond it an instance is counted under its
//! class (`function_id="other"`), so that workflows cannot grow the memory of a monitor.

use std::sync::{Mutex, PoisonError};

use edgeless_api::NodeId;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

pub use crate::measures::InstanceMetrics;
use crate::measures::Instances;
use crate::samples::Samples;
use crate::starts::StartTimes;

/// Why an event did not reach a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue, thiserror::Error)]
pub enum Dropped {
    /// No such instance runs on the node.
    #[error("there is no such instance")]
    UnknownTarget,
    /// The node of the target is not known here.
    #[error("the node of the target is not known")]
    UnknownPeer,
    /// The node of the target was lost or did not answer.
    #[error("the node of the target cannot be reached")]
    PeerLost,
    /// The component has no instance at present.
    #[error("the target runs nowhere at present")]
    NoInstance,
    /// The target did not take the event in time.
    #[error("the mailbox of the target is full")]
    MailboxFull,
    /// The instance sent itself more than it handles.
    #[error("too many events to itself")]
    SelfFull,
    /// Too much was emitted before the workflow was wired.
    #[error("too many events before the workflow is wired")]
    HeldFull,
    /// Too many delayed events are pending.
    #[error("too many delayed events")]
    DelayedFull,
    /// The sender of a delayed event was stopped or restarted before it was due.
    #[error("the sender is gone")]
    SenderGone,
    /// The output leads nowhere.
    #[error("the output leads nowhere")]
    Unmapped,
    /// The payload is over the limit.
    #[error("the payload is larger than the limit")]
    TooLarge,
    /// The target failed again and again and takes no events.
    #[error("the target has failed")]
    TargetFailed,
    /// The target is being stopped.
    #[error("the target is being stopped")]
    Stopping,
    /// The time of the call was up before it was handled.
    #[error("the time of the call is up")]
    Expired,
    /// Its sender has too many events that must arrive and have not.
    #[error("too many events wait in the outbox")]
    OutboxFull,
    /// It cannot be written down, and so it is not sent.
    #[error("it cannot be written down")]
    NotKept,
    /// It was tried as often as events are, and put aside.
    #[error("it is a dead letter")]
    DeadLetter,
}

impl Dropped {
    /// All causes.
    pub const ALL: [Self; 17] = [
        Self::UnknownTarget,
        Self::UnknownPeer,
        Self::PeerLost,
        Self::NoInstance,
        Self::MailboxFull,
        Self::SelfFull,
        Self::HeldFull,
        Self::DelayedFull,
        Self::SenderGone,
        Self::Unmapped,
        Self::TooLarge,
        Self::TargetFailed,
        Self::Stopping,
        Self::Expired,
        Self::OutboxFull,
        Self::NotKept,
        Self::DeadLetter,
    ];

    /// Its name in books and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownTarget => "UnknownTarget",
            Self::UnknownPeer => "UnknownPeer",
            Self::PeerLost => "PeerLost",
            Self::NoInstance => "NoInstance",
            Self::MailboxFull => "MailboxFull",
            Self::SelfFull => "SelfFull",
            Self::HeldFull => "HeldFull",
            Self::DelayedFull => "DelayedFull",
            Self::SenderGone => "SenderGone",
            Self::Unmapped => "Unmapped",
            Self::TooLarge => "TooLarge",
            Self::TargetFailed => "TargetFailed",
            Self::Stopping => "Stopping",
            Self::Expired => "Expired",
            Self::OutboxFull => "OutboxFull",
            Self::NotKept => "NotKept",
            Self::DeadLetter => "DeadLetter",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: Dropped,
}

/// The metrics of one node.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    instances: Instances,
    dropped: Family<CauseLabels, Counter>,
    refused: Counter,
    requests_refused: Family<StatusLabels, Counter>,
    starts: StartTimes,
    samples: Samples,
}

impl Metrics {
    /// Metrics with series for at most `max_series` single instances.
    pub fn new(node: NodeId, max_series: usize) -> Self {
        Self::with_samples(node, max_series, Samples::default())
    }

    /// The same, where what is measured of single instances is also noted one by one.
    pub fn with_samples(node: NodeId, max_series: usize, samples: Samples) -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            instances: Instances::new(node, max_series, samples.clone()),
            dropped: Family::default(),
            refused: Counter::default(),
            requests_refused: Family::default(),
            starts: StartTimes::new(node).with_samples(samples.clone()),
            samples,
        };
        {
            let mut registry = metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry.register_collector(Box::new(metrics.instances.clone()));
            registry.register("events_dropped", "Events that no handler took, by cause", metrics.dropped.clone());
            registry.register("events_refused", "Events from other nodes that were malformed", metrics.refused.clone());
            registry.register(
                "requests_refused",
                "HTTP requests that the ingress answered with an error, by its status",
                metrics.requests_refused.clone(),
            );
            metrics.starts.register(&mut registry);
        }
        metrics
    }

    /// The metrics as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(error) => format!("# the metrics cannot be written: {error}\n"),
        }
    }

    /// What is measured of single instances, one by one.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// What functions take before their first event.
    pub fn starts(&self) -> &StartTimes {
        &self.starts
    }

    /// Counts an event that no handler took.
    pub fn drop_event(&self, cause: Dropped) {
        self.dropped.get_or_create_owned(&CauseLabels { cause }).inc();
    }

    /// Counts an event from another node that was malformed or not for this node.
    pub fn refuse_event(&self) {
        self.refused.inc();
    }

    /// Counts an HTTP request that the ingress answered with an error of its own.
    pub fn refuse_request(&self, status: u16) {
        self.requests_refused.get_or_create_owned(&StatusLabels { status: u32::from(status) }).inc();
    }

    /// Single instances.
    pub fn instances(&self) -> &Instances {
        &self.instances
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use edgeless_api::InstanceId;

    use super::*;
    use crate::books::Ledger;
    use crate::event::EventKind;
    use crate::fate::{Fate, Ticket as _};

    #[test]
    fn series_are_bounded_and_forgotten() {
        let metrics = Metrics::new(NodeId::random(), 1);
        let (first, second) = (InstanceId::random(NodeId::random()), InstanceId::random(NodeId::random()));
        let ledger = Arc::new(Ledger::default());
        let one = metrics.instances().add(first, "RUST_WASM", ledger.clone());
        let two = metrics.instances().add(second, "RUST_WASM", Arc::default());
        one.begin(Duration::ZERO);
        one.end(EventKind::Cast, Duration::from_millis(1));
        two.begin(Duration::ZERO);
        two.cut_off();
        ledger.of("out").open().settle(Fate::Handled);
        let text = metrics.text();
        assert!(text.contains(&first.function.to_string()), "{text}");
        assert!(!text.contains(&second.function.to_string()), "{text}");
        assert!(text.contains("function_id=\"other\""), "{text}");
        assert!(text.contains("events_handled_total 1"), "{text}");
        assert!(text.contains("output=\"out\",fate=\"handled\"} 1"), "{text}");
        assert!(text.contains("events_in_flight 0"), "{text}");
        metrics.instances().retire(&one);
        let text = metrics.text();
        assert!(!text.contains(&first.function.to_string()));
        assert!(text.contains("events_handled_total 1"), "what was handled stays counted: {text}");
        metrics.instances().retire(&two);
        let others = "transfer_times_count{node_id=\"";
        assert!(metrics.text().contains(others), "nor do the series of all others go back");
    }
}
