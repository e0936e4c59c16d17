//! Moves components of a workflow to other domains.
//!
//! ```text
//!  those without state:  Create, Wire at the new place -+
//!  those with state:     their senders keep events      +-> all take their new places -> Stop the old ones
//!                        -> Release the old one         |                              -> Activate
//!                        -> Create with the state, Wire-+
//!  a failure before that: what is new is stopped, what was released is created again where it was
//! ```
//! A move is one for all components that it is about. Senders hear of the new places when they are taken, and an
//! old one is stopped once they have. Like everything about a workflow this is derived again and again from what
//! is there: a move holds nothing but the components that it is about and how far it is.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::component::ComponentKind;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId};
use edgeless_daemon::engine::{Millis, Ticket};

use super::domains::{Domains, Reach};
use super::place::{Place, Step, may_pass};
use super::run::{ATTEMPTS, Run, Slot, pause};
use super::{Answer, Effect, Part};

/// How long a domain may let a component handle what waits for it before it ends.
const GRACE: Duration = Duration::from_secs(10);
/// How long it is waited until all senders have heard of a new place.
const SENDERS: Duration = Duration::from_secs(5);
/// How long it is waited, after the new places are taken, until the old ones are gone.
const SETTLING: Duration = Duration::from_secs(15);
/// How a domain begins to say that what a component knew is gone.
const LOST: &str = "state lost: ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The new places are being made.
    Making,
    /// They are taken.
    Settling { until: Millis },
}

/// A move that is under way.
#[derive(Debug)]
pub(super) struct Move {
    components: Vec<usize>,
    /// What is where it was for good: nobody can be asked for its state.
    pub(super) is_relocation: bool,
    askers: Vec<Ticket>,
    stage: Stage,
    /// When those with a state are released even if some sender has not heard of it.
    parked_by: Option<Millis>,
}

/// A place that a component has left, where something may run yet.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) component: usize,
    pub(super) place: Place,
    /// It handles what it has before it ends, if its domain can let it.
    pub(super) drains: bool,
    /// When it is stopped even if some sender has not heard of the new place.
    stop_by: Millis,
}

impl Move {
    /// A move that a restart of the controller has interrupted.
    pub(super) fn restored(components: Vec<usize>) -> Self {
        Self { components, is_relocation: false, askers: Vec::new(), stage: Stage::Making, parked_by: None }
    }
}

impl Leftover {
    /// What was left before the controller was restarted.
    pub(super) fn restored(component: usize, place: Place, drains: bool) -> Self {
        Self { component, place, drains, stop_by: Millis(0) + SENDERS }
    }
}

impl Run {
    /// Those that a user wants to be in another domain.
    ///
    /// # Errors
    /// They cannot be moved there, or are there.
    pub(super) fn movable(
        &self,
        domains: &Domains,
        to: &DomainId,
        component: Option<&str>,
    ) -> Result<Vec<usize>, Error> {
        if self.change.is_some() {
            return Err(Error::unavailable("the workflow is being moved: try again in a moment"));
        }
        let is_there = |place: &usize| self.home(*place) == Some(to);
        let places = match component {
            Some(name) => {
                let place = self.components.iter().position(|own| own.name == name);
                let place = place.ok_or_else(|| self.no_component(name))?;
                if is_there(&place) {
                    return Err(Error::rejected(format!("'{name}' runs in {to} already")));
                }
                vec![place]
            }
            None => (0..self.components.len()).filter(|place| !is_there(place)).collect(),
        };
        if places.is_empty() {
            return Err(Error::rejected(format!("the workflow runs in {to} already")));
        }
        for place in &places {
            self.check_movable(domains, *place)?;
        }
        let stays = (0..self.components.len()).filter(|place| !places.contains(place));
        let mut parts: Vec<&DomainId> = stays.filter_map(|place| self.home(place)).collect();
        if !parts.is_empty() {
            parts.push(to);
            if let Some(old) = parts.into_iter().find(|domain| !domains.speaks_ours(domain)) {
                return Err(Error::rejected(format!(
                    "{old} speaks only EDGELESS 1.2 and cannot host a part of a workflow: move the whole workflow"
                )));
            }
        }
        Ok(places)
    }

