//! The steps of a component, and what follows from the results of the calls that they make.
//!
//! Whether a step is taken depends on the lane of the component only: one call at a time, and a
//! pause after a failure. A result that arrives after its call was given up changes nothing here,
//! except that what it started must be stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use edgeless_api::component::{ComponentKind, ComponentRef, Patch};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_daemon::engine::Ticket;

use super::component::{Ask, Attempt, Component, Instance, Place, Step, Wiring};
use super::lane::Gate;
use super::node::is_unknown;
use super::{Answer, Call, Engine, Job, Note, Op, Reply, Thing};
use crate::placement::{Question, Refusal, Tenant};
use crate::registry::{Home, Stray};

/// How often one of our nodes is asked to start the same thing while it does not answer.
const TRIES: u32 = 3;
/// How often a node may fail to wire or activate an instance before whoever asked for it is told.
const PATIENCE: u32 = 5;
/// How long the last epoch of a component is remembered after its end: longer than any call about
/// it can last.
const MEMORY: Duration = Duration::from_secs(120);
/// Whom a component is connected with matters to placement up to this number.
const NEIGHBOURS: usize = 256;

impl Engine {
    pub(super) fn step_component(&mut self, id: ComponentId) {
        let Some(component) = self.components.get_mut(&id) else { return self.tidy(id) };
        if let Some(at) = component.opens_at {
            if at <= self.now {
                component.is_wanted_active = true;
                component.opens_at = None;
            } else {
                self.timers.insert((at, Thing::Component(id)));
            }
        }
        match component.lane.gate(self.now) {
            Gate::Busy => return,
            Gate::Until(at) => {
                self.timers.insert((at, Thing::Component(id)));
                return;
            }
            Gate::Free => {}
        }
        let Some(component) = self.components.get(&id) else { return };
        match self.next_step(component) {
            Step::Rest => {}
            Step::Settled => self.settled(id),
            Step::Place => self.place(id),
            Step::Create(attempt) => self.create(id, &attempt),
            Step::Abandon(attempt) => self.abandon(id, &attempt),
            Step::Wire(wiring) => self.wire(id, wiring),
            Step::Activate => self.let_emit(id),
            Step::Stop(instance) => self.stop_instance(id, instance),
            Step::Forget => self.forget(id, None),
        }
    }

    fn settled(&mut self, id: ComponentId) {
        if let Some(component) = self.components.get_mut(&id) {
            component.lane.recover();
            component.trouble = None;
            self.satisfy(id);
        }
    }

    /// Answers those who wait until all is as desired, or can be only later.
    fn satisfy(&mut self, id: ComponentId) {
        self.answer(id, Ask::Patch, &Ok(Reply::Done));
        self.answer(id, Ask::Activate, &Ok(Reply::Done));
    }

    /// The component that waits for the end of this call, unless the call was given up.
    fn awaiting(&mut self, id: ComponentId, op: Op) -> Option<&mut Component> {
        let component = self.components.get_mut(&id)?;
        component.lane.end(op).then_some(component)
    }

    /// Starts a call about a component, and no other until it ends.
    fn call_for(&mut self, id: ComponentId, home: Home, job: Job, call: Call) {
        let op = self.call(home.node, job, call);
        if let Some(component) = self.components.get_mut(&id) {
            component.lane.begin(op);
        }
    }

    fn home_of(&self, id: ComponentId) -> Option<(Home, ComponentKind)> {
        let component = self.components.get(&id)?;
        Some((component.home()?, component.kind()))
    }

    fn place(&mut self, id: ComponentId) {
        let Some(component) = self.components.get(&id) else { return };
        let homes = component.tried.iter().chain(&component.doubted);
        let excluded: Vec<_> = homes.filter(|home| self.registry.at(**home).is_some()).map(|home| home.node).collect();
        let neighbours = self.neighbours(id);
        let question = Question {
            neighbours: &neighbours,
            excluded: &excluded,
            ..Question::new(&component.name, &component.spec, &component.requirements)
        };
        let chosen = match self.placer.choose(&question) {
            Ok(chosen) => chosen,
            Err(Refusal::Infeasible(error)) => return self.no_place(id, error),
            Err(Refusal::Excluded) => {
                let error = component.trouble.clone();
                return self.no_place(id, error.unwrap_or_else(|| Error::unavailable("no node could start it")));
            }
        };
        let Some(node) = self.registry.nodes.get_mut(&chosen.node) else { return };
        node.residents.insert(id);
        let (tenant, workflow) = (Tenant::first(id), component.spec.workflow());
        self.placer.nodes.occupy(chosen.node, tenant, workflow, &component.requirements);
        let home = node.home();
        let Some(component) = self.components.get_mut(&id) else { return };
        component.place = Place::Trying(Attempt { home, provider: chosen.provider, unanswered: 0 });
        self.marked.insert(Thing::Component(id));
    }

