//! What is measured of single instances, and how it is shown.
//!
//! Each instance has counters of its own, which nobody else writes: an event costs no shared cache line.
//! They are added up when somebody looks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::node::Phase;
use edgeless_api::{InstanceId, NodeId};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;

use crate::books::Ledger;
use crate::event::EventKind;
use crate::samples::Samples;

/// Upper ends of the buckets, nanoseconds. From 0.1 s on those that dashboards for EDGELESS 1.2 know;
/// below, where functions are.
const BUCKETS: [u64; 16] = [
    10_000,
    30_000,
    100_000,
    300_000,
    1_000_000,
    10_000_000,
    100_000_000,
    200_000_000,
    300_000_000,
    400_000_000,
    500_000_000,
    600_000_000,
    700_000_000,
    800_000_000,
    900_000_000,
    1_000_000_000,
];

/// What instances beyond the limit are counted under.
const OTHER: &str = "other";

/// How long something took, as a histogram.
#[derive(Debug, Default)]
struct Times {
    /// One for each bucket, and one for what is longer.
    counts: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Times {
    fn observe(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|end| nanoseconds <= *end).unwrap_or(BUCKETS.len());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn add(&self, other: &Self) {
        for (count, more) in self.counts.iter().zip(&other.counts) {
            count.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(other.nanoseconds.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let ends = BUCKETS.iter().map(|end| Duration::from_nanos(*end).as_secs_f64()).chain([f64::MAX]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = ends.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)
    }
}

#[derive(Debug, Default)]
struct AllTimes {
    cast: Times,
    call: Times,
    transfer: Times,
}

/// The measures of one instance.
#[derive(Debug)]
pub struct InstanceMetrics {
    id: InstanceId,
    function_type: String,
    ledger: Arc<Ledger>,
    /// Shown by itself, and not with all others of its type.
    is_single: bool,
    times: AllTimes,
    begun: AtomicU64,
    cut_off: AtomicU64,
    dropped: AtomicU64,
    restarts: AtomicU64,
    samples: Samples,
}

impl InstanceMetrics {
    /// A handler takes an event that needed `transfer` to get here.
    pub fn begin(&self, transfer: Duration) {
        self.times.transfer.observe(transfer);
        self.samples.add(self.id.function, Phase::Transfer, transfer);
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// The handler is through with it.
    pub fn end(&self, kind: EventKind, execution: Duration) {
        match kind {
            EventKind::Cast => self.times.cast.observe(execution),
            EventKind::Call => self.times.call.observe(execution),
        }
        self.samples.add(self.id.function, Phase::Execution, execution);
    }

    /// The stop handler is through.
    pub fn stop(&self, took: Duration) {
        self.samples.add(self.id.function, Phase::Stop, took);
    }

    /// The handler was cut off in the middle of it.
    pub fn cut_off(&self) {
        self.cut_off.fetch_add(1, Ordering::Relaxed);
        self.count_dropped();
    }

    /// An event to the instance was dropped.
    pub fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The instance was started again.
    pub fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Events that handlers took.
    pub fn handled(&self) -> u64 {
        self.times.cast.count() + self.times.call.count()
    }

    /// Events to the instance that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How often the instance was started again.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    pub(crate) fn in_flight(&self) -> u64 {
        let ended = self.handled() + self.cut_off.load(Ordering::Relaxed);
        self.begun.load(Ordering::Relaxed).saturating_sub(ended)
    }
}

/// All instances of a node, and what is left of those that are gone.
#[derive(Clone, Debug)]
pub struct Instances(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: NodeId,
    max_series: usize,
    samples: Samples,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    live: BTreeMap<InstanceId, Arc<InstanceMetrics>>,
    singles: usize,
    /// By type, of those that were not shown by themselves: such series never go back.
    gone: BTreeMap<String, AllTimes>,
    handled_before: u64,
    restarts_before: u64,
}

impl Instances {
    /// None yet; at most `max_series` of them are shown by themselves.
    pub fn new(node: NodeId, max_series: usize, samples: Samples) -> Self {
        Self(Arc::new(Shared { node, max_series, samples, table: Mutex::default() }))
    }

    fn with<R>(&self, act: impl FnOnce(&mut Table) -> R) -> R {
        act(&mut self.0.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The measures of one more.
    pub fn add(&self, id: InstanceId, function_type: &str, ledger: Arc<Ledger>) -> Arc<InstanceMetrics> {
        self.with(|table| {
            let is_single = table.singles < self.0.max_series;
            table.singles += usize::from(is_single);
            let metrics = Arc::new(InstanceMetrics {
                id,
                function_type: function_type.to_string(),
                ledger,
                is_single,
                times: AllTimes::default(),
                begun: AtomicU64::new(0),
                cut_off: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                restarts: AtomicU64::new(0),
                samples: self.0.samples.clone(),
            });
            table.live.insert(id, metrics.clone());
            metrics
        })
    }

    /// The instance is gone, and its series with it.
    pub fn retire(&self, instance: &InstanceMetrics) {
        self.with(|table| {
            let Some(gone) = table.live.remove(&instance.id) else { return };
            table.handled_before += gone.handled();
            table.restarts_before += gone.restarts();
            if gone.is_single {
                table.singles -= 1;
            } else {
                table.add_gone(&gone);
            }
        });
    }
}

impl Table {
    fn add_gone(&mut self, instance: &InstanceMetrics) {
        let gone = self.gone.entry(instance.function_type.clone()).or_default();
        for (all, more) in [
            (&gone.cast, &instance.times.cast),
            (&gone.call, &instance.times.call),
            (&gone.transfer, &instance.times.transfer),
        ] {
            all.add(more);
        }
    }

    /// What is shown: the name, the type and the times of each series.
    fn series(&self) -> Vec<(String, String, Arc<InstanceMetrics>)> {
        let single = |instance: &&Arc<InstanceMetrics>| instance.is_single;
        let named = |instance: &Arc<InstanceMetrics>| {
            (instance.id.function.to_string(), instance.function_type.clone(), instance.clone())
        };
        self.live.values().filter(single).map(named).collect()
    }

    /// Those that are not shown by themselves, dead and alive, by type.
    fn others(&self) -> BTreeMap<&str, AllTimes> {
        let mut others: BTreeMap<&str, AllTimes> = BTreeMap::new();
        let live = self.live.values().filter(|instance| !instance.is_single);
        let live = live.map(|instance| (instance.function_type.as_str(), &instance.times));
        for (function_type, times) in self.gone.iter().map(|(name, times)| (name.as_str(), times)).chain(live) {
            let sum = others.entry(function_type).or_default();
            sum.cast.add(&times.cast);
            sum.call.add(&times.call);
            sum.transfer.add(&times.transfer);
        }
        others
    }
}

impl Collector for Instances {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let node = self.0.node.to_string();
        self.with(|table| table.encode(&node, &mut encoder))
    }
}

impl Table {
    fn encode(&self, node: &str, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        for instance in self.live.values() {
            *counts.entry(&instance.function_type).or_default() += 1;
        }
        let mut family = encoder.encode_descriptor("function_count", "Instances that run.", None, MetricType::Gauge)?;
        for (function_type, count) in counts {
            family.encode_family(&[("node_id", node), ("function_type", function_type)])?.encode_gauge(&count)?;
        }

        let (series, others) = (self.series(), self.others());
        let singles = series.iter().map(|(id, kind, instance)| (id.as_str(), kind.as_str(), &instance.times));
        let all: Vec<_> = singles.chain(others.iter().map(|(kind, times)| (OTHER, *kind, times))).collect();
        let help = "Duration of handlers, seconds.";
        let mut family = encoder.encode_descriptor("execution_times", help, None, MetricType::Histogram)?;
        for (function_id, function_type, times) in &all {
            for (invocation_type, times) in [("Cast", &times.cast), ("Call", &times.call)] {
                times.encode(family.encode_family(&[
                    ("node_id", node),
                    ("function_id", *function_id),
                    ("function_type", *function_type),
                    ("invocation_type", invocation_type),
                ])?)?;
            }
        }
        let help = "Time from the making of an event to its handler, seconds.";
        let mut family = encoder.encode_descriptor("transfer_times", help, None, MetricType::Histogram)?;
        let other = Times::default();
        others.values().for_each(|times| other.add(&times.transfer));
        let singles = series.iter().map(|(id, _, instance)| (id.as_str(), &instance.times.transfer));
        let others = (!others.is_empty()).then_some((OTHER, &other));
        for (function_id, times) in singles.chain(others) {
            times.encode(family.encode_family(&[("node_id", node), ("function_id", function_id)])?)?;
        }

        let handled = self.handled_before + self.live.values().map(|instance| instance.handled()).sum::<u64>();
        let none = None::<&prometheus_client::metrics::exemplar::Exemplar<[(&str, &str); 0], u64>>;
        let help = "Events that a handler took.";
        encoder.encode_descriptor("events_handled", help, None, MetricType::Counter)?.encode_counter(&handled, none)?;
        let restarts = self.restarts_before + self.live.values().map(|instance| instance.restarts()).sum::<u64>();
        let help = "Instances that were started again.";
        encoder
            .encode_descriptor("instance_restarts", help, None, MetricType::Counter)?
            .encode_counter(&restarts, none)?;
        let in_flight: u64 = self.live.values().map(|instance| instance.in_flight()).sum();
        let in_flight = i64::try_from(in_flight).unwrap_or(i64::MAX);
        let help = "Events that handlers have in hand.";
        encoder.encode_descriptor("events_in_flight", help, None, MetricType::Gauge)?.encode_gauge(&in_flight)?;

        let help = "Events that an instance sent on an output, by what became of them.";
        let mut family = encoder.encode_descriptor("output_events", help, None, MetricType::Gauge)?;
        for (function_id, _, instance) in &series {
            for books in instance.ledger.read() {
                for (fate, count) in books.fates() {
                    let labels = [
                        ("node_id", node),
                        ("function_id", function_id),
                        ("output", books.output.as_str()),
                        ("fate", fate),
                    ];
                    let count = i64::try_from(count).unwrap_or(i64::MAX);
                    family.encode_family(&labels)?.encode_gauge(&count)?;
                }
            }
        }
        Ok(())
    }
}