    pub(super) fn no_component(&self, name: &str) -> Error {
        let names: Vec<_> = self.components.iter().map(|component| component.name.as_str()).collect();
        let (asked, names): (String, _) = (name.chars().take(80).collect(), names.join(", "));
        Error::not_found(format!("there is no component '{asked}' in {}; there are: {names}", self.id))
    }

    fn check_movable(&self, domains: &Domains, place: usize) -> Result<(), Error> {
        let (Some(component), Some(home)) = (self.components.get(place), self.home(place)) else { return Ok(()) };
        let name = &component.name;
        if self.has_volumes(place) {
            return Err(Error::rejected(format!(
                "'{name}' keeps volumes in {home}, and they cannot be moved: stop the workflow and start it without them"
            )));
        }
        if component.has_state() && component.place.is_anything() {
            return match domains.reach(home) {
                Some(reach) if reach.native => Ok(()),
                Some(_) => Err(stateful(name, home)),
                None => Err(Error::unavailable(format!(
                    "'{name}' keeps its state in {home}, which {}: try again when it is back",
                    domains.why_out_of_reach(home)
                ))),
            };
        }
        Ok(())
    }

    /// Begins to move components, each to a domain; nothing else is being moved.
    pub(super) fn begin_move(
        &mut self,
        homes: Vec<(usize, DomainId)>,
        domains: &Domains,
        askers: Vec<Ticket>,
        is_relocation: bool,
    ) {
        let mut components = Vec::with_capacity(homes.len());
        for (place, domain) in homes {
            let site = self.site(&domain, || domains.origin(&domain));
            if let Some(component) = self.components.get_mut(place) {
                let epoch = component.next_epoch();
                component.next = Some(Place::new(site, epoch, component.id));
                components.push(place);
            }
        }
        tracing::info!(workflow = %self.id, components = components.len(), is_relocation, "components are being moved");
        self.change = Some(Move { components, is_relocation, askers, stage: Stage::Making, parked_by: None });
        // Those that are to be sent events from elsewhere say where they run before it matters.
        self.refresh_exports();
        self.derive_again();
    }

    /// Derives the effects that are due for a move, and says when to look again.
    pub(super) fn advance_move(&mut self, now: Millis, domains: &Domains, effects: &mut Vec<Effect>) -> Option<Millis> {
        let change = self.change.as_ref()?;
        if let Stage::Settling { until } = change.stage {
            return self.advance_settling(now, until, domains);
        }
        let components = change.components.clone();
        let away = |place: &usize| {
            let domain = self.domain_of(self.components.get(*place)?.next.as_ref()?.site)?;
            domains.reach(domain).is_none().then(|| format!("{domain} {}", domains.why_out_of_reach(domain)))
        };
        if let Some(reason) = components.iter().find_map(away) {
            self.cancel(now, Error::unavailable(reason));
            return None;
        }
        let mut again = None;
        let (bound, free): (Vec<_>, Vec<_>) = components.iter().copied().partition(|place| self.hands_over(*place));
        for places in [free, bound] {
            let mut is_ready = true;
            let turns = self.turns(&places);
            for place in places {
                if !turns.contains(&place) {
                    is_ready = false;
                    continue;
                }
                let (ready, due) = self.make(now, place, domains, effects);
                // It may have been given up.
                self.change.as_ref()?;
                is_ready &= ready;
                again = again.into_iter().chain(due).min();
            }
            // Nothing is stopped before all that need not be stopped has its place.
            if !is_ready {
                return again;
            }
        }
        self.take_places(now, domains);
        None
    }

