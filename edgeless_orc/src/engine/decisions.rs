//! The decisions that placed what runs, kept for whoever asks why.
//!
//! They are kept as they were made, because a node that was full then may be empty now. What they take is bounded: the
//! oldest go first, and a domain with many nodes keeps none, since to judge each of them would cost every
//! placement more than the placement itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use edgeless_api::decision::Verdict;
use edgeless_daemon::engine::Millis;

use crate::placement::Tenant;
use crate::registry::Home;

/// A domain with more nodes keeps no decisions.
pub(super) const MOST_NODES: usize = 128;
/// The most verdicts on nodes that are kept in all: about 2 MiB.
const MOST_VERDICTS: usize = 16_384;

/// One decision.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// What was chosen.
    pub(super) home: Home,
    /// When.
    pub(super) at: Millis,
    /// What was said of each node.
    pub(super) nodes: Arc<[Verdict]>,
}

/// The decisions by whom they placed.
#[derive(Clone, Debug, Default)]
pub(super) struct Decisions {
    kept: BTreeMap<Tenant, (u64, Made)>,
    /// Whom they placed, in the order in which they were made.
    order: BTreeMap<u64, Tenant>,
    next: u64,
    verdicts: usize,
}

impl Decisions {
    pub(super) fn keep(&mut self, tenant: Tenant, made: Made) {
        self.forget(tenant);
        self.verdicts += made.nodes.len();
        self.order.insert(self.next, tenant);
        self.kept.insert(tenant, (self.next, made));
        self.next += 1;
        while self.verdicts > MOST_VERDICTS
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            self.forget(*oldest);
        }
    }

    /// The decision that placed something where it is.
    pub(super) fn of(&self, tenant: Tenant, home: Home) -> Option<&Made> {
        self.kept.get(&tenant).map(|(_, made)| made).filter(|made| made.home == home)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.order.is_empty() && self.verdicts == 0
    }

    pub(super) fn forget(&mut self, tenant: Tenant) {
        if let Some((nth, made)) = self.kept.remove(&tenant) {
            self.order.remove(&nth);
            self.verdicts -= made.nodes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use edgeless_api::decision::Outcome;
    use edgeless_api::id::{ComponentId, NodeId};

    use super::*;

    #[test]
    fn the_oldest_decisions_make_room_for_new_ones() {
        let home = Home { node: NodeId::random(), incarnation: 0 };
        let nodes = Verdict { node: home.node, hostname: String::new(), outcome: Outcome::Chosen(String::new()) };
        let nodes: Arc<[Verdict]> = vec![nodes; MOST_VERDICTS / 4].into();
        let mut decisions = Decisions::default();
        let tenants: Vec<Tenant> = (0..5).map(|_| Tenant::first(ComponentId::random())).collect();
        for tenant in &tenants {
            decisions.keep(*tenant, Made { home, at: Millis::default(), nodes: nodes.clone() });
        }
        let kept: Vec<bool> = tenants.iter().map(|tenant| decisions.of(*tenant, home).is_some()).collect();
        assert_eq!(kept, [false, true, true, true, true]);
        tenants.iter().for_each(|tenant| decisions.forget(*tenant));
        assert!(decisions.is_empty());
    }
}
