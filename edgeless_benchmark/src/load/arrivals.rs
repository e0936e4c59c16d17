//! When workflows arrive and when they end.
//!
//! Pure: an iterator made from a model and a seed, in seconds since the beginning of the experiment.
//! Arrivals never decrease and all lie before the end of the experiment; no workflow lives longer than
//! that.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How workflows arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Model {
    /// Exponential times between arrivals, exponential lifetimes.
    Poisson,
    /// One every interarrival time from 0 on, each with the same lifetime.
    Incremental,
    /// One every interarrival time until the warm-up is over; all live to the end.
    IncrAndKeep,
    /// One at 0, which lives to the end.
    Single,
    /// Arrivals and ends from a file.
    Trace,
}

/// The times that a model knows, seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) warmup: f64,
    pub(super) duration: f64,
    pub(super) lifetime: f64,
    pub(super) interarrival: f64,
}

/// From when to when a workflow shall run, seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slot {
    pub(super) arrival: f64,
    pub(super) end: f64,
}

impl Times {
    /// Whether an experiment can have these times.
    pub(super) fn check(&self) -> Result<()> {
        let positive =
            [("--duration", self.duration), ("--lifetime", self.lifetime), ("--interarrival", self.interarrival)];
        for (option, seconds) in positive {
            ensure!(
                seconds > 0.0 && seconds <= Self::MAX,
                "{option} {seconds}: must be above 0 and at most {}",
                Self::MAX
            );
        }
        ensure!(self.warmup >= 0.0, "--warmup {}: must not be below 0", self.warmup);
        ensure!(
            self.warmup <= self.duration,
            "--warmup {} is longer than --duration {}: shorten the one or lengthen the other",
            self.warmup,
            self.duration
        );
        Ok(())
    }

    /// A year: what is longer is a mistake, and the clock could not count it.
    const MAX: f64 = 365.0 * 86_400.0;
}

/// The arrivals of an experiment, in order.
#[derive(Debug)]
pub(super) struct Arrivals {
    source: Source,
    times: Times,
}

#[derive(Debug)]
enum Source {
    Poisson {
        random: Box<StdRng>,
        last: f64,
    },
    /// The number of the next one, the time at which they cease, and how long each lives.
    Regular {
        next: u32,
        until: f64,
        lifetime: f64,
    },
    Listed(std::vec::IntoIter<Slot>),
}

impl Arrivals {
    /// The arrivals of any model but a trace, which [`Arrivals::listed`] makes.
    pub(super) fn new(model: Model, times: Times, seed: u64) -> Self {
        let to_the_end = Slot { arrival: 0.0, end: times.duration };
        let source = match model {
            Model::Poisson => Source::Poisson { random: Box::new(StdRng::seed_from_u64(seed)), last: 0.0 },
            Model::Incremental => Source::Regular { next: 0, until: times.duration, lifetime: times.lifetime },
            Model::IncrAndKeep => Source::Regular { next: 0, until: times.warmup, lifetime: f64::INFINITY },
            Model::Single => Source::Listed(vec![to_the_end].into_iter()),
            Model::Trace => Source::Listed(Vec::new().into_iter()),
        };
        Self { source, times }
    }

    /// Arrivals that were read from a trace.
    pub(super) fn listed(slots: Vec<Slot>, times: Times) -> Self {
        Self { source: Source::Listed(slots.into_iter()), times }
    }
}

impl Iterator for Arrivals {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        let Times { duration, lifetime, interarrival, .. } = self.times;
        let slot = match &mut self.source {
            Source::Poisson { random, last } => {
                *last += exponential(random, interarrival);
                Slot { arrival: *last, end: *last + exponential(random, lifetime) }
            }
            Source::Regular { next, until, lifetime } => {
                // A product, since a sum of many would drift away.
                let arrival = f64::from(*next) * interarrival;
                *next = next.saturating_add(1);
                (arrival < *until).then_some(Slot { arrival, end: arrival + *lifetime })?
            }
            Source::Listed(slots) => slots.next()?,
        };
        (slot.arrival < duration).then_some(Slot { end: slot.end.min(duration), ..slot })
    }
}

fn exponential(random: &mut StdRng, mean: f64) -> f64 {
    // 1 - u lies above 0, where the logarithm is finite.
    -mean * (1.0 - random.random::<f64>()).ln()
}

/// Reads a trace: lines `arrival,end` in seconds.
pub(super) fn read_trace(path: &Path) -> Result<Vec<Slot>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the trace {shown}"))?;
    parse_trace(&text).map_err(|error| error.context(format!("the trace {shown} is wrong")))
}

