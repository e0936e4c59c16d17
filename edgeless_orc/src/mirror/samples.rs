//! What nodes measure, as the members of sorted sets.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::Pipeline;

use super::document;
use super::reports::Report;

/// Members for one sorted set, with their scores.
#[derive(Debug, PartialEq)]
pub(super) struct Members {
    key: String,
    members: Vec<(f64, String)>,
    /// How many of them are samples or lines of logs.
    pub(super) samples: u64,
}

/// What a report adds to which sorted sets.
pub(super) fn members(report: &Report, with_health: bool) -> Vec<Members> {
    let mut sets: BTreeMap<String, Vec<(f64, String)>> = BTreeMap::new();
    let latest = seconds(report.at);
    let mut add = |key: String, at: SystemTime, what: &dyn std::fmt::Display| {
        // What a clock that is ahead measured would be kept for longer than anything else.
        let member = (seconds(at).min(latest), format!("{}:{what}", document::time(at)));
        sets.entry(key).or_default().push(member);
    };
    for sample in &report.performance.samples {
        add(document::samples_key(sample.instance, sample.phase.name()), sample.at, &sample.seconds);
    }
    for entry in &report.performance.entries {
        add(document::samples_key(entry.instance, &entry.target), entry.at, &entry.message);
    }
    let health = report.health.as_ref().filter(|_| with_health).map(|health| Members {
        key: document::health_key(report.node),
        members: vec![(latest, document::health(health))],
        samples: 0,
    });
    let samples = sets.into_iter().map(|(key, members)| Members {
        key,
        samples: u64::try_from(members.len()).unwrap_or(u64::MAX),
        members,
    });
    health.into_iter().chain(samples).collect()
}

impl Members {
    /// The commands that add them, and remove what is older than `keep`: together with what is new, and
    /// all of it when there is nothing new for so long. Returns how many commands these are.
    pub(super) fn add_to(&self, pipeline: &mut Pipeline, keep: Option<Duration>) -> usize {
        pipeline.cmd("ZADD").arg(&self.key);
        for (score, member) in &self.members {
            pipeline.arg(score).arg(member);
        }
        let Some(keep) = keep else { return 1 };
        let oldest = seconds(SystemTime::now()) - keep.as_secs_f64();
        pipeline.cmd("ZREMRANGEBYSCORE").arg(&self.key).arg("-inf").arg(format!("({oldest}"));
        pipeline.cmd("EXPIRE").arg(&self.key).arg(keep.as_secs());
        3
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use edgeless_api::id::NodeId;
    use edgeless_api::node::{Health, LogEntry, Performance, Phase, Sample};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn members_are_those_that_other_programs_read() {
        let instance = Uuid::from_u128(5);
        let at = |seconds| UNIX_EPOCH + Duration::from_millis(seconds);
        let sample = |time, seconds| Sample { instance, phase: Phase::Execution, at: at(time), seconds };
        let performance = Performance {
            samples: vec![sample(1500, 0.25), sample(99_000, 2.0)],
            entries: vec![LogEntry { instance, at: at(2000), target: "edgeless".into(), message: "a: b".into() }],
            left_out: 0,
        };
        let node = NodeId(Uuid::from_u128(1));
        let mut report = Report::new(node, Some(Health::default()), performance);
        report.at = at(3000);
        let sets = members(&report, true);
        assert_eq!(sets[0].key, format!("node:health:{node}"));
        assert_eq!(sets[0].members, [(3.0, document::health(&Health::default()))]);
        let logged = vec![(2.0, "2.000000000:a: b".to_string())];
        assert_eq!(sets[1], Members { key: format!("performance:{instance}:edgeless"), members: logged, samples: 1 });
        let key = format!("performance:{instance}:function_execution_time");
        let measured = vec![(1.5, "1.500000000:0.25".to_string()), (3.0, "99.000000000:2".to_string())];
        assert_eq!(sets[2], Members { key, members: measured, samples: 2 }, "the clock of the node is ahead");
        assert_eq!(members(&report, false).len(), 2);
    }
}