    /// The nodes of the components that one is connected with, as far as they matter.
    fn neighbours(&self, id: ComponentId) -> Vec<NodeId> {
        let outputs = self.components.get(&id).into_iter().flat_map(|component| component.outputs.values());
        let senders = self.links.get(&id).into_iter().flat_map(|link| &link.senders);
        let connected = outputs.chain(senders).take(NEIGHBOURS).filter_map(|id| self.components.get(id));
        connected.filter_map(|component| component.home().map(|home| home.node)).collect()
    }

    /// A component that never ran is refused; one that ran waits.
    fn no_place(&mut self, id: ComponentId, error: Error) {
        let Some(component) = self.components.get_mut(&id) else { return };
        if !component.is_born {
            return self.forget(id, Some(error));
        }
        component.tried.clear();
        component.trouble = Some(error.clone());
        component.lane.back_off(self.now);
        self.marked.insert(Thing::Component(id));
        if !std::mem::replace(&mut component.is_noted, true) {
            let name = component.name.clone();
            self.note(Note::Waiting { component: id, name, error });
        }
    }

    /// Whatever has no place may have one now.
    pub(super) fn wake_homeless(&mut self) {
        for (id, component) in &mut self.components {
            if matches!(component.place, Place::Nowhere) {
                component.lane.hurry();
                self.marked.insert(Thing::Component(*id));
            }
        }
    }

    fn create(&mut self, id: ComponentId, attempt: &Attempt) {
        let Some(component) = self.components.get(&id) else { return };
        let call = Call::Create(component.start(id, attempt));
        self.call_for(id, attempt.home, Job::Create(id, component.kind(), attempt.home), call);
    }

    pub(super) fn created(
        &mut self,
        op: Op,
        id: ComponentId,
        kind: ComponentKind,
        home: Home,
        result: Result<Option<ComponentRef>, Error>,
    ) {
        let result = match result {
            Ok(Some(ComponentRef::Instance(instance))) if instance.node == home.node => Ok(instance),
            Ok(_) => Err(Error::bug(format!("node {} answered a start with the id of something else", home.node))),
            Err(error) => Err(error),
        };
        let component = self.awaiting(id, op);
        let attempt = component.and_then(|component| match &component.place {
            Place::Trying(attempt) => Some(attempt.clone()),
            Place::Nowhere | Place::On(_) => None,
        });
        match (attempt, result) {
            (None, result) => self.created_in_vain(kind, home, result),
            (Some(_), Ok(instance)) => self.run(id, home, instance),
            (Some(attempt), Err(error)) if is_unknown(&error) => self.unanswered(id, attempt, error),
            (Some(_), Err(error)) => self.fail(id, home, error, true),
        }
    }

    /// A start has ended after it was given up.
    fn created_in_vain(&mut self, kind: ComponentKind, home: Home, result: Result<InstanceId, Error>) {
        match result {
            Ok(instance) => self.add_stray(home.node, Stray::Known(kind, instance)),
            Err(error) if is_unknown(&error) => self.doubt(home),
            Err(_) => {}
        }
    }

    fn run(&mut self, id: ComponentId, home: Home, instance: InstanceId) {
        let is_native = self.registry.at(home).is_some_and(|node| node.about.native);
        let Some(component) = self.components.get_mut(&id) else { return };
        // An EDGELESS 1.2 node knows no third step: what it creates runs.
        component.place =
            Place::On(Instance { home, id: instance, wiring: Some(Wiring::new()), is_active: !is_native });
        component.tried.clear();
        component.trouble = None;
        component.is_noted = false;
        let note = Note::Spawned {
            component: id,
            kind: component.kind(),
            name: component.name.clone(),
            instance,
            epoch: component.epoch,
        };
        if !component.is_born && !component.is_held {
            component.opens_at = Some(self.now + super::requests::OPENS_AFTER);
        }
        component.is_born = true;
        self.note(note);
        self.answer(id, Ask::Start, &Ok(Reply::Started(id)));
        self.mark_with_senders(id);
    }

