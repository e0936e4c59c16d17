//! The records of an orchestrator.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::pb::domain_component_record::Spec;
use super::{component, pb, required, uuid};
use crate::component::{ComponentSpec, Start};
use crate::domain_record::{Component, Domain, Fate, Foreign, Gone, Left, Node, Replica};
use crate::error::Error;
use crate::id::{ComponentId, NodeId};
use crate::journal::Saved;
use crate::node::NodeKey;
use crate::wire::journal::saved_states;

fn read<M: Message + Default>(bytes: &[u8], what: &str) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::rejected(format!("the record of {what} cannot be read: {error}")))
}

fn written(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl Component {
    /// The record.
    pub fn encode(self) -> Bytes {
        let context = Some(self.context);
        let saved = self.saved.map(|(node, saved)| saved_states(node, vec![saved]));
        let spec = match self.spec {
            ComponentSpec::Function(spec) => Spec::Function(component::function_request(spec, context)),
            ComponentSpec::Resource(spec) => Spec::Resource(component::resource_request(spec, context)),
        };
        written(&pb::DomainComponentRecord {
            spec: Some(spec),
            is_held: self.is_held,
            is_wanted_active: self.is_wanted_active,
            is_exported: self.is_exported,
            is_leaving: self.is_leaving,
            leaving_grace_ms: self.leaving_grace.map(super::node::millis),
            is_born: self.is_born,
            epoch: self.epoch,
            first_epoch: self.first_epoch,
            row_epoch: self.row_epoch,
            wanted: self.wanted,
            outputs: self.outputs.into_iter().map(|(channel, id)| (channel, id.to_string())).collect(),
            replicas: self.replicas.into_iter().map(Into::into).collect(),
            loss: self.loss.unwrap_or_default(),
            saved,
        })
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::DomainComponentRecord = read(record, "a component")?;
        let start: Start = match required(record.spec, "spec")? {
            Spec::Function(request) => request.try_into()?,
            Spec::Resource(request) => request.try_into()?,
        };
        let saved: Option<(NodeId, Vec<Saved>)> = record.saved.map(TryInto::try_into).transpose()?;
        let output = |(channel, id): (String, String)| Ok((channel, ComponentId(uuid(&id, "outputs")?)));
        Ok(Self {
            spec: start.spec,
            context: required(start.context, "context")?,
            is_held: record.is_held,
            is_wanted_active: record.is_wanted_active,
            is_exported: record.is_exported,
            is_leaving: record.is_leaving,
            leaving_grace: record.leaving_grace_ms.map(Duration::from_millis),
            is_born: record.is_born,
            epoch: record.epoch,
            first_epoch: record.first_epoch,
            row_epoch: record.row_epoch,
            wanted: record.wanted,
            outputs: record.outputs.into_iter().map(output).collect::<Result<_, Error>>()?,
            replicas: record.replicas.into_iter().map(TryInto::try_into).collect::<Result<_, Error>>()?,
            loss: given(record.loss),
            saved: saved.and_then(|(node, mut states)| Some((node, states.pop()?))),
        })
    }
}

impl From<Replica> for pb::DomainReplicaRecord {
    fn from(record: Replica) -> Self {
        let (node, instance) = record.place.unzip();
        Self {
            replica: record.replica,
            replaces: record.replaces,
            fate: match record.fate {
                Fate::Stay => pb::DomainReplicaFate::Stay,
                Fate::Move => pb::DomainReplicaFate::Move,
                Fate::Go => pb::DomainReplicaFate::Go,
            }
            .into(),
            epoch: record.epoch,
            outdated: record.outdated,
            node_id: node.map(|node| node.to_string()).unwrap_or_default(),
            instance_id: instance.flatten().map(|instance| instance.to_string()).unwrap_or_default(),
            provider_id: record.provider,
            saved: record.saved,
        }
    }
}

impl TryFrom<pb::DomainReplicaRecord> for Replica {
    type Error = Error;

    fn try_from(record: pb::DomainReplicaRecord) -> Result<Self, Error> {
        let id = |text: &str, name| (!text.is_empty()).then(|| uuid(text, name)).transpose();
        let instance = id(&record.instance_id, "instance_id")?;
        let fate = pb::DomainReplicaFate::try_from(record.fate)
            .map_err(|_| Error::rejected(format!("{} is no fate of a replica", record.fate)))?;
        Ok(Self {
            replica: record.replica,
            replaces: record.replaces,
            fate: match fate {
                pb::DomainReplicaFate::Stay => Fate::Stay,
                pb::DomainReplicaFate::Move => Fate::Move,
                pb::DomainReplicaFate::Go => Fate::Go,
            },
            epoch: record.epoch,
            outdated: record.outdated,
            place: id(&record.node_id, "node_id")?.map(|node| (NodeId(node), instance)),
            provider: record.provider_id,
            saved: record.saved,
        })
    }
}

impl Left {
    /// The record.
    pub fn encode(self) -> Bytes {
        let (state, loss) = match self.legacy {
            Ok(state) => (state, String::new()),
            Err(loss) => (None, loss),
        };
        written(&pb::DomainLeftRecord { epoch: self.epoch, state, loss })
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::DomainLeftRecord = read(record, "a component that has left")?;
        let legacy = given(record.loss).map_or(Ok(record.state), Err);
        Ok(Self { epoch: record.epoch, legacy })
    }
}

impl Gone {
    /// The record.
    pub fn encode(&self) -> Bytes {
        written(&pb::DomainGoneRecord { epoch: self.epoch, row_epoch: self.row_epoch })
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::DomainGoneRecord = read(record, "a component that is gone")?;
        Ok(Self { epoch: record.epoch, row_epoch: record.row_epoch })
    }
}

impl Node {
    /// The record.
    pub fn encode(&self) -> Bytes {
        written(&pb::DomainNodeRecord {
            key: self.key.map(|key| Bytes::copy_from_slice(&key.0)).unwrap_or_default(),
            is_cordoned: self.is_cordoned,
            invocation_url: self.invocation_url.as_ref().map(ToString::to_string).unwrap_or_default(),
        })
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::DomainNodeRecord = read(record, "a node")?;
        let wrong = |_| Error::rejected("the record of a node cannot be read: a key has 32 bytes");
        let key = (!record.key.is_empty()).then(|| record.key.as_ref().try_into().map(NodeKey)).transpose();
        let invocation_url = given(record.invocation_url).map(|url| url.parse()).transpose()?;
        Ok(Self { key: key.map_err(wrong)?, is_cordoned: record.is_cordoned, invocation_url })
    }
}

impl Foreign {
    /// The record.
    pub fn encode(self) -> Bytes {
        written(&pb::DomainRowRecord { row: Some(self.0.into()) })
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::DomainRowRecord = read(record, "a row")?;
        required(record.row, "row")?.try_into().map(Self)
    }
}

impl Domain {
    /// The record.
    pub fn encode(&self) -> Bytes {
        let Self { nonce, controller, restarts } = *self;
        written(&pb::DomainSelfRecord { nonce, controller, restarts })
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::DomainSelfRecord = read(record, "the domain")?;
        let pb::DomainSelfRecord { nonce, controller, restarts } = record;
        Ok(Self { nonce, controller, restarts })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::component::{FunctionClass, FunctionSpec, Row, StartContext, StatePolicy, StateSpec};
    use crate::id::{InstanceId, StateId, WorkflowId};
    use crate::journal::SavedState;
    use crate::{Binary, Digest};

    fn component() -> Component {
        let id = ComponentId(Uuid::from_u128(1));
        let class = FunctionClass {
            id: "f".into(),
            function_type: "RUST_WASM".into(),
            binary: Binary::named(Digest::of(b"code")),
            ..FunctionClass::default()
        };
        let replica = |place, fate| Replica {
            replica: 1,
            replaces: Some(0),
            fate,
            epoch: 5,
            outdated: 3,
            place,
            provider: "p".into(),
            saved: Some(Bytes::from_static(b"saved")),
        };
        let node = NodeId(Uuid::from_u128(7));
        Component {
            spec: ComponentSpec::Function(FunctionSpec {
                class,
                annotations: BTreeMap::from([("cpu".into(), "1".into())]),
                state: StateSpec { id: StateId(Uuid::from_u128(3)), policy: StatePolicy::NodeLocal },
                workflow: WorkflowId(Uuid::from_u128(4)),
            }),
            context: StartContext { state: Some(Bytes::new()), ..StartContext::new(id, 9, "one") },
            is_held: true,
            is_wanted_active: true,
            is_exported: true,
            is_leaving: true,
            leaving_grace: Some(Duration::from_secs(3)),
            is_born: true,
            epoch: 6,
            first_epoch: 2,
            row_epoch: 1 << 40,
            wanted: 2,
            outputs: BTreeMap::from([("out".into(), id)]),
            replicas: vec![
                replica(None, Fate::Stay),
                replica(Some((node, None)), Fate::Move),
                replica(Some((node, Some(Uuid::from_u128(8)))), Fate::Go),
            ],
            loss: Some("state lost".into()),
            saved: Some((
                node,
                Saved {
                    component: id,
                    about: SavedState { epoch: 5, syncs: 2, at: std::time::UNIX_EPOCH },
                    state: Some(Bytes::from_static(b"copy")),
                },
            )),
        }
    }

    #[test]
    fn what_is_read_is_what_was_kept() {
        assert_eq!(Component::decode(&component().encode()), Ok(component()));
        for legacy in [Ok(None), Ok(Some(Bytes::from_static(b"42"))), Err("state lost".to_string())] {
            let left = Left { epoch: 3, legacy };
            assert_eq!(Left::decode(&left.clone().encode()), Ok(left));
        }
        let gone = Gone { epoch: 1, row_epoch: 2 };
        assert_eq!(Gone::decode(&gone.encode()), Ok(gone));
        let url = Some("http://10.0.0.1:7002".parse().unwrap());
        for node in [Node::default(), Node { key: Some(NodeKey([9; 32])), is_cordoned: true, invocation_url: url }] {
            assert_eq!(Node::decode(&node.encode()), Ok(node));
        }
        for controller in [None, Some(0)] {
            let domain = Domain { nonce: 1, controller, restarts: 3 };
            assert_eq!(Domain::decode(&domain.encode()), Ok(domain));
        }
        let foreign = Foreign(Row::new(ComponentId(Uuid::from_u128(1)), 7, vec![InstanceId::random(NodeId::random())]));
        assert_eq!(Foreign::decode(&foreign.clone().encode()), Ok(foreign));
    }

    #[test]
    fn what_was_never_a_record_is_refused() {
        let garbage = b"\xff\xff garbage";
        for error in [
            Component::decode(garbage).unwrap_err(),
            Left::decode(garbage).unwrap_err(),
            Gone::decode(garbage).unwrap_err(),
            Node::decode(garbage).unwrap_err(),
            Foreign::decode(garbage).unwrap_err(),
            Domain::decode(garbage).unwrap_err(),
        ] {
            assert!(error.message.contains("cannot be read"), "{error}");
        }
        let short = pb::DomainNodeRecord { key: "short".into(), ..Default::default() };
        assert!(Node::decode(&written(&short)).is_err());
    }
}
