//! Keeps one database up to date: the mirror of the domain, and what nodes measure.
//!
//! One round after the other, each from what is the case then: what a round could not do the next one
//! does.

use std::time::Duration;

use redis::{RedisResult, Value, pipe};

use super::database::{BATCH, Database, Trouble};
use super::domain::Mirror;
use super::metrics::Metrics;
use super::reports::{Queue, Report};
use super::samples;

/// The time between two rounds.
const PERIOD: Duration = Duration::from_millis(500);

/// What keeps one database.
pub(super) struct Keeper {
    database: Database,
    /// For how long measurements are kept; `None`: for ever.
    keep: Option<Duration>,
    queue: Queue,
    mirror: Option<Mirror>,
    metrics: Metrics,
    /// The log says that the database does not take some measurements.
    is_unfit_said: bool,
}

impl Keeper {
    pub(super) fn new(database: Database, keep: Option<Duration>, mirror: Option<Mirror>, metrics: Metrics) -> Self {
        let queue = Queue::new(metrics.clone());
        Self { database, keep, queue, mirror, metrics, is_unfit_said: false }
    }

    /// Where to put what nodes measure.
    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Keeps it up to date until this is dropped.
    pub(super) async fn run(mut self) {
        let mut rounds = tokio::time::interval(PERIOD);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            match self.round().await {
                Ok(true) => self.database.worked(),
                Ok(false) => {}
                Err(trouble) => self.database.failed(&trouble),
            }
        }
    }

    /// `false`: the database is left alone for a while.
    async fn round(&mut self) -> Result<bool, Trouble> {
        if !self.database.connect().await? {
            return Ok(false);
        }
        if let Some(mirror) = &mut self.mirror {
            mirror.round(&mut self.database, &self.metrics).await?;
        }
        while let Some(report) = self.queue.take() {
            if let Err(error) = self.write(&report).await {
                self.queue.put_back(report);
                return Err(error.into());
            }
        }
        Ok(true)
    }

    /// Writes what a node told. A repeat is harmless: what is there already stays the only one.
    async fn write(&mut self, report: &Report) -> RedisResult<()> {
        for batch in samples::members(report, self.mirror.is_some()).chunks(BATCH) {
            let mut pipeline = pipe();
            pipeline.ignore_errors();
            let mut samples = Vec::new();
            for members in batch {
                let commands = members.add_to(&mut pipeline, self.keep);
                samples.push(members.samples);
                samples.resize(samples.len() + commands - 1, 0);
            }
            let results: Vec<RedisResult<Value>> = self.database.commands(&pipeline).await?;
            for (result, samples) in results.into_iter().zip(samples) {
                self.count(result, samples)?;
            }
        }
        Ok(())
    }

    /// Counts what became of a command with so many samples.
    fn count(&mut self, result: RedisResult<Value>, samples: u64) -> RedisResult<()> {
        match result {
            Ok(_) => {
                self.metrics.samples.inc_by(samples);
            }
            Err(error) if Trouble::is_answer(&error) => {
                self.metrics.samples_left_out.inc_by(samples);
                if !std::mem::replace(&mut self.is_unfit_said, true) {
                    tracing::warn!(%error, "the database does not take some of what nodes measure");
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