    /// A node did not say whether it started a component.
    fn unanswered(&mut self, id: ComponentId, attempt: Attempt, error: Error) {
        let is_native = self.registry.at(attempt.home).is_some_and(|node| node.about.native);
        let Some(component) = self.components.get_mut(&id) else { return };
        if is_native && attempt.unanswered + 1 < TRIES {
            // A repeat returns the first result, whatever became of it.
            component.place = Place::Trying(Attempt { unanswered: attempt.unanswered + 1, ..attempt });
            component.trouble = Some(error);
            component.lane.back_off(self.now);
            self.marked.insert(Thing::Component(id));
            return;
        }
        if is_native {
            let stray = Stray::Unknown(component.start(id, &attempt));
            self.add_stray(attempt.home.node, stray);
        } else {
            // A repeat would start a second instance on an EDGELESS 1.2 node, and the first cannot
            // be named. Until the node is reset, the component goes elsewhere.
            component.doubted.insert(attempt.home);
            self.doubt(attempt.home);
        }
        self.fail(id, attempt.home, error.context(format!("node {} did not start it", attempt.home.node)), false);
    }

    fn doubt(&mut self, home: Home) {
        if let Some(node) = self.registry.nodes.get_mut(&home.node) {
            node.is_doubtful = true;
            self.marked.insert(Thing::Node(home.node));
        }
    }

    /// A place is given up. A node that refuses what never ran speaks for all nodes.
    fn fail(&mut self, id: ComponentId, home: Home, error: Error, is_answer: bool) {
        self.leave_home(id);
        let Some(component) = self.components.get_mut(&id) else { return };
        component.vacate();
        component.tried.insert(home);
        component.lane.hurry();
        // A node that is full speaks for itself only; any other refusal would be the same everywhere.
        if is_answer && !component.is_born && error.code != Code::Exhausted {
            return self.forget(id, Some(error));
        }
        component.trouble = Some(error);
        self.marked.insert(Thing::Component(id));
    }

    fn abandon(&mut self, id: ComponentId, attempt: &Attempt) {
        let is_native = self.registry.at(attempt.home).is_some_and(|node| node.about.native);
        if let Some(component) = self.components.get(&id) {
            let stray = Stray::Unknown(component.start(id, attempt));
            if is_native && attempt.unanswered > 0 {
                self.add_stray(attempt.home.node, stray);
            }
        }
        self.fail(id, attempt.home, Error::rejected("it is not wanted any more"), false);
    }

    /// The node of a component does not look after it any more.
    pub(super) fn leave_home(&mut self, id: ComponentId) {
        let Some((home, _)) = self.home_of(id) else { return };
        if let Some(node) = self.registry.nodes.get_mut(&home.node) {
            node.residents.remove(&id);
            self.placer.nodes.release(home.node, Tenant::first(id));
            // A doubtful node waits until nothing is left on it.
            self.marked.insert(Thing::Node(home.node));
        }
    }

    /// What ran, or was being started, is gone.
    pub(super) fn lose_instance(&mut self, id: ComponentId, error: Error) {
        self.leave_home(id);
        let Some(component) = self.components.get_mut(&id) else { return };
        component.lane.clear();
        component.vacate();
        component.vacant_epoch = component.epoch;
        component.tried.clear();
        component.trouble = Some(error);
        self.satisfy(id);
        self.mark_with_senders(id);
    }

    /// A component has moved: it and whoever has an output to it may have a step to take.
    pub(super) fn mark_with_senders(&mut self, id: ComponentId) {
        self.marked.insert(Thing::Component(id));
        if let Some(link) = self.links.get(&id) {
            self.marked.extend(link.senders.iter().copied().map(Thing::Component));
        }
    }

