//! The message `PeerFrame`, written by hand for the sake of one limit.
//!
//! An item of two bytes on the wire is a hundred times as large in memory. A generated message would
//! take as many as fit into the largest frame, and one frame could take a node down.

use prost::DecodeError;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};

use super::pb;

/// Items in one frame. Ours have far fewer.
pub(crate) const ITEMS: usize = 4096;

/// What one message of a link carries.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PeerFrame {
    pub(crate) hello: Option<pb::PeerHello>,
    pub(crate) first_sequence: u64,
    pub(crate) items: Vec<pb::PeerItem>,
    pub(crate) accepted: u64,
}

impl Message for PeerFrame {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        if let Some(hello) = &self.hello {
            encoding::message::encode(1, hello, buffer);
        }
        if self.first_sequence != 0 {
            encoding::uint64::encode(2, &self.first_sequence, buffer);
        }
        encoding::message::encode_repeated(3, &self.items, buffer);
        if self.accepted != 0 {
            encoding::uint64::encode(4, &self.accepted, buffer);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => encoding::message::merge(wire_type, self.hello.get_or_insert_default(), buffer, context),
            2 => encoding::uint64::merge(wire_type, &mut self.first_sequence, buffer, context),
            3 if self.items.len() >= ITEMS => Err(too_many()),
            3 => encoding::message::merge_repeated(wire_type, &mut self.items, buffer, context),
            4 => encoding::uint64::merge(wire_type, &mut self.accepted, buffer, context),
            _ => encoding::skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let number = |tag, value| if value == 0 { 0 } else { encoding::uint64::encoded_len(tag, &value) };
        self.hello.as_ref().map_or(0, |hello| encoding::message::encoded_len(1, hello))
            + number(2, self.first_sequence)
            + encoding::message::encoded_len_repeated(3, &self.items)
            + number(4, self.accepted)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[expect(deprecated, reason = "there is no other way to refuse a message from within")]
fn too_many() -> DecodeError {
    DecodeError::new(format!("a frame has more than {ITEMS} items"))
}