    /// Those of some components whose turn it is to move. What hands its state over does so after all that send to it:
    /// a sender that waits for it could not come to its end. Of some that send to each other the first begins.
    fn turns(&self, places: &[usize]) -> BTreeSet<usize> {
        let is_at_home = |place: &usize| {
            self.hands_over(*place) && self.components.get(*place).is_some_and(|own| own.place.step != Step::Released)
        };
        let (home, mut turns): (BTreeSet<usize>, BTreeSet<usize>) = places.iter().partition(|place| is_at_home(place));
        let waits = |place: &usize| {
            let senders = self.components.get(*place).map_or(&[][..], |own| &own.senders);
            senders.iter().any(|sender| sender != place && home.contains(sender))
        };
        let free: Vec<usize> = home.iter().copied().filter(|place| !waits(place)).collect();
        let first = home.first().copied().filter(|_| free.is_empty());
        turns.extend(free.into_iter().chain(first));
        turns
    }

    /// A component that is stopped before it is started again, because its state travels with it.
    fn hands_over(&self, place: usize) -> bool {
        let is_relocation = self.change.as_ref().is_some_and(|change| change.is_relocation);
        let has_something = |place: &Place| place.step != Step::Absent || place.busy.is_some();
        let component = self.components.get(place);
        !is_relocation && component.is_some_and(|own| own.has_state() && has_something(&own.place))
    }

    /// Brings the new place of a component a step further. Whether it is ready, and when to look again.
    fn make(
        &mut self,
        now: Millis,
        place: usize,
        domains: &Domains,
        effects: &mut Vec<Effect>,
    ) -> (bool, Option<Millis>) {
        if self.hands_over(place) && self.components.get(place).is_some_and(|own| own.place.step != Step::Released) {
            return (false, self.hand_over(now, place, domains, effects));
        }
        let Some(next) = self.components.get(place).and_then(|own| own.next.as_ref()) else { return (true, None) };
        if next.busy.is_some() {
            return (false, None);
        }
        let (is_wired, site) = (next.is_wired(), next.site);
        if is_wired && !next.is_stale {
            return (true, None);
        }
        let reach = self.domain_of(site).and_then(|domain| domains.reach(domain));
        let Some(reach) = reach else { return (false, None) };
        let is_left_there = |left: &Leftover| left.component == place && left.place.site == site;
        if reach.native && self.leftovers.iter().any(is_left_there) {
            // A newer start takes the place of what is left there, and a stop after it would be taken for its own.
            if self.leftovers.iter().any(|left| is_left_there(left) && left.place.busy.is_some()) {
                return (false, None);
            }
            let left = self.leftovers.extract_if(.., |left| is_left_there(left)).map(|left| left.place);
            let sign = left.filter(Place::is_anything).map(|left| left.started_at_sign).max();
            let next = self.components.get_mut(place).and_then(|own| own.next.as_mut());
            // That start may come to nothing, and then it is there yet.
            if let (Some(sign), Some(next)) = (sign, next.filter(|next| next.step == Step::Absent)) {
                next.step = Step::Unsure;
                next.started_at_sign = sign;
            }
        }
        let Some((component, next)) = self.components.get(place).and_then(|own| Some((own, own.next.as_ref()?))) else {
            return (true, None);
        };
        let is_exported = self.is_next_exported(place);
        if next.step == Step::Created && !component.has_outputs() && !is_exported {
            if let Some(next) = self.components.get_mut(place).and_then(|own| own.next.as_mut()) {
                next.step = Step::Wired;
                next.is_stale = false;
            }
            return (true, None);
        }
        if now < next.retry_at {
            return (is_wired, Some(next.retry_at));
        }
        let effect = if matches!(next.step, Step::Absent | Step::Unsure) {
            self.creation(place, next, &reach, is_exported)
        } else {
            let outputs = self.outputs(place, next.site, true);
            self.wiring(place, &reach, outputs, is_exported, Slot::Next)
        };
        if let (Some(effect), Some(next)) = (effect, self.components.get_mut(place).and_then(|own| own.next.as_mut())) {
            effects.push(effect);
            next.busy = Some(next.epoch);
        }
        (false, None)
    }

