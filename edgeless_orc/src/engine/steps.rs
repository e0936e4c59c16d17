//! The steps of a replica, and what follows from the results of the calls that they make.
//!
//! Whether a step is taken depends on the lane of the replica only: one call at a time, and a pause
//! after a failure. A result that arrives after its call was given up changes nothing here, except
//! that what it started must be stopped.

use std::time::Duration;

use bytes::Bytes;
use edgeless_api::component::{ComponentKind, ComponentRef};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_daemon::engine::Millis;
use edgeless_daemon::engine::Ticket;

use super::component::{Ask, Component};
use super::lane::Gate;
use super::node::is_unknown;
use super::scaling::Load;
use super::slot::{Attempt, Fate, Instance, Place, Slot, Step, Wiring};
use super::{Answer, Call, Engine, Job, Note, Op, Outcome, Reply, Thing, rows};
use crate::placement::Tenant;
use crate::registry::{Home, Stray};

/// How often one of our nodes is asked to start the same thing while it does not answer.
const TRIES: u32 = 3;
/// How often a node may fail to wire or activate an instance before whoever asked for it is told.
const PATIENCE: u32 = 5;
/// How often a node is asked to release an instance before it is asked to stop it.
const RELEASES: u32 = 5;
/// The same for one whose state nobody else has; with the pauses between them that is minutes.
const STATE_RELEASES: u32 = 30;
/// The time that a node has to handle what is queued for an instance that it releases.
pub(super) const GRACE: Duration = Duration::from_secs(10);

impl Engine {
    pub(super) fn step_slot(&mut self, id: ComponentId, replica: u32) {
        let Some(component) = self.components.get(&id) else { return };
        let Some(slot) = component.slots.get(&replica) else { return };
        let step = match slot.lane.gate(self.now) {
            Gate::Busy => return,
            Gate::Until(at) => Step::Wait(at),
            Gate::Free => self.next_step(id, component, slot),
        };
        match step {
            Step::Rest => {}
            Step::Wait(at) => {
                self.timers.insert((at, Thing::Slot(id, replica)));
            }
            Step::Settled => self.settled(id, replica),
            Step::Place => self.place(id, replica),
            Step::Create(attempt) => self.create(id, replica, &attempt),
            Step::Abandon(attempt) => self.abandon(id, replica, &attempt),
            Step::Wire(wiring) => self.wire(id, replica, wiring),
            Step::Activate => self.let_emit(id, replica),
            Step::TakeOver(old) => self.take_over(id, replica, old),
            Step::Release(instance) => self.release(id, replica, instance),
            Step::Stop(instance) => self.stop_instance(id, replica, instance),
            Step::Drop => self.drop_slot(id, replica, &Ok(Reply::Done)),
        }
    }

    pub(super) fn slot_mut(&mut self, id: ComponentId, replica: u32) -> Option<&mut Slot> {
        self.components.get_mut(&id)?.slots.get_mut(&replica)
    }

    fn settled(&mut self, id: ComponentId, replica: u32) {
        let Some(slot) = self.slot_mut(id, replica) else { return };
        slot.lane.recover();
        slot.trouble = None;
        (slot.pin, slot.origin, slot.saved) = (None, None, None);
        let moved = slot.detour.take().map_or(Ok(Reply::Done), Err);
        let movers = std::mem::take(&mut slot.movers);
        if let Some(instance) = slot.instance_mut() {
            instance.is_settled = true;
        }
        for ticket in movers {
            self.reply(ticket, moved.clone());
        }
        self.satisfy(id);
    }

    /// Answers those who wait until all is as desired, if what can be so at present is.
    pub(super) fn satisfy(&mut self, id: ComponentId) {
        let Some(component) = self.components.get(&id) else { return };
        let has_asks = component.asks.iter().any(|(ask, _)| matches!(ask, Ask::Patch | Ask::Activate));
        let is_as_far_as_it_gets = |slot: &Slot| {
            let is_bystander = slot.fate != Fate::Stay || slot.replaces.is_some();
            is_bystander || slot.instance().is_none_or(|instance| instance.is_settled)
        };
        if has_asks && component.slots.values().all(is_as_far_as_it_gets) {
            self.answer(id, Ask::Patch, &Ok(Reply::Done));
            self.answer(id, Ask::Activate, &Ok(Reply::Done));
        }
    }

