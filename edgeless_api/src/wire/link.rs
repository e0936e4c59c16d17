//! What a node says over its link, and which process answers at its agent.

use super::{pb, required, uuid};
use crate::error::Error;
use crate::id::NodeId;
use crate::node::{Hello, Presence};

impl From<Hello> for pb::LinkFrame {
    fn from(hello: Hello) -> Self {
        let hello = pb::LinkHello {
            node_id: hello.node.to_string(),
            nonce: hello.nonce,
            signature: hello.signature.map(|signature| signature.to_vec().into()).unwrap_or_default(),
        };
        Self { hello: Some(hello) }
    }
}

impl TryFrom<pb::LinkFrame> for Hello {
    type Error = Error;

    fn try_from(frame: pb::LinkFrame) -> Result<Self, Error> {
        let hello = required(frame.hello, "hello")?;
        let signature = if hello.signature.is_empty() {
            None
        } else {
            let whole = hello.signature.as_ref().try_into();
            Some(whole.map_err(|_| Error::rejected("the signature of a link has 64 bytes"))?)
        };
        Ok(Self { node: NodeId(uuid(&hello.node_id, "node_id")?), nonce: hello.nonce, signature })
    }
}

impl From<Presence> for pb::NodePresent {
    fn from(presence: Presence) -> Self {
        Self { node_id: presence.node.to_string(), nonce: presence.nonce }
    }
}

impl TryFrom<pb::NodePresent> for Presence {
    type Error = Error;

    fn try_from(present: pb::NodePresent) -> Result<Self, Error> {
        Ok(Self { node: NodeId(uuid(&present.node_id, "node_id")?), nonce: present.nonce })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_and_presences_survive_the_wire_and_what_is_none_is_refused() {
        for signature in [None, Some([7; 64])] {
            let hello = Hello { node: NodeId::random(), nonce: 1 << 60, signature };
            assert_eq!(pb::LinkFrame::from(hello).try_into(), Ok(hello));
            let mut short = pb::LinkFrame::from(hello);
            if let Some(hello) = &mut short.hello {
                hello.signature = vec![1; 63].into();
            }
            assert!(Hello::try_from(short).is_err());
        }
        assert!(Hello::try_from(pb::LinkFrame { hello: None }).is_err());
        let presence = Presence { node: NodeId::random(), nonce: 3 };
        assert_eq!(pb::NodePresent::from(presence).try_into(), Ok(presence));
        assert!(Presence::try_from(pb::NodePresent::default()).is_err());
    }
}
