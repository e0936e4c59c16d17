//! What nodes measure of their instances: grouped by instance on the wire, a plain list past it.
//!
//! A node that sends nonsense here is still a node: what is unfit, or too much, is left out and
//! counted, and the announcement that it came with stands.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::pb;
use crate::node::{LogEntry, Performance, Phase, Sample};

pub(super) fn message(performance: Performance) -> pb::NodePerformanceSamples {
    let mut times: BTreeMap<Phase, BTreeMap<Uuid, Vec<pb::Sample>>> = BTreeMap::new();
    for sample in performance.samples {
        let (timestamp_sec, timestamp_ns) = timestamp(sample.at);
        let message = pb::Sample { timestamp_sec, timestamp_ns, sample: sample.seconds };
        times.entry(sample.phase).or_default().entry(sample.instance).or_default().push(message);
    }
    let mut entries: BTreeMap<Uuid, Vec<pb::FunctionLogEntry>> = BTreeMap::new();
    for entry in performance.entries {
        let (timestamp_sec, timestamp_ns) = timestamp(entry.at);
        let message = pb::FunctionLogEntry { timestamp_sec, timestamp_ns, target: entry.target, msg: entry.message };
        entries.entry(entry.instance).or_default().push(message);
    }
    let mut of = |phase: Phase| {
        let groups = times.remove(&phase).unwrap_or_default().into_iter();
        groups.map(|(id, samples)| pb::Samples { id: id.to_string(), samples }).collect()
    };
    pb::NodePerformanceSamples {
        function_instantiate_times: of(Phase::Instantiate),
        function_init_times: of(Phase::Init),
        function_execution_times: of(Phase::Execution),
        function_stop_times: of(Phase::Stop),
        function_transfer_times: of(Phase::Transfer),
        function_log_entries: entries
            .into_iter()
            .map(|(id, entries)| pb::FunctionLogEntries { id: id.to_string(), entries })
            .collect(),
        left_out: performance.left_out,
    }
}

pub(super) fn parsed(message: pb::NodePerformanceSamples) -> Performance {
    let mut parsed =
        Parsed { room: Performance::MOST, text: Performance::MOST_TEXT, performance: Performance::default() };
    for (phase, groups) in [
        (Phase::Instantiate, message.function_instantiate_times),
        (Phase::Init, message.function_init_times),
        (Phase::Execution, message.function_execution_times),
        (Phase::Stop, message.function_stop_times),
        (Phase::Transfer, message.function_transfer_times),
    ] {
        for group in groups {
            let instance = Uuid::parse_str(&group.id).ok();
            group.samples.iter().for_each(|sample| parsed.add_sample(instance, phase, sample));
        }
    }
    for group in message.function_log_entries {
        let instance = Uuid::parse_str(&group.id).ok();
        group.entries.into_iter().for_each(|entry| parsed.add_entry(instance, entry));
    }
    let mut performance = parsed.performance;
    performance.left_out = performance.left_out.saturating_add(message.left_out);
    performance
}

/// What was parsed so far, and what there is still room for.
struct Parsed {
    room: usize,
    text: usize,
    performance: Performance,
}

impl Parsed {
    fn add_sample(&mut self, instance: Option<Uuid>, phase: Phase, sample: &pb::Sample) {
        let is_time = sample.sample.is_finite() && sample.sample >= 0.0;
        match (instance, time(sample.timestamp_sec, sample.timestamp_ns)) {
            (Some(instance), Some(at)) if is_time && self.room > 0 => {
                self.room -= 1;
                self.performance.samples.push(Sample { instance, phase, at, seconds: sample.sample });
            }
            _ => self.performance.left_out += 1,
        }
    }

    fn add_entry(&mut self, instance: Option<Uuid>, entry: pb::FunctionLogEntry) {
        let target = cut(entry.target, Performance::TARGET);
        let message = cut(entry.msg, Performance::LINE);
        match (instance, time(entry.timestamp_sec, entry.timestamp_ns)) {
            (Some(instance), Some(at)) if self.room > 0 && target.len() + message.len() <= self.text => {
                self.room -= 1;
                self.text -= target.len() + message.len();
                self.performance.entries.push(LogEntry { instance, at, target, message });
            }
            _ => self.performance.left_out += 1,
        }
    }
}

