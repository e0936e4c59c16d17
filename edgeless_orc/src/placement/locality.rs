//! Components of one workflow that talk to each other on one node, then on near ones.
//!
//! What counts, in this order: how many components run on a node that this one has an output to or from; how many of
//! the same workflow; how many labels a node shares with the one that these run on; how busy it is.

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;

use super::least_loaded::{self, least_loaded};
use super::slots::Slot;
use super::{Choice, Index, Memory, Strategy};

pub(super) static STRATEGY: Strategy = Strategy { name: "Locality", title: "locality", pick, score };

/// Every node has a label of its own with its host name, which says nothing of where it is.
const OF_HOST: &str = "hostname=";

fn pick(choice: &Choice<'_>, _: &mut Memory) -> Option<Slot> {
    let (index, left) = (choice.index, choice.left);
    for of_ours in [neighbours(choice), companions(choice)] {
        let open = || of_ours.iter().filter(|(slot, _)| left.contains(**slot));
        if let Some(most) = open().map(|(_, components)| *components).max() {
            return least_loaded(index, open().filter(|(_, components)| **components == most).map(|(slot, _)| *slot));
        }
    }
    match centre(choice) {
        Some(centre) => least_loaded(index, nearest(index, centre, left).ones()),
        None => least_loaded(index, left.ones()),
    }
}

/// The nodes of the components that it is connected with, and how many run there.
fn neighbours(choice: &Choice<'_>) -> BTreeMap<Slot, u32> {
    let mut counts = BTreeMap::new();
    for slot in choice.question.neighbours.iter().filter_map(|node| choice.index.facts().slot(*node)) {
        *counts.entry(slot).or_default() += 1;
    }
    counts
}

/// The nodes of the components of its workflow, and how many run there.
fn companions(choice: &Choice<'_>) -> BTreeMap<Slot, u32> {
    choice.index.nodes_of(choice.question.workflow()).collect()
}

/// The node, feasible or not, that it should be near to.
fn centre(choice: &Choice<'_>) -> Option<Slot> {
    let most = |counts: BTreeMap<Slot, u32>| {
        let id = |slot: &Slot| choice.index.facts().node(*slot);
        let mut all: Vec<_> = counts.into_iter().map(|(slot, components)| (components, slot)).collect();
        all.sort_by_key(|(components, slot)| (std::cmp::Reverse(*components), id(slot)));
        all.first().map(|(_, slot)| *slot)
    };
    most(neighbours(choice)).or_else(|| most(companions(choice)))
}

/// Those of some nodes that share the most labels with one.
///
/// The numbers are counted for 64 nodes at a time: the n-th set holds the n-th binary digit of each node's.
fn nearest(index: &Index, centre: Slot, left: &FixedBitSet) -> FixedBitSet {
    let mut digits: Vec<FixedBitSet> = Vec::new();
    for label in labels(index, centre) {
        let mut carry = left.clone();
        index.facts().labels.keep_in(label, &mut carry);
        for digit in &mut digits {
            if carry.is_clear() {
                break;
            }
            let mut both = digit.clone();
            both.intersect_with(&carry);
            digit.symmetric_difference_with(&carry);
            carry = both;
        }
        if !carry.is_clear() {
            digits.push(carry);
        }
    }
    let mut nearest = left.clone();
    for digit in digits.iter().rev() {
        if !nearest.is_disjoint(digit) {
            nearest.intersect_with(digit);
        }
    }
    nearest
}

fn labels(index: &Index, slot: Slot) -> impl Iterator<Item = &str> {
    let about = index.facts().about(slot);
    let labels = about.into_iter().flat_map(|about| about.labels.iter().map(|label| &**label));
    labels.filter(|label| !label.starts_with(OF_HOST))
}

