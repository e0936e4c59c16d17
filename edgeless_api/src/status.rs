//! What became of a component: the answer to "why does it not run?".

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::id::{ComponentId, DomainId, InstanceId, NodeId};

/// Where a component stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No node can run it at present.
    #[default]
    Waiting,
    /// It has a place and is being started there.
    Starting,
    /// It takes events.
    Running,
    /// It failed and is about to be started again.
    Restarting,
    /// It failed again and again and is left alone.
    Failed,
    /// It is gone.
    Stopped,
}

impl State {
    const NAMES: [(Self, &str); 6] = [
        (Self::Waiting, "waiting"),
        (Self::Starting, "starting"),
        (Self::Running, "running"),
        (Self::Restarting, "restarting"),
        (Self::Failed, "failed"),
        (Self::Stopped, "stopped"),
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(state, _)| state == self).map_or("unknown", |(_, name)| name);
        f.pad(name)
    }
}

impl FromStr for State {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text).map(|(state, _)| *state);
        found.ok_or_else(|| crate::Error::rejected(format!("'{text}' is not the state of a component")))
    }
}

/// The severity of a line in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is suspicious.
    Warn,
    /// Something of note happened.
    Info,
    /// For whoever looks for a fault.
    Debug,
    /// Everything.
    Trace,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
            Self::Trace => "TRACE",
        })
    }
}

/// One line that a function logged, or that the platform logged about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When.
    pub at: SystemTime,
    /// How severe.
    pub level: Level,
    /// The log target that the function named.
    pub target: String,
    /// What it says.
    pub message: String,
    /// The component's name in its workflow.
    pub component: String,
}

/// Where a component stands, as the one who is asked knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentStatus {
    /// The component.
    pub component: ComponentId,
    /// Its name in its workflow.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// What runs it, if anything.
    pub instance: Option<InstanceId>,
    /// How often it was placed.
    pub epoch: u64,
    /// How often its instance was started again after a failure.
    pub restarts: u64,
    /// Why it last failed, or why it waits; empty if it never did.
    pub reason: String,
    /// The last lines that it logged, oldest first.
    pub log: Vec<LogLine>,
    /// Events that it took.
    pub handled: u64,
    /// Events to it that were dropped.
    pub dropped: u64,
    /// What it sent, by output, and what became of that.
    pub outputs: Vec<OutputBooks>,
    /// What it may use; empty where nothing limits it, or its node did not say in time.
    pub limits: Vec<Limit>,
    /// What it uses; `None` where that is not measured, or its node did not say in time.
    pub usage: Option<Usage>,
    /// All instances that run it, as its orchestrator knows them; the one above is the first.
    pub instances: Vec<InstanceStatus>,
}

/// One of the instances that run a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceStatus {
    /// The instance.
    pub instance: InstanceId,
    /// Where it stands.
    pub state: State,
    /// Events that it took.
    pub handled: u64,
    /// Events that wait for it.
    pub queued: u64,
    /// The host name of its node; may be empty.
    pub hostname: String,
}

/// A limit of what a component may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The annotation that sets it.
    pub name: String,
    /// What was asked for.
    pub asked: String,
    /// What the kernel enforces, in the same unit; empty: it was not read.
    pub kernel: String,
}

/// What a component uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since it was started.
    pub cpu: Duration,
    /// Memory, bytes.
    pub memory: u64,
    /// Processes.
    pub processes: u64,
    /// Bytes that it received over the network since it was started.
    pub received: u64,
    /// Bytes that it sent over the network since it was started.
    pub sent: u64,
}

/// The books of an output: what was sent on it, and what became of that. At any moment
/// `produced = handled + queued + in_flight + delayed + expired + dropped + unknown + handed_over`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutputBooks {
    /// The output. Names in parentheses stand for events that were sent on no output.
    pub output: String,
    /// Events that were sent.
    pub produced: u64,
    /// Events that a handler took.
    pub handled: u64,
    /// Events that wait to be handled, or are on their way.
    pub queued: u64,
    /// Events that a handler has in hand.
    pub in_flight: u64,
    /// Events that are not due yet.
    pub delayed: u64,
    /// Events whose time was up before a handler took them.
    pub expired: u64,
    /// Events that no handler took, by cause.
    pub dropped: BTreeMap<String, u64>,
    /// Events that were lost with their node; they may have been handled.
    pub unknown: u64,
    /// Events that an EDGELESS 1.x node took, which says no more.
    pub handed_over: u64,
}

impl OutputBooks {
    /// Each fate that an event had, with its count.
    pub fn fates(&self) -> impl Iterator<Item = (&str, u64)> {
        let own = [
            ("handled", self.handled),
            ("queued", self.queued),
            ("in flight", self.in_flight),
            ("delayed", self.delayed),
            ("expired", self.expired),
            ("unknown: peer lost", self.unknown),
            ("handed over", self.handed_over),
        ];
        let dropped = self.dropped.iter().map(|(cause, count)| (cause.as_str(), *count));
        own.into_iter().chain(dropped).filter(|(_, count)| *count > 0)
    }
}

/// Where a component would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The component's name in its workflow.
    pub name: String,
    /// The domain.
    pub domain: DomainId,
    /// The node.
    pub node: NodeId,
    /// The node's host name; may be empty.
    pub hostname: String,
}
