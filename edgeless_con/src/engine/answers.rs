//! What the answers of domains say of components.

use edgeless_api::component::{ComponentKind, ComponentRef};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId};
use edgeless_daemon::engine::Millis;

use super::Part;
use super::component::Component;
use super::place::{Step, component_of, may_pass};
use super::run::{ATTEMPTS, Phase, Run, Slot, pause};
use super::site::Stage;

/// How often a stop is tried at a domain that answers with a fault of its own.
const STOP_ATTEMPTS: u32 = 5;

impl Run {
    /// The domain in which an effect of a component is under way.
    pub(super) fn domain_of_part(&self, part: Part) -> Option<&DomainId> {
        let component = self.components.get(part.place)?;
        let own = std::iter::once(&component.place).chain(&component.next);
        let left = self.leftovers.iter().filter(|left| left.component == part.place).map(|left| &left.place);
        let mut places = own.chain(left);
        self.domain_of(places.find(|place| place.busy == Some(part.epoch))?.site)
    }

    /// The place whose effect has ended, and whether its result counts.
    pub(super) fn finished(&mut self, part: Part) -> Option<(Slot, bool)> {
        let component = self.components.get_mut(part.place)?;
        if let Some(counts) = component.place.finished(part.epoch) {
            if let Some(site) = self.sites.get_mut(component.place.site) {
                site.busy = site.busy.saturating_sub(1);
                self.kept.has_changed |= !site.origin.native;
            }
            return Some((Slot::Here, counts));
        }
        if let Some(counts) = component.next.as_mut().and_then(|next| next.finished(part.epoch)) {
            return Some((Slot::Next, counts));
        }
        let left = self.leftovers.iter_mut().enumerate().filter(|(_, left)| left.component == part.place);
        let mut ended = left.filter_map(|(index, left)| Some((index, left.place.finished(part.epoch)?)));
        ended.next().map(|(index, counts)| (Slot::Left(index), counts))
    }

    /// A create has ended that its domain may have carried out, after so many signs of life.
    pub(super) fn may_have_started(&mut self, part: Part, signs: u64) {
        let Some(component) = self.components.get_mut(part.place) else { return };
        let own = std::iter::once(&mut component.place).chain(&mut component.next);
        let left = self.leftovers.iter_mut().filter(|left| left.component == part.place).map(|left| &mut left.place);
        if let Some(place) = own.chain(left).find(|place| place.busy == Some(part.epoch)) {
            place.started_at_sign = signs;
        }
    }

    /// Takes note of the answer to a create.
    pub(super) fn created(&mut self, now: Millis, part: Part, result: Result<ComponentRef, Error>, native: bool) {
        let Some((slot, is_current)) = self.finished(part) else { return };
        let result = component_of(result);
        match (slot, result) {
            // An answer from before the domain restarted. It may be about the new process: the next epoch supersedes
            // what is there, and if there is no next one, it is stopped.
            (Slot::Here, Ok(_)) if !is_current && !self.is_stopping() => self.may_be_there(part.place, native),
            (Slot::Here, Ok(id)) => self.is_there(part.place, id),
            (Slot::Here, Err(error)) if !is_current => {
                if !error.code.is_refusal() {
                    self.may_be_there(part.place, native);
                }
            }
            (Slot::Here, Err(error)) => {
                if !error.code.is_refusal() {
                    self.set_step(part.place, Step::Unsure);
                }
                let retry = may_pass(&error) && native;
                self.failed(now, part.place, error, retry);
            }
            (Slot::Next, result) if is_current => self.next_created(now, part.place, result, native),
            (Slot::Next, result) => {
                let is_refused = result.is_err_and(|error| error.code.is_refusal());
                let next = self.components.get_mut(part.place).and_then(|own| own.next.as_mut());
                if let Some(next) = next.filter(|next| !is_refused && native && next.step == Step::Absent) {
                    next.step = Step::Unsure;
                }
            }
            (Slot::Left(index), result) => self.left_created(index, result),
        }
    }

    /// A start from before a domain restarted may have reached the new process. One of EDGELESS 1.2 has its own ids,
    /// and nothing can be done about it.
    fn may_be_there(&mut self, place: usize, native: bool) {
        if native && self.components.get(place).is_some_and(|own| own.place.step == Step::Absent) {
            self.set_step(place, Step::Unsure);
        }
    }

    fn is_there(&mut self, place: usize, id: ComponentId) {
        let is_plain = self.is_plain(place);
        let Some(component) = self.components.get_mut(place) else { return };
        let had_state = component.place.state.take().is_some();
        self.kept.has_changed |= had_state || component.place.known_as != id;
        component.place.known_as = id;
        component.place.forget_failures();
        let (workflow, name, kind) = (self.id, component.name.clone(), component.kind);
        self.set_step(place, if is_plain { Step::Wired } else { Step::Created });
        let Some(domain) = self.home(place) else { return };
        match kind {
            ComponentKind::Function => {
                tracing::info!(%workflow, function = name, component = %id, %domain, "function instance spawned");
            }
            ComponentKind::Resource => {
                tracing::info!(%workflow, resource = name, component = %id, %domain, "resource opened");
            }
        }
    }