    /// The replica that waits for the end of this call, unless the call was given up.
    fn awaiting(&mut self, id: ComponentId, replica: u32, op: Op) -> Option<&mut Slot> {
        let slot = self.slot_mut(id, replica)?;
        slot.lane.end(op).then_some(slot)
    }

    /// Starts a call about a replica, and no other until it ends.
    fn call_for(&mut self, id: ComponentId, replica: u32, home: Home, job: Job, call: Call) {
        let op = self.call(home.node, job, call);
        if let Some(slot) = self.slot_mut(id, replica) {
            slot.lane.begin(op);
        }
    }

    fn create(&mut self, id: ComponentId, replica: u32, attempt: &Attempt) {
        let Some(component) = self.components.get(&id) else { return };
        let call = Call::Create(component.start(id, replica, attempt));
        let job = Job::Create(id, replica, component.kind(), attempt.home);
        self.call_for(id, replica, attempt.home, job, call);
    }

    pub(super) fn created(
        &mut self,
        op: Op,
        (id, replica): (ComponentId, u32),
        kind: ComponentKind,
        home: Home,
        result: Result<Outcome, Error>,
    ) {
        let result = match result {
            Ok(Outcome::Started(ComponentRef::Instance(instance))) if instance.node == home.node => Ok(instance),
            Ok(_) => Err(Error::bug(format!("node {} answered a start with the id of something else", home.node))),
            Err(error) => Err(error),
        };
        let attempt = self.awaiting(id, replica, op).and_then(|slot| match &slot.place {
            Place::Trying(attempt) => Some(attempt.clone()),
            Place::Nowhere | Place::On(_) => None,
        });
        match (attempt, result) {
            (None, result) => self.created_in_vain((id, replica), kind, home, result),
            (Some(_), Ok(instance)) => self.run(id, replica, home, instance),
            (Some(attempt), Err(error)) if is_unknown(&error) => self.unanswered(id, replica, attempt, error),
            (Some(_), Err(error)) => self.fail(id, replica, home, error, true),
        }
    }

    /// A start has ended after it was given up.
    fn created_in_vain(
        &mut self,
        (id, replica): (ComponentId, u32),
        kind: ComponentKind,
        home: Home,
        result: Result<InstanceId, Error>,
    ) {
        let is_native = self.registry.nodes.get(&home.node).is_some_and(|node| node.about.native);
        let again = self.slot_mut(id, replica).and_then(|slot| match &mut slot.place {
            Place::Trying(attempt) if attempt.home.node == home.node => Some(attempt),
            Place::Trying(_) | Place::Nowhere | Place::On(_) => None,
        });
        match (result, again) {
            // A repeat returns the same instance, or one that replaces it.
            (Ok(_), Some(attempt)) if is_native => attempt.unanswered = attempt.unanswered.max(1),
            (Ok(instance), _) => self.add_stray(home.node, Stray::Known(kind, instance)),
            (Err(error), _) if is_unknown(&error) => self.doubt(home),
            (Err(_), _) => {}
        }
    }

    fn run(&mut self, id: ComponentId, replica: u32, home: Home, instance: InstanceId) {
        let is_native = self.registry.at(home).is_some_and(|node| node.about.native);
        if let Some(component) = self.components.get(&id) {
            let note = Note::Spawned {
                component: id,
                kind: component.kind(),
                name: component.name.clone(),
                instance,
                epoch: component.slots.get(&replica).map(|slot| slot.epoch).unwrap_or_default(),
            };
            self.note(note);
        }
        // An EDGELESS 1.2 node knows no third step: what it creates runs.
        self.runs(id, replica, Instance::new(home, instance, Some(Wiring::new()), !is_native));
    }

