//! Why a component is where it is: what placement says of each node.

use std::fmt;
use std::time::Duration;

use crate::id::NodeId;

/// How a component was placed, or would be now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The component's name in its workflow.
    pub component: String,
    /// The strategy, in words.
    pub strategy: String,
    /// What came of it, a sentence: where it goes, or how many nodes met each requirement.
    pub outcome: String,
    /// How long ago it was placed by this decision; `None` if this is what would be decided now.
    pub age: Option<Duration>,
    /// Every node of the domain, in the order of their ids.
    pub nodes: Vec<Verdict>,
}

/// What placement says of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The node.
    pub node: NodeId,
    /// Its host name; may be empty.
    pub hostname: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a node that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was chosen, with what the strategy saw in it.
    Chosen(String),
    /// The first rule that it does not meet.
    Excluded(String),
    /// It could have been chosen; with what the strategy saw in it.
    Score(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chosen(score) if score.is_empty() => f.write_str("chosen"),
            Self::Chosen(score) => write!(f, "chosen: {score}"),
            Self::Excluded(rule) => write!(f, "excluded: {rule}"),
            Self::Score(score) => write!(f, "feasible: {score}"),
        }
    }
}
