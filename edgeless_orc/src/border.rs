//! The border of the domain: the one place where rows go out and patches come in, and where it is decided
//! whether a controller is heard at all. What is inside knows nothing of it.

use std::sync::Arc;

use edgeless_api::component::{Patch, Row};
use edgeless_api::error::Error;
use edgeless_api::id::NodeId;
use edgeless_api::url::Url;

use crate::forwarder::Forwarder;

/// How a domain stands to others.
#[derive(Clone)]
pub(crate) enum Border {
    /// The nodes of others reach its nodes.
    Open,
    /// Others reach its forwarder only.
    Private(Arc<Forwarder>),
    /// It is one node of another domain.
    Nested(Arc<Forwarder>),
}

impl Border {
    /// Refuses controllers where somebody else commands.
    ///
    /// # Errors
    /// The domain works for its parent.
    pub(crate) fn admit_controller(&self) -> Result<(), Error> {
        match self {
            Self::Open | Self::Private(_) => Ok(()),
            Self::Nested(_) => Err(Error::rejected(
                "the domain works for its parent alone: start components there, or remove [parent] from the file of \
                 its orchestrator",
            )),
        }
    }

    /// A patch of the controller as the domain shall see it.
    pub(crate) fn incoming(&self, patch: Patch) -> Patch {
        match self {
            Self::Open => patch,
            Self::Private(forwarder) | Self::Nested(forwarder) => forwarder.incoming(patch),
        }
    }

    /// Rows of components elsewhere as the domain shall see them.
    pub(crate) fn inward(&self, rows: Vec<Row>) -> Vec<Row> {
        match self {
            Self::Open => rows,
            Self::Private(forwarder) | Self::Nested(forwarder) => forwarder.inward(rows),
        }
    }

    /// Rows of the domain as others shall see them.
    pub(crate) fn outgoing(&self, rows: Vec<Row>) -> Vec<Row> {
        match self {
            Self::Open => rows,
            Self::Private(forwarder) | Self::Nested(forwarder) => forwarder.outgoing(rows),
        }
    }

    /// The domain starts afresh: whoever commands it now counts epochs anew.
    pub(crate) fn start_afresh(&self) {
        if let Self::Private(forwarder) | Self::Nested(forwarder) = self {
            forwarder.table(|table, _| table.clear());
        }
    }

    /// Where the forwarder takes events, if `node` is the forwarder.
    pub(crate) fn locate(&self, node: NodeId) -> Option<Url> {
        match self {
            Self::Private(forwarder) | Self::Nested(forwarder) if forwarder.node() == node => {
                Some(forwarder.url().clone())
            }
            Self::Open | Self::Private(_) | Self::Nested(_) => None,
        }
    }
}
