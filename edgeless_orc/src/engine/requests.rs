//! What a controller asks for. A request changes what is desired; the steps that follow answer it.
//!
//! A request about an instance that is not there at present is answered at once: what it asks for
//! is kept, and becomes true wherever the component runs next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edgeless_api::component::{Annotations, ComponentKind, ComponentSpec, LIMITS, Patch, Row, StatePolicy, Target};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId};
use edgeless_api::requirements::Requirements;
use edgeless_api::scale::Scale;
use edgeless_api::status::Limit;
use edgeless_daemon::engine::{Millis, Ticket};

use super::component::{Ask, Component};
use super::scaling::Trend;
use super::slot::{Place, Slot, Slots};
use super::{Answer, Engine, Reply, Thing, Wanted};
use crate::placement::Tenant;
use crate::registry::Stray;

/// When a component of an EDGELESS 1.2 controller emits even without a patch.
pub(super) const OPENS_AFTER: Duration = Duration::from_secs(1);
/// The longest name of a component or an output.
const NAME: usize = 256;
/// The most outputs of a component.
const OUTPUTS: usize = 1024;
/// The longest value of a limit that no node has checked.
const LIMIT_VALUE: usize = 64;
/// The most instances of a component of another domain.
const INSTANCES: usize = 1000;
/// The most requests that wait for one component.
pub(super) const ASKS: usize = 64;

impl Engine {
    pub(super) fn start(&mut self, ticket: Ticket, wanted: Wanted) {
        if let Some(answer) = self.begin(ticket, wanted).unwrap_or_else(|error| Some(Err(error))) {
            self.reply(ticket, answer);
        }
    }

    /// `None`: the answer follows.
    fn begin(&mut self, ticket: Ticket, wanted: Wanted) -> Result<Option<Answer>, Error> {
        let (id, epoch) = (wanted.context.component, wanted.context.epoch);
        check_name("component", &wanted.context.name)?;
        let requirements = Requirements::parse(wanted.spec.annotations()).map_err(Error::rejected)?;
        let scale = scale(&wanted.context.name, &wanted.spec)?;
        let known = self.components.get(&id).map(|known| (known.wanted_epoch, known.is_leaving, known.is_born));
        let was_moving = self.components.get(&id).is_some_and(|known| known.is_moving);
        // What has left is told to be on its way, and still is until it runs here again.
        let is_on_its_way = (was_moving || self.left.contains(id)) && scale.min > 0;
        let had_row = was_moving || !self.listed(id).is_empty() || self.left.contains(id);
        let row_epoch = self.row_epoch(id).max(self.rows_from(epoch));
        let first_epoch = match known {
            None if self.left.epoch(id).is_some_and(|left| epoch < left) => {
                return Err(Error::rejected(format!("component {id} has left this domain since it had epoch {epoch}")));
            }
            Some(_) if self.kind_of(id) != Some(wanted.spec.kind()) => return Err(self.wrong_kind(id)),
            Some((known, _, _)) if epoch < known => {
                return Err(Error::rejected(format!(
                    "component {id} was started with epoch {known}, newer than {epoch}"
                )));
            }
            Some((known, true, _)) if epoch == known => {
                return Err(Error::unavailable(format!("component {id} is being stopped: try again later")));
            }
            Some((known, _, true)) if epoch == known => return Ok(Some(Ok(Reply::Started(id)))),
            Some((known, _, _)) if epoch == known => {
                self.wait(id, Ask::Start, ticket)?;
                return Ok(None);
            }
            Some(_) => self.supersede(id),
            None if self.components.len() >= self.settings.max_components => {
                return Err(Error::exhausted(format!(
                    "the domain has {} components, and takes no more: stop some or raise limits.max_components of its \
                     orchestrator",
                    self.settings.max_components
                )));
            }
            None => self.links.get(&id).map(|link| link.last_epoch).unwrap_or_default(),
        };
        let mut component = Component {
            name: wanted.context.name,
            spec: wanted.spec,
            requirements,
            wanted: scale.min,
            scale,
            wanted_epoch: epoch,
            outputs: BTreeMap::new(),
            is_wanted_active: false,
            opens_at: None,
            is_held: wanted.is_held,
            is_leaving: false,
            leaving: None,
            state: wanted.context.state,
            slots: Slots::default(),
            epoch: first_epoch,
            first_epoch,
            listed: Vec::new(),
            is_moving: is_on_its_way,
            row_epoch,
            row_since: Millis::default(),
            is_born: false,
            refusal: None,
            loss: None,
            saved: None,
            doubted: BTreeSet::new(),
            trend: Trend::default(),
            asks: vec![(Ask::Start, ticket)],
        };
        if component.wanted == 0 {
            self.has_place(id, &component, &Slot::new())?;
        }
        // Who takes a release back did not hear what it left.
        match self.left.take(id, epoch) {
            Ok(left) => component.state = component.state.take().or(left),
            Err(loss) if component.state.is_none() => component.loss = Some(loss),
            Err(_) => {}
        }
        self.components.insert(id, component);
        if is_on_its_way {
            let saved = self.components.get_mut(&id).and_then(|component| component.state.take());
            self.add_slot(id, Slot { is_under_way: true, saved, ..Slot::new() });
        }
        self.begin_with(id, had_row);
        Ok(None)
    }

