//! What the outputs of components lead to, and who must be told so.

use std::collections::{BTreeMap, BTreeSet};

use edgeless_api::component::{ComponentKind, Row, Target};
use edgeless_api::id::DomainId;

use super::run::{Phase, Run};

impl Run {
    /// The domains whose components others have outputs to.
    pub(super) fn exporting(&self) -> BTreeSet<&DomainId> {
        if self.sites.len() < 2 || matches!(self.phase, Phase::Stopping { .. }) {
            return BTreeSet::new();
        }
        let places = |place: usize| {
            let component = self.components.get(place);
            let here = component.map(|own| &own.place).filter(|own| self.is_exported(place, own.site));
            let next = component.and_then(|own| own.next.as_ref()).filter(|_| self.is_next_exported(place));
            here.into_iter().chain(next)
        };
        let places = (0..self.components.len()).flat_map(places);
        places.filter_map(|place| self.domain_of(place.site)).collect()
    }

    /// What the outputs of a component in a domain lead to: as things are, or as they are after a move.
    pub(super) fn outputs(&self, place: usize, site: usize, after: bool) -> BTreeMap<String, Target> {
        let output = |(channel, target): &(String, usize)| {
            let target = self.components.get(*target)?;
            let own = target.next.as_ref().filter(|_| after).unwrap_or(&target.place);
            let leads_to = match own.site == site {
                true => Target::Component(own.known_as),
                false => Target::Row(own.row(target.id, target.is_parked && !after)),
            };
            Some((channel.clone(), leads_to))
        };
        let outputs = self.components.get(place).map_or(&[][..], |component| &component.outputs);
        outputs.iter().filter_map(output).collect()
    }

    /// Whether a component, as it is in a domain, has senders in others, or gets one by a move.
    pub(super) fn is_exported(&self, place: usize, site: usize) -> bool {
        let Some(component) = self.components.get(place) else { return false };
        let mut senders = component.senders.iter().filter_map(|sender| self.components.get(*sender));
        senders.any(|sender| {
            let moves_away = sender.next.as_ref().is_some_and(|next| next.site != site);
            sender.place.site != site || component.next.is_none() && moves_away
        }) || self.is_forwarded_to(place, site)
    }

    /// Whether others have to know where a component is once it has moved: its senders in other domains, and the
    /// domain that it leaves.
    pub(super) fn is_next_exported(&self, place: usize) -> bool {
        let Some(component) = self.components.get(place) else { return false };
        let Some(next) = &component.next else { return false };
        let mut senders = component.senders.iter().filter_map(|sender| self.components.get(*sender));
        let is_sent_to = senders.any(|sender| sender.next.as_ref().unwrap_or(&sender.place).site != next.site);
        let is_left =
            self.change.as_ref().is_some_and(|change| !change.is_relocation) && next.site != component.place.site;
        is_sent_to || (is_left && component.kind == ComponentKind::Function)
    }

    /// Marks those that are told to be exported and are not, or the other way round.
    pub(super) fn refresh_exports(&mut self) {
        for place in 0..self.components.len() {
            let Some(own) = self.components.get(place) else { continue };
            let is_exported = self.is_exported(place, own.place.site);
            if let Some(component) = self.components.get_mut(place)
                && component.place.is_wired()
                && component.place.is_exported != is_exported
            {
                component.place.is_stale = true;
            }
        }
    }

    /// Marks those in other domains that have outputs to a component.
    pub(super) fn senders_are_stale(&mut self, place: usize) {
        let Some(component) = self.components.get(place) else { return };
        let (home, senders) = (component.place.site, component.senders.clone());
        for sender in senders {
            let Some(sender) = self.components.get_mut(sender) else { continue };
            if sender.place.site != home {
                sender.place.is_stale = true;
            }
            if let Some(next) = &mut sender.next {
                next.is_stale = true;
            }
        }
    }

    /// A domain said where it runs a component. True if that is new.
    pub(super) fn heard(&mut self, place: usize, domain: &DomainId, row: Row) -> bool {
        let Some(site) = self.sites.iter().position(|site| site.domain == *domain) else { return false };
        let Some(component) = self.components.get_mut(place) else { return false };
        let places = std::iter::once(&mut component.place).chain(&mut component.next);
        let is_new = places.filter(|own| own.site == site).any(|own| own.heard(row.clone()));
        if is_new {
            self.senders_are_stale(place);
        }
        is_new
    }
}
