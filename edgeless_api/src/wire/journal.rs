//! The records of a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;

use super::pb::instance_record::Spec;
use super::{component, node, pb, required, uuid};
use crate::component::{ComponentSpec, Patch, Row, Start};
use crate::error::Error;
use crate::id::{ComponentId, NodeId};
use crate::journal::{InstanceRecord, Saved, SavedState};

fn read<M: Message + Default>(bytes: &[u8], what: &str) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::rejected(format!("the record of {what} cannot be read: {error}")))
}

fn since_1970(at: SystemTime) -> u64 {
    node::millis(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

pub(crate) fn saved_states(node: NodeId, states: Vec<Saved>) -> pb::SavedStates {
    let copy = |saved: Saved| pb::SavedStateCopy {
        component_id: saved.component.to_string(),
        epoch: saved.about.epoch,
        syncs: saved.about.syncs,
        saved_at_ms: since_1970(saved.about.at),
        state: saved.state,
    };
    pb::SavedStates { node_id: node.to_string(), states: states.into_iter().map(copy).collect() }
}

impl TryFrom<pb::SavedStates> for (NodeId, Vec<Saved>) {
    type Error = Error;

    fn try_from(message: pb::SavedStates) -> Result<Self, Error> {
        let saved = |copy: pb::SavedStateCopy| {
            let about = SavedState { epoch: copy.epoch, syncs: copy.syncs, at: time(copy.saved_at_ms) };
            let component = ComponentId(uuid(&copy.component_id, "component_id")?);
            Ok(Saved { component, about, state: copy.state })
        };
        let node = NodeId(uuid(&message.node_id, "node_id")?);
        Ok((node, message.states.into_iter().map(saved).collect::<Result<_, Error>>()?))
    }
}

impl SavedState {
    /// The record.
    pub fn encode(&self) -> Bytes {
        let saved_at_ms = since_1970(self.at);
        pb::SavedStateRecord { epoch: self.epoch, syncs: self.syncs, saved_at_ms }.encode_to_vec().into()
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::SavedStateRecord = read(record, "a state")?;
        Ok(Self { epoch: record.epoch, syncs: record.syncs, at: time(record.saved_at_ms) })
    }
}

pub(crate) fn instance(record: InstanceRecord) -> Bytes {
    let context = Some(record.context);
    let spec = match record.spec {
        ComponentSpec::Function(spec) => Spec::Function(component::function_request(spec, context)),
        ComponentSpec::Resource(spec) => Spec::Resource(component::resource_request(spec, context)),
    };
    let record = pb::InstanceRecord {
        spec: Some(spec),
        instance_id: record.instance.to_string(),
        outputs: Some(Patch::new(record.instance, record.outputs).into()),
        is_active: record.is_active,
    };
    record.encode_to_vec().into()
}

impl InstanceRecord {
    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        let record: pb::InstanceRecord = read(record, "an instance")?;
        let start: Start = match required(record.spec, "spec")? {
            Spec::Function(request) => request.try_into()?,
            Spec::Resource(request) => request.try_into()?,
        };
        let outputs: Option<Patch> = record.outputs.map(TryInto::try_into).transpose()?;
        Ok(Self {
            spec: start.spec,
            context: required(start.context, "context")?,
            instance: uuid(&record.instance_id, "instance_id")?,
            outputs: outputs.map(|patch| patch.outputs).unwrap_or_default(),
            is_active: record.is_active,
        })
    }
}

impl Row {
    /// The record of where a component runs.
    pub fn encode(&self) -> Bytes {
        pb::Row::from(self.clone()).encode_to_vec().into()
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        read::<pb::Row>(record, "where a component runs")?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::component::{FunctionClass, FunctionSpec, ResourceSpec, StartContext, StatePolicy, StateSpec, Target};
    use crate::id::{ComponentId, InstanceId, NodeId, StateId, WorkflowId};
    use crate::{Binary, Digest};

    fn record(spec: ComponentSpec) -> InstanceRecord {
        let component = ComponentId(Uuid::from_u128(1));
        let elsewhere = InstanceId { node: NodeId(Uuid::from_u128(2)), function: Uuid::from_u128(3) };
        let row = |instances| Row {
            addresses: BTreeMap::from([(elsewhere.node, "http://127.0.0.1:7002".parse().unwrap())]),
            ..Row::new(component, 1 << 40, instances)
        };
        InstanceRecord {
            spec,
            context: StartContext {
                provider: "p".into(),
                replica: 3,
                reports_load: true,
                state: Some(Bytes::new()),
                ..StartContext::new(component, 9, "one")
            },
            instance: Uuid::from_u128(4),
            outputs: BTreeMap::from([
                ("out".into(), Target::Row(row(vec![elsewhere]))),
                ("nowhere".into(), Target::Row(row(vec![]))),
                ("one".into(), Target::Instance(elsewhere)),
            ]),
            is_active: true,
        }
    }

    #[test]
    fn an_instance_is_read_as_it_was_written_but_for_its_code() {
        let class = FunctionClass {
            id: "f".into(),
            function_type: "RUST_WASM".into(),
            binary: Bytes::from_static(b"code").into(),
            ..FunctionClass::default()
        };
        let workflow = WorkflowId(Uuid::from_u128(5));
        let function = FunctionSpec {
            class,
            annotations: BTreeMap::from([("init-payload".into(), "1".into())]),
            state: StateSpec { id: StateId(Uuid::from_u128(6)), policy: StatePolicy::NodeLocal },
            workflow,
        };
        let written = record(ComponentSpec::Function(function));
        let read = InstanceRecord::decode(&written.encode()).unwrap();
        let ComponentSpec::Function(spec) = &read.spec else { panic!("it is a function") };
        assert_eq!(spec.class.binary, Binary::named(Digest::of(b"code")));
        assert_eq!(read, written.without_code());

        let configuration = BTreeMap::from([("host".into(), "a.b".into())]);
        let class_type = "http-ingress".into();
        let written = record(ComponentSpec::Resource(ResourceSpec { class_type, configuration, workflow }));
        assert_eq!(InstanceRecord::decode(&written.encode()), Ok(written));
        let error = InstanceRecord::decode(b"never a record").unwrap_err();
        assert!(error.message.contains("the record of an instance cannot be read"), "{error}");
        assert!(InstanceRecord::decode(b"").is_err(), "it says nothing");
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let row = Row::new(ComponentId(Uuid::from_u128(1)), 7, vec![]);
        assert_eq!(Row::decode(&row.encode()), Ok(row));
        assert!(Row::decode(b"never a record").is_err());
    }

    #[test]
    fn a_record_of_a_state_is_read_as_it_was_written() {
        let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let state = SavedState { epoch: 7, syncs: u64::MAX, at };
        assert_eq!(SavedState::decode(&state.encode()), Ok(state));
        let error = SavedState::decode(b"never a record").unwrap_err();
        assert!(error.message.contains("the record of a state cannot be read"), "{error}");
    }
}
