//! What operators do with nodes and components, and what they are told of it.

use crate::id::{ComponentId, NodeId};

/// How far the removal of everything from a node has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainProgress {
    /// Components that ran there when it began.
    pub total: u32,
    /// Components that run elsewhere since.
    pub moved: u32,
    /// The component that this is about; empty in the first one.
    pub component: String,
    /// Why it could not be moved; empty: it was.
    pub reason: String,
}

/// What would become of a component whose node were lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The component.
    pub component: ComponentId,
    /// Its name in its workflow.
    pub name: String,
    /// The node that it would run on and its host name, or why it would run nowhere.
    pub to: Result<(NodeId, String), String>,
}
