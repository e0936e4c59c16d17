//! How many replicas a component shall have, from what its instances have to do. Pure: reports in, a
//! number out.
//!
//! It grows while events wait, at most twofold at a time, and loses one replica after the other when
//! nothing has happened for a while. Between two changes there is a pause, because a new instance
//! takes a moment to show in the reports.

use std::time::Duration;

use edgeless_api::scale::Scale;
use edgeless_daemon::engine::Millis;

/// More events than that wait for each instance, on average, before there are more instances.
const CROWDED: u32 = 8;
/// How often each instance reports, on average, before they count as crowded.
const REPORTS: u32 = 2;
/// How long nothing happens before there are fewer instances.
pub(super) const IDLE: Duration = Duration::from_secs(10);
/// The least time between two changes.
const PAUSE: Duration = Duration::from_secs(2);

/// What one instance has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Events that wait for it.
    pub(super) queued: u32,
    /// Events that its handlers took.
    pub(super) handled: u64,
}

/// What the reports about one component say so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Trend {
    /// Reports in a row during which events waited.
    crowded: u32,
    /// Since when nothing happens.
    idle_since: Option<Millis>,
    /// The next change is not before this time.
    not_before: Millis,
}

impl Trend {
    /// One instance has reported: how many there shall be, where there are `loads` now and `wanted` are
    /// wanted. `has_worked`: it took events since its last report.
    pub(super) fn judge(&mut self, now: Millis, scale: &Scale, wanted: u32, loads: &[Load], has_worked: bool) -> u32 {
        let count = u32::try_from(loads.len()).unwrap_or(u32::MAX).max(1);
        let queued: u64 = loads.iter().map(|load| u64::from(load.queued)).sum();
        if queued > u64::from(CROWDED) * u64::from(count) {
            self.crowded = self.crowded.saturating_add(1);
        } else {
            self.crowded = 0;
        }
        if queued > 0 || has_worked {
            self.idle_since = None;
        }
        let idle_since = *self.idle_since.get_or_insert(now);
        if now < self.not_before {
            return wanted;
        }
        let target = if self.crowded >= REPORTS.saturating_mul(count) {
            // Those that are on their way already will help, too.
            if wanted > count { wanted } else { wanted.saturating_mul(2) }
        } else if idle_since + IDLE <= now {
            wanted.saturating_sub(1)
        } else {
            wanted
        };
        let target = target.clamp(scale.min, scale.max);
        if target != wanted {
            self.changed(now);
        }
        target
    }

    /// The number has changed: what was reported before says nothing about it.
    pub(super) fn changed(&mut self, now: Millis) {
        self.crowded = 0;
        self.not_before = now + PAUSE;
    }

    /// Something happens.
    pub(super) fn wake(&mut self) {
        self.idle_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(min: u32, max: u32) -> Scale {
        Scale { min, max, partition_by: None }
    }

    fn at(seconds: u64) -> Millis {
        Millis(seconds * 1000)
    }

    fn queues(queued: &[u32]) -> Vec<Load> {
        queued.iter().map(|queued| Load { queued: *queued, handled: 0 }).collect()
    }

    #[test]
    fn it_grows_twofold_when_each_instance_has_said_twice_that_events_wait() {
        let (mut trend, scale) = (Trend::default(), scale(1, 5));
        let full = |count| queues(&vec![100; count]);
        assert_eq!(trend.judge(at(10), &scale, 1, &full(1), true), 1, "once may be chance");
        assert_eq!(trend.judge(at(11), &scale, 1, &full(1), true), 2);
        for report in 0..3 {
            assert_eq!(trend.judge(at(12), &scale, 2, &full(2), true), 2, "it pauses, report {report}");
        }
        assert_eq!(trend.judge(at(14), &scale, 2, &full(2), true), 4);
        for _ in 0..8 {
            trend.judge(at(15), &scale, 4, &full(4), true);
        }
        assert_eq!(trend.judge(at(17), &scale, 4, &full(4), true), 5, "never more than the most");
        for second in 20..40 {
            assert_eq!(trend.judge(at(second), &scale, 5, &full(5), true), 5);
        }
    }

    #[test]
    fn it_waits_for_what_is_on_its_way() {
        let (mut trend, scale) = (Trend::default(), scale(1, 8));
        for second in 10..20 {
            assert_eq!(trend.judge(at(second), &scale, 4, &queues(&[100, 100]), true), 4);
        }
    }

    #[test]
    fn a_queue_that_is_short_or_short_on_average_or_only_once_long_changes_nothing() {
        for reports in [vec![vec![8], vec![8], vec![8]], vec![vec![16, 0]; 9], vec![vec![9], vec![1], vec![9], vec![1]]]
        {
            let mut trend = Trend::default();
            for (second, report) in (10..).zip(&reports) {
                let wanted = u32::try_from(report.len()).unwrap();
                assert_eq!(trend.judge(at(second), &scale(1, 9), wanted, &queues(report), true), wanted, "{reports:?}");
            }
        }
    }

    #[test]
    fn it_shrinks_one_by_one_after_a_while_without_any_work() {
        let (mut trend, scale) = (Trend::default(), scale(1, 4));
        let idle = |count| queues(&vec![0; count]);
        assert_eq!(trend.judge(at(10), &scale, 3, &idle(3), false), 3);
        assert_eq!(trend.judge(at(15), &scale, 3, &idle(3), true), 3, "it has worked");
        assert_eq!(trend.judge(at(24), &scale, 3, &idle(3), false), 3);
        assert_eq!(trend.judge(at(25), &scale, 3, &idle(3), false), 2);
        assert_eq!(trend.judge(at(26), &scale, 2, &idle(2), false), 2, "it pauses");
        assert_eq!(trend.judge(at(27), &scale, 2, &idle(2), false), 1);
        assert_eq!(trend.judge(at(60), &scale, 1, &idle(1), false), 1, "never fewer than the least");
    }

    #[test]
    fn it_shrinks_to_nothing_if_it_may() {
        let (mut trend, scale) = (Trend::default(), scale(0, 1));
        trend.judge(at(10), &scale, 1, &queues(&[0]), false);
        assert_eq!(trend.judge(at(20), &scale, 1, &queues(&[0]), false), 0);
        trend.wake();
        assert_eq!(trend.judge(at(40), &scale, 1, &queues(&[0]), false), 1, "it was woken since");
    }

    #[test]
    fn what_waits_is_not_idle() {
        let mut trend = Trend::default();
        for second in 10..60 {
            assert_eq!(trend.judge(at(second), &scale(1, 2), 2, &queues(&[1, 0]), false), 2);
        }
    }
}
