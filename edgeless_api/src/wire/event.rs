//! Events one by one, as EDGELESS 1.x nodes send and take them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use uuid::Uuid;

use super::node::millis;
use super::{pb, required};
use crate::error::Error;
use crate::event::{Event, EventId, Kind, Reply, Trace};

/// The metadata of a request that says where the node of the event's source takes events. Ours.
pub(crate) const SENDER: &str = "edgeless-invocation-url";

impl From<Event> for pb::Event {
    fn from(event: Event) -> Self {
        let (event_type, payload, stream_id, remaining) = match event.kind {
            Kind::Cast(payload) => (pb::EventType::Cast, payload, 0, None),
            Kind::Call { payload, stream, remaining } => (pb::EventType::Call, payload, stream, remaining),
            Kind::Reply { reply: Reply::Message(payload), stream } => (pb::EventType::CallRet, payload, stream, None),
            Kind::Reply { reply: Reply::Empty, stream } => (pb::EventType::CallNoRet, Bytes::new(), stream, None),
            Kind::Reply { reply: Reply::Error, stream } => (pb::EventType::Err, Bytes::new(), stream, None),
        };
        let since_epoch = event.created.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            target: Some(event.target.into()),
            source: Some(event.source.into()),
            stream_id,
            msg: Some(pb::EventData { event_type: event_type.into(), payload }),
            created: Some(pb::EventTimestamp {
                secs: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
                nsecs: since_epoch.subsec_nanos(),
            }),
            metadata: Some(event.trace.into()),
            // A call whose time is up still has to say so: 0 would mean "no limit".
            remaining_ms: remaining.map(|time| millis(time).max(1)).unwrap_or_default(),
            id: event.id.map(Into::into),
        }
    }
}

impl From<EventId> for pb::EventId {
    fn from(id: EventId) -> Self {
        let (outbox_high, outbox_low) = id.outbox.as_u64_pair();
        Self { outbox_high, outbox_low, number: id.number, oldest: id.oldest }
    }
}

impl From<pb::EventId> for EventId {
    fn from(id: pb::EventId) -> Self {
        let outbox = Uuid::from_u64_pair(id.outbox_high, id.outbox_low);
        Self { outbox, number: id.number, oldest: id.oldest }
    }
}

impl From<Trace> for pb::EventSerializedMetadata {
    fn from(trace: Trace) -> Self {
        Self {
            trace_id: Bytes::copy_from_slice(&trace.trace_id.to_be_bytes()),
            span_id: Bytes::copy_from_slice(&trace.span_id.to_be_bytes()),
        }
    }
}

impl TryFrom<pb::EventSerializedMetadata> for Trace {
    type Error = Error;

    fn try_from(metadata: pb::EventSerializedMetadata) -> Result<Self, Error> {
        let wrong = |name: &str, length: usize| Error::rejected(format!("{name} has {length} bytes"));
        let trace_id: [u8; 16] =
            metadata.trace_id.as_ref().try_into().map_err(|_| wrong("trace_id", metadata.trace_id.len()))?;
        let span_id: [u8; 8] =
            metadata.span_id.as_ref().try_into().map_err(|_| wrong("span_id", metadata.span_id.len()))?;
        Ok(Self { trace_id: u128::from_be_bytes(trace_id), span_id: u64::from_be_bytes(span_id) })
    }
}

fn time(stamp: pb::EventTimestamp) -> SystemTime {
    let secs = u64::try_from(stamp.secs).unwrap_or_default();
    UNIX_EPOCH.checked_add(Duration::new(secs, stamp.nsecs.min(999_999_999))).unwrap_or(UNIX_EPOCH)
}

impl TryFrom<pb::Event> for Event {
    type Error = Error;