    /// Asks the domain of a component for its state, once its senders keep what they have for it.
    fn hand_over(&mut self, now: Millis, place: usize, domains: &Domains, effects: &mut Vec<Effect>) -> Option<Millis> {
        let component = self.components.get_mut(place)?;
        if !std::mem::replace(&mut component.is_parked, true) {
            component.place.park();
            self.senders_are_stale(place);
            self.derive_again();
        }
        let parked_by = *self.change.as_mut()?.parked_by.get_or_insert(now + SENDERS);
        let component = self.components.get(place)?;
        let home = self.domain_of(component.place.site)?.clone();
        let Some(reach) = domains.reach(&home) else {
            let name = component.name.clone();
            let reason = domains.why_out_of_reach(&home);
            self.cancel(now, Error::unavailable(format!("'{name}' keeps its state in {home}, which {reason}")));
            return None;
        };
        if component.place.busy.is_some() {
            return None;
        }
        if now < component.place.retry_at {
            return Some(component.place.retry_at);
        }
        if now < parked_by && !self.senders_know(place, false) {
            return Some(parked_by);
        }
        effects.push(self.release(place, &component.place, &reach));
        let here = &mut self.components.get_mut(place)?.place;
        here.busy = Some(here.epoch);
        here.may_be_gone = true;
        let site = here.site;
        if let Some(site) = self.sites.get_mut(site) {
            site.busy += 1;
        }
        None
    }

    fn release(&self, place: usize, own: &Place, reach: &Reach) -> Effect {
        let part = Part { workflow: self.id, place, epoch: own.epoch };
        Effect::Release { peer: reach.peer.clone(), part, id: own.known_as, grace: GRACE }
    }

    /// Whether those in other domains, or all, that have outputs to a component have been told where it is.
    fn senders_know(&self, place: usize, all: bool) -> bool {
        let Some(component) = self.components.get(place) else { return true };
        let mut senders = component.senders.iter().filter_map(|sender| self.components.get(*sender));
        senders.all(|sender| {
            let own = &sender.place;
            let is_told = !own.is_stale && own.busy.is_none();
            is_told || !own.is_wired() || (!all && own.site == component.place.site)
        })
    }

    /// All components of the move take their new places.
    fn take_places(&mut self, now: Millis, domains: &Domains) {
        let Some(change) = &mut self.change else { return };
        change.stage = Stage::Settling { until: now + SETTLING };
        let (components, is_relocation) = (change.components.clone(), change.is_relocation);
        for place in components.iter().copied() {
            let Some(component) = self.components.get_mut(place) else { continue };
            component.is_parked = false;
            let Some(mut next) = component.next.take() else { continue };
            let is_away = |site: usize| self.domain_of(site).is_none_or(|domain| domains.reach(domain).is_none());
            let Some(here) = self.components.get(place).map(|own| &own.place) else { continue };
            let waits = here.is_anything() && !is_away(here.site);
            next.step = if waits { Step::Held } else { Step::Wired };
            next.state = None;
            let Some(old) = self.settle(place, next) else { continue };
            if !is_relocation {
                self.has_left(now, place, old.site);
            }
            if old.is_anything() {
                let stop_by = now + SENDERS;
                self.leftovers.push(Leftover { component: place, place: old, drains: true, stop_by });
            }
        }
        // Those that have moved as well know the new places.
        let senders = components.iter().filter_map(|place| self.components.get(*place)).flat_map(|own| &own.senders);
        let senders: BTreeSet<usize> = senders.copied().filter(|sender| !components.contains(sender)).collect();
        for sender in senders {
            if let Some(sender) = self.components.get_mut(sender) {
                sender.place.is_stale = true;
            }
        }
        self.refresh_exports();
        self.derive_again();
    }

