//! Domains that components have left: they are told where each runs now, so that what still comes there is forwarded.
//!
//! Senders hear of a new place by their outputs. A domain that is left may have no sender of the component any more,
//! and yet events: those that wait for an instance that has ended, and what is sent to its old address.

use std::time::Duration;

use edgeless_daemon::engine::Millis;

use super::Effect;
use super::domains::Domains;
use super::run::Run;

/// How long a domain is told where a component runs that has left it: longer than its nodes forward anything.
const FORWARDING: Duration = Duration::from_secs(60);

/// A domain that a component has left.
#[derive(Debug)]
pub(super) struct Former {
    component: usize,
    site: usize,
    /// The epoch of the row that it was told last.
    told: u64,
    until: Millis,
}

impl Run {
    /// A component has left a domain for another one.
    pub(super) fn has_left(&mut self, now: Millis, component: usize, site: usize) {
        let Some(here) = self.components.get(component).map(|own| own.place.site) else { return };
        self.formers.retain(|former| former.component != component || ![here, site].contains(&former.site));
        if here != site {
            self.formers.push(Former { component, site, told: 0, until: now + FORWARDING });
        }
    }

    /// Whether a domain elsewhere forwards to a component.
    pub(super) fn is_forwarded_to(&self, component: usize, site: usize) -> bool {
        self.formers.iter().any(|former| former.component == component && former.site != site)
    }

    /// Tells each domain what has changed for it, and says when to look again.
    pub(super) fn advance_formers(
        &mut self,
        now: Millis,
        domains: &Domains,
        effects: &mut Vec<Effect>,
    ) -> Option<Millis> {
        if self.formers.is_empty() {
            return None;
        }
        let count = self.formers.len();
        let is_over = self.is_stopping();
        self.formers.retain(|former| !is_over && now < former.until);
        if self.formers.len() < count && !is_over {
            self.refresh_exports();
            self.derive_again();
        }
        let mut formers = std::mem::take(&mut self.formers);
        for former in &mut formers {
            let Some(own) = self.components.get(former.component).filter(|own| !own.is_parked) else { continue };
            let row = own.place.row(own.id, false);
            if row.instances.is_empty() || row.epoch <= former.told {
                continue;
            }
            let reach = self.domain_of(former.site).and_then(|domain| domains.reach(domain));
            let Some(reach) = reach.filter(|reach| reach.native) else { continue };
            former.told = row.epoch;
            effects.push(Effect::Tell { peer: reach.peer, rows: vec![row] });
        }
        self.formers = formers;
        self.formers.iter().map(|former| former.until).min()
    }
}