fn parse_trace(text: &str) -> Result<Vec<Slot>> {
    let mut slots: Vec<Slot> = Vec::new();
    for (line, text) in text.lines().enumerate().map(|(index, text)| (index + 1, text.trim())) {
        if text.is_empty() {
            continue;
        }
        let number =
            |text: &str| text.trim().parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0);
        let numbers = text.split_once(',').and_then(|(arrival, end)| Some((number(arrival)?, number(end)?)));
        let Some((arrival, end)) = numbers else {
            bail!("line {line}: '{text}' is not 'arrival,end' in seconds");
        };
        ensure!(end >= arrival, "line {line}: the end {end} lies before the arrival {arrival}");
        if let Some(last) = slots.last() {
            ensure!(
                last.arrival <= arrival,
                "line {line}: the arrival {arrival} lies before the last one, {}",
                last.arrival
            );
        }
        slots.push(Slot { arrival, end });
    }
    ensure!(!slots.is_empty(), "there is no line 'arrival,end' in it");
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { warmup: 3.0, duration: 10.0, lifetime: 4.0, interarrival: 1.5 };

    fn slots(model: Model) -> Vec<(f64, f64)> {
        Arrivals::new(model, TIMES, 42).map(|slot| (slot.arrival, slot.end)).collect()
    }

    #[test]
    fn regular_models_are_what_their_names_say() {
        let incremental = [(0.0, 4.0), (1.5, 5.5), (3.0, 7.0), (4.5, 8.5), (6.0, 10.0), (7.5, 10.0), (9.0, 10.0)];
        assert_eq!(slots(Model::Incremental), incremental);
        assert_eq!(slots(Model::IncrAndKeep), [(0.0, 10.0), (1.5, 10.0)], "not at 3, where the warm-up is over");
        assert_eq!(slots(Model::Single), [(0.0, 10.0)]);
    }

    #[test]
    fn poisson_has_the_means_that_were_asked_for() {
        let times = Times { warmup: 0.0, duration: 1e6, lifetime: 3.0, interarrival: 0.5 };
        // What the end cuts short would count too little.
        let slots: Vec<_> = Arrivals::new(Model::Poisson, times, 42).take(200_000).collect();
        let count = 200_000.0;
        let interarrival = slots.last().unwrap().arrival / count;
        let lives: Vec<f64> = slots.iter().map(|slot| slot.end - slot.arrival).collect();
        let lifetime = lives.iter().sum::<f64>() / count;
        // Four standard errors of a mean of so many.
        assert!((interarrival - 0.5).abs() < 0.5 * 0.009, "{interarrival}");
        assert!((lifetime - 3.0).abs() < 3.0 * 0.009, "{lifetime}");
        // Exponential, not merely of this mean: as many as e^-1 live longer than the mean.
        let longer = lives.iter().filter(|life| **life > 3.0).count();
        assert!((72_000..75_200).contains(&longer), "{longer}");
    }

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let arrivals = |seed| Arrivals::new(Model::Poisson, TIMES, seed).collect::<Vec<_>>();
        assert_eq!(arrivals(1), arrivals(1));
        assert_ne!(arrivals(1), arrivals(2));
    }

    /// What the driver relies on, whatever the model and the numbers.
    #[test]
    fn arrivals_never_decrease_and_nothing_outlives_the_experiment() {
        for seed in 0..200_u32 {
            let scale = f64::from(seed) / 7.0 + 0.1;
            let times =
                Times { warmup: scale, duration: 2.0 * scale, lifetime: scale / 3.0, interarrival: scale / 50.0 };
            times.check().unwrap();
            for model in [Model::Poisson, Model::Incremental, Model::IncrAndKeep, Model::Single] {
                let slots: Vec<_> = Arrivals::new(model, times, seed.into()).collect();
                assert!(slots.is_sorted_by_key(|slot| slot.arrival), "{model:?} {seed}");
                assert!(slots.iter().all(|slot| slot.arrival < times.duration), "{model:?} {seed}");
                assert!(
                    slots.iter().all(|slot| (slot.arrival..=times.duration).contains(&slot.end)),
                    "{model:?} {seed}"
                );
            }
        }
    }

    #[test]
    fn a_trace_is_read_and_cut_at_the_end() {
        let trace = parse_trace("0,1\n\n 0.5 , 20 \n0.5,0.5\n12,13\n").unwrap();
        let slots: Vec<_> = Arrivals::listed(trace, TIMES).map(|slot| (slot.arrival, slot.end)).collect();
        assert_eq!(slots, [(0.0, 1.0), (0.5, 10.0), (0.5, 0.5)]);
    }

    #[test]
    fn a_wrong_trace_is_refused_with_its_line() {
        for (text, expected) in [
            ("", "there is no line"),
            ("0,1\none,2", "line 2: 'one,2' is not 'arrival,end'"),
            ("0", "line 1"),
            ("0,1,2", "line 1"),
            ("NaN,1", "line 1"),
            ("0,inf", "line 1"),
            ("-1,1", "line 1"),
            ("2,1", "line 1: the end 1 lies before the arrival 2"),
            ("5,6\n\n4,9", "line 3: the arrival 4 lies before the last one, 5"),
        ] {
            let error = parse_trace(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn impossible_times_are_refused() {
        for (times, expected) in [
            (Times { warmup: 11.0, ..TIMES }, "--warmup 11 is longer than --duration 10"),
            (Times { warmup: -1.0, ..TIMES }, "--warmup -1"),
            (Times { warmup: f64::NAN, ..TIMES }, "--warmup NaN"),
            (Times { duration: 0.0, ..TIMES }, "--duration 0"),
            (Times { interarrival: 0.0, ..TIMES }, "--interarrival 0"),
            (Times { lifetime: f64::INFINITY, ..TIMES }, "--lifetime inf"),
        ] {
            let error = times.check().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(TIMES.check().is_ok());
    }
}
