//! What a node writes down, so that it goes on where it was when its process has ended.
//!
//! A record that cannot be read is an error, and never half a value.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

use crate::component::{ComponentSpec, StartContext, Target};
use crate::event::Trace;
use crate::id::ComponentId;

/// What is known of a state that a function saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedState {
    /// The epoch of the instance that saved it.
    pub epoch: u64,
    /// How often it was saved.
    pub syncs: u64,
    /// When it was saved last.
    pub at: SystemTime,
}

/// An event that waits until its target has handled it, or that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEvent {
    /// The output that it was sent on.
    pub output: String,
    /// What it says.
    pub payload: Bytes,
    /// What it belongs to.
    pub trace: Trace,
    /// When it was sent.
    pub sent: SystemTime,
    /// How often its target had it and did not handle it.
    pub tries: u32,
    /// What became of it the last time.
    pub reason: String,
}

/// Whose numbers the events of a component have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxNumbers {
    /// Of the component, wherever it runs.
    pub outbox: Uuid,
    /// All numbers up to this may have been used.
    pub reserved: u64,
}

/// What a component has handled of one outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// First and last number of each range, in order and apart from each other.
    pub ranges: Vec<(u64, u64)>,
    /// Smaller numbers do not come any more.
    pub oldest: u64,
}

/// What a component takes along when it moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Belongings {
    /// What it saved.
    pub state: Option<Bytes>,
    /// Whose numbers its events have, if it has ever sent any that must arrive.
    pub numbers: Option<OutboxNumbers>,
    /// What it has sent and its targets have not handled.
    pub events: Vec<(u64, OutboxEvent)>,
    /// What it has handled, by the outbox.
    pub handled: Vec<(Uuid, Handled)>,
    /// What was given up.
    pub dead: Vec<(u64, OutboxEvent)>,
}

/// What a node tells its orchestrator when a function has saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Which function.
    pub component: ComponentId,
    /// Which save it was.
    pub about: SavedState,
    /// What was saved, for the orchestrator to keep. `None`: the node keeps it alone.
    pub state: Option<Bytes>,
}

/// An instance that runs on a node, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRecord {
    /// What was started. Its code is kept by its digest.
    pub spec: ComponentSpec,
    /// As what.
    pub context: StartContext,
    /// What the node calls it.
    pub instance: Uuid,
    /// What its outputs lead to.
    pub outputs: BTreeMap<String, Target>,
    /// It may emit.
    pub is_active: bool,
}

impl InstanceRecord {
    /// The same, with its code by name alone.
    #[must_use]
    pub fn without_code(mut self) -> Self {
        if let ComponentSpec::Function(spec) = &mut self.spec
            && !spec.class.binary.is_empty()
        {
            spec.class.binary = spec.class.binary.without_bytes();
        }
        self
    }

    /// The record, without the code.
    pub fn encode(&self) -> Bytes {
        crate::wire::journal::instance(self.clone().without_code())
    }
}
