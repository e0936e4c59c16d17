//! A node at random, weighted by how much work it can do.

use edgeless_api::id::NodeId;
use edgeless_api::node::Capabilities;
use rand::RngExt;

use super::{Candidate, Memory, Strategy};

pub(super) static STRATEGY: Strategy = Strategy { name: "Random", title: "random", pick };

fn pick(candidates: &[Candidate<'_>], memory: &mut Memory) -> Option<NodeId> {
    let last = candidates.last()?;
    let total: f64 = candidates.iter().map(|candidate| weight(candidate.capabilities)).sum();
    let mut drawn = memory.rng.random_range(0.0..total);
    for candidate in candidates {
        drawn -= weight(candidate.capabilities);
        if drawn < 0.0 {
            return Some(candidate.node);
        }
    }
    // The sum, taken the other way round, may differ by a rounding error.
    Some(last.node)
}

/// Cores times speed; a node that does not know itself counts as a slow one.
fn weight(own: &Capabilities) -> f64 {
    let weight = f64::from(own.num_cores.max(own.num_cpus)) * f64::from(own.clock_freq_cpu);
    if weight.is_finite() && weight > 0.0 { weight } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::super::Placer;
    use super::super::tests::function;
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_faster_node_is_chosen_more_often_and_a_slow_one_now_and_then() {
        let with = |num_cores, clock_freq_cpu| Capabilities { num_cores, clock_freq_cpu, ..Capabilities::default() };
        let (fast, slow) = (with(9, 100.0), with(1, 100.0));
        let node = |n, capabilities| Candidate { node: NodeId(Uuid::from_u128(n)), capabilities, providers: &[] };
        let nodes = [node(1, &fast), node(2, &slow)];
        let spec = function(&[]);
        let mut placer = Placer::new(&STRATEGY, 1);
        let on_fast = (0..1000).filter(|_| placer.choose(&spec, &nodes).unwrap().node == nodes[0].node).count();
        assert!((850..950).contains(&on_fast), "{on_fast} of 1000 where 900 are expected");
    }

    #[test]
    fn a_weight_is_never_zero_nor_infinite() {
        for clock_freq_cpu in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let own = Capabilities { num_cores: 4, clock_freq_cpu, ..Capabilities::default() };
            assert_eq!(weight(&own), 1.0, "{clock_freq_cpu}");
        }
    }
}
