//! What is to be done next for a workflow, of what is wanted and what is there.

use std::collections::BTreeMap;

use edgeless_api::component::{Annotations, ComponentKind, Patch, Start, StartContext, Target};
use edgeless_daemon::engine::Millis;

use super::component::{Component, spec};
use super::domains::{Domains, Reach};
use super::place::{Place, Step};
use super::run::{Run, Slot, Touched};
use super::site::Stage;
use super::{Effect, Part};

impl Run {
    /// Derives the effects that are due at domains in reach, and says when to look again.
    pub(super) fn advance(
        &mut self,
        now: Millis,
        domains: &Domains,
        touched: Touched,
        effects: &mut Vec<Effect>,
    ) -> Option<Millis> {
        let mut again = self.advance_move(now, domains, effects);
        for site in 0..self.sites.len() {
            let reach = self.domain_of(site).and_then(|domain| domains.reach(domain));
            let due = reach.and_then(|reach| self.advance_site(now, site, &reach, touched, effects));
            again = again.into_iter().chain(due).min();
        }
        again = again.into_iter().chain(self.advance_leftovers(now, domains, effects)).min();
        again.into_iter().chain(self.advance_formers(now, domains, effects)).min()
    }

    fn advance_site(
        &mut self,
        now: Millis,
        site: usize,
        reach: &Reach,
        touched: Touched,
        effects: &mut Vec<Effect>,
    ) -> Option<Millis> {
        if !reach.native {
            self.write_off(site);
        }
        let stage = self.stage(site);
        let is_new = self.sites.get_mut(site)?.derived.replace(stage) != Some(stage);
        let due = match touched {
            Touched::One(place) if !is_new => self.act(now, stage, site, place, reach, effects),
            _ => {
                let places = 0..self.components.len();
                places.filter_map(|place| self.act(now, stage, site, place, reach, effects)).min()
            }
        };
        let later = if stage == Stage::Activate { self.activate(now, site, reach, effects) } else { None };
        due.into_iter().chain(later).min()
    }

    /// Gives up on components of which a domain that speaks only EDGELESS 1.2 never said the ids:
    /// there is no way to stop them.
    fn write_off(&mut self, site: usize) {
        let is_unsure = self.sites.get(site).is_some_and(|site| site.tally.unsure > 0);
        if !is_unsure || !self.is_stopping() {
            return;
        }
        for place in 0..self.components.len() {
            let is_unsure = |own: &&Component| own.place.site == site && own.place.step == Step::Unsure;
            let Some(component) = self.components.get(place).filter(is_unsure) else { continue };
            tracing::warn!(workflow = %self.id, component = component.name, "no answer to the start of a component: it may still run");
            self.set_step(place, Step::Absent);
        }
    }

    fn activate(&mut self, now: Millis, site: usize, reach: &Reach, effects: &mut Vec<Effect>) -> Option<Millis> {
        let activation = &self.sites.get(site)?.activation;
        if activation.busy {
            return None;
        }
        if now < activation.retry_at {
            return Some(activation.retry_at);
        }
        let is_due = |own: &(usize, &Component)| own.1.place.site == site && own.1.place.step == Step::Wired;
        let due: Vec<_> = self.components.iter().enumerate().filter(is_due).collect();
        if due.is_empty() {
            return None;
        }
        let ids = due.iter().map(|(_, component)| component.place.known_as.0).collect();
        let batch = due.into_iter().map(|(place, component)| (place, component.place.epoch)).collect();
        let activation = &mut self.sites.get_mut(site)?.activation;
        activation.busy = true;
        activation.batch = batch;
        let (workflow, round) = (self.id, activation.round);
        effects.push(Effect::Activate { peer: reach.peer.clone(), workflow, site, round, ids });
        None
    }