    fn try_from(event: pb::Event) -> Result<Self, Error> {
        let message = required(event.msg, "msg")?;
        let stream = event.stream_id;
        let payload = message.payload;
        let kind = match pb::EventType::try_from(message.event_type) {
            Ok(pb::EventType::Cast) => Kind::Cast(payload),
            Ok(pb::EventType::Call) => Kind::Call {
                payload,
                stream,
                remaining: (event.remaining_ms > 0).then(|| Duration::from_millis(event.remaining_ms)),
            },
            Ok(pb::EventType::CallRet) => Kind::Reply { reply: Reply::Message(payload), stream },
            Ok(pb::EventType::CallNoRet) => Kind::Reply { reply: Reply::Empty, stream },
            // A type that is not known is an error, by the protocol.
            Ok(pb::EventType::Err) | Err(_) => Kind::Reply { reply: Reply::Error, stream },
        };
        Ok(Self {
            source: required(event.source, "source")?.try_into()?,
            target: required(event.target, "target")?.try_into()?,
            kind,
            created: time(required(event.created, "created")?),
            trace: required(event.metadata, "metadata")?.try_into()?,
            id: event.id.map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{InstanceId, NodeId};
    use prost::Message;
    use uuid::Uuid;

    const NODE: &str = "00000000-0000-0000-0000-000000000001";
    const OTHER: &str = "00000000-0000-0000-0000-000000000002";

    /// Tag and length of a field that fits into one byte each, then its content.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        bytes.extend_from_slice(content);
        bytes
    }

    fn instance(node: &str, function: &str) -> Vec<u8> {
        [field(1, node.as_bytes()), field(2, function.as_bytes())].concat()
    }

    /// An event by hand, from the tables of the protocol: target, source, stream, message, created,
    /// metadata.
    fn by_hand(event_type: u8, payload: &[u8]) -> Vec<u8> {
        let message = [vec![0x08, event_type], field(2, payload)].concat();
        let metadata =
            [field(1, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]), field(2, &[0, 0, 0, 0, 0, 0, 0, 9])];
        [
            field(1, &instance(NODE, OTHER)),
            field(2, &instance(OTHER, NODE)),
            vec![0x18, 7],
            field(4, &message),
            field(5, &[0x08, 100, 0x10, 5]),
            field(6, &metadata.concat()),
        ]
        .concat()
    }

    fn expected(kind: Kind) -> Event {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        Event {
            source: InstanceId { node: NodeId(two), function: one },
            target: InstanceId { node: NodeId(one), function: two },
            kind,
            created: UNIX_EPOCH + Duration::new(100, 5),
            trace: Trace { trace_id: 0x102, span_id: 9 },
            id: None,
        }
    }

    fn decode(bytes: &[u8]) -> Result<Event, Error> {
        pb::Event::decode(bytes).unwrap().try_into()
    }

    #[test]
    fn bytes_written_by_hand_are_understood() {
        let payload = Bytes::from_static(b"hello");
        let call = Kind::Call { payload: payload.clone(), stream: 7, remaining: None };
        assert_eq!(decode(&by_hand(0, b"hello")).unwrap(), expected(call));
        let reply = Kind::Reply { reply: Reply::Message(payload), stream: 7 };
        assert_eq!(decode(&by_hand(2, b"hello")).unwrap(), expected(reply));
        let unknown = Kind::Reply { reply: Reply::Error, stream: 7 };
        assert_eq!(decode(&by_hand(99, b"")).unwrap(), expected(unknown), "an unknown type is an error");
    }

    #[test]
    fn what_is_written_is_what_the_tables_say() {
        let reply = Kind::Reply { reply: Reply::Message(Bytes::from_static(b"hello")), stream: 7 };
        assert_eq!(pb::Event::from(expected(reply)).encode_to_vec(), by_hand(2, b"hello"));
    }

    #[test]
    fn a_payload_need_not_be_text() {
        let event = decode(&by_hand(1, &[0xff, 0x00, 0xfe])).unwrap();
        assert_eq!(event.kind, Kind::Cast(Bytes::from_static(&[0xff, 0x00, 0xfe])));
    }

    #[test]
    fn a_missing_part_is_named() {
        let whole = pb::Event::decode(by_hand(1, b"x").as_slice()).unwrap();
        let lacks = |event: pb::Event| Event::try_from(event).unwrap_err().message;
        assert!(lacks(pb::Event { target: None, ..whole.clone() }).contains("'target'"));
        assert!(lacks(pb::Event { source: None, ..whole.clone() }).contains("'source'"));
        assert!(lacks(pb::Event { msg: None, ..whole.clone() }).contains("'msg'"));
        assert!(lacks(pb::Event { created: None, ..whole.clone() }).contains("'created'"));
        assert!(lacks(pb::Event { metadata: None, ..whole.clone() }).contains("'metadata'"));
        let short = pb::EventSerializedMetadata { trace_id: Bytes::from_static(b"x"), span_id: Bytes::new() };
        assert!(lacks(pb::Event { metadata: Some(short), ..whole }).contains("trace_id has 1 bytes"));
    }
}