    /// A replica has an instance from now on.
    pub(super) fn runs(&mut self, id: ComponentId, replica: u32, instance: Instance) {
        let home = instance.home;
        let is_native = self.registry.at(home).is_some_and(|node| node.about.native);
        let now = self.now;
        let Some(component) = self.components.get_mut(&id) else { return };
        if let Some(node) = self.registry.nodes.get_mut(&home.node) {
            node.running.insert(instance.id.function, (id, replica));
        }
        if let Some(slot) = component.slots.get_mut(&replica) {
            slot.place = Place::On(instance);
            slot.is_under_way = false;
            slot.tried.clear();
            slot.trouble = None;
            slot.is_noted = false;
            slot.load = Load::default();
            slot.awaits = None;
        }
        component.settle_state(replica, home.node);
        let is_complete = component.running().count() >= component.scale.min as usize;
        let is_first = !component.is_born && is_complete;
        if is_first {
            component.is_born = true;
            if !component.is_held {
                component.opens_at = Some(now + super::requests::OPENS_AFTER);
            }
        }
        // Whoever speaks only EDGELESS 1.2 wakes nobody: what it sends to must be there.
        let targets = component.outputs.values().filter(|_| !is_native).map(|target| Thing::Component(*target));
        self.marked.extend(targets);
        if is_first {
            self.answer(id, Ask::Start, &Ok(Reply::Started(id)));
        }
        self.marked.extend([Thing::Component(id), Thing::Slot(id, replica)]);
        self.refresh_row(id);
    }

    /// A node did not say whether it started a component.
    fn unanswered(&mut self, id: ComponentId, replica: u32, attempt: Attempt, error: Error) {
        let now = self.now;
        let is_native = self.registry.at(attempt.home).is_some_and(|node| node.about.native);
        let Some(slot) = self.slot_mut(id, replica) else { return };
        if is_native && attempt.unanswered + 1 < TRIES {
            // A repeat returns the first result, whatever became of it.
            slot.place = Place::Trying(Attempt { unanswered: attempt.unanswered + 1, ..attempt });
            slot.trouble = Some(error);
            slot.lane.back_off(now);
            self.marked.insert(Thing::Slot(id, replica));
            return;
        }
        let Some(component) = self.components.get_mut(&id) else { return };
        if is_native {
            let stray = Stray::Unknown(component.start(id, replica, &attempt));
            self.add_stray(attempt.home.node, stray);
        } else {
            // A repeat would start a second instance on an EDGELESS 1.2 node, and the first cannot
            // be named. Until the node is reset, the component goes elsewhere.
            component.doubted.insert(attempt.home);
            self.doubt(attempt.home);
        }
        let error = error.context(format!("node {} did not start it", attempt.home.node));
        self.fail(id, replica, attempt.home, error, false);
    }

    fn doubt(&mut self, home: Home) {
        if let Some(node) = self.registry.nodes.get_mut(&home.node) {
            node.doubt();
            self.marked.insert(Thing::Node(home.node));
        }
    }

    /// A place is given up. A node that refuses what never ran speaks for all nodes.
    fn fail(&mut self, id: ComponentId, replica: u32, home: Home, error: Error, is_answer: bool) {
        self.leave_home(id, replica);
        let Some(component) = self.components.get_mut(&id) else { return };
        let is_born = component.is_born;
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        slot.place = Place::Nowhere;
        slot.tried.insert(home);
        slot.lane.hurry();
        slot.trouble = Some(error.clone());
        self.marked.insert(Thing::Slot(id, replica));
        // A node that is full speaks for itself only; any other refusal would be the same everywhere.
        if is_answer && !is_born && error.code != Code::Exhausted {
            self.refuse(id, error);
        }
    }

    fn abandon(&mut self, id: ComponentId, replica: u32, attempt: &Attempt) {
        let is_native = self.registry.at(attempt.home).is_some_and(|node| node.about.native);
        if let Some(component) = self.components.get(&id) {
            let stray = Stray::Unknown(component.start(id, replica, attempt));
            if is_native && attempt.unanswered > 0 {
                self.add_stray(attempt.home.node, stray);
            }
        }
        self.fail(id, replica, attempt.home, Error::rejected("it is not wanted any more"), false);
    }

