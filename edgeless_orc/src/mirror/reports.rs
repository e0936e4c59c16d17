//! What nodes told of their health and their instances and is still to be written.
//!
//! Bounded in bytes: while the database is away, what is oldest gives way, and is counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use edgeless_api::id::NodeId;
use edgeless_api::node::{Health, LogEntry, Performance, Sample};

use super::metrics::Metrics;

/// About as much memory as may wait for one database, bytes.
const ROOM: usize = 16 << 20;

/// What a node told at one time.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) node: NodeId,
    /// When it arrived.
    pub(super) at: SystemTime,
    /// `None`: it is about to leave.
    pub(super) health: Option<Health>,
    pub(super) performance: Arc<Performance>,
    size: usize,
}

impl Report {
    pub(super) fn new(node: NodeId, health: Option<Health>, performance: Performance) -> Self {
        let samples = performance.samples.len() * size_of::<Sample>();
        let text: usize = performance.entries.iter().map(LogEntry::text).sum();
        let entries = performance.entries.len() * size_of::<LogEntry>() + text;
        let size = size_of::<Self>() + samples + entries;
        Self { node, at: SystemTime::now(), health, performance: Arc::new(performance), size }
    }

    /// Samples and lines that it has.
    pub(super) fn count(&self) -> u64 {
        let count = self.performance.samples.len() + self.performance.entries.len();
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

/// The reports that wait for one database, oldest first; clones are handles to the same.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    waiting: Arc<Mutex<Waiting>>,
    room: usize,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Waiting {
    reports: VecDeque<Report>,
    size: usize,
}

impl Queue {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { waiting: Arc::default(), room: ROOM, metrics }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Waiting) -> R) -> R {
        act(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds the latest one. What is oldest gives way.
    pub(super) fn add(&self, report: Report) {
        self.with(|waiting| {
            waiting.size += report.size;
            waiting.reports.push_back(report);
            while waiting.size > self.room {
                let Some(oldest) = waiting.reports.pop_front() else { break };
                waiting.size -= oldest.size;
                self.metrics.samples_left_out.inc_by(oldest.count());
            }
        });
    }

    /// Takes the oldest one.
    pub(super) fn take(&self) -> Option<Report> {
        self.with(|waiting| {
            let report = waiting.reports.pop_front()?;
            waiting.size -= report.size;
            Some(report)
        })
    }

    /// Gives back one that was taken and could not be written, if there is still room for it.
    pub(super) fn put_back(&self, report: Report) {
        self.with(|waiting| {
            if waiting.size + report.size > self.room {
                self.metrics.samples_left_out.inc_by(report.count());
                return;
            }
            waiting.size += report.size;
            waiting.reports.push_front(report);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use edgeless_api::node::Phase;
    use uuid::Uuid;

    use super::*;

    fn report(samples: usize) -> Report {
        let sample = Sample {
            instance: Uuid::from_u128(1),
            phase: Phase::Execution,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            seconds: 0.1,
        };
        let performance = Performance { samples: vec![sample; samples], ..Performance::default() };
        Report::new(NodeId::random(), None, performance)
    }

    #[test]
    fn what_is_oldest_gives_way_and_is_counted() {
        let queue = Queue { room: 3 * report(10).size, ..Queue::new(Metrics::default()) };
        let reports: Vec<Report> = (0..5).map(|_| report(10)).collect();
        reports.iter().for_each(|report| queue.add(report.clone()));
        assert_eq!(queue.metrics.samples_left_out.get(), 20);
        let taken = queue.take().unwrap();
        assert_eq!(taken.node, reports[2].node);
        queue.put_back(taken.clone());
        assert_eq!(queue.take().unwrap().node, taken.node, "it is the oldest again");
        queue.add(report(10));
        queue.put_back(taken);
        assert_eq!(queue.metrics.samples_left_out.get(), 30, "its room was taken meanwhile");
        assert_eq!(queue.take().unwrap().node, reports[3].node);
    }
}
