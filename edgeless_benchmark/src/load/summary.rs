//! What an experiment came to.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// What is counted while an experiment runs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) requested: u64,
    pub(super) started: u64,
    pub(super) stopped: u64,
    pub(super) failed_stops: u64,
    /// Starts without an answer: nobody knows whether these workflows run.
    pub(super) unanswered: u64,
    /// How long each request that was started took.
    pub(super) responses: Vec<Duration>,
    /// By how much the latest request was late.
    pub(super) latest: Duration,
    pub(super) interrupted: bool,
    /// The file of the output lacks rows.
    pub(super) output_failed: bool,
}

/// The final figures.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    workflows_requested: u64,
    workflows_started: u64,
    blocking_probability: f64,
    response_ms_p50: Option<f64>,
    response_ms_p99: Option<f64>,
    workflows_stopped: u64,
    failed_stops: u64,
    unanswered_starts: u64,
    workflows_left: u64,
    request_late_ms_max: f64,
    interrupted: bool,
}

impl From<Tally> for Summary {
    #[allow(clippy::cast_precision_loss, reason = "a share of counts")]
    fn from(tally: Tally) -> Self {
        let mut responses = tally.responses;
        responses.sort_unstable();
        Self {
            workflows_requested: tally.requested,
            workflows_started: tally.started,
            // Where nothing was asked for, nothing was blocked.
            blocking_probability: tally.requested.saturating_sub(tally.started) as f64 / tally.requested.max(1) as f64,
            response_ms_p50: percentile(&responses, 50),
            response_ms_p99: percentile(&responses, 99),
            workflows_stopped: tally.stopped,
            failed_stops: tally.failed_stops,
            unanswered_starts: tally.unanswered,
            workflows_left: tally.started.saturating_sub(tally.stopped),
            request_late_ms_max: ms(tally.latest),
            interrupted: tally.interrupted,
        }
    }
}

/// A percentile of times in order: the nearest rank.
fn percentile(sorted: &[Duration], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().map(ms)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Summary {
    /// The two final lines, and a table of the rest.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "workflows requested {}, started {}\nblocking probability {:.6}\n\n| what | measured |\n|---|---|\n",
            self.workflows_requested, self.workflows_started, self.blocking_probability
        );
        let shown = |ms: Option<f64>| ms.map_or_else(|| "-".to_string(), |ms| format!("{ms:.3} ms"));
        for (what, measured) in [
            ("response, median", shown(self.response_ms_p50)),
            ("response, p99", shown(self.response_ms_p99)),
            ("workflows stopped", self.workflows_stopped.to_string()),
            ("failed stops", self.failed_stops.to_string()),
            ("starts without an answer", self.unanswered_starts.to_string()),
            ("workflows left running", self.workflows_left.to_string()),
            ("latest request, behind its time", shown(Some(self.request_late_ms_max))),
        ] {
            // A String never fails to be written to.
            writeln!(text, "| {what} | {measured} |").ok();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(requested: u64, started: u64, responses: Vec<Duration>) -> Summary {
        Tally { requested, started, responses, ..Tally::default() }.into()
    }

    #[test]
    fn blocking_is_the_share_that_was_not_started() {
        assert_eq!(summary(8, 6, vec![]).blocking_probability, 0.25);
        assert_eq!(summary(3, 0, vec![]).blocking_probability, 1.0);
        assert_eq!(summary(3, 3, vec![]).blocking_probability, 0.0);
        assert_eq!(summary(0, 0, vec![]).blocking_probability, 0.0);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let responses: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        let many = summary(200, 200, responses);
        assert_eq!((many.response_ms_p50, many.response_ms_p99), (Some(100.0), Some(198.0)));
        let one = summary(1, 1, vec![Duration::from_millis(7)]);
        assert_eq!((one.response_ms_p50, one.response_ms_p99), (Some(7.0), Some(7.0)));
        assert_eq!(summary(1, 0, vec![]).response_ms_p99, None);
    }

    #[test]
    fn the_final_lines_come_first() {
        let text = summary(8, 6, vec![]).text();
        assert!(text.starts_with("workflows requested 8, started 6\nblocking probability 0.250000\n"), "{text}");
    }
}
