//! What an orchestrator keeps of its domain on its disk.
//!
//! A record says what is desired, and who may run it. How far that has come is told by the nodes. Code is not in it:
//! that is named by its digest.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::component::{ComponentSpec, Row, StartContext};
use crate::id::{ComponentId, NodeId};
use crate::journal::Saved;
use crate::node::NodeKey;
use crate::url::Url;

/// A component that a controller wants, and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// What to start.
    pub spec: ComponentSpec,
    /// As what.
    pub context: StartContext,
    /// Its controller activates it.
    pub is_held: bool,
    /// It shall emit.
    pub is_wanted_active: bool,
    /// Other domains have outputs to it.
    pub is_exported: bool,
    /// It shall be gone.
    pub is_leaving: bool,
    /// It goes to another domain, and its instances have this time for what is queued.
    pub leaving_grace: Option<Duration>,
    /// It has run.
    pub is_born: bool,
    /// That of the last start of any of its replicas.
    pub epoch: u64,
    /// Starts up to this one were of what it was before.
    pub first_epoch: u64,
    /// That of its row.
    pub row_epoch: u64,
    /// How many replicas it shall have.
    pub wanted: u32,
    /// What its outputs lead to.
    pub outputs: BTreeMap<String, ComponentId>,
    /// Its replicas.
    pub replicas: Vec<Replica>,
    /// Why it has not the state that it had.
    pub loss: Option<String>,
    /// What it saved last, and the node where it did.
    pub saved: Option<(NodeId, Saved)>,
}

/// A replica of a component.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Its number.
    pub replica: u32,
    /// The replica that goes once this one is ready.
    pub replaces: Option<u32>,
    /// What becomes of it.
    pub fate: Fate,
    /// That of its last start.
    pub epoch: u64,
    /// What was started up to this epoch is not what it shall be.
    pub outdated: u64,
    /// The node that runs it or was asked to, and what that calls it, if it has answered.
    pub place: Option<(NodeId, Option<Uuid>)>,
    /// The provider that was chosen.
    pub provider: String,
    /// What it begins with.
    pub saved: Option<Bytes>,
}

/// What becomes of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Stay,
    /// It leaves its node and runs elsewhere.
    Move,
    /// It leaves its node and is gone.
    Go,
}

/// A component that has left for another domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// That of its last start before.
    pub epoch: u64,
    /// What it left behind, or why that is lost.
    pub legacy: Result<Option<Bytes>, String>,
}

/// A component that is gone, and may come again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// That of its last start.
    pub epoch: u64,
    /// That of its last row.
    pub row_epoch: u64,
}

/// A node that the domain has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The key to which its id is bound.
    pub key: Option<NodeKey>,
    /// Nothing new is placed on it.
    pub is_cordoned: bool,
    /// Where it took events last.
    pub invocation_url: Option<Url>,
}

/// Where a component of another domain runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign(pub Row);

/// The domain itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Domain {
    /// What it is known by to its controller.
    pub nonce: u64,
    /// The nonce of the controller that it works for.
    pub controller: Option<u64>,
    /// How often its orchestrator was started again.
    pub restarts: u64,
}
