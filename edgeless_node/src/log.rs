//! The log of one component: its last lines, for whoever asks, and the lines to come, for whoever
//! follows. Bounded in lines and in the length of each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use edgeless_api::status::{Level, LogLine};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::samples::Samples;

/// The longest line that is kept, bytes; the rest of a longer one is cut off.
const LINE: usize = 8 << 10;
/// Lines that a follower may be behind before it misses some.
const BEHIND: usize = 256;

/// The log of one component; clones write into the same.
#[derive(Clone, Debug)]
pub struct Log {
    component: Arc<str>,
    keep: usize,
    lines: Arc<Mutex<Lines>>,
    /// The instance, and where its lines are noted to be told.
    samples: (Uuid, Samples),
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<LogLine>,
    /// Made for the first follower: most logs never have one.
    live: Option<broadcast::Sender<LogLine>>,
}

impl Log {
    /// An empty log that keeps the last `keep` lines.
    pub fn new(component: &str, keep: usize) -> Self {
        let samples = (Uuid::nil(), Samples::default());
        Self { component: component.into(), keep: keep.max(1), lines: Arc::default(), samples }
    }

    /// The same, where lines are also noted as those of this instance.
    #[must_use]
    pub fn with_samples(self, instance: Uuid, samples: Samples) -> Self {
        Self { samples: (instance, samples), ..self }
    }

    /// Adds a line, here and to the log of the node.
    pub fn push(&self, level: Level, target: &str, message: impl Into<String>) {
        let mut message: String = message.into();
        cut(&mut message, LINE);
        let mut target = target.to_string();
        cut(&mut target, 256);
        let component = &*self.component;
        match level {
            Level::Error => tracing::error!(component, target, "{message}"),
            Level::Warn => tracing::warn!(component, target, "{message}"),
            Level::Info => tracing::info!(component, target, "{message}"),
            Level::Debug => tracing::debug!(component, target, "{message}"),
            Level::Trace => tracing::trace!(component, target, "{message}"),
        }
        let at = SystemTime::now();
        let (instance, samples) = &self.samples;
        samples.log(*instance, at, &target, &message);
        let line = LogLine { at, level, target, message, component: component.to_string() };
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.kept.len() >= self.keep {
            lines.kept.pop_front();
        }
        // Under the lock, so that a new follower gets each line once.
        if let Some(live) = &lines.live
            && live.send(line.clone()).is_err()
        {
            // The last follower is gone.
            lines.live = None;
        }
        lines.kept.push_back(line);
    }

    /// The last lines, oldest first.
    pub fn last(&self, count: usize) -> Vec<LogLine> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.kept.iter().skip(lines.kept.len().saturating_sub(count)).cloned().collect()
    }

    /// All lines that are kept, and a receiver of those to come.
    pub fn follow(&self) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let live = lines.live.get_or_insert_with(|| broadcast::Sender::new(BEHIND)).subscribe();
        (lines.kept.iter().cloned().collect(), live)
    }
}

/// Cuts a text to at most `limit` bytes, between characters.
fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_and_none_is_too_long() {
        let log = Log::new("f", 2);
        for message in ["one", "two", &"é".repeat(LINE)] {
            log.push(Level::Info, "t", message);
        }
        let lines = log.last(10);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].message, "two");
        assert_eq!(lines[1].message.len(), LINE);
    }

    #[test]
    fn a_follower_gets_what_was_and_what_comes() {
        let log = Log::new("f", 10);
        log.push(Level::Info, "t", "before");
        let (lines, mut live) = log.follow();
        log.push(Level::Info, "t", "after");
        assert_eq!(lines.len(), 1);
        assert_eq!(live.try_recv().unwrap().message, "after");
    }
}
