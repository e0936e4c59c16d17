//! The records of a node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::pb::instance_record::Spec;
use super::{component, node, pb, required, uuid};
use crate::component::{ComponentSpec, Patch, Row, Start};
use crate::error::Error;
use crate::event::Trace;
use crate::id::{ComponentId, NodeId};
use crate::journal::{Belongings, Handled, InstanceRecord, OutboxEvent, OutboxNumbers, Saved, SavedState};

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

fn moment(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

impl From<OutboxEvent> for pb::OutboxEventRecord {
    fn from(event: OutboxEvent) -> Self {
        let (trace_high, trace_low) = Uuid::from_u128(event.trace.trace_id).as_u64_pair();
        Self {
            output: event.output,
            payload: event.payload,
            trace_high,
            trace_low,
            span: event.trace.span_id,
            sent_at_ms: node::millis(event.sent.duration_since(UNIX_EPOCH).unwrap_or_default()),
            tries: event.tries,
            reason: event.reason,
        }
    }
}

impl From<pb::OutboxEventRecord> for OutboxEvent {
    fn from(record: pb::OutboxEventRecord) -> Self {
        let trace_id = Uuid::from_u64_pair(record.trace_high, record.trace_low).as_u128();
        Self {
            output: record.output,
            payload: record.payload,
            trace: Trace { trace_id, span_id: record.span },
            sent: moment(record.sent_at_ms),
            tries: record.tries,
            reason: record.reason,
        }
    }
}

impl OutboxEvent {
    /// The record.
    pub fn encode(&self) -> Bytes {
        pb::OutboxEventRecord::from(self.clone()).encode_to_vec().into()
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        Ok(read::<pb::OutboxEventRecord>(record, "an event")?.into())
    }
}

impl From<OutboxNumbers> for pb::OutboxNumbersRecord {
    fn from(numbers: OutboxNumbers) -> Self {
        let (outbox_high, outbox_low) = numbers.outbox.as_u64_pair();
        Self { outbox_high, outbox_low, reserved: numbers.reserved }
    }
}

impl From<pb::OutboxNumbersRecord> for OutboxNumbers {
    fn from(record: pb::OutboxNumbersRecord) -> Self {
        Self { outbox: Uuid::from_u64_pair(record.outbox_high, record.outbox_low), reserved: record.reserved }
    }
}

impl OutboxNumbers {
    /// The record.
    pub fn encode(&self) -> Bytes {
        pb::OutboxNumbersRecord::from(*self).encode_to_vec().into()
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        Ok(read::<pb::OutboxNumbersRecord>(record, "the numbers of events")?.into())
    }
}

impl From<Handled> for pb::HandledRecord {
    fn from(handled: Handled) -> Self {
        let ranges = handled.ranges.into_iter().flat_map(|(first, last)| [first, last]).collect();
        Self { ranges, oldest: handled.oldest }
    }
}

impl TryFrom<pb::HandledRecord> for Handled {
    type Error = Error;

    fn try_from(record: pb::HandledRecord) -> Result<Self, Error> {
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(record.ranges.len() / 2);
        for range in record.ranges.chunks(2) {
            match *range {
                [first, last] if first <= last && ranges.last().is_none_or(|before| before.1 < first) => {
                    ranges.push((first, last));
                }
                _ => return Err(Error::rejected("the ranges of handled events are not in order")),
            }
        }
        Ok(Self { ranges, oldest: record.oldest })
    }
}

impl Handled {
    /// The record.
    pub fn encode(&self) -> Bytes {
        pb::HandledRecord::from(self.clone()).encode_to_vec().into()
    }

    /// What a record says.
    ///
    /// # Errors
    /// It is no such record.
    pub fn decode(record: &[u8]) -> Result<Self, Error> {
        read::<pb::HandledRecord>(record, "handled events")?.try_into()
    }
}

/// What the belongings of a component begin with: a state alone does not, but by an accident that does not happen.
const BELONGINGS: [u8; 16] = *b"\x00\xfeEDGELESS\xff\x93\x1d\xc2\x77\x0a";

impl Belongings {
    /// As they travel: a state alone as it is.
    pub fn encode(self) -> Option<Bytes> {
        if self.numbers.is_none() && self.events.is_empty() && self.handled.is_empty() && self.dead.is_empty() {
            return self.state;
        }
        let event = |(number, event): (u64, OutboxEvent)| pb::belongings_record::NumberedEvent {
            number,
            event: Some(event.into()),
        };
        let handled = |(outbox, handled): (Uuid, Handled)| {
            let (outbox_high, outbox_low) = outbox.as_u64_pair();
            pb::belongings_record::HandledOf { outbox_high, outbox_low, handled: Some(handled.into()) }
        };
        let record = pb::BelongingsRecord {
            state: self.state,
            numbers: self.numbers.map(Into::into),
            events: self.events.into_iter().map(event).collect(),
            handled: self.handled.into_iter().map(handled).collect(),
            dead: self.dead.into_iter().map(event).collect(),
        };
        let mut bytes = BELONGINGS.to_vec();
        bytes.extend(record.encode_to_vec());
        Some(bytes.into())
    }

    /// What has travelled.
    ///
    /// # Errors
    /// It says that it is belongings, and is not.
    pub fn decode(bytes: Bytes) -> Result<Self, Error> {
        let Some(record) = bytes.strip_prefix(&BELONGINGS) else {
            return Ok(Self { state: Some(bytes), ..Self::default() });
        };
        let record: pb::BelongingsRecord = read(record, "what a component takes along")?;
        let event = |numbered: pb::belongings_record::NumberedEvent| {
            Ok::<_, Error>((numbered.number, required(numbered.event, "event")?.into()))
        };
        let handled = |of: pb::belongings_record::HandledOf| {
            let outbox = Uuid::from_u64_pair(of.outbox_high, of.outbox_low);
            Ok::<_, Error>((outbox, required(of.handled, "handled")?.try_into()?))
        };
        Ok(Self {
            state: record.state,
            numbers: record.numbers.map(Into::into),
            events: record.events.into_iter().map(event).collect::<Result<_, _>>()?,
            handled: record.handled.into_iter().map(handled).collect::<Result<_, _>>()?,
            dead: record.dead.into_iter().map(event).collect::<Result<_, _>>()?,
        })
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
    fn what_is_kept_of_events_is_read_as_it_was_written() {
        let event = OutboxEvent {
            output: "out".into(),
            payload: Bytes::from_static(&[0xff, 0]),
            trace: Trace { trace_id: 1 << 100, span_id: 2 },
            sent: moment(1_700_000_000_123),
            tries: 3,
            reason: "the target has failed".into(),
        };
        assert_eq!(OutboxEvent::decode(&event.encode()).unwrap(), event);
        let numbers = OutboxNumbers { outbox: Uuid::from_u128(7), reserved: 4096 };
        assert_eq!(OutboxNumbers::decode(&numbers.encode()).unwrap(), numbers);
        let handled = Handled { ranges: vec![(1, 5), (7, 7)], oldest: 4 };
        assert_eq!(Handled::decode(&handled.encode()).unwrap(), handled);
        for ranges in [vec![(5, 1)], vec![(1, 5), (5, 6)]] {
            assert!(Handled::decode(&Handled { ranges, oldest: 1 }.encode()).is_err());
        }
        let state = Some(Bytes::from_static(b"state"));
        let alone = Belongings { state: state.clone(), ..Belongings::default() };
        assert_eq!(alone.clone().encode(), state, "as nodes of former versions know it");
        assert_eq!(Belongings::decode(state.clone().unwrap()).unwrap(), alone);
        for state in [state, None] {
            let all = Belongings {
                state,
                numbers: Some(numbers),
                events: vec![(9, event.clone())],
                handled: vec![(Uuid::from_u128(8), handled.clone())],
                dead: vec![(3, event.clone())],
            };
            assert_eq!(Belongings::decode(all.clone().encode().unwrap()).unwrap(), all);
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