    fn wire(&mut self, id: ComponentId, wiring: Wiring) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let kind = component.kind();
        let Place::On(instance) = &mut component.place else { return };
        instance.wiring = None;
        let patch = Patch::new(instance.id.function, wiring.clone());
        let (home, call) = (instance.home, Call::SetOutputs(kind, patch));
        self.call_for(id, home, Job::Wire(id, wiring), call);
    }

    pub(super) fn wired(&mut self, op: Op, id: ComponentId, wiring: Wiring, result: Result<(), Error>) {
        let Some(instance) = self.current_instance(op, id) else { return };
        match result {
            Ok(()) => {
                instance.wiring = Some(wiring);
                self.marked.insert(Thing::Component(id));
            }
            Err(error) => self.instance_failed(id, "wire", error),
        }
    }

    fn let_emit(&mut self, id: ComponentId) {
        let Some(component) = self.components.get(&id) else { return };
        let Place::On(instance) = &component.place else { return };
        let (home, call) = (instance.home, Call::Activate(instance.id.function));
        self.call_for(id, home, Job::Activate(id), call);
    }

    pub(super) fn activated(&mut self, op: Op, id: ComponentId, result: Result<(), Error>) {
        let Some(instance) = self.current_instance(op, id) else { return };
        match result {
            Ok(()) => {
                instance.is_active = true;
                self.marked.insert(Thing::Component(id));
            }
            Err(error) => self.instance_failed(id, "activate", error),
        }
    }

    /// The instance that a call was about, unless the call was given up.
    fn current_instance(&mut self, op: Op, id: ComponentId) -> Option<&mut Instance> {
        let component = self.awaiting(id, op)?;
        match &mut component.place {
            Place::On(instance) => Some(instance),
            Place::Nowhere | Place::Trying(_) => None,
        }
    }

    fn instance_failed(&mut self, id: ComponentId, attempt: &'static str, error: Error) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let failures = component.lane.back_off(self.now);
        component.trouble = Some(error.clone());
        let name = component.name.clone();
        self.marked.insert(Thing::Component(id));
        if failures == 1 {
            self.note(Note::InstanceFailing { component: id, name, attempt, error: error.clone() });
        }
        if error.code == Code::NotFound {
            // The instance is gone; the pause stays, in case its successor fares no better.
            self.leave_home(id);
            if let Some(component) = self.components.get_mut(&id) {
                component.vacate();
                component.vacant_epoch = component.epoch;
            }
            self.satisfy(id);
            self.mark_with_senders(id);
        } else if error.code.is_refusal() || failures >= PATIENCE {
            let error = error.context(format!("cannot {attempt} the component"));
            self.answer(id, Ask::Patch, &Err(error.clone()));
            self.answer(id, Ask::Activate, &Err(error));
        }
    }

    fn stop_instance(&mut self, id: ComponentId, instance: InstanceId) {
        let Some((home, kind)) = self.home_of(id) else { return };
        self.call_for(id, home, Job::Stop(id), Call::Stop(kind, instance));
    }

    pub(super) fn stopped(&mut self, op: Op, id: ComponentId, result: Result<(), Error>) {
        let now = self.now;
        let Some(component) = self.awaiting(id, op) else { return };
        match result {
            Err(error) if !error.code.is_refusal() => {
                component.lane.back_off(now);
                component.trouble = Some(error);
                self.marked.insert(Thing::Component(id));
            }
            // One that the node does not know is stopped, too.
            Ok(()) | Err(_) => self.forget(id, None),
        }
    }

    /// Removes a component and answers whoever waits for it; with an error if it never ran.
    fn forget(&mut self, id: ComponentId, error: Option<Error>) {
        self.leave_home(id);
        self.set_outputs(id, BTreeMap::new());
        let Some(component) = self.components.remove(&id) else { return };
        let kept_until = self.now + MEMORY;
        let link = self.links.entry(id).or_default();
        (link.last_epoch, link.kept_until) = (component.epoch + 1, kept_until);
        self.timers.insert((kept_until, Thing::Component(id)));
        self.mark_with_senders(id);
        let name = component.name.clone();
        if let Some(error) = error.clone().filter(|_| !component.is_leaving) {
            self.note(Note::Refused { name, error });
        } else {
            self.note(Note::Stopped { component: id, kind: component.kind(), name });
        }
        let gone = || Error::unavailable(format!("component {id} was stopped meanwhile"));
        for (ask, ticket) in component.asks {
            let answer = match ask {
                Ask::Stop => Ok(Reply::Done),
                Ask::Start | Ask::Patch | Ask::Activate => Err(error.clone().unwrap_or_else(gone)),
            };
            self.answer_one(ask, ticket, answer);
        }
    }

    /// Forgets what nobody needs to know of a component any more.
    pub(super) fn tidy(&mut self, id: ComponentId) {
        if self.links.get(&id).is_some_and(|link| link.senders.is_empty() && link.kept_until <= self.now) {
            self.links.remove(&id);
        }
    }

    /// Answers those who wait for this.
    pub(super) fn answer(&mut self, id: ComponentId, ask: Ask, answer: &Answer) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let (answered, waiting) = std::mem::take(&mut component.asks).into_iter().partition(|(own, _)| *own == ask);
        component.asks = waiting;
        let answered: Vec<(Ask, Ticket)> = answered;
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
}
