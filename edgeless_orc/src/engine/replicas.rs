//! How many replicas a component has, where each goes, and how a component ends.

use std::time::Duration;

use edgeless_api::component::ComponentSpec;
use edgeless_api::decision::{Decision, Verdict};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_api::node::InstanceLoad;
use edgeless_api::requirements::Requirements;
use edgeless_api::scale::Scale;

use edgeless_daemon::engine::Millis;
use uuid::Uuid;

use super::component::{Ask, Component, Link};
use super::decisions::{self, Made};
use super::scaling::Load;
use super::slot::{Attempt, Fate, Place, Slot};
use super::{Engine, Note, Reply, Thing, rows};
use crate::placement::{self, Placer, Question, Refusal, Tenant};

/// How long the last epoch of a component is remembered after its end: longer than any call about
/// it can last.
pub(super) const MEMORY: Duration = Duration::from_secs(120);
/// Whom a component is connected with matters to placement up to this number.
const NEIGHBOURS: usize = 256;

/// What matters to the place of a replica beside its component.
pub(super) struct Surroundings {
    neighbours: Vec<NodeId>,
    taken: Vec<NodeId>,
    excluded: Vec<NodeId>,
    only: Option<NodeId>,
}

impl Surroundings {
    fn question<'a>(&'a self, component: &'a Component) -> Question<'a> {
        Question {
            neighbours: &self.neighbours,
            taken: &self.taken,
            excluded: &self.excluded,
            only: self.only,
            ..Question::new(&component.name, &component.spec, &component.requirements)
        }
    }
}

impl Engine {
    pub(super) fn step_component(&mut self, id: ComponentId) {
        let Some(component) = self.components.get_mut(&id) else { return self.tidy(id) };
        if let Some(at) = component.opens_at {
            if at <= self.now {
                component.is_wanted_active = true;
                component.opens_at = None;
                self.mark_slots(id);
            } else {
                self.timers.insert((at, Thing::Component(id)));
            }
        }
        let floor = self.floor(id);
        let Some(component) = self.components.get_mut(&id) else { return };
        if component.is_leaving {
            let is_gone = component.slots.is_empty();
            return if is_gone { self.forget(id) } else { self.mark_slots(id) };
        }
        component.wanted = component.wanted.max(floor);
        let (wanted, count) = (component.wanted as usize, component.count());
        if count < wanted {
            for _ in count..wanted {
                let saved = self.components.get_mut(&id).and_then(|component| component.state.take());
                self.add_slot(id, Slot { saved, ..Slot::new() });
            }
        } else if count > wanted {
            self.shrink(id, count - wanted);
        }
    }

    /// The fewest replicas that a component can do with now. Where a node speaks only EDGELESS 1.2, nobody
    /// would wake it.
    fn floor(&self, id: ComponentId) -> u32 {
        let Some(component) = self.components.get(&id) else { return 0 };
        if component.scale.min > 0 || component.wanted > 0 {
            return component.scale.min;
        }
        let is_plain = |slot: &Slot| {
            let node = slot.home().and_then(|home| self.registry.at(home));
            node.is_some_and(|node| !node.about.native)
        };
        let mut senders = self.links.get(&id).into_iter().flat_map(|link| &link.senders);
        let has_plain = senders.any(|sender| {
            self.components.get(sender).is_some_and(|sender| sender.running().any(|(_, slot)| is_plain(slot)))
        });
        u32::from(has_plain)
    }

    /// Adds a replica, and tells its number.
    pub(super) fn add_slot(&mut self, id: ComponentId, slot: Slot) -> Option<u32> {
        let component = self.components.get_mut(&id)?;
        let free = (0..).zip(component.slots.keys()).find(|(number, taken)| number != *taken).map(|(number, _)| number);
        let replica = free.unwrap_or(u32::try_from(component.slots.len()).unwrap_or(u32::MAX));
        component.slots.insert(replica, slot);
        self.marked.insert(Thing::Slot(id, replica));
        Some(replica)
    }

