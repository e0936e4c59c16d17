//! Why something is where it is.

use edgeless_api::decision::{Decision, Outcome};

use super::*;
use crate::engine::decisions::MOST_NODES;

fn said(decision: &Decision) -> Vec<(NodeId, String)> {
    decision.nodes.iter().map(|verdict| (verdict.node, verdict.outcome.to_string())).collect()
}

#[test]
fn the_decision_that_placed_something_is_kept_as_it_was_made() {
    let mut world = World::new();
    world.add(&node(A));
    world.add(&node(B));
    world.cordon(A, true).unwrap();
    world.wanted(ONE, 1, function(&[("cpu", "2")]));
    world.obey();
    world.cordon(A, false).unwrap();
    world.add(&node(C));
    world.pass(Duration::from_secs(1));
    let why = world.engine.why(world.now, ONE).unwrap();
    assert_eq!(why.age, Some(Duration::from_secs(1)));
    assert_eq!(why.outcome, format!("runs on node {B}"));
    let expected = [(A, "excluded: is cordoned"), (B, "chosen: chosen when it is its turn")];
    assert_eq!(said(&why), expected.map(|(node, text)| (node, text.to_string())));
    world.cordon(B, true).unwrap();
    let why = world.engine.why(world.now, ONE).unwrap();
    assert!(why.outcome.ends_with("where it would not be placed now: that node is cordoned"), "{why:?}");
    assert_eq!(said(&why).len(), 2);
}

#[test]
fn a_move_is_a_decision_and_an_end_forgets_it() {
    let mut world = World::new();
    for id in [A, B, C] {
        world.add(&node(id));
    }
    world.run(ONE);
    let from = world.instance(ONE).node;
    let to = if from == B { C } else { B };
    let moved = world.request(|ticket| Event::Move { ticket, component: ONE, node: to });
    world.obey();
    world.answer(moved).unwrap();
    let why = world.engine.why(world.now, ONE).unwrap();
    assert_eq!(why.age, Some(Duration::ZERO));
    for verdict in &why.nodes {
        match &verdict.outcome {
            Outcome::Chosen(_) => assert_eq!(verdict.node, to),
            outcome => assert_eq!(outcome.to_string(), "excluded: is not the node that was asked for"),
        }
    }
    world.stop(ONE);
    world.obey();
    assert!(world.engine.decisions.is_empty());
}

#[test]
fn a_domain_of_many_nodes_decides_anew_for_whoever_asks() {
    let mut world = World::with(|settings| settings.max_nodes = 200);
    for n in 0..=MOST_NODES {
        world.add(&node(NodeId(Uuid::from_u128(1 + n as u128))));
    }
    world.run(ONE);
    let why = world.engine.why(world.now, ONE).unwrap();
    assert_eq!((why.age, why.nodes.len()), (None, MOST_NODES + 1));
}

#[test]
fn what_waits_is_told_what_would_be_decided_now() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.pass(KEEP_ALIVE * 2);
    world.obey();
    let why = world.engine.why(world.now, ONE).unwrap();
    assert_eq!(why.age, None);
    assert!(why.outcome.starts_with("no node for"), "{why:?}");
}
