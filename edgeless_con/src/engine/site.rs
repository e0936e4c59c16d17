//! The part of a workflow that is in one domain: how far its components are there, and what becomes of them when the
//! domain restarts.

use std::collections::BTreeSet;

use edgeless_api::id::{ComponentId, DomainId};
use edgeless_daemon::engine::Millis;

use super::keep::Origin;
use super::place::{Place, Step};
use super::run::{Phase, Run};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Create,
    Wire,
    Activate,
    /// All is as it shall be.
    Settled,
    Stop,
    /// Nothing is left.
    Gone,
}

/// How many components are at each step.
#[derive(Debug, Default)]
pub(super) struct Tally {
    absent: usize,
    pub(super) unsure: usize,
    created: usize,
    wired: usize,
    active: usize,
    held: usize,
    released: usize,
}

impl Tally {
    fn of(&mut self, step: Step) -> &mut usize {
        match step {
            Step::Absent => &mut self.absent,
            Step::Unsure => &mut self.unsure,
            Step::Created => &mut self.created,
            Step::Wired => &mut self.wired,
            Step::Active => &mut self.active,
            Step::Held => &mut self.held,
            Step::Released => &mut self.released,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsure + self.created + self.wired + self.active + self.held == 0
    }

    pub(super) fn stage(&self) -> Stage {
        match self {
            _ if self.absent + self.unsure > 0 => Stage::Create,
            _ if self.created > 0 => Stage::Wire,
            _ if self.wired > 0 => Stage::Activate,
            _ => Stage::Settled,
        }
    }
}

/// The last of the three steps, which is one for all components of a domain.
#[derive(Debug, Default)]
pub(super) struct Activation {
    /// The components that are being activated, each with its epoch.
    pub(super) batch: Vec<(usize, u64)>,
    pub(super) busy: bool,
    pub(super) failures: u32,
    pub(super) retry_at: Millis,
    /// Raised when the domain has lost everything, so that an answer from before is recognised.
    pub(super) round: u64,
}

/// The part of a workflow that is in one domain.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) domain: DomainId,
    pub(super) origin: Origin,
    pub(super) tally: Tally,
    /// How many components have an effect under way.
    pub(super) busy: usize,
    pub(super) activation: Activation,
    /// The stage for which effects were last derived for all components.
    pub(super) derived: Option<Stage>,
}

impl Run {
    /// The part that is in a domain, which is made with this origin if there is none.
    pub(super) fn site(&mut self, domain: &DomainId, origin: impl FnOnce() -> Origin) -> usize {
        self.sites.iter().position(|site| site.domain == *domain).unwrap_or_else(|| {
            let (tally, activation) = (Tally::default(), Activation::default());
            let (domain, origin) = (domain.clone(), origin());
            self.sites.push(Site { domain, origin, tally, busy: 0, activation, derived: None });
            self.sites.len() - 1
        })
    }

    pub(super) fn tally(&mut self, site: usize, step: Step, change: isize) {
        if let Some(site) = self.sites.get_mut(site) {
            let count = site.tally.of(step);
            *count = count.saturating_add_signed(change);
        }
    }

    pub(super) fn domain_of(&self, site: usize) -> Option<&DomainId> {
        self.sites.get(site).map(|site| &site.domain)
    }

    /// The domain of a component.
    pub(super) fn home(&self, place: usize) -> Option<&DomainId> {
        self.domain_of(self.components.get(place)?.place.site)
    }

    /// Whether some component is in a domain, is to be moved there, or has left something there.
    pub(super) fn is_in(&self, domain: &DomainId) -> bool {
        self.sites.iter().any(|site| site.domain == *domain)
    }

    /// Whether some component has its place in a domain.
    pub(super) fn lives_in(&self, domain: &DomainId) -> bool {
        let Some(site) = self.sites.iter().position(|site| site.domain == *domain) else { return false };
        self.components.iter().any(|component| component.place.site == site)
    }

    /// The domains with something that others must not forget.
    pub(super) fn domains_in_use(&self) -> BTreeSet<DomainId> {
        let places = self.components.iter().flat_map(|own| std::iter::once(&own.place).chain(&own.next));
        places.filter_map(|place| self.domain_of(place.site).cloned()).collect()
    }

    pub(super) fn stage(&self, site: usize) -> Stage {
        let Some(own) = self.sites.get(site) else { return Stage::Settled };
        match self.phase {
            Phase::Stopping { .. } if own.tally.is_empty() && own.busy == 0 => Stage::Gone,
            Phase::Stopping { .. } => Stage::Stop,
            Phase::Starting => self.sites.iter().map(|site| site.tally.stage()).min().unwrap_or(Stage::Settled),
            Phase::Running => own.tally.stage(),
        }
    }

    pub(super) fn set_step(&mut self, place: usize, step: Step) {
        let Some(component) = self.components.get_mut(place) else { return };
        let site = component.place.site;
        let before = std::mem::replace(&mut component.place.step, step);
        let is_noted = |step| matches!(step, Step::Active | Step::Released);
        self.kept.has_changed |= is_noted(before) || is_noted(step);
        self.tally(site, before, -1);
        self.tally(site, step, 1);
    }

    /// Puts a component to another place, and gives back the one before.
    pub(super) fn settle(&mut self, place: usize, new: Place) -> Option<Place> {
        self.kept.has_changed = true;
        let component = self.components.get_mut(place)?;
        let (site, step) = (new.site, new.step);
        let old = std::mem::replace(&mut component.place, new);
        self.tally(old.site, old.step, -1);
        self.tally(site, step, 1);
        if let Some(site) = self.sites.get_mut(old.site).filter(|_| old.busy.is_some()) {
            site.busy = site.busy.saturating_sub(1);
        }
        Some(old)
    }

    /// A domain has restarted, as the last of so many signs of life says: what its old process had is lost.
    pub(super) fn lost_everything(&mut self, domain: &DomainId, signs: u64) {
        let Some(index) = self.sites.iter().position(|site| site.domain == *domain) else { return };
        if self.running().is_some() && self.lives_in(domain) {
            tracing::info!(workflow = %self.id, %domain, "the domain has restarted: starting the workflow there again");
        }
        let native = self.sites.get(index).is_some_and(|site| site.origin.native);
        let begin_again = |own: &mut Place, epoch: u64, id: ComponentId| {
            let may_be_there = native && own.may_be_in_new_process(signs);
            own.begin_again(epoch, id);
            if may_be_there {
                own.step = Step::Unsure;
            }
        };
        let mut tally = Tally::default();
        for component in &mut self.components {
            if component.place.site == index {
                let epoch = component.next_epoch();
                begin_again(&mut component.place, epoch, component.id);
                *tally.of(component.place.step) += 1;
            }
            if let Some(next) = component.next.as_mut().filter(|next| next.site == index) {
                component.last_epoch += 1;
                begin_again(next, component.last_epoch, component.id);
            }
        }
        self.kept.has_changed = true;
        // A start that is under way may reach the new process yet.
        let may_be_there = |left: &Place| left.busy.is_some() || left.may_be_in_new_process(signs);
        self.leftovers.retain(|left| left.place.site != index || may_be_there(&left.place));
        if let Some(site) = self.sites.get_mut(index) {
            site.tally = tally;
            let Activation { busy, round, .. } = site.activation;
            site.activation = Activation { busy, round: round + 1, ..Activation::default() };
            site.derived = None;
        }
    }
}