fn timestamp(at: SystemTime) -> (i64, u32) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

fn time(seconds: i64, nanoseconds: u32) -> Option<SystemTime> {
    let seconds = u64::try_from(seconds).ok()?;
    let is_below_a_second = nanoseconds < 1_000_000_000;
    is_below_a_second.then(|| UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds)))?
}

/// At most `limit` bytes of a text, between characters.
fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: Uuid = Uuid::from_u128(1);

    fn at() -> SystemTime {
        UNIX_EPOCH + Duration::new(1_700_000_000, 5)
    }

    #[test]
    fn what_was_measured_and_logged_arrives_as_it_was() {
        let sample = |phase, seconds| Sample { instance: INSTANCE, phase, at: at(), seconds };
        let performance = Performance {
            samples: Phase::ALL
                .into_iter()
                .zip([0.5, 0.25, 0.0, 1.0, 2.0])
                .map(|(phase, s)| sample(phase, s))
                .collect(),
            entries: vec![LogEntry { instance: INSTANCE, at: at(), target: "t".into(), message: "é".into() }],
            left_out: 3,
        };
        let message = message(performance.clone());
        assert_eq!(message.function_stop_times[0].samples[0].sample, 1.0);
        assert_eq!(parsed(message), performance);
    }

    #[test]
    fn nonsense_is_left_out_and_counted() {
        let good = pb::Sample { timestamp_sec: 1, timestamp_ns: 0, sample: 0.1 };
        let bad = [
            pb::Sample { sample: f64::NAN, ..good },
            pb::Sample { sample: f64::INFINITY, ..good },
            pb::Sample { sample: -1.0, ..good },
            pb::Sample { timestamp_sec: -1, ..good },
            pb::Sample { timestamp_ns: 1_000_000_000, ..good },
        ];
        let group = |id: &str, samples: &[pb::Sample]| pb::Samples { id: id.into(), samples: samples.to_vec() };
        let message = pb::NodePerformanceSamples {
            function_init_times: vec![group("me", &[good, good]), group(&INSTANCE.to_string(), &bad)],
            function_execution_times: vec![group(&INSTANCE.to_string(), &[good])],
            ..Default::default()
        };
        let parsed = parsed(message);
        assert_eq!((parsed.samples.len(), parsed.left_out), (1, 7));
        assert_eq!(parsed.samples[0].phase, Phase::Execution);
    }

    #[test]
    fn there_is_a_limit_to_their_number_and_to_their_text() {
        let entry = |length| pb::FunctionLogEntry {
            timestamp_sec: 1,
            timestamp_ns: 0,
            target: "é".repeat(Performance::TARGET),
            msg: "x".repeat(length),
        };
        let lines = 2 * Performance::MOST_TEXT / Performance::LINE;
        let entries = vec![entry(2 * Performance::LINE); lines];
        let message = pb::NodePerformanceSamples {
            function_log_entries: vec![pb::FunctionLogEntries { id: INSTANCE.to_string(), entries }],
            left_out: u64::MAX,
            ..Default::default()
        };
        let performance = parsed(message);
        assert!(performance.entries.iter().map(LogEntry::text).sum::<usize>() <= Performance::MOST_TEXT);
        assert_eq!(performance.entries[0].message.len(), Performance::LINE);
        assert_eq!(performance.entries[0].target.len(), Performance::TARGET);
        assert_eq!(performance.left_out, u64::MAX);

        let sample = pb::Sample { timestamp_sec: 1, timestamp_ns: 0, sample: 0.1 };
        let samples = vec![sample; Performance::MOST + 2];
        let message = pb::NodePerformanceSamples {
            function_stop_times: vec![pb::Samples { id: INSTANCE.to_string(), samples }],
            ..Default::default()
        };
        let performance = parsed(message);
        assert_eq!((performance.samples.len(), performance.left_out), (Performance::MOST, 2));
    }
}
