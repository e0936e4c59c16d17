//! The names of things: one newtype for each, so that no two kinds can be confused.
//!
//! All but [`DomainId`] are UUIDs and travel as text on the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text is not the UUID that it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a {what} id: expected a UUID such as 80b73f39-4ebd-4a69-a1ef-fe561a6fd3dc")]
pub struct IdError {
    what: &'static str,
    text: String,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random id.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, " {}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                // A text of any length may arrive; an error shows no more than a line of it.
                let shown = || text.chars().take(80).collect();
                Uuid::parse_str(text).map(Self).map_err(|_| IdError { what: $what, text: shown() })
            }
        }
    };
}

uuid_id!(
    /// A node, for as long as its configuration says so.
    NodeId,
    "node"
);
uuid_id!(
    /// A function or resource of one workflow, for the life of that workflow, wherever it runs.
    ComponentId,
    "component"
);
uuid_id!(
    /// A workflow that the controller accepted.
    WorkflowId,
    "workflow"
);
uuid_id!(
    /// What a function saved with `sync`.
    StateId,
    "state"
);

impl NodeId {
    /// Stands for "no node" in the protocol.
    pub const NONE: Self = Self(Uuid::from_u128(0xfffe_0000_0000));
}

impl WorkflowId {
    /// Stands for "no workflow" in the protocol.
    pub const NONE: Self = Self(Uuid::from_u128(0xffff_0000_0000));
}

/// An instance of a component: what runs, and where.
///
/// Its text, `InstanceId(node_id: N, function_id: F)`, appears in files and databases that other
/// programs read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId {
    /// The node that runs it.
    pub node: NodeId,
    /// The instance on that node, be it of a function or of a resource.
    pub function: Uuid,
}

impl InstanceId {
    /// Stands for "no instance", such as the source of an event that a user sends.
    pub const NONE: Self = Self { node: NodeId::NONE, function: Uuid::from_u128(0xfffd_0000_0000) };

    /// A new instance on `node`.
    pub fn random(node: NodeId) -> Self {
        Self { node, function: Uuid::new_v4() }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId(node_id: {}, function_id: {})", self.node, self.function)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An orchestration domain, named by its operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomainId(pub String);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_an_instance_is_the_one_that_others_parse() {
        let id = InstanceId { node: NodeId(Uuid::nil()), function: Uuid::nil() };
        let nil = "00000000-0000-0000-0000-000000000000";
        assert_eq!(id.to_string(), format!("InstanceId(node_id: {nil}, function_id: {nil})"));
    }

    #[test]
    fn special_ids_are_those_of_the_protocol() {
        assert_eq!(NodeId::NONE.to_string(), "00000000-0000-0000-0000-fffe00000000");
        assert_eq!(InstanceId::NONE.function.to_string(), "00000000-0000-0000-0000-fffd00000000");
        assert_eq!(WorkflowId::NONE.to_string(), "00000000-0000-0000-0000-ffff00000000");
    }

    #[test]
    fn a_bad_id_is_named_in_the_error() {
        let error = "x".repeat(1000).parse::<NodeId>().unwrap_err().to_string();
        assert!(error.contains("is not a node id") && error.len() < 250, "{error}");
    }
}