    /// A component is wanted from now on.
    fn begin_with(&mut self, id: ComponentId, had_row: bool) {
        self.marked.insert(Thing::Component(id));
        let opens_at = self.now + OPENS_AFTER;
        if had_row {
            self.renew_row(id);
        }
        let Some(component) = self.components.get_mut(&id).filter(|component| component.wanted == 0) else { return };
        // Nothing is started before its first event.
        component.is_born = true;
        if !component.is_held {
            component.opens_at = Some(opens_at);
        }
        self.answer(id, Ask::Start, &Ok(Reply::Started(id)));
    }

    /// Makes room for a newer start of the same component, and tells its last epoch.
    fn supersede(&mut self, id: ComponentId) -> u64 {
        let replicas: Vec<u32> =
            self.components.get(&id).into_iter().flat_map(|old| old.slots.keys().copied()).collect();
        for replica in replicas {
            self.leave_home(id, replica);
            self.decisions.forget(Tenant { component: id, replica });
        }
        self.set_outputs(id, BTreeMap::new());
        let Some(old) = self.components.remove(&id) else { return 0 };
        let superseded = Error::rejected(format!("component {id} was started again with a newer epoch"));
        for (replica, slot) in old.slots.iter() {
            match &slot.place {
                Place::On(instance) => self.add_stray(instance.home.node, Stray::Known(old.kind(), instance.id)),
                Place::Trying(attempt) if attempt.unanswered > 0 => {
                    self.add_stray(attempt.home.node, Stray::Unknown(old.start(id, *replica, attempt)));
                }
                Place::Trying(_) | Place::Nowhere => {}
            }
            for ticket in &slot.movers {
                self.reply(*ticket, Err(superseded.clone()));
            }
        }
        for (ask, ticket) in old.asks {
            let answer = if ask == Ask::Stop { Ok(Reply::Done) } else { Err(superseded.clone()) };
            self.answer_one(ask, ticket, answer);
        }
        old.epoch
    }

    pub(super) fn patch(&mut self, ticket: Ticket, kind: ComponentKind, patch: Patch) {
        if let Some(answer) = self.wire_up(ticket, kind, patch).unwrap_or_else(|error| Some(Err(error))) {
            self.reply(ticket, answer);
        }
    }

    /// `None`: the answer follows.
    fn wire_up(&mut self, ticket: Ticket, kind: ComponentKind, patch: Patch) -> Result<Option<Answer>, Error> {
        let id = ComponentId(patch.id);
        let is_exported = patch.exported;
        let (outputs, rows) = outputs(patch)?;
        match self.kind_of(id) {
            None => return Err(unknown(id)),
            Some(known) if known != kind => return Err(self.wrong_kind(id)),
            Some(_) => {}
        }
        let is_there = self.is_on(id);
        if is_there {
            self.wait(id, Ask::Patch, ticket)?;
        }
        for row in rows {
            self.learn(row);
        }
        self.set_outputs(id, outputs);
        self.export(id, is_exported);
        if let Some(component) = self.components.get_mut(&id) {
            component.is_wanted_active |= !component.is_held;
        }
        self.hurry(id);
        Ok(if is_there { None } else { Some(Ok(Reply::Done)) })
    }

    /// Other domains are told where a component runs, or no longer.
    fn export(&mut self, id: ComponentId, is_exported: bool) {
        if !is_exported {
            self.exported.remove(&id);
        } else if self.exported.insert(id) {
            self.unpublished.insert(id);
        }
    }