fn score(choice: &Choice<'_>, slot: Slot) -> String {
    let count = |counts: BTreeMap<Slot, u32>| counts.get(&slot).copied().unwrap_or_default();
    let (neighbours, companions) = (count(neighbours(choice)), count(companions(choice)));
    let near = match centre(choice) {
        Some(centre) if centre != slot => {
            let names = &choice.index.facts().labels;
            let own = |label: &&str| names.get(label).is_some_and(|slots| slots.contains(slot));
            let shared = labels(choice.index, centre).filter(own).count();
            format!("shares {shared} labels with the node that it should be near to, ")
        }
        _ => String::new(),
    };
    let load = least_loaded::score(choice, slot);
    format!("{neighbours} components that it talks to, {companions} of its workflow, {near}{load}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{choose_near, function_of, id, occupy, placer, wasm, with_label};
    use super::super::{Placer, Tenant};
    use super::*;
    use edgeless_api::component::ComponentSpec;
    use edgeless_api::id::{ComponentId, NodeId, WorkflowId};
    use edgeless_api::requirements::Requirements;
    use uuid::Uuid;

    const OURS: WorkflowId = WorkflowId(Uuid::from_u128(77));

    fn run(placer: &mut Placer, node: NodeId, component: u128) {
        let tenant = Tenant::first(ComponentId(Uuid::from_u128(component)));
        placer.nodes.occupy(node, tenant, OURS, &Requirements::default());
    }

    fn place(placer: &mut Placer, spec: &ComponentSpec, neighbours: &[u128]) -> u128 {
        let neighbours: Vec<NodeId> = neighbours.iter().copied().map(id).collect();
        choose_near(placer, spec, &neighbours).unwrap()
    }

    #[test]
    fn a_component_goes_where_most_of_those_are_that_it_talks_to() {
        let mut placer = placer(&STRATEGY, 0, &[wasm(), wasm(), wasm()]);
        let spec = function_of(OURS, &[]);
        assert_eq!(place(&mut placer, &spec, &[]), 1, "the least loaded, if it is the first");
        (0..5).for_each(|n| run(&mut placer, id(3), n));
        run(&mut placer, id(2), 5);
        assert_eq!(place(&mut placer, &spec, &[]), 3, "most of the workflow");
        assert_eq!(place(&mut placer, &spec, &[2, 2, 3]), 2, "more of those that it talks to");
        assert_eq!(place(&mut placer, &spec, &[2, 3]), 2, "the less loaded of two");
        placer.nodes.set_cordoned(id(2), true);
        assert_eq!(place(&mut placer, &spec, &[2, 2]), 3, "the rest of the workflow, if it cannot go there");
    }

    #[test]
    fn a_component_that_cannot_go_there_goes_near() {
        let with = |labels: &[&str]| labels.iter().fold(wasm(), |node, label| with_label(node, label));
        let nodes = [
            with(&["hostname=a", "hall-1", "floor-2", "fast"]),
            with(&["hostname=b", "fast"]),
            with(&["hostname=c", "hall-1", "floor-2"]),
            with(&["hostname=a", "fast"]),
            with(&[]),
        ];
        let mut placer = placer(&STRATEGY, 0, &nodes);
        placer.nodes.set_cordoned(id(1), true);
        (0..5).for_each(|n| run(&mut placer, id(1), n));
        (10..20).for_each(|n| occupy(&mut placer, id(3), n, &[]));
        let spec = function_of(OURS, &[]);
        assert_eq!(place(&mut placer, &spec, &[]), 3, "two labels in common, though it is busier");
        placer.nodes.set_cordoned(id(3), true);
        assert_eq!(place(&mut placer, &spec, &[]), 2, "one; the same host name says nothing");
        placer.nodes.set_cordoned(id(2), true);
        placer.nodes.set_cordoned(id(4), true);
        assert_eq!(place(&mut placer, &spec, &[]), 5, "none is better than no node");
    }

    /// The numbers are right beyond one binary digit.
    #[test]
    fn many_shared_labels_are_counted_right() {
        let label = |n: usize| format!("l{n}");
        let nodes: Vec<_> = [9, 3, 8, 5, 7, 4, 0, 1, 2, 6]
            .map(|shared| (0..shared).fold(wasm(), |node, n| with_label(node, &label(n))))
            .into();
        let mut placer = placer(&STRATEGY, 0, &nodes);
        run(&mut placer, id(1), 1);
        for nearest in [3, 5, 10, 4, 6, 2, 9, 8, 7] {
            placer.nodes.set_cordoned(id(if nearest == 3 { 1 } else { 0 }), true);
            assert_eq!(place(&mut placer, &function_of(OURS, &[]), &[1]), nearest);
            placer.nodes.set_cordoned(id(nearest), true);
        }
    }
}
