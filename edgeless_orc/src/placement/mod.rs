//! Chooses the node for each component of a domain.
//!
//! ```text
//!  Question -> rules, one after the other, over sets of nodes (Index) -> strategy -> Place
//!                              \-> no node is left: a refusal that counts
//! ```
//! Pure: no clock, no I/O, and a random generator that is part of the value. Placement never starts
//! anything; it answers "where", or says which requirement no node meets, and the engine turns the
//! answer into effects and tells the [`Index`] what became of them. The same inputs always give the same node.
//!
//! A new strategy is a file beside this one and a line in [`STRATEGIES`].
//!
//! - `index`: the nodes, and what is placed on them; `facts`, `room`, `slots`: what it is made of.
//! - `rules`: what a node must meet, in order.
//! - `explain`: the same for whoever asks why.

mod explain;
mod facts;
mod index;
mod least_loaded;
mod locality;
mod random;
mod room;
mod round_robin;
mod rules;
mod slots;

#[cfg(test)]
mod tests;

use std::fmt;

use edgeless_api::component::ComponentSpec;
use edgeless_api::error::Error;
use edgeless_api::id::{NodeId, WorkflowId};
use edgeless_api::requirements::Requirements;
use fixedbitset::FixedBitSet;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Deserializer};

pub use index::{Index, Tenant};
use slots::Slot;

/// All strategies.
pub const STRATEGIES: [&Strategy; 4] =
    [&random::STRATEGY, &round_robin::STRATEGY, &least_loaded::STRATEGY, &locality::STRATEGY];

/// A way to choose among nodes that can all run a component.
pub struct Strategy {
    /// Its name in the configuration.
    pub name: &'static str,
    /// Its name in sentences.
    pub title: &'static str,
    /// Chooses one of the nodes that are left; `None` only if there are none.
    pick: fn(&Choice<'_>, &mut Memory) -> Option<Slot>,
    /// What it sees in one of them.
    score: fn(&Choice<'_>, Slot) -> String,
}

impl Strategy {
    /// A node at random, the faster ones more often.
    pub const fn random() -> &'static Self {
        &random::STRATEGY
    }

    /// One node after the other.
    pub const fn round_robin() -> &'static Self {
        &round_robin::STRATEGY
    }
}

impl fmt::Debug for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Strategy {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<'de> Deserialize<'de> for &'static Strategy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        STRATEGIES.into_iter().find(|strategy| strategy.name == name).ok_or_else(|| {
            let known = STRATEGIES.map(|strategy| strategy.name).join(", ");
            serde::de::Error::custom(format!("'{name}' is not an orchestration strategy: write one of {known}"))
        })
    }
}

/// What strategies remember from one choice to the next.
#[derive(Clone, Debug)]
struct Memory {
    rng: SmallRng,
    last: Option<NodeId>,
}

/// What is to be placed, and what matters to it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The component's name in its workflow.
    pub name: &'a str,
    /// The component.
    pub spec: &'a ComponentSpec,
    /// What it asks for.
    pub requirements: &'a Requirements,
    /// Where the components run that it has an output to, or that have one to it; a node stands here once for
    /// each of them.
    pub neighbours: &'a [NodeId],
    /// Where other instances of it run.
    pub taken: &'a [NodeId],
    /// Nodes that are not to be tried, such as those that failed to start it.
    pub excluded: &'a [NodeId],
    /// The only node that is asked for, if one is.
    pub only: Option<NodeId>,
}

impl<'a> Question<'a> {
    /// A component that stands for itself.
    pub fn new(name: &'a str, spec: &'a ComponentSpec, requirements: &'a Requirements) -> Self {
        Self { name, spec, requirements, neighbours: &[], taken: &[], excluded: &[], only: None }
    }

    fn workflow(&self) -> WorkflowId {
        self.spec.workflow()
    }
}

/// What a strategy chooses from.
#[derive(Clone, Copy, Debug)]
struct Choice<'a> {
    question: &'a Question<'a>,
    index: &'a Index,
    /// The nodes that can all run the component.
    left: &'a FixedBitSet,
}

/// Where a component goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// What opens it there; empty for a function.
    pub provider: String,
}

/// Why a component goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No node meets its requirements; says which, and how many nodes met them.
    Infeasible(Error),
    /// Nodes do, and each of them is excluded.
    Excluded,
}

/// A strategy, what it remembers, and the nodes. A clone, which is cheap, foresees the choices of the original.
#[derive(Clone, Debug)]
pub struct Placer {
    strategy: &'static Strategy,
    memory: Memory,
    /// The nodes.
    pub nodes: Index,
}

impl Placer {
    /// A strategy that has chosen nothing yet, and knows no node.
    pub fn new(strategy: &'static Strategy, seed: u64) -> Self {
        let memory = Memory { rng: SmallRng::seed_from_u64(seed), last: None };
        Self { strategy, memory, nodes: Index::default() }
    }

    /// Chooses a node. Nothing is placed there until [`Index::occupy`] says so.
    ///
    /// # Errors
    /// There is none.
    pub fn choose(&mut self, question: &Question<'_>) -> Result<Place, Refusal> {
        let mut left = self.nodes.feasible(question).map_err(Refusal::Infeasible)?;
        self.nodes.keep_asked(&mut left, question);
        self.nodes.take_out(&mut left, question.excluded);
        let choice = Choice { question, index: &self.nodes, left: &left };
        let slot = (self.strategy.pick)(&choice, &mut self.memory).ok_or(Refusal::Excluded)?;
        let about = self.nodes.facts().about(slot).ok_or(Refusal::Excluded)?;
        let provider = match question.spec {
            ComponentSpec::Function(_) => String::new(),
            ComponentSpec::Resource(resource) => {
                let of_class: Vec<_> =
                    about.providers.iter().filter(|(_, class)| **class == *resource.class_type).collect();
                let one = self.memory.rng.random_range(0..of_class.len().max(1));
                of_class.get(one).map(|(provider, _)| provider.to_string()).ok_or(Refusal::Excluded)?
            }
        };
        Ok(Place { node: about.node, provider })
    }
}