    /// Waits for the end of the old places, and says that the move is done.
    fn advance_settling(&mut self, now: Millis, until: Millis, domains: &Domains) -> Option<Millis> {
        let components = self.change.as_ref().map(|change| change.components.clone()).unwrap_or_default();
        let is_near = |site: usize| self.domain_of(site).is_some_and(|domain| domains.reach(domain).is_some());
        let mut left = self.leftovers.iter().filter(|left| components.contains(&left.component));
        if now >= until || !left.any(|left| is_near(left.place.site)) {
            for place in &components {
                if self.components.get(*place).is_some_and(|own| own.place.step == Step::Held) {
                    self.set_step(*place, Step::Wired);
                }
            }
        }
        let is_active = |place: &usize| self.components.get(*place).is_none_or(|own| own.place.step == Step::Active);
        if !components.iter().all(is_active) && now < until {
            return Some(until);
        }
        let status = self.status();
        let change = self.change.take()?;
        self.homeless.1 = 0;
        tracing::info!(workflow = %self.id, components = change.components.len(), "components have moved");
        let answer = |asker| (asker, Ok(Answer::Migrated(status.clone())));
        self.answers.extend(change.askers.into_iter().map(answer));
        None
    }

    /// Gives a move up: what it has made is stopped, and everything is as it was.
    pub(super) fn cancel(&mut self, now: Millis, error: Error) {
        let Some(change) = self.change.take() else { return };
        if change.stage == Stage::Making {
            tracing::warn!(workflow = %self.id, reason = %error, "components are not moved");
        }
        for place in change.components {
            let Some(component) = self.components.get_mut(place) else { continue };
            let was_parked = std::mem::take(&mut component.is_parked);
            let next = component.next.take();
            if component.place.step == Step::Released {
                self.set_step(place, Step::Absent);
                if let Some(component) = self.components.get_mut(place) {
                    let epoch = component.next_epoch();
                    component.place.begin_again(epoch, component.id);
                    component.place.state = next.as_ref().and_then(|next| next.state.clone());
                }
            }
            if let Some(here) = self.components.get_mut(place).map(|own| &mut own.place)
                && std::mem::take(&mut here.may_be_gone)
            {
                // Who asks for it again is told that it is there, or is given a new one.
                here.forget_failures();
                self.set_step(place, Step::Unsure);
            }
            if let Some(mut next) = next.filter(Place::is_anything) {
                next.forget_failures();
                self.leftovers.push(Leftover { component: place, place: next, drains: false, stop_by: now });
            }
            if was_parked {
                if let Some(component) = self.components.get_mut(place) {
                    component.place.park();
                }
                self.senders_are_stale(place);
            }
            if self.components.get(place).is_some_and(|own| own.place.step == Step::Held) {
                self.set_step(place, Step::Wired);
            }
        }
        self.refresh_exports();
        self.derive_again();
        if change.is_relocation {
            self.no_home(now, &error);
        }
        self.answers.extend(change.askers.into_iter().map(|asker| (asker, Err(error.clone()))));
    }

    /// The disk does not take what becomes of a move: it is given up, unless it has been made.
    pub(super) fn move_not_written(&mut self, now: Millis, error: &Error) {
        match &mut self.change {
            Some(change) if change.stage != Stage::Making => {
                let askers = std::mem::take(&mut change.askers);
                self.answers.extend(askers.into_iter().map(|asker| (asker, Err(error.clone()))));
            }
            Some(_) => self.cancel(now, error.clone()),
            None => {}
        }
    }

    /// Nothing was found for components that need a home: it is tried again later.
    pub(super) fn no_home(&mut self, now: Millis, error: &Error) {
        let failures = self.homeless.1.saturating_add(1);
        self.homeless = (now + pause(failures), failures);
        if failures == 1 {
            tracing::warn!(workflow = %self.id, reason = %error, "components of a lost domain have no other home yet");
        }
    }

    /// A new place could not be made, or not at once.
    fn next_failed(&mut self, now: Millis, place: usize, error: Error, retry: bool) {
        let Some(component) = self.components.get_mut(place) else { return };
        let Some(next) = &mut component.next else { return };
        next.failed(now, &error);
        if retry && next.failures < ATTEMPTS {
            return;
        }
        let (name, site) = (component.name.clone(), next.site);
        let domain = self.domain_of(site).map(|domain| domain.0.clone()).unwrap_or_default();
        self.cancel(now, error.context(format!("{domain} cannot host '{name}'")));
    }

