//! Events: what instances send each other.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use uuid::Uuid;

use crate::id::InstanceId;

/// The ids that tie events of one cause together. Zeros for a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Of the whole tree of events.
    pub trace_id: u128,
    /// Of one event in it.
    pub span_id: u64,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With a payload.
    Message(Bytes),
    /// The callee took the call and says nothing.
    Empty,
    /// The call failed.
    Error,
}

/// What an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Needs no answer.
    Cast(Bytes),
    /// Its caller waits for a reply.
    Call {
        /// What is said.
        payload: Bytes,
        /// Chosen by the caller; its reply carries the same.
        stream: u64,
        /// What is left of the caller's time; `None`: the receiver's own limit holds.
        remaining: Option<Duration>,
    },
    /// Answers a call.
    Reply {
        /// What is answered.
        reply: Reply,
        /// The stream of the call.
        stream: u64,
    },
}

/// What a repeat of an event is known by. Only events that are delivered at least once have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    /// Whose numbers these are: an outbox, which moves with its component.
    pub outbox: Uuid,
    /// From 1 up.
    pub number: u64,
    /// No event of this outbox with a smaller number will be repeated.
    pub oldest: u64,
}

/// A message from one instance to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who sends it.
    pub source: InstanceId,
    /// Who shall get it.
    pub target: InstanceId,
    /// What it is, with its payload.
    pub kind: Kind,
    /// When it was made, by the sender's clock. The Unix epoch in replies.
    pub created: SystemTime,
    /// What it belongs to.
    pub trace: Trace,
    /// What a repeat of it is known by; `None`: it is never repeated.
    pub id: Option<EventId>,
}