    /// The node of a replica does not look after it any more.
    pub(super) fn leave_home(&mut self, id: ComponentId, replica: u32) {
        let Some(slot) = self.components.get(&id).and_then(|component| component.slots.get(&replica)) else { return };
        let Some(home) = slot.home() else { return };
        if let Some(awaited) = self.awaited.get_mut(&home.node) {
            awaited.remove(&(id, replica));
        }
        if let Some(node) = self.registry.nodes.get_mut(&home.node) {
            node.residents.remove(&(id, replica));
            self.placer.nodes.release(home.node, Tenant { component: id, replica });
            if let Some(instance) = slot.instance() {
                node.running.remove(&instance.id.function);
            }
            // A doubtful node waits until nothing is left on it.
            self.marked.insert(Thing::Node(home.node));
        }
    }

    /// What ran, or was being started, is gone.
    pub(super) fn lose_instance(&mut self, id: ComponentId, replica: u32, error: Error) {
        if let Some(slot) = self.slot_mut(id, replica) {
            slot.lane.clear();
        }
        self.vanish(id, replica, error);
    }

    fn vanish(&mut self, id: ComponentId, replica: u32, error: Error) {
        self.state_is_gone(id, replica, &error);
        let home = self.components.get(&id).and_then(|component| component.slots.get(&replica)?.home());
        self.leave_home(id, replica);
        let (grace, until) = (self.settings.state_grace, self.now + self.settings.state_grace);
        let Some(component) = self.components.get_mut(&id) else { return };
        let wait = component.slots.get(&replica).and_then(|slot| component.wait_for(slot, home?.node, until));
        let is_replaced = component.successor(replica).is_some();
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        slot.place = Place::Nowhere;
        slot.tried.clear();
        slot.trouble = Some(error.clone());
        if let Some(wait) = wait.filter(|_| !grace.is_zero()) {
            slot.awaits = Some(wait);
            let why = format!("{}; it waits up to {grace:?} for that node, which alone has its state", error.message);
            slot.trouble = Some(Error { message: why, ..error.clone() });
            self.homeless.insert((id, replica));
        }
        let replaces = slot.replaces;
        match slot.fate {
            Fate::Go => self.drop_slot(id, replica, &Ok(Reply::Done)),
            // The one that was made ready for it takes its place.
            _ if is_replaced => self.drop_slot(id, replica, &Ok(Reply::Done)),
            Fate::Stay | Fate::Move => {
                slot.fate = Fate::Stay;
                if let Some(old) = replaces {
                    self.give_way(id, replica, old, error);
                }
            }
        }
        self.marked.insert(Thing::Slot(id, replica));
        self.refresh_row(id);
        self.satisfy(id);
    }

    /// A replica is gone for good.
    pub(super) fn drop_slot(&mut self, id: ComponentId, replica: u32, answer: &Answer) {
        self.leave_home(id, replica);
        let Some(component) = self.components.get_mut(&id) else { return };
        let forwards = if component.leaving.is_some() { rows::UNDER_WAY } else { rows::FORWARDS };
        let until = self.now + forwards;
        let Some(slot) = component.slots.remove(&replica) else { return };
        self.decisions.forget(Tenant { component: id, replica });
        self.homeless.remove(&(id, replica));
        component.inherit(&slot);
        for (other, heir) in component.slots.iter_mut() {
            if heir.replaces == Some(replica) {
                heir.replaces = None;
                self.marked.insert(Thing::Slot(id, *other));
            }
        }
        self.marked.insert(Thing::Component(id));
        if let Some(instance) = slot.instance().filter(|instance| instance.releases > 0) {
            self.forwards_until(id, instance.home.node, until);
        }
        for ticket in slot.movers {
            self.reply(ticket, answer.clone());
        }
        self.refresh_row(id);
        self.satisfy(id);
    }