    /// Takes note of the answer to the create of a new place.
    pub(super) fn next_created(&mut self, now: Millis, place: usize, result: Result<ComponentId, Error>, native: bool) {
        let Some(next) = self.components.get_mut(place).and_then(|own| own.next.as_mut()) else { return };
        match result {
            Ok(id) => {
                next.known_as = id;
                next.step = Step::Created;
                next.forget_failures();
            }
            Err(error) => {
                if !error.code.is_refusal() {
                    next.step = Step::Unsure;
                }
                let retry = may_pass(&error) && native;
                self.next_failed(now, place, error, retry);
            }
        }
    }

    /// Takes note of the answer to the patch of a new place.
    pub(super) fn next_patched(&mut self, now: Millis, place: usize, result: Result<(), Error>) {
        let Some(next) = self.components.get_mut(place).and_then(|own| own.next.as_mut()) else { return };
        match result {
            Ok(()) => {
                next.step = Step::Wired;
                next.forget_failures();
            }
            Err(error) => {
                next.is_stale = true;
                let retry = may_pass(&error);
                self.next_failed(now, place, error, retry);
            }
        }
    }

    /// Takes note of the answer to a release: the state that the component had.
    pub(super) fn released(&mut self, now: Millis, part: Part, result: Result<Option<Bytes>, Error>) {
        match self.finished(part) {
            Some((Slot::Here, true)) => {}
            Some((Slot::Left(index), _)) => return self.left_released(now, index, result.map(|_| ())),
            _ => return,
        }
        let place = part.place;
        let is_moving = self.components.get(place).is_some_and(|own| own.next.is_some());
        match result {
            Ok(state) => {
                self.set_step(place, Step::Released);
                let Some(component) = self.components.get_mut(place) else { return };
                component.place.forget_failures();
                component.loss.clear();
                if let Some(next) = &mut component.next {
                    next.state = state;
                } else if self.is_stopping() {
                    self.set_step(place, Step::Absent);
                } else if let Some(component) = self.components.get_mut(place) {
                    // The move was given up meanwhile: it goes on where it was.
                    let epoch = component.next_epoch();
                    self.set_step(place, Step::Absent);
                    if let Some(component) = self.components.get_mut(place) {
                        component.place.begin_again(epoch, component.id);
                        component.place.state = state;
                    }
                }
            }
            Err(error) if error.code == Code::NotFound => self.is_gone_with_its_state(now, place, error),
            Err(error) if is_moving => self.not_released(now, place, error),
            Err(error) if may_pass(&error) && !self.is_stopping() => self.set_step(place, Step::Unsure),
            Err(_) => {}
        }
    }

    /// The domain does not run a component any more and cannot hand over what it knew: it begins anew where it was.
    fn is_gone_with_its_state(&mut self, now: Millis, place: usize, error: Error) {
        self.set_step(place, Step::Absent);
        if self.is_stopping() {
            return;
        }
        let home = self.home(place).cloned().unwrap_or(DomainId(String::new()));
        let Some(component) = self.components.get_mut(place) else { return };
        let name = component.name.clone();
        let epoch = component.next_epoch();
        component.place.begin_again(epoch, component.id);
        self.kept.has_changed = true;
        if component.has_state() {
            component.loss = match error.message.starts_with(LOST) {
                true => error.message.clone(),
                false => format!("{LOST}{}", error.message),
            };
            tracing::warn!(workflow = %self.id, component = name, reason = component.loss, "it begins anew");
        }
        if component.next.is_some() {
            let error = error.context(format!("{home} cannot hand over '{name}', which begins anew there"));
            self.cancel(now, error);
        }
    }

    fn not_released(&mut self, now: Millis, place: usize, error: Error) {
        let home = self.home(place).cloned().unwrap_or(DomainId(String::new()));
        let Some(component) = self.components.get_mut(place) else { return };
        if may_pass(&error) {
            component.place.failed(now, &error);
            if component.place.failures < ATTEMPTS {
                return;
            }
            let error = error.context(format!("{home} does not say"));
            return self.cancel(now, error);
        }
        component.place.may_be_gone = false;
        let name = component.name.clone();
        let error = match error.code {
            Code::Unimplemented => stateful(&name, &home),
            _ => error.context(format!("{home} does not hand over '{name}'")),
        };
        self.cancel(now, error);
    }

