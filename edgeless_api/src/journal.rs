//! What a node writes down, so that it goes on where it was when its process has ended.
//!
//! A record that cannot be read is an error, and never half a value.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

use crate::component::{ComponentSpec, StartContext, Target};
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
