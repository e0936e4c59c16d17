//! The frames of a link between two nodes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::node::millis;
use super::{pb, required};
use crate::error::Error;
use crate::event::{Reply as Answer, Trace};
use crate::id::NodeId;
use crate::peer::{Call, Event, Fate, Frame, Hello, Item, Reply, Settled, Window};

const FATES: [(Fate, pb::PeerFate); 10] = [
    (Fate::Handled, pb::PeerFate::Handled),
    (Fate::Expired, pb::PeerFate::Expired),
    (Fate::UnknownTarget, pb::PeerFate::UnknownTarget),
    (Fate::NoInstance, pb::PeerFate::NoInstance),
    (Fate::MailboxFull, pb::PeerFate::MailboxFull),
    (Fate::TooLarge, pb::PeerFate::TooLarge),
    (Fate::TargetFailed, pb::PeerFate::TargetFailed),
    (Fate::Stopping, pb::PeerFate::Stopping),
    (Fate::Unknown, pb::PeerFate::UnknownFate),
    (Fate::HandedOver, pb::PeerFate::HandedOver),
];

/// Payloads below this are copied out of the frame that they came in: one that waits long would keep
/// the whole frame in memory.
const SMALL: usize = 4 << 10;

fn unpinned(payload: Bytes) -> Bytes {
    if payload.len() < SMALL { Bytes::copy_from_slice(&payload) } else { payload }
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)).unwrap_or(UNIX_EPOCH)
}

impl Frame {
    /// As it is on the wire.
    pub fn encode(self) -> Bytes {
        pb::PeerFrame::from(self).encode_to_vec().into()
    }

    /// What these bytes are on the wire.
    ///
    /// # Errors
    /// They are no frame.
    pub fn decode(bytes: Bytes) -> Result<Self, Error> {
        pb::PeerFrame::decode(bytes).map_err(Error::rejected)?.try_into()
    }
}

impl From<Frame> for pb::PeerFrame {
    fn from(frame: Frame) -> Self {
        Self {
            hello: frame.hello.map(Into::into),
            first_sequence: frame.first,
            items: frame.items.into_iter().map(Into::into).collect(),
            accepted: frame.accepted,
        }
    }
}

impl TryFrom<pb::PeerFrame> for Frame {
    type Error = Error;

    fn try_from(frame: pb::PeerFrame) -> Result<Self, Error> {
        Ok(Self {
            hello: frame.hello.map(TryInto::try_into).transpose()?,
            first: frame.first_sequence,
            items: frame.items.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            accepted: frame.accepted,
        })
    }
}

