//! What two nodes send each other over a link: frames of numbered items.
//!
//! The nodes at both ends of an event are those of the link, so that instances are named by their
//! own id alone; only an event that is passed on names the node that it comes from.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use uuid::Uuid;

use crate::event::{self, EventId, Trace};
use crate::id::NodeId;
use crate::url::Url;

/// What one message of a link carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// In the first frame of a direction, and in no other.
    pub hello: Option<Hello>,
    /// The sequence of the first item; each item has the next one.
    pub first: u64,
    /// What must not get lost.
    pub items: Vec<Item>,
    /// All items of the other direction up to this sequence were taken.
    pub accepted: u64,
}

/// How each side begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who speaks.
    pub node: NodeId,
    /// Names the numbering of its items; never 0.
    pub session: u64,
    /// The session of the other side that it knows; 0: none.
    pub known: u64,
    /// The last sequence of that session that it has taken.
    pub taken: u64,
    /// What it lets others have unsettled.
    pub window: Window,
    /// The largest payload that it takes, bytes.
    pub max_payload: u64,
    /// How many links it has had with the other side.
    pub links: u64,
    /// Where it takes events, if it says so.
    pub invocation_url: Option<Url>,
}

/// How much may be unsettled on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Events to one target.
    pub events: u32,
    /// Bytes of their payloads. A single event may have more.
    pub bytes: u64,
    /// Events to all targets.
    pub total: u32,
}

/// Something with a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A cast or a call.
    Event(Event),
    /// The answer to a call.
    Reply(Reply),
    /// What became of events of the other side.
    Settled(Settled),
}

/// A cast or a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who sends it.
    pub source: Uuid,
    /// The node of the source, if the event is passed on for it; `None`: the one at the end of the link.
    pub source_node: Option<NodeId>,
    /// Who shall get it.
    pub target: Uuid,
    /// What it says.
    pub payload: Bytes,
    /// What makes it a call.
    pub call: Option<Call>,
    /// When it was made, by the sender's clock.
    pub created: SystemTime,
    /// What it belongs to.
    pub trace: Trace,
    /// What a repeat of it is known by; `None`: it is never repeated.
    pub id: Option<EventId>,
}

/// What a call has beside a cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Chosen by the caller, never 0; the reply carries the same.
    pub stream: u64,
    /// What is left of the caller's time; `None`: the receiver's own limit holds.
    pub remaining: Option<Duration>,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who was called.
    pub source: Uuid,
    /// Who called.
    pub target: Uuid,
    /// The stream of the call.
    pub stream: u64,
    /// What is answered.
    pub reply: event::Reply,
    /// What the call belongs to.
    pub trace: Trace,
}

/// What became of events that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The sequence of the first.
    pub first: u64,
    /// How many they are; never 0.
    pub count: u64,
    /// What became of each.
    pub fate: Fate,
}

/// What a receiver says of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// A handler took it and came to its end.
    Handled,
    /// Its time was up before a handler took it.
    Expired,
    /// There is no such instance.
    UnknownTarget,
    /// The target runs nowhere at present.
    NoInstance,
    /// The target takes no more.
    MailboxFull,
    /// The payload is over the limit.
    TooLarge,
    /// The target has failed.
    TargetFailed,
    /// The target is being stopped.
    Stopping,
    /// It may have run.
    Unknown,
    /// It was passed on, and nobody will hear more.
    HandedOver,
}
