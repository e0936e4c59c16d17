//! Why a component is where it is: every node, with the rule that excludes it or what the strategy sees in it.

use std::collections::BTreeMap;

use edgeless_api::decision::{Decision, Outcome, Verdict};
use edgeless_api::id::NodeId;
use fixedbitset::FixedBitSet;

use super::rules::rules;
use super::slots::Slot;
use super::{Choice, Index, Placer, Question, Refusal, Tenant};

impl Placer {
    /// What would be decided now, by the same rules as [`Placer::choose`] and without placing anything.
    ///
    /// `at`: where the component runs. What it keeps of its node is taken for free.
    pub fn explain(&self, question: &Question<'_>, at: Option<(NodeId, Tenant)>) -> Decision {
        let mut foresight = self.clone();
        if let Some((node, tenant)) = at {
            foresight.nodes.release(node, tenant);
        }
        let (mut excluded, left) = foresight.nodes.sift(question);
        let choice = foresight.choose(question);
        let index = &foresight.nodes;
        let node = at.map(|(node, _)| node).or_else(|| choice.as_ref().ok().map(|place| place.node));
        let chosen = node.and_then(|node| index.facts().slot(node));
        let outcome = match (at, choice) {
            (None, Ok(place)) => format!("goes to node {}", named(index, place.node)),
            (None, Err(Refusal::Infeasible(error))) => error.message,
            (None, Err(Refusal::Excluded)) => format!("no node could start '{}'", question.name),
            (Some((node, _)), _) => match chosen.and_then(|slot| excluded.remove(&slot)) {
                None => format!("runs on node {}", named(index, node)),
                Some(miss) => {
                    format!("runs on node {}, where it would not be placed now: that node {miss}", named(index, node))
                }
            },
        };
        Decision {
            component: question.name.to_string(),
            strategy: self.strategy.title.to_string(),
            outcome,
            age: None,
            nodes: foresight.judge(question, chosen, excluded, &left),
        }
    }

    /// What is said of each node of a choice that was just made, before anything is placed there.
    pub fn verdicts(&self, question: &Question<'_>, chosen: NodeId) -> Vec<Verdict> {
        let (excluded, left) = self.nodes.sift(question);
        self.judge(question, self.nodes.facts().slot(chosen), excluded, &left)
    }

    fn judge(
        &self,
        question: &Question<'_>,
        chosen: Option<Slot>,
        mut excluded: BTreeMap<Slot, String>,
        left: &FixedBitSet,
    ) -> Vec<Verdict> {
        let index = &self.nodes;
        let score = |slot: Slot| (self.strategy.score)(&Choice { question, index, left }, slot);
        let verdict = |(node, slot): (&NodeId, &Slot)| {
            let outcome = match excluded.remove(slot) {
                Some(miss) => Outcome::Excluded(miss),
                None if chosen == Some(*slot) => Outcome::Chosen(score(*slot)),
                None => Outcome::Score(score(*slot)),
            };
            Verdict { node: *node, hostname: index.hostname(*node).to_string(), outcome }
        };
        index.facts().by_node.iter().map(verdict).collect()
    }
}

/// A node by its host name, where it has one.
fn named(index: &Index, node: NodeId) -> String {
    match index.hostname(node) {
        "" => node.to_string(),
        hostname => format!("{node} ({hostname})"),
    }
}

impl Index {
    /// What each node that cannot be chosen fails at, and those that can.
    fn sift(&self, question: &Question<'_>) -> (BTreeMap<Slot, String>, FixedBitSet) {
        let mut misses = BTreeMap::new();
        let mut left: FixedBitSet = self.facts().by_node.values().copied().collect();
        let mut step = |left: &mut FixedBitSet, narrow: &dyn Fn(&mut FixedBitSet), miss: &dyn Fn(Slot) -> String| {
            let before = left.clone();
            narrow(left);
            misses.extend(before.difference(left).map(|slot| (slot, miss(slot))));
        };
        let not_ready = |_| "is not ready yet: it is being made part of the domain".to_string();
        step(&mut left, &|left| left.intersect_with(self.ready()), &not_ready);
        for rule in rules(question) {
            step(&mut left, &|left| rule.narrow(left, self, question), &|slot| rule.miss(slot, self));
        }
        let other = |_| "is not the node that was asked for".to_string();
        step(&mut left, &|left| self.keep_asked(left, question), &other);
        let failed = |_| "is left out: it could not start it, or is what it leaves".to_string();
        step(&mut left, &|left| self.take_out(left, question.excluded), &failed);
        (misses, left)
    }
}
