//! Domains that are lost: which of them are gone for good, and what becomes of their components.
//!
//! A domain out of reach may go on with its work, and then nothing must be moved. It counts as killed, as a
//! whole, only if nothing of it is left: after `domain_grace` the addresses of its orchestrator and of all its nodes
//! are tried, and where no process listens, or no machine is, the connection is refused at once. A node that
//! answers means that the orchestrator was lost alone, and silence that the network may be at fault.

use std::time::Duration;

use edgeless_api::Url;
use edgeless_api::error::Error;
use edgeless_api::id::{DomainId, WorkflowId};
use edgeless_api::node::NodeInfo;
use edgeless_daemon::engine::Millis;

use super::{Effect, Engine};

/// What became of the attempts to connect to what belongs to a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Somebody accepted the connection.
    pub alive: usize,
    /// The connection was refused, or there is no such machine.
    pub gone: usize,
    /// Nothing is known: no answer in time, or the fault may be on this side.
    pub silent: usize,
}

impl Pulse {
    /// Nothing of the domain is left.
    pub fn is_gone(&self) -> bool {
        self.alive == 0 && self.silent == 0 && self.gone > 0
    }
}

impl Engine {
    /// Learns the nodes of domains in reach, so that they can be probed should the domain be lost.
    pub(super) fn learn_nodes(&mut self, now: Millis) {
        let due = self.domains.learn(now);
        self.effects.extend(due.into_iter().map(Effect::Nodes));
    }

    /// Takes note of the nodes of a domain.
    pub(super) fn learnt(&mut self, now: Millis, domain: &DomainId, nodes: Result<Vec<NodeInfo>, Error>) {
        self.domains.learnt(now, domain, nodes);
    }

    /// Probes domains that are lost, and looks for other homes for components of those that are gone.
    pub(super) fn look_after_losses(&mut self, now: Millis) {
        let lost: Vec<(DomainId, Duration)> = self.domains.lost_since(now).collect();
        for (domain, time) in lost {
            let homeless = self.homeless(now, &domain, time);
            let is_killed = self.domains.is_killed(&domain);
            if !is_killed
                && time >= self.grace
                && !self.runs_in(&domain).is_empty()
                && let Some(urls) = self.domains.probe(now, &domain)
            {
                self.effects.push(Effect::Probe { domain: domain.clone(), urls });
            }
            for (id, places) in homeless {
                self.relocate(now, id, places);
            }
        }
    }

    /// The components in a lost domain that shall be elsewhere.
    fn homeless(&mut self, now: Millis, domain: &DomainId, lost_for: Duration) -> Vec<(WorkflowId, Vec<usize>)> {
        let is_killed = self.domains.is_killed(domain);
        let mut homeless = Vec::new();
        for id in self.runs_in(domain) {
            let Some(run) = self.runs.get_mut(&id).filter(|run| run.running().is_some() && run.change.is_none()) else {
                continue;
            };
            let is_due = is_killed || run.relocate_after.is_some_and(|after| lost_for >= after);
            if !is_due || now < run.homeless.0 || self.searches.contains_key(&id) {
                continue;
            }
            let lost = (0..run.components.len()).filter(|place| run.home(*place) == Some(domain));
            let (bound, places): (Vec<usize>, Vec<usize>) = lost.partition(|place| run.has_volumes(*place));
            for place in bound {
                run.waits(place, format!("its volumes are in {domain}, and cannot be moved: it waits for that domain"));
            }
            if !places.is_empty() {
                homeless.push((id, places));
            }
        }
        homeless
    }

    /// Takes note of how much of a lost domain is left.
    pub(super) fn probed(&mut self, now: Millis, domain: &DomainId, pulse: Pulse) {
        self.domains.probed(now, domain, pulse, self.grace);
        self.look_after_losses(now);
    }
}

/// What of a domain can be probed.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// `None` before they were learnt, or if there are too many of them.
    pub(super) nodes: Option<Vec<Url>>,
    /// When to learn them next.
    pub(super) learn_at: Millis,
    /// When to do so at the earliest.
    pub(super) learn_soon: Millis,
    pub(super) is_learning: bool,
}
