//! Events as handlers see them.

use std::time::Instant;

use bytes::Bytes;
use edgeless_api::event::Trace;
use edgeless_api::{EventId, InstanceId};

/// The content of an event.
pub type Payload = Bytes;

/// What an instance emits because of: passed on to everything that follows from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cause {
    /// Ties the events of one cause together.
    pub trace: Trace,
    /// When the caller at the root stops waiting. No nested call outlives it.
    pub deadline: Option<Instant>,
}

/// Whether the sender of an event waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It does not.
    Cast,
    /// It does.
    Call,
}

/// An event as its handler sees it.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Who sent it.
    pub source: InstanceId,
    /// Cast or call.
    pub kind: EventKind,
    /// What it says.
    pub payload: Payload,
    /// What it follows from.
    pub cause: Cause,
    /// What a repeat of it is known by; `None`: it is not repeated. Most are not, and have the room.
    pub id: Option<Box<EventId>>,
}