    /// Replaces the outputs of a component, and who is known to have outputs to whom.
    pub(super) fn set_outputs(&mut self, id: ComponentId, outputs: BTreeMap<String, ComponentId>) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let before = std::mem::replace(&mut component.outputs, outputs.clone());
        for target in outputs.into_values() {
            self.links.entry(target).or_default().senders.insert(id);
            self.marked.insert(Thing::Component(target));
        }
        let kept: BTreeSet<ComponentId> =
            self.components.get(&id).into_iter().flat_map(|own| own.outputs.values().copied()).collect();
        for target in before.into_values().filter(|target| !kept.contains(target)) {
            if let Some(link) = self.links.get_mut(&target) {
                link.senders.remove(&id);
                self.tidy(target);
            }
        }
    }

    pub(super) fn activate(&mut self, ticket: Ticket, ids: Vec<ComponentId>) {
        let ids: BTreeSet<ComponentId> = ids.into_iter().collect();
        if let Some(id) = ids.iter().find(|id| !self.components.contains_key(id)) {
            return self.reply(ticket, Err(unknown(*id)));
        }
        let there: Vec<ComponentId> = ids.iter().copied().filter(|id| self.is_on(*id)).collect();
        if there.is_empty() {
            self.reply(ticket, Ok(Reply::Done));
        } else {
            self.activations.insert(ticket, there.len());
        }
        for id in there {
            if let Err(error) = self.wait(id, Ask::Activate, ticket) {
                self.answer_one(Ask::Activate, ticket, Err(error));
            }
        }
        for id in ids {
            if let Some(component) = self.components.get_mut(&id) {
                component.is_wanted_active = true;
                self.hurry(id);
            }
        }
    }

    /// Keeps limits that the instance `at` has already, or that no node was asked for because there is no
    /// instance, and tells all that were asked for.
    pub(super) fn keep_limits(
        &mut self,
        id: ComponentId,
        changes: Annotations,
        at: &[InstanceId],
    ) -> Result<Vec<Limit>, Error> {
        let component = self.components.get_mut(&id).ok_or_else(|| unknown(id))?;
        let name = &component.name;
        if component.is_leaving {
            return Err(Error::unavailable(format!("'{name}' is being stopped")));
        }
        if changes.is_empty() {
            return component.spec.limits(name);
        }
        // What is on its way has the limits from before.
        let has_them = |slot: &Slot| match &slot.place {
            Place::Nowhere => true,
            Place::Trying(_) => false,
            Place::On(instance) => at.contains(&instance.id),
        };
        if !component.slots.values().all(has_them) {
            return Err(Error::unavailable(format!("'{name}' is being started: try again in a moment")));
        }
        if at.is_empty() {
            component.spec.limits(name)?;
            check_limits(name, &changes)?;
        }
        let mut annotations = component.spec.annotations().clone();
        annotations.extend(changes);
        component.requirements = Requirements::parse(&annotations).map_err(Error::rejected)?;
        *component.spec.annotations_mut() = annotations;
        let limits = component.spec.limits(&component.name);
        let nowhere = component.slots.iter().filter(|(_, slot)| slot.home().is_none()).map(|(replica, _)| *replica);
        for replica in nowhere.collect::<Vec<_>>() {
            component.outdate(replica);
        }
        for (replica, slot) in component.slots.iter() {
            if let Some(home) = slot.home() {
                let tenant = Tenant { component: id, replica: *replica };
                self.placer.nodes.occupy(home.node, tenant, component.spec.workflow(), &component.requirements);
            }
        }
        // A place that it was refused with the limits from before may take it now.
        self.hurry(id);
        limits
    }

    pub(super) fn stop(&mut self, ticket: Ticket, kind: ComponentKind, id: ComponentId) {
        match self.kind_of(id) {
            None => self.reply(ticket, Ok(Reply::Done)),
            Some(known) if known != kind => {
                let error = self.wrong_kind(id);
                self.reply(ticket, Err(error));
            }
            Some(_) => match self.wait(id, Ask::Stop, ticket) {
                Ok(()) => self.dismiss(id),
                Err(error) => self.reply(ticket, Err(error)),
            },
        }
    }

    pub(super) fn stop_all(&mut self) {
        let ids: Vec<ComponentId> = self.components.keys().copied().collect();
        for id in ids {
            self.dismiss(id);
        }
    }

    /// A controller follows the domain: what ran for another one is stopped.
    pub(super) fn follow(&mut self, controller: u64, nonce: u64) -> Reply {
        let changes_hands = self.domain.controller.replace(controller).is_some_and(|before| before != controller);
        if changes_hands {
            // The first controller, should it come back, sees that nothing of its own runs here any more.
            self.domain.nonce = nonce;
            self.stop_all();
        }
        Reply::Owned { nonce: self.domain.nonce, changes_hands }
    }

    fn dismiss(&mut self, id: ComponentId) {
        if let Some(component) = self.components.get_mut(&id) {
            component.is_leaving = true;
            component.leaving = None;
            self.hurry(id);
            self.refresh_row(id);
        }
    }

    pub(super) fn wait(&mut self, id: ComponentId, ask: Ask, ticket: Ticket) -> Result<(), Error> {
        let Some(component) = self.components.get_mut(&id) else { return Err(unknown(id)) };
        if component.asks.len() >= ASKS {
            return Err(Error::exhausted(format!(
                "{ASKS} requests about component {id} wait already: try again later"
            )));
        }
        component.asks.push((ask, ticket));
        Ok(())
    }

    fn is_on(&self, id: ComponentId) -> bool {
        self.components.get(&id).is_some_and(|component| component.running().next().is_some())
    }

    fn kind_of(&self, id: ComponentId) -> Option<ComponentKind> {
        self.components.get(&id).map(Component::kind)
    }

    fn wrong_kind(&self, id: ComponentId) -> Error {
        let kind = self.kind_of(id).map(|kind| kind.to_string()).unwrap_or_default();
        Error::rejected(format!("component {id} is a {kind}: use the service for {kind}s"))
    }
}