    fn act(
        &mut self,
        now: Millis,
        stage: Stage,
        site: usize,
        place: usize,
        reach: &Reach,
        effects: &mut Vec<Effect>,
    ) -> Option<Millis> {
        let component = self.components.get(place)?;
        let here = &component.place;
        if here.site != site || here.busy.is_some() {
            return None;
        }
        let is_needed = match (stage, here.step) {
            // Nobody knows what the first attempt did, and only our own orchestrators recognise a second.
            (Stage::Create, Step::Unsure) => reach.native,
            // What is on its way elsewhere begins there.
            (Stage::Create, Step::Absent) => component.next.is_none(),
            (Stage::Wire, Step::Created) => true,
            (Stage::Stop, step) => !matches!(step, Step::Absent | Step::Released),
            (Stage::Gone, _) => false,
            _ => here.is_stale && here.is_wired(),
        };
        if !is_needed {
            return None;
        }
        if now < here.retry_at {
            return Some(here.retry_at);
        }
        let effect = match here.step {
            _ if stage == Stage::Stop => self.stopping(place, here, reach),
            Step::Absent | Step::Unsure => self.creation(place, here, reach, self.is_exported(place, site))?,
            _ => {
                let (outputs, is_exported) = (self.outputs(place, site, false), self.is_exported(place, site));
                self.wiring(place, reach, outputs, is_exported, Slot::Here)?
            }
        };
        effects.push(effect);
        self.kept.has_changed |= !reach.native;
        if let Some(site) = self.sites.get_mut(site) {
            site.busy += 1;
        }
        let here = &mut self.components.get_mut(place)?.place;
        here.busy = Some(here.epoch);
        None
    }

    fn part_of(&self, place: usize, own: &Place) -> Part {
        Part { workflow: self.id, place, epoch: own.epoch }
    }

    /// The start of a component at a place of it.
    pub(super) fn creation(&self, place: usize, own: &Place, reach: &Reach, is_exported: bool) -> Option<Effect> {
        let component = self.components.get(place)?;
        let context =
            StartContext { state: own.state.clone(), ..StartContext::new(component.id, own.epoch, &component.name) };
        let mut spec = spec(self.workflow.as_ref()?, self.id, place, &self.components)?;
        if is_exported {
            never_to_zero(spec.annotations_mut());
        }
        let start = Box::new(Start { spec, context: Some(context) });
        let (peer, part) = (reach.peer.clone(), self.part_of(place, own));
        Some(Effect::Create { peer, part, start, native: reach.native })
    }

    /// Tells a domain the outputs of a component.
    pub(super) fn wiring(
        &mut self,
        place: usize,
        reach: &Reach,
        outputs: BTreeMap<String, Target>,
        is_exported: bool,
        slot: Slot,
    ) -> Option<Effect> {
        let id = self.id;
        let component = self.components.get_mut(place)?;
        let own = if slot == Slot::Next { component.next.as_mut()? } else { &mut component.place };
        own.is_stale = false;
        own.is_exported = is_exported;
        let part = Part { workflow: id, place, epoch: own.epoch };
        let patch = Patch { id: own.known_as.0, outputs, exported: is_exported };
        Some(Effect::Patch { peer: reach.peer.clone(), part, kind: component.kind, patch })
    }

    /// Stops a component at a place of it.
    pub(super) fn stopping(&self, place: usize, own: &Place, reach: &Reach) -> Effect {
        let kind = self.components.get(place).map_or(ComponentKind::Function, |component| component.kind);
        Effect::Stop { peer: reach.peer.clone(), part: self.part_of(place, own), kind, id: own.known_as }
    }

    /// Everything is looked at again.
    pub(super) fn derive_again(&mut self) {
        for site in &mut self.sites {
            site.derived = None;
        }
    }
}

/// What gets events from elsewhere cannot be woken by them.
fn never_to_zero(annotations: &mut Annotations) {
    if let Some(least) = annotations.get_mut("min_instances").filter(|least| least.trim() == "0") {
        *least = "1".into();
    }
}
