//! Rates and quantiles.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A quantile of times in any order; nothing if there are none.
pub(crate) fn quantile(times: &[Duration], quantile: f64) -> Duration {
    let mut times = times.to_vec();
    let index = (times.len().saturating_sub(1) as f64 * quantile).round() as usize;
    if index >= times.len() {
        return Duration::ZERO;
    }
    *times.select_nth_unstable(index).1
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// How long a measurement runs before it counts.
pub(crate) fn warm_up(window: Duration) -> Duration {
    window / 5
}

/// How long a counter may stand still.
const PATIENCE: Duration = Duration::from_secs(20);

/// How fast a counter grows, once it is warm. On a machine that is busy with other things it is waited for
/// longer.
pub(crate) async fn rate(window: Duration, count: impl AsyncFn() -> Result<u64>) -> Result<f64> {
    tokio::time::sleep(warm_up(window)).await;
    let (before, began) = (count().await?, Instant::now());
    loop {
        tokio::time::sleep(window).await;
        let (after, took) = (count().await?, began.elapsed());
        if after > before {
            return Ok((after - before) as f64 / took.as_secs_f64());
        }
        if took > PATIENCE {
            bail!("nothing moved in {} s", PATIENCE.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let times: Vec<_> = (1..=101).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 0.5), Duration::from_millis(51));
        assert_eq!(quantile(&times, 0.99), Duration::from_millis(100));
        assert_eq!(quantile(&times, 1.0), Duration::from_millis(101));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
