//! A node at random, weighted by how much work it can do.

use edgeless_api::node::Capabilities;
use rand::RngExt;

use super::slots::Slot;
use super::{Choice, Memory, Strategy};

pub(super) static STRATEGY: Strategy = Strategy { name: "Random", title: "random", pick, score };

fn pick(choice: &Choice<'_>, memory: &mut Memory) -> Option<Slot> {
    let total = total(choice);
    if total <= 0.0 {
        return None;
    }
    let mut drawn = memory.rng.random_range(0.0..total);
    let mut last = None;
    for slot in choice.left.ones() {
        drawn -= choice.index.facts().weight(slot);
        if drawn < 0.0 {
            return Some(slot);
        }
        last = Some(slot);
    }
    // The sum, taken the other way round, may differ by a rounding error.
    last
}

fn total(choice: &Choice<'_>) -> f64 {
    choice.left.ones().map(|slot| choice.index.facts().weight(slot)).sum()
}

fn score(choice: &Choice<'_>, slot: Slot) -> String {
    let weight = choice.index.facts().weight(slot);
    format!("weight {weight:.0}, drawn {:.1} times of 100", 100.0 * weight / total(choice))
}

/// Cores times speed; a node that does not know itself counts as a slow one.
pub(super) fn weight(own: &Capabilities) -> f64 {
    let weight = f64::from(own.num_cores.max(own.num_cpus)) * f64::from(own.clock_freq_cpu);
    if weight.is_finite() && weight > 0.0 { weight } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{choose, function, placer, wasm};
    use super::*;

    #[test]
    fn a_faster_node_is_chosen_more_often_and_a_slow_one_now_and_then() {
        let (mut fast, mut slow) = (wasm(), wasm());
        fast.capabilities.num_cores = 9;
        slow.capabilities.num_cores = 1;
        let mut placer = placer(&STRATEGY, 1, &[fast, slow]);
        let on_fast = (0..1000).filter(|_| choose(&mut placer, &function(&[])) == Ok(1)).count();
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
