//! What was measured of instances and logged by them, one by one, until the orchestrator knows it.
//!
//! Off unless the configuration asks for it, and then bounded: what does not fit until the next
//! announcement is left out and counted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use edgeless_api::node::{LogEntry, Performance, Phase, Sample};
use uuid::Uuid;

/// The samples of one node; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Samples(Option<Arc<Mutex<Pending>>>);

#[derive(Debug, Default)]
struct Pending {
    performance: Performance,
    /// The bytes of text in it.
    text: usize,
}

impl Samples {
    /// None yet, or, if they are off, never.
    pub fn new(is_on: bool) -> Self {
        Self(is_on.then(Arc::default))
    }

    fn with<R: Default>(&self, act: impl FnOnce(&mut Pending) -> R) -> R {
        let Some(pending) = &self.0 else { return R::default() };
        act(&mut pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of what took so long and has just ended.
    pub fn add(&self, instance: Uuid, phase: Phase, took: Duration) {
        self.with(|pending| {
            pending.add(Sample { instance, phase, at: SystemTime::now(), seconds: took.as_secs_f64() });
        });
    }

    /// Takes note of a line.
    pub fn log(&self, instance: Uuid, at: SystemTime, target: &str, message: &str) {
        self.with(|pending| {
            if pending.has_room(target.len() + message.len()) {
                pending.log(LogEntry { instance, at, target: target.to_string(), message: message.to_string() });
            } else {
                pending.performance.left_out += 1;
            }
        });
    }

    /// Takes all that there is, to be told.
    pub fn take(&self) -> Performance {
        self.with(|pending| std::mem::take(pending).performance)
    }

    /// Gives back what could not be told. What was noted meanwhile comes after it, as far as there is room.
    pub fn put_back(&self, untold: Performance) {
        self.with(|pending| {
            let text = untold.entries.iter().map(LogEntry::text).sum();
            let meanwhile = std::mem::replace(pending, Pending { performance: untold, text }).performance;
            meanwhile.samples.into_iter().for_each(|sample| pending.add(sample));
            meanwhile.entries.into_iter().for_each(|entry| pending.log(entry));
            let left_out = &mut pending.performance.left_out;
            *left_out = left_out.saturating_add(meanwhile.left_out);
        });
    }
}

impl Pending {
    fn has_room(&self, text: usize) -> bool {
        let count = self.performance.samples.len() + self.performance.entries.len();
        count < Performance::MOST && self.text + text <= Performance::MOST_TEXT
    }

    fn add(&mut self, sample: Sample) {
        if self.has_room(0) {
            self.performance.samples.push(sample);
        } else {
            self.performance.left_out += 1;
        }
    }

    fn log(&mut self, entry: LogEntry) {
        if self.has_room(entry.text()) {
            self.text += entry.text();
            self.performance.entries.push(entry);
        } else {
            self.performance.left_out += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: Uuid = Uuid::from_u128(1);

    fn add(samples: &Samples, count: usize) {
        (0..count).for_each(|_| samples.add(INSTANCE, Phase::Execution, Duration::from_millis(5)));
    }

    fn log(samples: &Samples, line: &str) {
        samples.log(INSTANCE, SystemTime::now(), "t", line);
    }

    #[test]
    fn there_are_none_unless_they_are_wanted() {
        for samples in [Samples::default(), Samples::new(false)] {
            add(&samples, 1);
            log(&samples, "line");
            assert_eq!(samples.take(), Performance::default());
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_counted() {
        let samples = Samples::new(true);
        let line = "x".repeat(Performance::LINE);
        (0..1 + Performance::MOST_TEXT / Performance::LINE).for_each(|_| log(&samples, &line));
        add(&samples, Performance::MOST);
        let taken = samples.take();
        assert_eq!(taken.samples.len() + taken.entries.len(), Performance::MOST);
        assert!(taken.entries.len() < Performance::MOST_TEXT / Performance::LINE, "their targets are text as well");
        let noted = 1 + Performance::MOST_TEXT / Performance::LINE + Performance::MOST;
        assert_eq!(taken.left_out, u64::try_from(noted - Performance::MOST).unwrap());
        assert!(samples.take().is_empty());
    }

    #[test]
    fn what_could_not_be_told_is_told_first_the_next_time() {
        let samples = Samples::new(true);
        log(&samples, "first");
        add(&samples, Performance::MOST - 2);
        let untold = samples.take();
        log(&samples, "second");
        add(&samples, 3);
        samples.put_back(untold);
        let taken = samples.take();
        let lines: Vec<&str> = taken.entries.iter().map(|entry| entry.message.as_str()).collect();
        assert_eq!((lines, taken.samples.len(), taken.left_out), (vec!["first"], Performance::MOST - 1, 3));
    }
}
