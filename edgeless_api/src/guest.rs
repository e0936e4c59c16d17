//! What a node and a guest in a container say to each other.
//!
//! The same words go over unary calls, as in EDGELESS 1.2, and over the stream of a guest made with our
//! SDK, where they are numbered.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::event::Reply;
use crate::id::InstanceId;
use crate::status::Level;

/// What the node asks of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who the guest is: the first thing that it learns.
    Boot(Boot),
    /// What the function is initialised with.
    Init {
        /// From the annotation `init-payload`; empty if there is none.
        payload: String,
        /// What it saved last; empty if it never did.
        state: Bytes,
    },
    /// An event that needs no answer.
    Cast {
        /// Who sent it.
        source: InstanceId,
        /// What it says.
        payload: Bytes,
    },
    /// An event whose sender waits.
    Call {
        /// Who sent it.
        source: InstanceId,
        /// What it says.
        payload: Bytes,
    },
    /// The end.
    Stop,
}

/// What a guest is told first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Where the guest reaches its node: `http://<host>:<port>`. Empty over a stream.
    pub host: String,
    /// Who the guest is.
    pub id: InstanceId,
    /// What the guest shows when it calls. Empty over a stream.
    pub token: String,
}

/// What the node sends over a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// A request, with its number.
    Request(u64, Request),
    /// The reply to a call of the guest, with the guest's number.
    Reply(u64, Reply),
    /// The guest's state is saved.
    Synced(u64),
    /// The guest's request cannot be answered, and why: its handler must not go on.
    Refused(u64, String),
}

/// What a guest sends over a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromGuest {
    /// The number of the node's request that this answers, or during which it is said; 0: none.
    pub id: u64,
    /// What is said.
    pub said: FromGuestKind,
}

/// What a guest may say over a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuestKind {
    /// A request other than a call was handled.
    Done,
    /// A call was handled.
    Returned(Reply),
    /// A request failed, and why: the guest is of no use any more.
    Failed(String),
    /// It asks for something that needs no answer.
    Tell(Tell),
    /// It asks and waits, with its number.
    Ask(u64, Ask),
}

/// Where a guest sends an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Wherever an output leads.
    Output(String),
    /// An instance.
    Instance(InstanceId),
}

/// What a guest asks for without waiting for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell {
    /// To send an event.
    Cast(Goal, Bytes),
    /// To send an event on an output after a while.
    DelayedCast(Duration, String, Bytes),
    /// To log a line.
    Log(Level, String, String),
}

/// What a guest asks for and waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To send an event and bring the reply.
    Call(Goal, Bytes),
    /// To save its state.
    Sync(Bytes),
}

/// Who calls the node, by what the connection says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Where the call comes from; none over a Unix socket.
    pub address: Option<IpAddr>,
    /// The token that it shows.
    pub token: Option<String>,
}

/// The gRPC metadata with which a guest shows its token.
pub const TOKEN: &str = "edgeless-token";
/// The gRPC metadata with which a guest that knows tokens answers its Boot.
pub const SDK: &str = "edgeless-sdk";
