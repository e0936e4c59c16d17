//! The language of the system: ids, specifications, events, errors, and the services that carry
//! them.
//!
//! - [`id`], [`url`], [`error`]: names, addresses and the one error type that crosses the wire.
//! - [`workflow`], [`component`], [`binary`], [`annotation`], [`requirements`], [`amount`], [`scale`], [`partition`],
//!   [`node`], [`domain`], [`relocate`], [`status`], [`operations`], [`decision`], [`delivery`], [`dead`], [`event`], [`peer`], [`guest`]: what users,
//!   controllers, orchestrators and nodes speak about. A value of these types is valid.
//! - [`record`]: what a controller keeps of them on its disk.
//! - [`journal`]: what a node writes down, to go on after its process has ended.
//! - [`domain_record`]: what an orchestrator keeps on its disk.
//! - [`client`] and [`server`]: one file per service, in terms of those types.
//! - `wire`, private: the generated code and the conversions both ways, which is where all
//!   compatibility with EDGELESS 1.2 lives.

pub mod amount;
pub mod annotation;
pub mod binary;
pub mod client;
pub mod component;
pub mod dead;
pub mod decision;
pub mod delivery;
pub mod domain;
pub mod domain_record;
pub mod error;
pub mod event;
pub mod guest;
pub mod id;
pub mod journal;
pub mod node;
pub mod operations;
pub mod partition;
pub mod peer;
pub mod record;
pub mod relocate;
pub mod requirements;
pub mod scale;
pub mod server;
pub mod status;
pub mod url;
mod wire;
pub mod workflow;

pub use binary::{Binary, Digest};
pub use component::{ComponentSpec, FunctionClass, FunctionSpec, ResourceSpec};
pub use error::{Code, Error};
pub use event::{Event, EventId};
pub use id::{ComponentId, DomainId, InstanceId, NodeId, StateId, WorkflowId};
pub use url::Url;
#[doc(hidden)]
pub use wire::fuzz;

/// Limits of what a peer may send; each can be set in the configuration of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest message of the control plane, bytes. Code travels in one, so this bounds it.
    pub message: usize,
    /// The largest payload of an event, bytes.
    pub payload: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { message: 64 << 20, payload: 4 << 20 }
    }
}

impl Limits {
    /// The largest message that brings events, bytes. Twice the payload, so that a payload over the
    /// limit is told from a message that cannot be one, and counted.
    pub fn frame(&self) -> usize {
        self.payload.saturating_mul(2).saturating_add(64 << 10)
    }
}