    /// Lets the last replicas go that nothing else is about to happen to.
    fn shrink(&mut self, id: ComponentId, by: usize) {
        let Some(component) = self.components.get(&id) else { return };
        let is_free = |replica: u32, slot: &Slot| {
            slot.fate == Fate::Stay && slot.replaces.is_none() && component.successor(replica).is_none()
        };
        let free = component.slots.iter().rev().filter(|(replica, slot)| is_free(**replica, slot));
        let going: Vec<u32> = free.map(|(replica, _)| *replica).take(by).collect();
        for replica in going {
            self.let_go(id, replica, Fate::Go);
        }
        self.refresh_row(id);
    }

    /// No events are sent to a replica any more, and it is released when everybody knows.
    pub(super) fn let_go(&mut self, id: ComponentId, replica: u32, fate: Fate) {
        let Some(slot) = self.slot_mut(id, replica) else { return };
        slot.fate = fate;
        slot.lane.hurry();
        if let Some(node) = slot.instance().map(|instance| instance.home.node) {
            self.leave_behind(id, node);
        }
        self.marked.insert(Thing::Slot(id, replica));
    }

    pub(super) fn mark_slots(&mut self, id: ComponentId) {
        if let Some(component) = self.components.get(&id) {
            self.marked.extend(component.slots.keys().map(|replica| Thing::Slot(id, *replica)));
        }
    }

    /// Something else is wanted of a component than before.
    pub(super) fn hurry(&mut self, id: ComponentId) {
        let Some(component) = self.components.get_mut(&id) else { return };
        for (replica, slot) in component.slots.iter_mut() {
            slot.lane.hurry();
            if let Some(instance) = slot.instance_mut() {
                instance.is_settled = false;
            }
            self.marked.insert(Thing::Slot(id, *replica));
        }
        self.marked.insert(Thing::Component(id));
    }

    /// What matters to the place of a replica beside its component.
    pub(super) fn surroundings(&self, id: ComponentId, component: &Component, slot: &Slot) -> Surroundings {
        let homes = slot.tried.iter().chain(&component.doubted).copied();
        let left = slot.replaces.and_then(|old| component.slots.get(&old)?.home());
        let current = homes.chain(left).filter(|home| self.registry.at(*home).is_some());
        let excluded = current.map(|home| home.node).collect();
        let others = component.slots.iter().filter(|(other, _)| slot.replaces != Some(**other));
        let taken = others.filter_map(|(_, other)| Some(other.home()?.node)).collect();
        let only = self.wait_of(slot).map(|wait| wait.node).or(slot.pin);
        Surroundings { neighbours: self.neighbours(id, component), taken, excluded, only }
    }

    /// The nodes of the components that one is connected with, as far as they matter.
    fn neighbours(&self, id: ComponentId, component: &Component) -> Vec<NodeId> {
        let senders = self.links.get(&id).into_iter().flat_map(|link| &link.senders);
        let connected = component.outputs.values().chain(senders).take(NEIGHBOURS);
        let slots = connected.filter_map(|id| self.components.get(id)).flat_map(|other| other.slots.values());
        slots.filter_map(|slot| Some(slot.home()?.node)).take(NEIGHBOURS).collect()
    }