pub(super) fn unknown(id: ComponentId) -> Error {
    Error::not_found(format!("component {id} is not known in this domain"))
}

fn check_name(what: &str, name: &str) -> Result<(), Error> {
    if name.len() <= NAME {
        return Ok(());
    }
    let shown: String = name.chars().take(40).collect();
    Err(Error::exhausted(format!("the name of the {what} '{shown}…' is longer than {NAME} bytes")))
}

/// Checks what no node can check at present.
fn check_limits(name: &str, changes: &Annotations) -> Result<(), Error> {
    for (key, value) in changes {
        let shown: String = key.chars().take(40).collect();
        if !LIMITS.contains(&key.as_str()) {
            let known = LIMITS.join(", ");
            return Err(Error::rejected(format!(
                "'{shown}' is not a limit; '{name}' does not run at present, and of what does not run there are: {known}"
            )));
        }
        if value.is_empty() || value.len() > LIMIT_VALUE {
            return Err(Error::rejected(format!(
                "the value of '{shown}' must have 1 to {LIMIT_VALUE} bytes, it has {}",
                value.len()
            )));
        }
    }
    Ok(())
}

/// How many instances a component shall have.
pub(super) fn scale(name: &str, spec: &ComponentSpec) -> Result<Scale, Error> {
    let ComponentSpec::Function(function) = spec else { return Ok(Scale::default()) };
    let scale = Scale::parse(&function.annotations).map_err(Error::rejected)?;
    if scale.is_multiple() && function.state.policy != StatePolicy::Transient {
        return Err(Error::rejected(format!(
            "'{name}' keeps state, and several instances of it would overwrite what the others saved: write \
             state=transient, or max_instances=1"
        )));
    }
    Ok(scale)
}

/// What each output leads to, and where those of other domains run.
fn outputs(patch: Patch) -> Result<(BTreeMap<String, ComponentId>, Vec<Row>), Error> {
    if patch.outputs.len() > OUTPUTS {
        return Err(Error::exhausted(format!("a component has at most {OUTPUTS} outputs")));
    }
    let mut rows = Vec::new();
    let output = |(channel, target): (String, Target)| {
        check_name("output", &channel)?;
        match target {
            Target::Component(id) => Ok((channel, id)),
            Target::Row(row) if row.instances.len() > INSTANCES => Err(Error::exhausted(format!(
                "output '{channel}' leads to more than {INSTANCES} instances of a component"
            ))),
            Target::Row(row) => {
                let id = row.component;
                rows.push(row);
                Ok((channel, id))
            }
            Target::Instance(_) => Err(Error::rejected(format!(
                "output '{channel}' leads to an instance: an orchestrator takes components"
            ))),
        }
    };
    let outputs = patch.outputs.into_iter().map(output).collect::<Result<_, _>>()?;
    Ok((outputs, rows))
}
