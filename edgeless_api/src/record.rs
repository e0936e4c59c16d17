//! What a controller keeps of its workflows on its disk.
//!
//! A [`Workflow`] says what was asked for and where each component may be. What can be learnt again, such as where in
//! its domain a component runs, is not in it, and neither is code: that is named by its digest.

use bytes::Bytes;
use uuid::Uuid;

use crate::error::Error;
use crate::id::{ComponentId, DomainId, StateId, WorkflowId};
use crate::url::Url;
use crate::workflow;

/// A workflow and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workflow {
    /// Which.
    pub id: WorkflowId,
    /// As it was asked for; `None`: it is being stopped.
    pub asked: Option<workflow::Workflow>,
    /// The request that started it.
    pub request: Option<Uuid>,
    /// How far it is.
    pub phase: Phase,
    /// Those that places name by their index here.
    pub domains: Vec<Domain>,
    /// Functions, then resources.
    pub components: Vec<Component>,
    /// Places that components have left, where something may run yet.
    pub leftovers: Vec<Leftover>,
}

/// How far a workflow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Whoever asked for it was not told yet that it runs.
    Starting,
    /// It was acknowledged, and nobody has asked for its end.
    Running,
    /// It is to end.
    Stopping,
}

/// A domain as it was when the record was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Which.
    pub id: DomainId,
    /// Of the process that was given what the record says.
    pub nonce: u64,
    /// It speaks our fields and services, not only EDGELESS 1.2.
    pub native: bool,
    /// Where its orchestrator is.
    pub url: Url,
}

/// A component and its places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// Which.
    pub id: ComponentId,
    /// Its name in the workflow.
    pub name: String,
    /// Its state; `None`: it is a resource.
    pub state: Option<StateId>,
    /// Of all places that it had.
    pub last_epoch: u64,
    /// Where it is.
    pub place: Place,
    /// Where it is being moved.
    pub next: Option<Place>,
    /// Its senders were told that it runs nowhere.
    pub parked: bool,
}

/// A component in one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index among the domains of the record.
    pub domain: usize,
    /// No other place of the component had the same.
    pub epoch: u64,
    /// What the domain knows it by; `None`: the id of the component.
    pub known_as: Option<ComponentId>,
    /// How far it is.
    pub step: Step,
    /// How often senders were told something of it that its domain did not count.
    pub uncounted: u64,
    /// The state that it is to begin with; `None`: what its domain knows.
    pub state: Option<Bytes>,
}

/// How far a component is in a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The domain was not asked for it.
    Absent,
    /// It may run there.
    MayBeThere,
    /// It was created, wired and activated.
    There,
    /// The domain has handed over its state and runs it no more.
    Released,
}

/// A place that a component has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Index among the components of the record.
    pub component: usize,
    /// What was left.
    pub place: Place,
    /// It handles what it has before it ends.
    pub drains: bool,
}

impl Workflow {
    /// The record as it is kept. The same value has the same bytes.
    pub fn encode(&self) -> Bytes {
        crate::wire::record::encode(self)
    }

    /// Reads what was kept.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(bytes: Bytes) -> Result<Self, Error> {
        crate::wire::record::decode(bytes)
    }
}
