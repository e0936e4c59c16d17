//! Runs an experiment: asks for workflows when they arrive, stops them when they end.
//!
//! Every request is a task of its own, so that no arrival waits for the answer to another. What runs, and
//! until when, is known to one loop only:
//!
//! ```text
//!   arrivals ──▶ start (task) ──▶ ends, by time ──▶ stop (task) ──▶ tally
//!                     └── blocked ──▶ tally
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use edgeless_api::client::{Connection, Options, Workflows};
use edgeless_api::workflow::WorkflowStatus;
use edgeless_api::{Code, Error, Url, WorkflowId};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::arrivals::{Arrivals, Slot};
use super::dataset::Dataset;
use super::shapes::Shapes;
use super::summary::Tally;

/// Requests without an answer; what arrives beyond is blocked. A controller that does not answer, and
/// arrivals that do not cease, would otherwise take all memory.
const IN_FLIGHT_MAX: usize = 10_000;

/// What is to be done.
pub(super) struct Experiment {
    pub(super) arrivals: Arrivals,
    pub(super) shapes: Shapes,
    pub(super) duration: Duration,
    /// Whether what runs at the end is left running.
    pub(super) keep: bool,
    pub(super) controller: Url,
    pub(super) dataset: Dataset,
}

impl Experiment {
    /// Does it, until the end or until it is interrupted.
    pub(super) async fn run(self) -> Result<Tally> {
        let controller = Workflows::new(Connection::lazy(&self.controller, Options::default())?);
        // Otherwise an experiment without a platform would look like one in which all is blocked.
        controller.list().await.context("there is no controller to ask for workflows")?;
        let mut signals = Signals::new()?;
        let mut driver = Driver {
            shapes: self.shapes,
            controller,
            dataset: self.dataset,
            began: Instant::now(),
            tasks: JoinSet::new(),
            ends: BTreeMap::new(),
            tally: Tally::default(),
            has_told_blocked: false,
        };
        driver.tally.interrupted = driver.experiment(self.arrivals, self.duration, &mut signals).await;
        if driver.tally.interrupted {
            eprintln!("edgeless_benchmark: interrupted: waiting for answers; once more does not wait");
        }
        driver.wind_down(self.duration, self.keep, &mut signals).await;
        // What was measured is of use without its file.
        if let Err(error) = driver.dataset.finish() {
            eprintln!("edgeless_benchmark: {error:#}");
            driver.tally.output_failed = true;
        }
        Ok(driver.tally)
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

struct Driver {
    shapes: Shapes,
    controller: Workflows,
    dataset: Dataset,
    began: Instant,
    tasks: JoinSet<Outcome>,
    /// What runs, by when it ends and by its number; nothing but a number where nothing was deployed.
    ends: BTreeMap<(Instant, u64), Option<WorkflowId>>,
    tally: Tally,
    /// Whether the user knows why a workflow was not started.
    has_told_blocked: bool,
}

/// What became of a request.
enum Outcome {
    Started { number: u64, end: Instant, took: Duration, answer: Result<WorkflowStatus, Error> },
    Stopped { number: u64, workflow: WorkflowId, answer: Result<(), Error> },
}

impl Driver {
    /// Until the duration is over or a signal comes; whether it was a signal.
    async fn experiment(&mut self, arrivals: Arrivals, duration: Duration, signals: &mut Signals) -> bool {
        let mut arrivals = arrivals.zip(0..).peekable();
        let over = self.began + duration;
        loop {
            let now = Instant::now();
            while let Some((slot, number)) = arrivals.next_if(|(slot, _)| self.at(slot.arrival) <= now) {
                self.arrive(slot, number);
            }
            // What runs until now is for the end to stop, or to keep.
            if now >= over {
                return false;
            }
            self.stop_ended(now);
            let next_arrival = arrivals.peek().map(|(slot, _)| self.at(slot.arrival));
            let next_end = self.ends.keys().next().map(|(end, _)| *end);
            let next = next_arrival.into_iter().chain(next_end).fold(over, Instant::min);
            tokio::select! {
                () = signals.next() => return true,
                Some(outcome) = self.tasks.join_next() => self.note(outcome),
                () = sleep_until(next) => {}
            }
        }
    }

    /// Waits for all answers and stops what runs, unless it is to be kept. A further signal ends that.
    async fn wind_down(&mut self, duration: Duration, keep: bool, signals: &mut Signals) {
        let over = self.began + duration;
        loop {
            // What was to end before the end of the experiment is not what is kept.
            match keep {
                true => self.stop_ended(Instant::now().min(over - Duration::from_nanos(1))),
                false => self.stop_ended(over),
            }
            tokio::select! {
                () = signals.next() => {
                    // Among them may be starts: nobody knows what became of those.
                    eprintln!("edgeless_benchmark: {} requests were not waited for", self.tasks.len());
                    return;
                }
                outcome = self.tasks.join_next() => match outcome {
                    Some(outcome) => self.note(outcome),
                    None => return,
                },
            }
        }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.began + Duration::from_secs_f64(seconds)
    }

    fn arrive(&mut self, slot: Slot, number: u64) {
        let (arrival, end) = (self.at(slot.arrival), self.at(slot.end));
        self.tally.requested += 1;
        self.tally.latest = self.tally.latest.max(arrival.elapsed());
        self.dataset.row(SystemTime::now(), "workflow:request", number, "");
        let drawn = match self.tasks.len() < IN_FLIGHT_MAX {
            true => self.shapes.next(number).map_err(|error| Error::rejected(format!("{error:#}"))),
            false => Err(Error::exhausted(format!("not sent: {IN_FLIGHT_MAX} requests are without an answer"))),
        };
        match drawn {
            Ok(Some(workflow)) => {
                let controller = self.controller.clone();
                self.tasks.spawn(async move {
                    let sent = Instant::now();
                    let answer = controller.start(workflow, Some(Uuid::new_v4())).await;
                    Outcome::Started { number, end, took: sent.elapsed(), answer }
                });
            }
            Ok(None) => {
                self.dataset.row(SystemTime::now(), "workflow:response", number, "{}");
                self.started(number, end, None, Duration::ZERO);
            }
            Err(error) => self.blocked(number, &error),
        }
    }

    fn note(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) {
        match outcome {
            Ok(Outcome::Started { number, end, took, answer: Ok(status) }) => {
                self.dataset.row(SystemTime::now(), "workflow:response", number, &reply(&status));
                self.started(number, end, Some(status.workflow), took);
            }
            Ok(Outcome::Started { number, answer: Err(error), .. }) => self.blocked(number, &error),
            Ok(Outcome::Stopped { number, answer: Ok(()), .. }) => self.stopped(number),
            Ok(Outcome::Stopped { number, workflow, answer: Err(error) }) => {
                self.tally.failed_stops += 1;
                self.dataset.row(SystemTime::now(), "workflow:end", number, &failure(&error));
                eprintln!("edgeless_benchmark: wf{number}, workflow {workflow}, is not stopped: {error}");
            }
            Err(error) => eprintln!("edgeless_benchmark: a request was lost: {error}"),
        }
    }

    fn started(&mut self, number: u64, end: Instant, workflow: Option<WorkflowId>, took: Duration) {
        self.tally.started += 1;
        self.tally.responses.push(took);
        self.ends.insert((end, number), workflow);
    }

    fn blocked(&mut self, number: u64, error: &Error) {
        // One reason is enough on a terminal; the output has them all.
        if !self.has_told_blocked {
            self.has_told_blocked = true;
            eprintln!("edgeless_benchmark: wf{number} is not started, and others may not be: {error}");
        }
        // Whoever did not answer in time may have started it.
        self.tally.unanswered += u64::from(error.code == Code::Timeout);
        self.dataset.row(SystemTime::now(), "workflow:response", number, &failure(error));
    }

    fn stopped(&mut self, number: u64) {
        self.tally.stopped += 1;
        self.dataset.row(SystemTime::now(), "workflow:end", number, "");
    }

    /// Stops what ends now or has ended.
    fn stop_ended(&mut self, now: Instant) {
        while let Some(entry) = self.ends.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove_entry() {
                ((_, number), None) => self.stopped(number),
                ((_, number), Some(workflow)) => {
                    let controller = self.controller.clone();
                    self.tasks.spawn(async move {
                        Outcome::Stopped { number, workflow, answer: controller.stop(workflow).await }
                    });
                }
            }
        }
    }
}

/// A reply in JSON, with the names that it has on the wire.
fn reply(status: &WorkflowStatus) -> String {
    let mapping = status
        .mapping
        .iter()
        .map(|mapping| json!({ "name": mapping.name, "function_id": mapping.component, "domain_id": mapping.domain }));
    json!({ "workflow_id": status.workflow, "domain_mapping": mapping.collect::<Vec<_>>() }).to_string()
}

fn failure(error: &Error) -> String {
    json!({ "response_error": { "summary": error.message } }).to_string()
}
