//! One node after the other, in the order of their ids, which no arrival or loss disturbs.

use std::ops::Bound;

use super::slots::{Slot, count};
use super::{Choice, Memory, Strategy};

pub(super) static STRATEGY: Strategy = Strategy { name: "RoundRobin", title: "round robin", pick, score };

/// Fewer nodes than this are compared with each other; more are found faster by going through all in order.
const FEW: usize = 128;

fn pick(choice: &Choice<'_>, memory: &mut Memory) -> Option<Slot> {
    let (left, facts) = (choice.left, choice.index.facts());
    let (node, slot) = if count(left) < FEW {
        let ids = || left.ones().filter_map(|slot| Some((facts.node(slot)?, slot)));
        ids().filter(|(node, _)| Some(*node) > memory.last).min().or_else(|| ids().min())?
    } else {
        let after = memory.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = facts.by_node.range((after, Bound::Unbounded)).chain(&facts.by_node);
        next.map(|(node, slot)| (*node, *slot)).find(|(_, slot)| left.contains(*slot))?
    };
    memory.last = Some(node);
    Some(slot)
}

fn score(_: &Choice<'_>, _: Slot) -> String {
    "chosen when it is its turn".into()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{choose, function, id, placer, wasm};
    use super::*;

    #[test]
    fn the_turn_goes_round_and_survives_a_lost_node() {
        let mut placer = placer(&STRATEGY, 0, &[wasm(), wasm(), wasm()]);
        let spec = function(&[]);
        assert_eq!([choose(&mut placer, &spec), choose(&mut placer, &spec)], [Ok(1), Ok(2)]);
        let before = placer.clone();
        placer.nodes.remove(id(2));
        let next = [choose(&mut placer, &spec), choose(&mut placer, &spec)];
        assert_eq!(next, [Ok(3), Ok(1)], "2 is lost, 3 keeps its turn");
        placer.nodes = before.nodes;
        assert_eq!(choose(&mut placer, &spec), Ok(2));
    }

    /// Whichever way they are found.
    #[test]
    fn many_nodes_have_their_turn_in_the_same_order() {
        let nodes: Vec<_> = (0..FEW + 3).map(|_| wasm()).collect();
        let mut placer = placer(&STRATEGY, 0, &nodes);
        let turns: Vec<u128> = (0..nodes.len() + 1).map(|_| choose(&mut placer, &function(&[])).unwrap()).collect();
        let expected: Vec<u128> = (1..=nodes.len() as u128).chain([1]).collect();
        assert_eq!(turns, expected);
    }
}
