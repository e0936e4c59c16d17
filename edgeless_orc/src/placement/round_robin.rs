//! One node after the other, in the order of their ids, which no arrival or loss disturbs.

use edgeless_api::id::NodeId;

use super::{Candidate, Memory, Strategy};

pub(super) static STRATEGY: Strategy = Strategy { name: "RoundRobin", title: "round robin", pick };

fn pick(candidates: &[Candidate<'_>], memory: &mut Memory) -> Option<NodeId> {
    let next = candidates.iter().find(|candidate| Some(candidate.node) > memory.last);
    let node = next.or(candidates.first())?.node;
    memory.last = Some(node);
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::super::Placer;
    use super::super::tests::function;
    use super::*;
    use edgeless_api::node::Capabilities;
    use uuid::Uuid;

    #[test]
    fn the_turn_goes_round_and_survives_a_lost_node() {
        let own = Capabilities::default();
        let nodes = |ids: &[u128]| -> Vec<_> {
            let node = |n: &u128| Candidate { node: NodeId(Uuid::from_u128(*n)), capabilities: &own, providers: &[] };
            ids.iter().map(node).collect()
        };
        let spec = function(&[]);
        let mut placer = Placer::new(&STRATEGY, 0);
        let mut next = |ids: &[u128]| placer.choose(&spec, &nodes(ids)).unwrap().node.0.as_u128();
        assert_eq!([next(&[1, 2, 3]), next(&[1, 2, 3])], [1, 2]);
        assert_eq!([next(&[1, 3]), next(&[1, 3])], [3, 1], "2 is lost, 3 keeps its turn");
        assert_eq!(next(&[1, 2, 3]), 2);
    }
}
