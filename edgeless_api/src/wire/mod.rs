//! The generated code, and the conversions between it and the types of this crate.
//!
//! What arrives is parsed here once, completely, and refused with a reason where it cannot be a
//! valid value; nothing past this module sees a generated type. What EDGELESS 1.2 means by an
//! empty or a missing field is written down here and nowhere else.

#[cfg(test)]
mod by_hand;
pub(crate) mod component;
pub(crate) mod dead;
pub(crate) mod domain;
mod domain_record;
pub(crate) mod error;
pub(crate) mod event;
mod frame;
pub mod fuzz;
pub(crate) mod guest;
pub(crate) mod journal;
mod link;
pub(crate) mod node;
pub(crate) mod operations;
mod peer;
mod performance;
pub(crate) mod record;
pub(crate) mod status;
mod workflow;

use uuid::Uuid;

use crate::error::Error;
use crate::id::{InstanceId, NodeId};

/// The generated messages, clients and servers of package `edgeless_api`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated; the comments are in proto/"
)]
pub(crate) mod pb {
    pub(crate) use super::frame::PeerFrame;
    tonic::include_proto!("edgeless_api");
}

/// The fields of a message that must be there.
pub(crate) fn required<T>(field: Option<T>, name: &str) -> Result<T, Error> {
    field.ok_or_else(|| Error::rejected(format!("the message lacks '{name}'")))
}

pub(crate) fn uuid(text: &str, name: &str) -> Result<Uuid, Error> {
    let shown: String = text.chars().take(80).collect();
    Uuid::parse_str(text).map_err(|_| Error::rejected(format!("'{name}' is '{shown}', which is not a UUID")))
}

pub(crate) fn uuids(texts: &[String], name: &str) -> Result<Vec<Uuid>, Error> {
    texts.iter().map(|text| uuid(text, name)).collect()
}

impl TryFrom<pb::InstanceId> for InstanceId {
    type Error = Error;

    fn try_from(id: pb::InstanceId) -> Result<Self, Error> {
        Ok(Self { node: NodeId(uuid(&id.node_id, "node_id")?), function: uuid(&id.function_id, "function_id")? })
    }
}

impl From<InstanceId> for pb::InstanceId {
    fn from(id: InstanceId) -> Self {
        Self { node_id: id.node.to_string(), function_id: id.function.to_string() }
    }
}
