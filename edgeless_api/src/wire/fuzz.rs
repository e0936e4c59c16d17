//! The messages that become a type of this crate, as bytes: what the fuzzer of the conversions drives.

use std::fmt::Debug;

use prost::Message;

use super::pb;
use crate::component::{ComponentRef, FunctionClass, Patch, Row, Start, StartContext, StateSpec};
use crate::decision::{Decision, Verdict};
use crate::domain::{DomainRegistered, DomainRegistration, DomainState};
use crate::event::{Event, Trace};
use crate::guest::{Boot, FromGuest, ToGuest};
use crate::id::{InstanceId, NodeId, WorkflowId};
use crate::node::{InstanceLoad, NodeInfo, PeerUpdate, ProviderSpec, Registered, Registration};
use crate::operations::Relocation;
use crate::peer::{Frame, Hello, Item, Settled};
use crate::status::{ComponentStatus, InstanceStatus, Placement};
use crate::workflow::{Workflow, WorkflowStatus};

/// Takes bytes for a message: whether they are one that is accepted.
///
/// # Errors
/// They are, but what they mean does not survive being sent on.
pub type Take = fn(&[u8]) -> Result<bool, String>;

/// The messages by the names that they have in `proto/`.
pub const MESSAGES: &[(&str, Take)] = &[
    // These two say when they expire by the clock of whoever sends them, and so never twice the same.
    ("UpdateDomainRequest", once::<pb::UpdateDomainRequest, DomainRegistration>),
    ("UpdateNodeRequest", once::<pb::UpdateNodeRequest, Registration>),
    ("UpdateDomainResponse", again::<pb::UpdateDomainResponse, DomainRegistered>),
    ("DomainState", again::<pb::DomainState, DomainState>),
    ("PeerFrame", again::<pb::PeerFrame, Frame>),
    ("PeerHello", again::<pb::PeerHello, Hello>),
    ("PeerItem", again::<pb::PeerItem, Item>),
    ("PeerSettled", again::<pb::PeerSettled, Settled>),
    ("ResourceProviderSpecification", again::<pb::ResourceProviderSpecification, ProviderSpec>),
    ("InstanceLoad", again::<pb::InstanceLoad, InstanceLoad>),
    ("UpdateNodeResponse", again::<pb::UpdateNodeResponse, Registered>),
    ("UpdatePeersRequest", again::<pb::UpdatePeersRequest, PeerUpdate>),
    ("NodeInfo", again::<pb::NodeInfo, NodeInfo>),
    ("NodeRef", again::<pb::NodeRef, NodeId>),
    ("Relocation", again::<pb::Relocation, Relocation>),
    ("Verdict", again::<pb::Verdict, Verdict>),
    ("WhyResponse", once::<pb::WhyResponse, Decision>),
    ("EventSerializedMetadata", once::<pb::EventSerializedMetadata, Trace>),
    ("Event", again::<pb::Event, Event>),
    ("InstanceId", again::<pb::InstanceId, InstanceId>),
    ("WorkflowId", again::<pb::WorkflowId, WorkflowId>),
    ("SpawnWorkflowRequest", again::<pb::SpawnWorkflowRequest, Workflow>),
    ("WorkflowInstanceStatus", again::<pb::WorkflowInstanceStatus, WorkflowStatus>),
    ("BootData", again::<pb::BootData, Boot>),
    ("HostMessage", again::<pb::HostMessage, ToGuest>),
    ("GuestMessage", again::<pb::GuestMessage, FromGuest>),
    ("FunctionClassSpecification", again::<pb::FunctionClassSpecification, FunctionClass>),
    ("StateSpecification", again::<pb::StateSpecification, StateSpec>),
    ("StartContext", again::<pb::StartContext, StartContext>),
    ("SpawnFunctionRequest", once::<pb::SpawnFunctionRequest, Start>),
    ("ResourceInstanceSpecification", once::<pb::ResourceInstanceSpecification, Start>),
    ("InstanceIdVariant", again::<pb::InstanceIdVariant, ComponentRef>),
    ("Row", again::<pb::Row, Row>),
    ("PatchRequest", again::<pb::PatchRequest, Patch>),
    ("ComponentStatus", again::<pb::ComponentStatus, ComponentStatus>),
    ("InstanceStatus", again::<pb::InstanceStatus, InstanceStatus>),
    ("Placement", again::<pb::Placement, Placement>),
];

fn once<M: Message + Default, T: TryFrom<M>>(bytes: &[u8]) -> Result<bool, String> {
    Ok(M::decode(bytes).is_ok_and(|message| T::try_from(message).is_ok()))
}

/// What was accepted is sent on by this crate, and means the same then.
fn again<M, T>(bytes: &[u8]) -> Result<bool, String>
where
    M: Message + Default + From<T>,
    T: TryFrom<M> + Clone + Debug,
    T::Error: Debug,
{
    let Ok(message) = M::decode(bytes) else { return Ok(false) };
    let Ok(value) = T::try_from(message) else { return Ok(false) };
    let sent = M::from(value.clone()).encode_to_vec();
    let received = M::decode(&*sent).map_err(|error| format!("{value:?} is sent as what is no message: {error}"))?;
    match T::try_from(received) {
        // Compared as text: a number that is none is not equal to itself.
        Ok(again) if format!("{again:?}") == format!("{value:?}") => Ok(true),
        again => Err(format!("{value:?} arrives as {again:?}")),
    }
}