    /// A component of which its domain need not be told anything once it is there.
    fn is_plain(&self, place: usize) -> bool {
        let component = self.components.get(place);
        component.is_some_and(|own| own.outputs.is_empty() && !self.is_exported(place, own.place.site))
    }

    /// Takes note of the answer to a patch.
    pub(super) fn patched(&mut self, now: Millis, part: Part, result: Result<(), Error>) {
        let place = part.place;
        match (self.finished(part), result) {
            (Some((Slot::Here, true)), Ok(())) => {
                if self.components.get(place).is_some_and(|own| own.place.step == Step::Created) {
                    self.set_step(place, Step::Wired);
                }
                self.succeeded(place);
            }
            (Some((Slot::Here, true)), Err(error)) => {
                if let Some(component) = self.components.get_mut(place) {
                    component.place.is_stale = true;
                }
                let retry = may_pass(&error);
                self.failed(now, place, error, retry);
            }
            (Some((Slot::Next, true)), result) => self.next_patched(now, place, result),
            _ => {}
        }
    }

    /// Takes note of the answer to a stop.
    pub(super) fn stopped(&mut self, now: Millis, part: Part, result: Result<(), Error>) {
        match self.finished(part) {
            Some((Slot::Here, true)) => {}
            Some((Slot::Left(index), _)) => return self.left_stopped(now, index, result),
            _ => return,
        }
        let Err(error) = result else {
            self.set_step(part.place, Step::Absent);
            return self.succeeded(part.place);
        };
        let failures = self.components.get(part.place).map_or(0, |component| component.place.failures + 1);
        if self.is_stopped_by(&error, failures) {
            self.set_step(part.place, Step::Absent);
        } else {
            self.failed(now, part.place, error, true);
        }
    }

    /// Whether to leave it at this answer to a stop.
    pub(super) fn is_stopped_by(&self, error: &Error, failures: u32) -> bool {
        let is_over = error.code.is_refusal() || (error.code == Code::Bug && failures >= STOP_ATTEMPTS);
        if is_over && error.code != Code::NotFound {
            tracing::warn!(workflow = %self.id, reason = %error, "a domain does not stop a component");
        }
        is_over
    }

    /// Takes note of the answer to an activation.
    pub(super) fn activated(&mut self, now: Millis, site: usize, round: u64, result: Result<(), Error>) {
        let Some(activation) = self.sites.get_mut(site).map(|site| &mut site.activation) else { return };
        activation.busy = false;
        if round != activation.round {
            return;
        }
        let batch = std::mem::take(&mut activation.batch);
        match result {
            Ok(()) => self.are_active(site, batch),
            // EDGELESS 1.2 knows no activation: its components emit as soon as they are there.
            Err(error) if error.code == Code::Unimplemented => self.are_active(site, batch),
            Err(error) => {
                activation.failures += 1;
                activation.retry_at = now + pause(activation.failures);
                if !may_pass(&error) || activation.failures >= ATTEMPTS {
                    let error = error.context("the components cannot be activated");
                    if self.is_starting() {
                        return self.give_up(now, error);
                    }
                    for (place, _) in batch {
                        if let Some(component) = self.components.get_mut(place) {
                            component.place.trouble.clone_from(&error.message);
                        }
                    }
                }
            }
        }
    }

    fn are_active(&mut self, site: usize, batch: Vec<(usize, u64)>) {
        for (place, epoch) in batch {
            let is_it =
                |own: &&Component| own.place.site == site && own.place.epoch == epoch && own.place.step == Step::Wired;
            if self.components.get(place).is_some_and(|own| is_it(&own)) {
                self.set_step(place, Step::Active);
                self.succeeded(place);
            }
        }
        if let Some(site) = self.sites.get_mut(site) {
            site.activation.failures = 0;
            if matches!(self.phase, Phase::Running) && site.tally.stage() == Stage::Settled {
                tracing::info!(workflow = %self.id, domain = %site.domain, "workflow runs again");
            }
        }
    }

    fn succeeded(&mut self, place: usize) {
        if let Some(component) = self.components.get_mut(place) {
            component.place.forget_failures();
        }
    }

    fn failed(&mut self, now: Millis, place: usize, error: Error, retry: bool) {
        let Some(component) = self.components.get_mut(place) else { return };
        component.place.failed(now, &error);
        let what = format!("component '{}'", component.name);
        let failures = component.place.failures;
        match self.phase {
            Phase::Starting if !retry || failures >= ATTEMPTS => self.give_up(now, error.context(what)),
            Phase::Running if failures == 1 => {
                tracing::warn!(workflow = %self.id, reason = %error, "{what} is not as it should be yet");
            }
            _ => {}
        }
    }
}