    /// Whether there would be a place for a replica.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn has_place(&self, id: ComponentId, component: &Component, slot: &Slot) -> Result<(), Error> {
        let surroundings = self.surroundings(id, component, slot);
        let question = surroundings.question(component);
        let chosen = self.placer.clone().choose(&question);
        chosen.map(drop).map_err(|refusal| self.no_choice(&question, slot, refusal))
    }

    /// Why there is no place.
    fn no_choice(&self, question: &Question<'_>, slot: &Slot, refusal: Refusal) -> Error {
        let name = question.name;
        match (refusal, &slot.trouble, slot.pin) {
            (Refusal::Infeasible(error), _, _) => error,
            (Refusal::Excluded, Some(trouble), _) => trouble.clone(),
            (Refusal::Excluded, None, Some(pin)) => {
                let verdicts = self.placer.explain(question, None).nodes;
                let verdict = verdicts.iter().find(|verdict| verdict.node == pin);
                let why = verdict.map(|verdict| format!(": {}", verdict.outcome)).unwrap_or_default();
                Error::rejected(format!("node {pin} cannot run '{name}'{why}; choose another"))
            }
            (Refusal::Excluded, None, None) => Error::unavailable("no other node can run it at present"),
        }
    }

    /// Why a component is where it is: the decision that placed it, or, if that is not kept, what would be decided
    /// now.
    ///
    /// # Errors
    /// It is not known.
    pub fn why(&self, now: Millis, id: ComponentId) -> Result<Decision, Error> {
        let component = self.components.get(&id).ok_or_else(|| super::requests::unknown(id))?;
        let first = component.slots.iter().find_map(|(replica, slot)| Some((*replica, slot.home()?)));
        let blank = Slot { replaces: first.map(|(replica, _)| replica), ..Slot::new() };
        let mut surroundings = self.surroundings(id, component, &blank);
        surroundings.excluded.clear();
        let at = first.map(|(replica, home)| (Tenant { component: id, replica }, home));
        let question = surroundings.question(component);
        let anew = self.placer.explain(&question, at.map(|(tenant, home)| (home.node, tenant)));
        Ok(match at.and_then(|(tenant, home)| self.decisions.of(tenant, home)) {
            Some(made) => Decision { age: Some(made.at.until(now)), nodes: made.nodes.to_vec(), ..anew },
            None => anew,
        })
    }

    /// Where the instances of something would go that is not known here: all that it begins with, but not more than
    /// `most`, if that is at least one.
    pub(super) fn foresee(
        &self,
        placer: &mut Placer,
        (nth, name): (u128, &str),
        spec: &ComponentSpec,
        most: usize,
    ) -> Result<Vec<placement::Place>, Error> {
        let requirements = Requirements::parse(spec.annotations()).map_err(Error::rejected)?;
        let scale = Scale::parse(spec.annotations()).map_err(Error::rejected)?;
        let (mut places, mut taken) = (Vec::new(), Vec::new());
        for replica in 0..scale.min.max(1) {
            let chosen = placer.choose(&Question { taken: &taken, ..Question::new(name, spec, &requirements) });
            let place = chosen.map_err(|refusal| match refusal {
                Refusal::Infeasible(error) => error,
                Refusal::Excluded => Error::bug("no choice among feasible nodes"),
            })?;
            // What is placed takes the room of what comes after it.
            let tenant = Tenant { component: ComponentId(Uuid::from_u128(nth)), replica };
            placer.nodes.occupy(place.node, tenant, spec.workflow(), &requirements);
            taken.push(place.node);
            places.push(place);
            if places.len() >= most {
                break;
            }
        }
        Ok(places)
    }

    pub(super) fn place(&mut self, id: ComponentId, replica: u32) {
        let Some(component) = self.components.get(&id) else { return };
        let Some(slot) = component.slots.get(&replica) else { return };
        let surroundings = self.surroundings(id, component, slot);
        let question = surroundings.question(component);
        match self.placer.choose(&question) {
            Ok(place) => {
                let verdicts = (self.registry.nodes.len() <= decisions::MOST_NODES)
                    .then(|| self.placer.verdicts(&question, place.node));
                self.move_in(id, replica, place);
                self.keep_decision(id, replica, verdicts);
            }
            Err(refusal) => {
                let error = self.no_choice(&question, slot, refusal);
                self.no_place(id, replica, error);
            }
        }
    }

    fn keep_decision(&mut self, id: ComponentId, replica: u32, verdicts: Option<Vec<Verdict>>) {
        let home = self.components.get(&id).and_then(|component| component.slots.get(&replica)?.home());
        if let (Some(home), Some(nodes)) = (home, verdicts) {
            let made = Made { home, at: self.now, nodes: nodes.into() };
            self.decisions.keep(Tenant { component: id, replica }, made);
        }
    }

    fn move_in(&mut self, id: ComponentId, replica: u32, place: placement::Place) {
        let Some(node) = self.registry.nodes.get_mut(&place.node) else { return };
        node.residents.insert((id, replica));
        let home = node.home();
        let Some(component) = self.components.get_mut(&id) else { return };
        let tenant = Tenant { component: id, replica };
        self.placer.nodes.occupy(place.node, tenant, component.spec.workflow(), &component.requirements);
        component.judge_state(replica, place.node);
        component.epoch += 1;
        if let Some(slot) = component.slots.get_mut(&replica) {
            slot.epoch = component.epoch;
            slot.place = Place::Trying(Attempt { home, provider: place.provider, unanswered: 0 });
        }
        self.homeless.remove(&(id, replica));
        self.marked.insert(Thing::Slot(id, replica));
    }

    /// A component that never ran is refused; one that ran waits, or does with fewer replicas.
    fn no_place(&mut self, id: ComponentId, replica: u32, error: Error) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let (is_born, is_spare) = (component.is_born, component.count() > component.scale.min.max(1) as usize);
        let name = component.name.clone();
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        if let Some(old) = slot.replaces {
            return self.give_way(id, replica, old, error);
        }
        if slot.pin.take().is_some() {
            slot.detour = Some(error.context("it could not be moved there"));
            self.marked.insert(Thing::Slot(id, replica));
            return;
        }
        if !is_born {
            return self.refuse(id, error);
        }
        if let Some(origin) = slot.origin.take()
            && self.registry.at(origin).is_some()
        {
            // Even if nothing new is placed there.
            slot.detour.get_or_insert(error);
            return self.move_in(id, replica, placement::Place { node: origin.node, provider: String::new() });
        }
        if is_spare {
            component.wanted = u32::try_from(component.count()).unwrap_or(u32::MAX).saturating_sub(1);
            component.trend.changed(self.now);
            self.note(Note::Waiting { component: id, name, error });
            return self.drop_slot(id, replica, &Ok(Reply::Done));
        }
        // Nobody can say when it has a place: its events wait no longer than those for anything else.
        slot.is_under_way = false;
        slot.tried.clear();
        slot.trouble = Some(error.clone());
        slot.lane.back_off(self.now);
        let movers = std::mem::take(&mut slot.movers);
        let is_news = !std::mem::replace(&mut slot.is_noted, true);
        self.marked.insert(Thing::Slot(id, replica));
        self.homeless.insert((id, replica));
        for ticket in movers {
            self.reply(ticket, Err(error.clone()));
        }
        if is_news {
            self.note(Note::Waiting { component: id, name, error });
        }
        self.refresh_row(id);
    }

    /// Whatever has no place may have one now.
    pub(super) fn wake_homeless(&mut self) {
        for (id, replica) in std::mem::take(&mut self.homeless) {
            let is_waiting = self.slot_mut(id, replica).is_some_and(|slot| slot.awaits.is_some());
            if is_waiting {
                self.homeless.insert((id, replica));
            }
            if let Some(slot) = self.slot_mut(id, replica) {
                slot.lane.hurry();
                self.marked.insert(Thing::Slot(id, replica));
            }
        }
    }

    /// Events wait for components that may run nowhere.
    pub(super) fn wake(&mut self, ids: &[ComponentId]) {
        for id in ids {
            let now = self.now;
            let Some(component) = self.components.get_mut(id) else { continue };
            component.trend.wake();
            if component.wanted == 0 {
                component.wanted = 1;
                component.trend.changed(now);
                let name = component.name.clone();
                self.marked.insert(Thing::Component(*id));
                self.note(Note::Scaled { component: *id, name, from: 0, to: 1 });
            }
        }
    }

    /// A node has said what the instances have to do that run there.
    pub(super) fn take_loads(&mut self, node: NodeId, loads: &[InstanceLoad]) {
        for load in loads {
            let Some(known) = self.registry.nodes.get(&node) else { return };
            if let Some((id, replica)) = known.running.get(&load.instance) {
                self.take_load(*id, *replica, Load { queued: load.queued, handled: load.handled });
            }
        }
    }

    fn take_load(&mut self, id: ComponentId, replica: u32, load: Load) {
        let now = self.now;
        let Some(component) = self.components.get_mut(&id) else { return };
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        let before = std::mem::replace(&mut slot.load, load);
        let is_fixed = component.scale.min == component.scale.max;
        if is_fixed || component.is_leaving || !component.is_born || slot.fate != Fate::Stay {
            return;
        }
        let loads: Vec<Load> = component.running().map(|(_, slot)| slot.load).collect();
        let (wanted, scale) = (component.wanted, component.scale.clone());
        let judged = component.trend.judge(now, &scale, wanted, &loads, load.handled != before.handled);
        if judged != wanted {
            component.wanted = judged;
            let name = component.name.clone();
            self.marked.insert(Thing::Component(id));
            self.note(Note::Scaled { component: id, name, from: wanted, to: judged });
        }
    }

    /// A component that never ran cannot run: what there is of it ends.
    pub(super) fn refuse(&mut self, id: ComponentId, error: Error) {
        let Some(component) = self.components.get_mut(&id) else { return };
        if component.is_leaving {
            return;
        }
        component.is_leaving = true;
        component.refusal = Some(error.clone());
        let name = component.name.clone();
        self.note(Note::Refused { name, error: error.clone() });
        self.answer(id, Ask::Start, &Err(error));
        self.hurry(id);
    }

    /// Removes a component of which nothing is left, and answers whoever waits for it.
    fn forget(&mut self, id: ComponentId) {
        self.set_outputs(id, std::collections::BTreeMap::new());
        let kept_until = self.now + MEMORY;
        let Some(component) = self.components.remove(&id) else { return };
        let link = self.links.entry(id).or_default();
        *link = Link { last_epoch: component.epoch, last_row: component.row_epoch, kept_until, ..std::mem::take(link) };
        self.timers.insert((kept_until, Thing::Component(id)));
        if component.leaving.is_some() {
            self.timers.insert((self.now + rows::UNDER_WAY, Thing::Component(id)));
        }
        self.exported.remove(&id);
        if self.foreign.contains_key(&id) {
            // It runs in another domain by now.
            self.spread_row(id);
        }
        let legacy = self.has_left(id, &component);
        if !component.is_born && component.refusal.is_some() {
            self.give_back(id, &component);
        }
        let name = component.name.clone();
        if component.refusal.is_none() {
            self.note(Note::Stopped { component: id, kind: component.kind(), name });
        }
        let gone = || Error::unavailable(format!("component {id} was stopped meanwhile"));
        for (ask, ticket) in component.asks {
            let answer = match ask {
                Ask::Stop => Ok(Reply::Done),
                Ask::Release => legacy.clone().unwrap_or_else(|| Err(gone())).map(Reply::Released),
                Ask::Start | Ask::Patch | Ask::Activate => Err(component.refusal.clone().unwrap_or_else(gone)),
            };
            self.answer_one(ask, ticket, answer);
        }
    }

    /// Forgets what nobody needs to know of a component any more.
    pub(super) fn tidy(&mut self, id: ComponentId) {
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        link.former.retain(|_, until| *until > now);
        if !link.senders.is_empty() {
            return;
        }
        // What still comes for an instance that has left is forwarded to where the component runs.
        let has_row = link.former.is_empty() && self.foreign.remove(&id).is_some();
        let is_over = link.untold.is_empty() && link.former.is_empty() && link.kept_until <= now;
        if is_over {
            self.links.remove(&id);
        }
        if is_over || has_row {
            self.touch_link(id);
        }
    }
}
