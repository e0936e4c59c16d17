//! The node that is the least busy, as it says itself.
//!
//! What counts, in this order: load for each processor, in steps of a quarter; memory in use, in eighths; the number of
//! components; what they reserve; the id. What was placed on a node since it last said how busy it is counts as load.

use super::room::Room;
use super::slots::Slot;
use super::{Choice, Index, Memory, Strategy};

pub(super) static STRATEGY: Strategy = Strategy { name: "LeastLoaded", title: "least loaded", pick, score };

fn pick(choice: &Choice<'_>, _: &mut Memory) -> Option<Slot> {
    least_loaded(choice.index, choice.left.ones())
}

/// The least loaded of some nodes.
pub(super) fn least_loaded(index: &Index, slots: impl Iterator<Item = Slot>) -> Option<Slot> {
    let mut best = None;
    for slot in slots {
        let Some(rank) = index.room(slot).map(Room::rank) else { continue };
        let is_better = match &best {
            None => true,
            Some((best, other)) if rank == *best => index.facts().node(slot) < index.facts().node(*other),
            Some((best, _)) => rank < *best,
        };
        if is_better {
            best = Some((rank, slot));
        }
    }
    best.map(|(_, slot)| slot)
}

pub(super) fn score(choice: &Choice<'_>, slot: Slot) -> String {
    choice.index.room(slot).map(Room::score).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{choose, function, id, occupy, placer, wasm};
    use super::*;
    use edgeless_api::node::Health;

    fn health(load: i32, available: i32) -> Health {
        Health { load_avg: Some([load, 0, 0]), mem_available: Some(available), ..Health::default() }
    }

    /// Each pair differs in one thing, and the second is better in all that comes later.
    #[test]
    fn what_counts_first_decides() {
        let kib = 8 << 20;
        let node = |load, available| {
            let mut node = wasm();
            node.capabilities.num_cpus = 2;
            node.capabilities.mem_size = 8 << 10;
            node.health = health(load, available);
            node
        };
        let first = |nodes: [super::super::tests::Node; 2], on_first: u32, on_second: u32| {
            let mut placer = placer(&STRATEGY, 0, &nodes);
            let mut place = |node, n: u32| (0..n).for_each(|n| occupy(&mut placer, node, n.into(), &[]));
            place(id(1), on_first);
            place(id(2), on_second);
            choose(&mut placer, &function(&[])).unwrap()
        };
        assert_eq!(first([node(100, kib), node(200, kib)], 0, 0), 1, "less busy");
        assert_eq!(first([node(0, kib / 8), node(100, kib)], 0, 0), 1, "less busy, with less memory");
        assert_eq!(first([node(100, kib), node(100, kib / 2)], 0, 0), 1, "more memory");
        assert_eq!(first([node(101, kib), node(100, kib)], 0, 0), 1, "the difference is too small to count");
        assert_eq!(first([node(0, kib), node(0, kib)], 1, 0), 2, "fewer components");
        assert_eq!(first([node(0, kib), node(0, kib)], 0, 0), 1, "the id");
        assert_eq!(first([node(0, kib), node(100, kib)], 5, 0), 2, "what was placed since makes it busy");
    }

    #[test]
    fn a_node_that_says_nothing_counts_as_idle() {
        let mut silent = wasm();
        silent.health = Health::default();
        let mut busy = wasm();
        busy.health = health(100, 1000);
        assert_eq!(choose(&mut placer(&STRATEGY, 0, &[busy, silent]), &function(&[])), Ok(2));
    }

    #[test]
    fn what_is_reserved_decides_between_nodes_that_are_otherwise_alike() {
        let mut placer = placer(&STRATEGY, 0, &[wasm(), wasm()]);
        occupy(&mut placer, id(1), 1, &[("cpu", "0.5")]);
        occupy(&mut placer, id(2), 2, &[]);
        assert_eq!(choose(&mut placer, &function(&[])), Ok(2));
    }
}