    /// Derives the effects that are due for places that were left, and says when to look again.
    pub(super) fn advance_leftovers(
        &mut self,
        now: Millis,
        domains: &Domains,
        effects: &mut Vec<Effect>,
    ) -> Option<Millis> {
        let mut again: Option<Millis> = None;
        let mut leftovers = std::mem::take(&mut self.leftovers);
        leftovers.retain_mut(|left| {
            let reach = self.domain_of(left.place.site).and_then(|domain| domains.reach(domain));
            if left.place.busy.is_some() {
                return true;
            }
            if !left.place.is_anything() {
                return false;
            }
            let Some(reach) = reach else { return true };
            if left.place.step == Step::Unsure && !reach.native {
                let domain = &reach.peer.domain;
                tracing::warn!(workflow = %self.id, %domain, "no answer to the start of a component: it may still run");
                return false;
            }
            let may_stop = self.is_stopping() || now >= left.stop_by || self.senders_know(left.component, true);
            let due = if may_stop { left.place.retry_at } else { left.stop_by };
            if now < due {
                again = again.into_iter().chain([due]).min();
                return true;
            }
            let kind = self.components.get(left.component).map(|own| own.kind);
            let drains = left.drains && reach.native && kind == Some(ComponentKind::Function);
            effects.push(match drains && !self.is_stopping() {
                true => self.release(left.component, &left.place, &reach),
                false => self.stopping(left.component, &left.place, &reach),
            });
            left.place.busy = Some(left.place.epoch);
            true
        });
        self.leftovers = leftovers;
        again
    }

    /// Takes note of the answer to the create of a place that was given up meanwhile.
    pub(super) fn left_created(&mut self, index: usize, result: Result<ComponentId, Error>) {
        let Some(left) = self.leftovers.get_mut(index) else { return };
        match result {
            Ok(id) => {
                left.place.known_as = id;
                left.place.step = Step::Created;
            }
            // One that was started there before may be there in spite of it.
            Err(error) if error.code.is_refusal() && left.place.step != Step::Unsure => left.place.step = Step::Absent,
            Err(_) => left.place.step = Step::Unsure,
        }
    }

    /// Takes note of the answer to a stop of a place that was left.
    pub(super) fn left_stopped(&mut self, now: Millis, index: usize, result: Result<(), Error>) {
        let failures = self.leftovers.get(index).map_or(0, |left| left.place.failures + 1);
        let is_over = match &result {
            Ok(()) => true,
            Err(error) => self.is_stopped_by(error, failures),
        };
        if is_over {
            self.leftovers.remove(index);
        } else if let (Some(left), Err(error)) = (self.leftovers.get_mut(index), result) {
            left.place.failed(now, &error);
        }
    }

    fn left_released(&mut self, now: Millis, index: usize, result: Result<(), Error>) {
        match result {
            Err(error) if error.code != Code::NotFound => {
                if let Some(left) = self.leftovers.get_mut(index) {
                    // It is stopped without further ado, then.
                    left.drains = false;
                    if may_pass(&error) {
                        left.place.failed(now, &error);
                    }
                }
            }
            result => self.left_stopped(now, index, result),
        }
    }

    /// A domain is no longer known: should it come back, it is told to stop everything.
    pub(super) fn forgotten(&mut self, domain: &DomainId) {
        let Some(site) = self.sites.iter().position(|site| site.domain == *domain) else { return };
        self.leftovers.retain(|left| left.place.site != site);
        self.kept.has_changed = true;
    }
}

fn stateful(name: &str, home: &DomainId) -> Error {
    Error::rejected(format!(
        "the state of '{name}' does not travel: the orchestrator of {home} cannot hand it over; update it, or stop the \
         workflow and start it with state=transient"
    ))
}