impl From<Hello> for pb::PeerHello {
    fn from(hello: Hello) -> Self {
        Self {
            node_id: Bytes::copy_from_slice(hello.node.0.as_bytes()),
            session: hello.session,
            known_session: hello.known,
            taken: hello.taken,
            window_events: hello.window.events,
            window_bytes: hello.window.bytes,
            window_total: hello.window.total,
            max_payload: hello.max_payload,
            links: hello.links,
            invocation_url: hello.invocation_url.map(|url| url.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::PeerHello> for Hello {
    type Error = Error;

    fn try_from(hello: pb::PeerHello) -> Result<Self, Error> {
        let node = Uuid::from_slice(&hello.node_id)
            .map_err(|_| Error::rejected(format!("node_id has {} bytes", hello.node_id.len())))?;
        if hello.session == 0 {
            return Err(Error::rejected("the session is 0"));
        }
        Ok(Self {
            node: NodeId(node),
            session: hello.session,
            known: hello.known_session,
            taken: hello.taken,
            window: Window { events: hello.window_events, bytes: hello.window_bytes, total: hello.window_total },
            max_payload: hello.max_payload,
            links: hello.links,
            invocation_url: if hello.invocation_url.is_empty() { None } else { Some(hello.invocation_url.parse()?) },
        })
    }
}

impl From<Item> for pb::PeerItem {
    fn from(item: Item) -> Self {
        use pb::peer_item::Item as Kind;
        let item = match item {
            Item::Event(event) => Kind::Event(event.into()),
            Item::Reply(reply) => Kind::Reply(reply.into()),
            Item::Settled(settled) => Kind::Settled(settled.into()),
        };
        Self { item: Some(item) }
    }
}

impl TryFrom<pb::PeerItem> for Item {
    type Error = Error;

    fn try_from(item: pb::PeerItem) -> Result<Self, Error> {
        use pb::peer_item::Item as Kind;
        Ok(match required(item.item, "item")? {
            Kind::Event(event) => Self::Event(event.into()),
            Kind::Reply(reply) => Self::Reply(reply.into()),
            Kind::Settled(settled) => Self::Settled(settled.try_into()?),
        })
    }
}

impl From<Event> for pb::PeerEvent {
    fn from(event: Event) -> Self {
        let (source_high, source_low) = event.source.as_u64_pair();
        let (source_node_high, source_node_low) = event.source_node.map_or((0, 0), |node| node.0.as_u64_pair());
        let (target_high, target_low) = event.target.as_u64_pair();
        let (trace_high, trace_low) = Uuid::from_u128(event.trace.trace_id).as_u64_pair();
        // A call whose time is up still has to say so: 0 would mean "no limit".
        let remaining = |time: Duration| millis(time).max(1);
        Self {
            source_high,
            source_low,
            target_high,
            target_low,
            payload: event.payload,
            stream_id: event.call.map_or(0, |call| call.stream),
            remaining_ms: event.call.and_then(|call| call.remaining).map_or(0, remaining),
            created: nanos(event.created),
            trace_high,
            trace_low,
            span: event.trace.span_id,
            source_node_high,
            source_node_low,
            id: event.id.map(Into::into),
        }
    }
}

impl From<pb::PeerEvent> for Event {
    fn from(event: pb::PeerEvent) -> Self {
        let remaining = (event.remaining_ms > 0).then(|| Duration::from_millis(event.remaining_ms));
        let source_node = Uuid::from_u64_pair(event.source_node_high, event.source_node_low);
        Self {
            source: Uuid::from_u64_pair(event.source_high, event.source_low),
            source_node: (!source_node.is_nil()).then_some(NodeId(source_node)),
            target: Uuid::from_u64_pair(event.target_high, event.target_low),
            payload: unpinned(event.payload),
            call: (event.stream_id > 0).then_some(Call { stream: event.stream_id, remaining }),
            created: time(event.created),
            trace: trace(event.trace_high, event.trace_low, event.span),
            id: event.id.map(Into::into),
        }
    }
}

fn trace(high: u64, low: u64, span_id: u64) -> Trace {
    Trace { trace_id: Uuid::from_u64_pair(high, low).as_u128(), span_id }
}

impl From<Reply> for pb::PeerReply {
    fn from(reply: Reply) -> Self {
        let (source_high, source_low) = reply.source.as_u64_pair();
        let (target_high, target_low) = reply.target.as_u64_pair();
        let (event_type, payload) = match reply.reply {
            Answer::Message(payload) => (pb::EventType::CallRet, payload),
            Answer::Empty => (pb::EventType::CallNoRet, Bytes::new()),
            Answer::Error => (pb::EventType::Err, Bytes::new()),
        };
        let (trace_high, trace_low) = Uuid::from_u128(reply.trace.trace_id).as_u64_pair();
        Self {
            source_high,
            source_low,
            target_high,
            target_low,
            stream_id: reply.stream,
            r#type: event_type.into(),
            payload,
            trace_high,
            trace_low,
            span: reply.trace.span_id,
        }
    }
}

impl From<pb::PeerReply> for Reply {
    fn from(reply: pb::PeerReply) -> Self {
        Self {
            source: Uuid::from_u64_pair(reply.source_high, reply.source_low),
            target: Uuid::from_u64_pair(reply.target_high, reply.target_low),
            stream: reply.stream_id,
            reply: match pb::EventType::try_from(reply.r#type) {
                Ok(pb::EventType::CallRet) => Answer::Message(unpinned(reply.payload)),
                Ok(pb::EventType::CallNoRet) => Answer::Empty,
                // As in unary events, a type that is not known is an error.
                Ok(_) | Err(_) => Answer::Error,
            },
            trace: trace(reply.trace_high, reply.trace_low, reply.span),
        }
    }
}

impl From<Settled> for pb::PeerSettled {
    fn from(settled: Settled) -> Self {
        let fate =
            FATES.iter().find(|(fate, _)| *fate == settled.fate).map_or(pb::PeerFate::UnknownFate, |(_, to)| *to);
        Self { first_sequence: settled.first, count: settled.count, fate: fate.into() }
    }
}

impl TryFrom<pb::PeerSettled> for Settled {
    type Error = Error;

    fn try_from(settled: pb::PeerSettled) -> Result<Self, Error> {
        if settled.count == 0 {
            return Err(Error::rejected("no event is settled"));
        }
        // A fate that is not known may be anything.
        let fate = pb::PeerFate::try_from(settled.fate)
            .ok()
            .and_then(|message| FATES.iter().find(|(_, known)| *known == message))
            .map_or(Fate::Unknown, |(fate, _)| *fate);
        Ok(Self { first: settled.first_sequence, count: settled.count, fate })
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::ITEMS;
    use super::*;
    use crate::event::EventId;

    /// Numbers without a pattern, the same for each seed.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 ^ self.0 >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> (self.0 >> 58)
        }

        fn below(&mut self, limit: u64) -> u64 {
            self.next() % limit
        }

        fn uuid(&mut self) -> Uuid {
            // No node is nil: that says that there is none.
            Uuid::from_u64_pair(self.next(), self.next().max(1))
        }

        fn bytes(&mut self) -> Bytes {
            let length = if self.below(8) == 0 { 5000 } else { self.below(100) };
            (0..length).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
        }

        fn item(&mut self) -> Item {
            match self.below(3) {
                0 => Item::Event(Event {
                    source: self.uuid(),
                    source_node: (self.below(2) == 0).then(|| NodeId(self.uuid())),
                    target: self.uuid(),
                    payload: self.bytes(),
                    call: (self.below(2) == 0).then(|| Call {
                        stream: self.next().max(1),
                        remaining: (self.below(2) == 0).then(|| Duration::from_millis(self.next().max(1))),
                    }),
                    created: time(self.next()),
                    trace: Trace { trace_id: self.uuid().as_u128(), span_id: self.next() },
                    id: (self.below(2) == 0).then(|| EventId {
                        outbox: self.uuid(),
                        number: self.next(),
                        oldest: self.next(),
                    }),
                }),
                1 => Item::Reply(Reply {
                    source: self.uuid(),
                    target: self.uuid(),
                    stream: self.next(),
                    reply: match self.below(3) {
                        0 => Answer::Empty,
                        1 => Answer::Error,
                        _ => Answer::Message(self.bytes()),
                    },
                    trace: Trace { trace_id: self.uuid().as_u128(), span_id: self.next() },
                }),
                _ => Item::Settled(Settled {
                    first: self.next(),
                    count: self.next().max(1),
                    fate: FATES[usize::try_from(self.below(10)).unwrap()].0,
                }),
            }
        }

        fn hello(&mut self) -> Hello {
            Hello {
                node: NodeId(self.uuid()),
                session: self.next().max(1),
                known: self.next(),
                taken: self.next(),
                window: Window { events: 256, bytes: self.next(), total: 1 << 16 },
                max_payload: self.next(),
                links: self.next(),
                invocation_url: (self.below(2) == 0).then(|| "http://10.0.0.1:7002".parse().unwrap()),
            }
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_to_the_same() {
        for seed in 0..2000 {
            let mut numbers = Numbers(seed);
            let frame = Frame {
                hello: (numbers.below(4) == 0).then(|| numbers.hello()),
                first: numbers.next(),
                items: (0..numbers.below(20)).map(|_| numbers.item()).collect(),
                accepted: numbers.next(),
            };
            assert_eq!(Frame::decode(frame.clone().encode()).unwrap(), frame, "seed {seed}");
        }
    }

    /// Whatever arrives is refused or understood; nothing else may happen.
    #[test]
    fn damaged_frames_do_no_harm() {
        let mut numbers = Numbers(1);
        let frame = Frame { items: (0..20).map(|_| numbers.item()).collect(), ..Frame::default() };
        let whole = frame.encode().to_vec();
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            let at = usize::try_from(numbers.below(whole.len() as u64)).unwrap();
            bytes[at] = u8::try_from(numbers.below(256)).unwrap();
            bytes.truncate(bytes.len() - usize::try_from(numbers.below(3)).unwrap());
            drop(Frame::decode(bytes.into()));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let refusal = |frame: pb::PeerFrame| Frame::try_from(frame).unwrap_err().message;
        let hello = pb::PeerHello::from(Numbers(1).hello());
        let greets = |hello| pb::PeerFrame { hello: Some(hello), ..pb::PeerFrame::default() };
        let short = pb::PeerHello { node_id: Bytes::from_static(b"x"), ..hello.clone() };
        assert_eq!(refusal(greets(short)), "node_id has 1 bytes");
        assert_eq!(refusal(greets(pb::PeerHello { session: 0, ..hello })), "the session is 0");
        let has = |item| pb::PeerFrame { items: vec![pb::PeerItem { item }], ..pb::PeerFrame::default() };
        assert!(refusal(has(None)).contains("'item'"));
        let none = pb::peer_item::Item::Settled(pb::PeerSettled::default());
        assert_eq!(refusal(has(Some(none))), "no event is settled");
        let newer = pb::PeerSettled { first_sequence: 1, count: 1, fate: 99 };
        assert_eq!(Settled::try_from(newer).unwrap().fate, Fate::Unknown);
    }

    #[test]
    fn a_frame_of_countless_items_is_refused_before_they_fill_the_memory() {
        let mut bytes = [0x1a, 0].repeat(ITEMS);
        assert!(Frame::decode(bytes.clone().into()).unwrap_err().message.contains("'item'"));
        bytes.extend([0x1a, 0]);
        assert!(Frame::decode(bytes.into()).unwrap_err().message.contains("more than 4096 items"));
    }

    #[test]
    fn a_small_payload_does_not_keep_its_frame_in_memory() {
        let payload = |length: usize| {
            let event = pb::PeerEvent { payload: vec![7; length].into(), ..pb::PeerEvent::default() };
            let item = pb::PeerItem { item: Some(pb::peer_item::Item::Event(event)) };
            let bytes = Bytes::from(pb::PeerFrame { items: vec![item], ..pb::PeerFrame::default() }.encode_to_vec());
            let Item::Event(event) = Frame::decode(bytes.clone()).unwrap().items.remove(0) else { panic!("an event") };
            (bytes.as_ptr_range(), event.payload)
        };
        let (frame, small) = payload(SMALL - 1);
        assert!(!frame.contains(&small.as_ptr()));
        let (frame, large) = payload(SMALL);
        assert!(frame.contains(&large.as_ptr()), "a large one is not worth the copy");
    }
}
