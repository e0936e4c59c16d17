//! What the node measures, as OpenMetrics text.
//!
//! Series of single instances are kept up to a limit; beyond it an instance is counted under its
//! class (`function_id="other"`), so that workflows cannot grow the memory of a monitor.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::{InstanceId, NodeId};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::event::EventKind;
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
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabels {
    node_id: String,
    function_type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabels {
    node_id: String,
    function_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExecutionLabels {
    node_id: String,
    function_id: String,
    function_type: String,
    invocation_type: InvocationType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum InvocationType {
    Cast,
    Call,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: Dropped,
}

/// Seconds. From 0.1 on those that dashboards for EDGELESS 1.2 know; below, where functions are.
const BUCKETS: [f64; 16] =
    [0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// The metrics of one node.
#[derive(Debug)]
pub struct Metrics {
    node: NodeId,
    registry: Mutex<Registry>,
    function_count: Family<TypeLabels, Gauge>,
    execution_times: Family<ExecutionLabels, Histogram, fn() -> Histogram>,
    transfer_times: Family<InstanceLabels, Histogram, fn() -> Histogram>,
    handled: Counter,
    restarts: Counter,
    dropped: Family<CauseLabels, Counter>,
    in_flight: Gauge<i64, AtomicI64>,
    refused: Counter,
    requests_refused: Family<StatusLabels, Counter>,
    starts: StartTimes,
    series: AtomicUsize,
    max_series: usize,
}

impl Metrics {
    /// Metrics with series for at most `max_series` single instances.
    pub fn new(node: NodeId, max_series: usize) -> Self {
        let metrics = Self {
            node,
            registry: Mutex::default(),
            function_count: Family::default(),
            execution_times: Family::new_with_constructor(histogram),
            transfer_times: Family::new_with_constructor(histogram),
            handled: Counter::default(),
            restarts: Counter::default(),
            dropped: Family::default(),
            in_flight: Gauge::default(),
            refused: Counter::default(),
            requests_refused: Family::default(),
            starts: StartTimes::new(node),
            series: AtomicUsize::new(0),
            max_series,
        };
        {
            let mut registry = metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry.register("function_count", "Instances that run", metrics.function_count.clone());
            registry.register("execution_times", "Duration of handlers, seconds", metrics.execution_times.clone());
            registry.register(
                "transfer_times",
                "Time from the making of an event to its handler, seconds",
                metrics.transfer_times.clone(),
            );
            registry.register("events_handled", "Events that a handler took", metrics.handled.clone());
            registry.register("events_dropped", "Events that no handler took, by cause", metrics.dropped.clone());
            registry.register("events_in_flight", "Events that handlers have in hand", metrics.in_flight.clone());
            registry.register("events_refused", "Events from other nodes that were malformed", metrics.refused.clone());
            registry.register(
                "requests_refused",
                "HTTP requests that the ingress answered with an error, by its status",
                metrics.requests_refused.clone(),
            );
            metrics.starts.register(&mut registry);
            registry.register("instance_restarts", "Instances that were started again", metrics.restarts.clone());
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

    /// The measures of one more instance.
    pub fn instance(self: &Arc<Self>, id: InstanceId, function_type: &str) -> InstanceMetrics {
        let node_id = self.node.to_string();
        let function_type = function_type.to_string();
        let single = self.series.fetch_add(1, Ordering::Relaxed) < self.max_series;
        let function_id = if single { id.function.to_string() } else { "other".to_string() };
        let execution = |invocation_type| ExecutionLabels {
            node_id: node_id.clone(),
            function_id: function_id.clone(),
            function_type: function_type.clone(),
            invocation_type,
        };
        let labels = Labels {
            cast: execution(InvocationType::Cast),
            call: execution(InvocationType::Call),
            transfer: InstanceLabels { node_id: node_id.clone(), function_id: function_id.clone() },
            single,
        };
        let count = self.function_count.get_or_create_owned(&TypeLabels { node_id, function_type });
        count.inc();
        InstanceMetrics {
            cast: self.execution_times.get_or_create_owned(&labels.cast),
            call: self.execution_times.get_or_create_owned(&labels.call),
            transfer: self.transfer_times.get_or_create_owned(&labels.transfer),
            all_handled: self.handled.clone(),
            all_restarts: self.restarts.clone(),
            in_flight: self.in_flight.clone(),
            count,
            labels,
            node: self.clone(),
            is_retired: AtomicBool::new(false),
            handled: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
        }
    }

    fn forget(&self, instance: &InstanceMetrics) {
        if instance.is_retired.swap(true, Ordering::Relaxed) {
            return;
        }
        instance.count.dec();
        self.series.fetch_sub(1, Ordering::Relaxed);
        if instance.labels.single {
            self.execution_times.remove(&instance.labels.cast);
            self.execution_times.remove(&instance.labels.call);
            self.transfer_times.remove(&instance.labels.transfer);
        }
    }
}

#[derive(Debug)]
struct Labels {
    cast: ExecutionLabels,
    call: ExecutionLabels,
    transfer: InstanceLabels,
    single: bool,
}

/// The measures of one instance; its series go with it.
#[derive(Debug)]
pub struct InstanceMetrics {
    node: Arc<Metrics>,
    is_retired: AtomicBool,
    cast: Histogram,
    call: Histogram,
    transfer: Histogram,
    all_handled: Counter,
    all_restarts: Counter,
    in_flight: Gauge<i64, AtomicI64>,
    count: Gauge,
    labels: Labels,
    handled: AtomicU64,
    dropped: AtomicU64,
    restarts: AtomicU64,
}

impl Drop for InstanceMetrics {
    fn drop(&mut self) {
        self.retire();
    }
}

/// An event that a handler has in hand. Dropped before its end, it counts as lost: the handler was cut
/// off.
#[derive(Debug)]
pub struct InHand<'m> {
    instance: &'m InstanceMetrics,
    is_ended: bool,
}

impl InHand<'_> {
    /// The handler is through with it.
    pub fn end(mut self, kind: EventKind, execution: Duration) {
        self.is_ended = true;
        let instance = self.instance;
        let times = match kind {
            EventKind::Cast => &instance.cast,
            EventKind::Call => &instance.call,
        };
        times.observe(execution.as_secs_f64());
        instance.all_handled.inc();
        instance.handled.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.instance.in_flight.dec();
        if !self.is_ended {
            self.instance.count_dropped();
            self.instance.node.drop_event(Dropped::Stopping);
        }
    }
}

impl InstanceMetrics {
    /// The instance is gone, and its series with it. Not left to the drop: others may hold on to what
    /// they count in.
    pub fn retire(&self) {
        self.node.forget(self);
    }

    /// A handler takes an event that needed `transfer` to get here.
    pub fn begin(&self, transfer: Duration) -> InHand<'_> {
        self.transfer.observe(transfer.as_secs_f64());
        self.in_flight.inc();
        InHand { instance: self, is_ended: false }
    }

    /// An event to the instance was dropped.
    pub fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The instance was started again.
    pub fn count_restart(&self) {
        self.all_restarts.inc();
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Events that handlers took.
    pub fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    /// Events to the instance that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How often the instance was started again.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded_and_forgotten() {
        let metrics = Arc::new(Metrics::new(NodeId::random(), 1));
        let (first, second) = (InstanceId::random(metrics.node), InstanceId::random(metrics.node));
        let one = metrics.instance(first, "RUST_WASM");
        let two = metrics.instance(second, "RUST_WASM");
        one.begin(Duration::ZERO).end(EventKind::Cast, Duration::from_millis(1));
        drop(two.begin(Duration::ZERO));
        let text = metrics.text();
        assert!(text.contains(&first.function.to_string()), "{text}");
        assert!(!text.contains(&second.function.to_string()), "{text}");
        assert!(text.contains("function_id=\"other\""), "{text}");
        assert!(text.contains("events_handled_total 1"), "{text}");
        assert!(text.contains("events_dropped_total{cause=\"Stopping\"} 1"), "{text}");
        assert!(text.contains("events_in_flight 0"), "{text}");
        one.retire();
        assert!(!metrics.text().contains(&first.function.to_string()));
    }
}