    fn wire(&mut self, id: ComponentId, replica: u32, wiring: Wiring) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let kind = component.kind();
        let Some(instance) = component.slots.get_mut(&replica).and_then(Slot::instance_mut) else { return };
        instance.wiring = None;
        let (home, at) = (instance.home, instance.id);
        let (patch, rows) = self.patch_of(at, &wiring);
        self.acquaint(home.node, rows.iter());
        let epochs = rows.iter().map(|row| (row.component, row.epoch)).collect();
        let job = Job::Wire(id, replica, wiring, epochs);
        self.call_for(id, replica, home, job, Call::SetOutputs(kind, patch));
    }

    pub(super) fn wired(
        &mut self,
        op: Op,
        (id, replica): (ComponentId, u32),
        wiring: Wiring,
        epochs: Vec<(ComponentId, u64)>,
        result: Result<(), Error>,
    ) {
        let Some(instance) = self.awaiting(id, replica, op).and_then(Slot::instance_mut) else { return };
        match result {
            Ok(()) => {
                let node = instance.home.node;
                instance.wiring = Some(wiring);
                self.marked.insert(Thing::Slot(id, replica));
                self.caught_up(node, epochs);
            }
            Err(error) => self.instance_failed(id, replica, "wire", error),
        }
    }

    fn let_emit(&mut self, id: ComponentId, replica: u32) {
        let Some(instance) = self.slot_mut(id, replica).and_then(|slot| slot.instance_mut()) else { return };
        let (home, call) = (instance.home, Call::Activate(instance.id.function));
        self.call_for(id, replica, home, Job::Activate(id, replica), call);
    }

    pub(super) fn activated(&mut self, op: Op, id: ComponentId, replica: u32, result: Result<(), Error>) {
        let Some(instance) = self.awaiting(id, replica, op).and_then(Slot::instance_mut) else { return };
        match result {
            Ok(()) => {
                instance.is_active = true;
                self.marked.insert(Thing::Slot(id, replica));
            }
            Err(error) => self.instance_failed(id, replica, "activate", error),
        }
    }

    fn instance_failed(&mut self, id: ComponentId, replica: u32, attempt: &'static str, error: Error) {
        let now = self.now;
        let Some(component) = self.components.get_mut(&id) else { return };
        let name = component.name.clone();
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        let failures = slot.lane.back_off(now);
        slot.trouble = Some(error.clone());
        let movers = if slot.replaces.is_some() { Vec::new() } else { std::mem::take(&mut slot.movers) };
        let replaces = slot.replaces;
        self.marked.insert(Thing::Slot(id, replica));
        if failures == 1 {
            self.note(Note::InstanceFailing { component: id, name, attempt, error: error.clone() });
        }
        for ticket in movers {
            self.reply(ticket, Err(error.clone().context(format!("it has moved, but its node does not {attempt} it"))));
        }
        if error.code == Code::NotFound {
            // The instance is gone; the pause stays, in case its successor fares no better.
            self.vanish(id, replica, error);
        } else if error.code.is_refusal() || failures >= PATIENCE {
            let error = error.context(format!("cannot {attempt} the component"));
            match replaces {
                // It is no better than what it shall replace.
                Some(old) => self.give_way(id, replica, old, error),
                None => {
                    self.answer(id, Ask::Patch, &Err(error.clone()));
                    self.answer(id, Ask::Activate, &Err(error));
                }
            }
        }
    }

    fn release(&mut self, id: ComponentId, replica: u32, at: InstanceId) {
        let Some(component) = self.components.get(&id) else { return };
        let (may_overlap, leaving) = (component.may_overlap(), component.leaving.as_ref());
        let (leaves, grace) = (leaving.is_some(), leaving.map_or(GRACE, |leaving| leaving.grace));
        let Some(slot) = self.slot_mut(id, replica) else { return };
        // What is stopped by its node loses what it has saved: one that moves with its state is asked for it
        // until its node answers, or is lost, or has failed to for minutes.
        let may_be_stopped = may_overlap || (slot.fate != Fate::Move && !leaves);
        let trouble = slot.trouble.clone();
        let Some(instance) = slot.instance_mut() else { return };
        instance.releases = instance.releases.saturating_add(1);
        let (home, releases) = (instance.home, instance.releases);
        if releases > STATE_RELEASES && !may_be_stopped {
            let why = trouble.map_or("its node does not hand it over".to_string(), |trouble| trouble.to_string());
            self.state_is_lost(id, replica, why);
            return self.stop_instance(id, replica, at);
        }
        if releases > RELEASES && may_be_stopped {
            return self.stop_instance(id, replica, at);
        }
        let call = Call::Release { instance: at.function, grace };
        self.call_for(id, replica, home, Job::Release(id, replica), call);
    }

    pub(super) fn released(&mut self, op: Op, id: ComponentId, replica: u32, result: Result<Option<Bytes>, Error>) {
        let now = self.now;
        let Some(slot) = self.awaiting(id, replica, op) else { return };
        match result {
            Ok(state) => {
                slot.saved = state;
                if let Some(component) = self.components.get_mut(&id) {
                    component.loss = None;
                }
                self.gone(id, replica);
            }
            Err(error) if error.code == Code::NotFound => {
                self.state_is_gone(id, replica, &error);
                self.gone(id, replica);
            }
            Err(error) => {
                if error.code.is_refusal()
                    && let Some(instance) = slot.instance_mut()
                {
                    instance.releases = instance.releases.max(RELEASES);
                }
                slot.lane.back_off(now);
                slot.trouble = Some(error);
                self.marked.insert(Thing::Slot(id, replica));
            }
        }
    }

    /// A replica has left its node, as it should.
    fn gone(&mut self, id: ComponentId, replica: u32) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let is_leaving = component.is_leaving;
        let Some(slot) = component.slots.get_mut(&replica) else { return };
        if is_leaving || slot.fate != Fate::Move {
            return self.drop_slot(id, replica, &Ok(Reply::Done));
        }
        slot.fate = Fate::Stay;
        slot.is_under_way = true;
        slot.origin = slot.home();
        slot.lane.recover();
        slot.trouble = None;
        let former = slot.home().map(|home| home.node);
        component.outdate(replica);
        self.leave_home(id, replica);
        if let Some(slot) = self.slot_mut(id, replica) {
            slot.place = Place::Nowhere;
        }
        let until = self.now + rows::UNDER_WAY;
        if let Some(former) = former {
            self.forwards_until(id, former, until);
        }
        self.marked.insert(Thing::Slot(id, replica));
    }

    fn stop_instance(&mut self, id: ComponentId, replica: u32, instance: InstanceId) {
        let Some(component) = self.components.get(&id) else { return };
        let Some(home) = component.slots.get(&replica).and_then(Slot::home) else { return };
        let call = Call::Stop(component.kind(), instance);
        self.call_for(id, replica, home, Job::Stop(id, replica), call);
    }

    pub(super) fn stopped(&mut self, op: Op, id: ComponentId, replica: u32, result: Result<(), Error>) {
        let now = self.now;
        let Some(slot) = self.awaiting(id, replica, op) else { return };
        match result {
            Err(error) if !error.code.is_refusal() => {
                slot.lane.back_off(now);
                slot.trouble = Some(error);
                self.marked.insert(Thing::Slot(id, replica));
            }
            // One that the node does not know is stopped, too.
            Ok(()) | Err(_) => {
                self.state_is_lost(id, replica, "its node does not hand it over");
                self.gone(id, replica);
            }
        }
    }

    /// Answers those who wait for this.
    pub(super) fn answer(&mut self, id: ComponentId, ask: Ask, answer: &Answer) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let (answered, waiting): (Vec<(Ask, Ticket)>, _) =
            std::mem::take(&mut component.asks).into_iter().partition(|(own, _)| *own == ask);
        component.asks = waiting;
        for (ask, ticket) in answered {
            self.answer_one(ask, ticket, answer.clone());
        }
    }

    pub(super) fn answer_one(&mut self, ask: Ask, ticket: Ticket, answer: Answer) {
        if ask != Ask::Activate {
            return self.reply(ticket, answer);
        }
        // A request to activate several components is answered with the last, or the first failure.
        let Some(left) = self.activations.get_mut(&ticket) else { return };
        *left = left.saturating_sub(1);
        if *left == 0 || answer.is_err() {
            self.activations.remove(&ticket);
            self.reply(ticket, answer);
        }
    }

    /// A replica of a component begins to run events elsewhere: its node forwards what still comes there.
    pub(super) fn leave_behind(&mut self, id: ComponentId, node: NodeId) {
        self.forwards_until(id, node, self.now + rows::FORWARDS + GRACE * 4);
    }

    /// A node is told where a component runs that has left it, if it can forward.
    fn forwards_until(&mut self, id: ComponentId, node: NodeId, until: Millis) {
        if self.registry.nodes.get(&node).is_some_and(|known| known.about.native) {
            self.links.entry(id).or_default().former.insert(node, until);
        }
    }

    pub(super) fn component(&self, id: ComponentId) -> Option<&Component> {
        self.components.get(&id)
    }
}
