//! One workflow in its domain: each component as it is, and what is to be done next.
//!
//! ```text
//!  Starting, Running:  Absent -> Created -> Wired, then all are activated     (a barrier after each)
//!  Stopping:           Absent <- Created, Wired
//! ```
//! Nothing here waits or calls: results are noted, and [`Run::advance`] derives the effects that are
//! due from what is wanted and what is there. A component has at most one effect under way. The
//! domain may lose everything at any time: then all is absent again, in the next epoch.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, FunctionSpec, Patch, ResourceSpec, Start, StartContext,
    StateSpec, Target,
};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId, StateId, WorkflowId};
use edgeless_api::workflow::{Mapping, Workflow, WorkflowStatus};
use edgeless_daemon::engine::{Millis, Ticket};
use rand::rngs::StdRng;
use uuid::Uuid;

use super::domains::Reach;
use super::{ComponentView, Effect, Part, random_uuid};
use crate::placement;

/// How often a step of a start is tried before the start is undone.
const ATTEMPTS: u32 = 3;
/// How often a stop is tried at a domain that answers with a fault of its own.
const STOP_ATTEMPTS: u32 = 5;
/// How long whoever waits for the end of a stop is kept waiting; it goes on without them.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The time between a failure and the next attempt.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_PAUSE)
}

/// Whether the same request may succeed later.
fn may_pass(error: &Error) -> bool {
    matches!(error.code, Code::Unavailable | Code::Timeout)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is not in the domain.
    Absent,
    /// It was asked for and no answer came: it may be there.
    Unsure,
    /// It is there and lacks its outputs.
    Created,
    /// It has its outputs.
    Wired,
}

/// A component of a workflow.
#[derive(Debug)]
pub(super) struct Component {
    name: String,
    kind: ComponentKind,
    state: Option<StateSpec>,
    /// Output channel to the place of its target among the components.
    outputs: Vec<(String, usize)>,
    /// Chosen by the controller, for life.
    id: ComponentId,
    /// What the domain knows it by: the same, unless the domain speaks only EDGELESS 1.2.
    known_as: ComponentId,
    epoch: u64,
    step: Step,
    busy: bool,
    failures: u32,
    retry_at: Millis,
    trouble: String,
}

/// The components of a workflow that is to be started: functions, then resources.
pub(super) fn components(workflow: &Workflow, rng: &mut StdRng) -> Result<Vec<Component>, Error> {
    let names = workflow.functions().iter().map(|function| &function.name);
    let names = names.chain(workflow.resources().iter().map(|resource| &resource.name));
    let places: HashMap<&String, usize> = names.enumerate().map(|(place, name)| (name, place)).collect();
    let outputs = |mapping: &BTreeMap<String, String>| {
        mapping.iter().filter_map(|(channel, target)| Some((channel.clone(), *places.get(target)?))).collect()
    };
    let mut all = Vec::with_capacity(places.len());
    for function in workflow.functions() {
        let policy = placement::state_policy(&function.annotations)
            .map_err(|error| error.context(format!("component '{}'", function.name)))?;
        let state = StateSpec { id: StateId(random_uuid(rng)), policy };
        let id = ComponentId(random_uuid(rng));
        all.push(Component::new(id, &function.name, Some(state), outputs(&function.outputs)));
    }
    for resource in workflow.resources() {
        let id = ComponentId(random_uuid(rng));
        all.push(Component::new(id, &resource.name, None, outputs(&resource.outputs)));
    }
    Ok(all)
}

/// The specification of the component at a place.
fn spec(workflow: &Workflow, id: WorkflowId, place: usize, component: &Component) -> Option<ComponentSpec> {
    if let Some(state) = component.state {
        let function = workflow.functions().get(place)?;
        return Some(ComponentSpec::Function(FunctionSpec {
            class: function.class.clone(),
            annotations: function.annotations.clone(),
            state,
            workflow: id,
        }));
    }
    let resource = workflow.resources().get(place.checked_sub(workflow.functions().len())?)?;
    Some(ComponentSpec::Resource(ResourceSpec {
        class_type: resource.class_type.clone(),
        configuration: resource.configuration.clone(),
        workflow: id,
    }))
}

/// All components with their specifications, to be planned.
pub(super) fn items(workflow: &Workflow, id: WorkflowId, components: &[Component]) -> Vec<(String, ComponentSpec)> {
    let item =
        |(place, component): (usize, &Component)| Some((component.name.clone(), spec(workflow, id, place, component)?));
    components.iter().enumerate().filter_map(item).collect()
}

/// The names of components, as they are placed.
pub(super) fn names(components: &[Component]) -> impl Iterator<Item = &str> {
    components.iter().map(|component| component.name.as_str())
}

#[derive(Debug)]
enum Phase {
    Starting,
    Running,
    Stopping {
        /// Why the start failed; `None`: it had succeeded.
        cause: Option<Error>,
        answer_by: Millis,
        answered: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Create,
    Wire,
    Activate,
    /// All is as it shall be.
    Settled,
    Stop,
    /// Nothing is left.
    Gone,
}

/// Which components an event touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    All,
    One(usize),
}

/// How many components are at each step.
#[derive(Debug, Default)]
struct Tally {
    absent: usize,
    unsure: usize,
    created: usize,
    wired: usize,
}

impl Tally {
    fn of(&mut self, step: Step) -> &mut usize {
        match step {
            Step::Absent => &mut self.absent,
            Step::Unsure => &mut self.unsure,
            Step::Created => &mut self.created,
            Step::Wired => &mut self.wired,
        }
    }
}

/// The last of the three steps, which is one for all components.
#[derive(Debug, Default)]
struct Activation {
    done: bool,
    busy: bool,
    failures: u32,
    retry_at: Millis,
    /// Raised when the domain has lost everything, so that an answer from before is recognised.
    round: u64,
}

/// Who is to be told that a workflow has ended.
#[derive(Debug)]
pub(super) struct Farewell {
    /// Why the start failed; `None`: it had succeeded.
    pub(super) refusal: Option<Error>,
    pub(super) starters: Vec<Ticket>,
    pub(super) stoppers: Vec<Ticket>,
}

/// A workflow that a domain was found for.
#[derive(Debug)]
pub(super) struct Run {
    id: WorkflowId,
    /// `None` once it is of no more use.
    workflow: Option<Workflow>,
    domain: DomainId,
    request: Option<Uuid>,
    components: Vec<Component>,
    phase: Phase,
    /// The stage for which effects were last derived for all components.
    derived: Option<Stage>,
    tally: Tally,
    busy: usize,
    activation: Activation,
    starters: Vec<Ticket>,
    stoppers: Vec<Ticket>,
}

impl Run {
    pub(super) fn new(
        id: WorkflowId,
        workflow: Workflow,
        components: Vec<Component>,
        domain: DomainId,
        request: Option<Uuid>,
        starters: Vec<Ticket>,
    ) -> Self {
        Self {
            id,
            workflow: Some(workflow),
            domain,
            request,
            tally: Tally { absent: components.len(), ..Tally::default() },
            components,
            phase: Phase::Starting,
            derived: None,
            busy: 0,
            activation: Activation::default(),
            starters,
            stoppers: Vec::new(),
        }
    }

    pub(super) fn domain(&self) -> &DomainId {
        &self.domain
    }

    pub(super) fn request(&self) -> Option<Uuid> {
        self.request
    }

    /// Adds one who waits for the start.
    pub(super) fn join(&mut self, ticket: Ticket) {
        self.starters.push(ticket);
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting)
    }

    /// The workflow, if it was started and nobody asked for its end.
    pub(super) fn running(&self) -> Option<&Workflow> {
        matches!(self.phase, Phase::Running).then_some(self.workflow.as_ref()).flatten()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.stage() == Stage::Settled
    }

    pub(super) fn is_gone(&self) -> bool {
        self.stage() == Stage::Gone
    }

    pub(super) fn status(&self) -> WorkflowStatus {
        let mapping = |component: &Component| Mapping {
            name: component.name.clone(),
            component: component.known_as,
            domain: self.domain.clone(),
        };
        WorkflowStatus { workflow: self.id, mapping: self.components.iter().map(mapping).collect() }
    }

    /// The components as whoever looks at them needs them.
    pub(super) fn parts(&self) -> Vec<ComponentView> {
        let view = |component: &Component| ComponentView {
            name: component.name.clone(),
            id: component.known_as,
            epoch: component.epoch,
            is_up: component.step == Step::Wired && self.activation.done,
            trouble: component.trouble.clone(),
        };
        self.components.iter().map(view).collect()
    }

    /// Names the component that its domain knows by this id.
    pub(super) fn part(&self, id: ComponentId) -> Option<Part> {
        let place = self.components.iter().position(|component| component.known_as == id)?;
        let epoch = self.components.get(place)?.epoch;
        Some(Part { workflow: self.id, place, epoch })
    }

    /// A component has other limits, and is started with them from now on.
    pub(super) fn limit(&mut self, part: Part, changes: &Annotations) -> Result<(), Error> {
        let gone = || super::unknown(part.workflow);
        let is_running = self.running().is_some();
        let (Some(workflow), Some(component), true) =
            (self.workflow.as_mut(), self.components.get(part.place), is_running)
        else {
            return Err(gone());
        };
        if component.epoch != part.epoch {
            // It may have been started again with the limits from before.
            let name = &component.name;
            return Err(Error::unavailable(format!("'{name}' was started again meanwhile: try again in a moment")));
        }
        workflow.annotate(&component.name, changes).map_err(Error::rejected)
    }

    /// All is as it shall be: the start has succeeded. Those who wait for it.
    pub(super) fn started(&mut self) -> Vec<Ticket> {
        self.phase = Phase::Running;
        tracing::info!(workflow = %self.id, domain = %self.domain, components = self.components.len(), "workflow started");
        std::mem::take(&mut self.starters)
    }

    /// The start has failed: what is there is stopped, and then the cause is told.
    pub(super) fn give_up(&mut self, now: Millis, cause: Error) {
        self.wind_down(now, Some(cause));
    }

    fn wind_down(&mut self, now: Millis, cause: Option<Error>) {
        self.phase = Phase::Stopping { cause, answer_by: now + PATIENCE, answered: false };
        for component in &mut self.components {
            component.forget_failures();
        }
    }

    /// A user wants it to end. False if it has ended, as far as users can see.
    pub(super) fn stop(&mut self, now: Millis, ticket: Ticket) -> bool {
        if let Phase::Stopping { answered: true, .. } = self.phase {
            return false;
        }
        self.stoppers.push(ticket);
        match self.phase {
            Phase::Starting => {
                self.give_up(now, Error::rejected("the workflow was stopped while it was being started"));
            }
            Phase::Running => self.wind_down(now, None),
            Phase::Stopping { .. } => {}
        }
        true
    }

    /// When those who wait for the end are answered at the latest.
    pub(super) fn answer_by(&self) -> Option<Millis> {
        match self.phase {
            Phase::Stopping { answer_by, answered: false, .. } => Some(answer_by),
            _ => None,
        }
    }

    /// The answers that are due once nothing is left, or what is left takes too long.
    pub(super) fn farewell(&mut self, now: Millis, is_in_reach: bool) -> Option<Farewell> {
        let is_gone = self.is_gone();
        let waits_for_domain = !is_in_reach && self.busy == 0;
        let Phase::Stopping { cause, answer_by, answered } = &mut self.phase else { return None };
        if *answered || !(is_gone || waits_for_domain || now >= *answer_by) {
            return None;
        }
        *answered = true;
        let refusal = cause.take();
        self.workflow = None;
        let left = self.components.len() - self.tally.absent;
        match &refusal {
            Some(reason) => {
                tracing::info!(workflow = %self.id, domain = %self.domain, %reason, left, "workflow refused");
            }
            None => tracing::info!(workflow = %self.id, domain = %self.domain, left, "workflow stopped"),
        }
        Some(Farewell {
            refusal,
            starters: std::mem::take(&mut self.starters),
            stoppers: std::mem::take(&mut self.stoppers),
        })
    }

    /// The domain has lost everything.
    pub(super) fn lost_everything(&mut self) {
        if self.running().is_some() {
            tracing::info!(workflow = %self.id, domain = %self.domain, "the domain has restarted: starting the workflow again");
        }
        for component in &mut self.components {
            component.step = Step::Absent;
            component.known_as = component.id;
            component.epoch += 1;
            component.forget_failures();
        }
        self.tally = Tally { absent: self.components.len(), ..Tally::default() };
        let busy = self.activation.busy;
        self.activation = Activation { busy, round: self.activation.round + 1, ..Activation::default() };
        self.derived = None;
    }

    fn stage(&self) -> Stage {
        match self.phase {
            Phase::Stopping { .. } if self.tally.absent == self.components.len() && self.busy == 0 => Stage::Gone,
            Phase::Stopping { .. } => Stage::Stop,
            _ if self.tally.absent + self.tally.unsure > 0 => Stage::Create,
            _ if self.tally.created > 0 => Stage::Wire,
            _ if !self.activation.done => Stage::Activate,
            _ => Stage::Settled,
        }
    }

    /// Derives the effects that are due at a domain in reach, and says when to look again.
    pub(super) fn advance(
        &mut self,
        now: Millis,
        reach: &Reach,
        touched: Touched,
        effects: &mut Vec<Effect>,
    ) -> Option<Millis> {
        if !reach.native {
            self.write_off();
        }
        let stage = self.stage();
        let is_new = self.derived.replace(stage) != Some(stage);
        match (stage, touched) {
            (Stage::Settled | Stage::Gone, _) => None,
            (Stage::Activate, _) => self.activate(now, reach, effects),
            (_, Touched::One(place)) if !is_new => self.act(now, stage, place, reach, effects),
            _ => {
                let places = 0..self.components.len();
                places.filter_map(|place| self.act(now, stage, place, reach, effects)).min()
            }
        }
    }

    /// Gives up on components of which a domain that speaks only EDGELESS 1.2 never said the ids:
    /// there is no way to stop them.
    fn write_off(&mut self) {
        if self.tally.unsure == 0 || !matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        for place in 0..self.components.len() {
            let Some(component) = self.components.get(place).filter(|component| component.step == Step::Unsure) else {
                continue;
            };
            tracing::warn!(workflow = %self.id, domain = %self.domain, component = component.name, "no answer to the start of a component: it may still run");
            self.set_step(place, Step::Absent);
        }
    }

    fn activate(&mut self, now: Millis, reach: &Reach, effects: &mut Vec<Effect>) -> Option<Millis> {
        if self.activation.busy {
            return None;
        }
        if now < self.activation.retry_at {
            return Some(self.activation.retry_at);
        }
        self.activation.busy = true;
        let ids = self.components.iter().map(|component| component.known_as.0).collect();
        let (workflow, round) = (self.id, self.activation.round);
        effects.push(Effect::Activate { peer: reach.peer.clone(), workflow, round, ids });
        None
    }

    fn act(
        &mut self,
        now: Millis,
        stage: Stage,
        place: usize,
        reach: &Reach,
        effects: &mut Vec<Effect>,
    ) -> Option<Millis> {
        let component = self.components.get(place).filter(|component| !component.busy)?;
        let is_needed = match (stage, component.step) {
            // Nobody knows what the first attempt did, and only our own orchestrators recognise a second.
            (Stage::Create, Step::Unsure) => reach.native,
            (Stage::Create, Step::Absent) | (Stage::Wire, Step::Created) => true,
            (Stage::Stop, step) => step != Step::Absent,
            _ => false,
        };
        if !is_needed {
            return None;
        }
        if now < component.retry_at {
            return Some(component.retry_at);
        }
        effects.push(self.effect(stage, place, component, reach)?);
        self.busy += 1;
        self.components.get_mut(place)?.busy = true;
        None
    }

    fn effect(&self, stage: Stage, place: usize, component: &Component, reach: &Reach) -> Option<Effect> {
        let peer = reach.peer.clone();
        let part = Part { workflow: self.id, place, epoch: component.epoch };
        let kind = component.kind;
        Some(match stage {
            Stage::Create => {
                let context = StartContext::new(component.id, component.epoch, &component.name);
                let spec = spec(self.workflow.as_ref()?, self.id, place, component)?;
                let start = Box::new(Start { spec, context: Some(context) });
                Effect::Create { peer, part, start, native: reach.native }
            }
            Stage::Wire => {
                let output = |(channel, target): &(String, usize)| {
                    Some((channel.clone(), Target::Component(self.components.get(*target)?.known_as)))
                };
                let outputs = component.outputs.iter().filter_map(output).collect();
                Effect::Patch { peer, part, kind, patch: Patch::new(component.known_as.0, outputs) }
            }
            Stage::Stop => Effect::Stop { peer, part, kind, id: component.known_as },
            Stage::Activate | Stage::Settled | Stage::Gone => return None,
        })
    }

    /// Takes note of the answer to a create.
    pub(super) fn created(&mut self, now: Millis, part: Part, result: Result<ComponentRef, Error>, native: bool) {
        let Some(is_current) = self.finished(part) else { return };
        let is_stopping = matches!(self.phase, Phase::Stopping { .. });
        let result = result.and_then(|id| match id {
            ComponentRef::Component(id) => Ok(id),
            ComponentRef::Instance(id) => Err(Error::bug(format!("the orchestrator answered with an instance, {id}"))),
        });
        match result {
            // An answer from before the domain restarted: the next epoch supersedes what it left, if
            // there is a next one.
            Ok(_) if !is_current && !is_stopping => {}
            Ok(id) => self.is_there(part.place, id),
            Err(_) if !is_current => {}
            Err(error) => {
                if !error.code.is_refusal() {
                    self.set_step(part.place, Step::Unsure);
                }
                let retry = may_pass(&error) && native;
                self.failed(now, part.place, error, retry);
            }
        }
    }

    fn is_there(&mut self, place: usize, id: ComponentId) {
        let Some(component) = self.components.get_mut(place) else { return };
        component.known_as = id;
        component.forget_failures();
        let step = if component.outputs.is_empty() { Step::Wired } else { Step::Created };
        let (workflow, domain, name) = (self.id, &self.domain, &component.name);
        match component.kind {
            ComponentKind::Function => {
                tracing::info!(%workflow, function = name, component = %id, %domain, "function instance spawned");
            }
            ComponentKind::Resource => {
                tracing::info!(%workflow, resource = name, component = %id, %domain, "resource opened");
            }
        }
        self.set_step(place, step);
    }

    /// Takes note of the answer to a patch.
    pub(super) fn patched(&mut self, now: Millis, part: Part, result: Result<(), Error>) {
        if self.finished(part) != Some(true) {
            return;
        }
        match result {
            Ok(()) => {
                self.set_step(part.place, Step::Wired);
                self.succeeded(part.place);
            }
            Err(error) => {
                let retry = may_pass(&error);
                self.failed(now, part.place, error, retry);
            }
        }
    }

    /// Takes note of the answer to a stop.
    pub(super) fn stopped(&mut self, now: Millis, part: Part, result: Result<(), Error>) {
        if self.finished(part) != Some(true) {
            return;
        }
        let Err(error) = result else {
            self.set_step(part.place, Step::Absent);
            return self.succeeded(part.place);
        };
        let failures = self.components.get(part.place).map_or(0, |component| component.failures + 1);
        if error.code.is_refusal() || (error.code == Code::Bug && failures >= STOP_ATTEMPTS) {
            if error.code != Code::NotFound {
                tracing::warn!(workflow = %self.id, domain = %self.domain, reason = %error, "the domain does not stop a component");
            }
            self.set_step(part.place, Step::Absent);
        } else {
            self.failed(now, part.place, error, true);
        }
    }

    /// Takes note of the answer to an activation.
    pub(super) fn activated(&mut self, now: Millis, round: u64, result: Result<(), Error>) {
        self.activation.busy = false;
        if round != self.activation.round {
            return;
        }
        match result {
            Ok(()) => self.is_up(),
            // EDGELESS 1.2 knows no activation: its components emit as soon as they are there.
            Err(error) if error.code == Code::Unimplemented => self.is_up(),
            Err(error) => {
                self.activation.failures += 1;
                self.activation.retry_at = now + pause(self.activation.failures);
                if self.is_starting() && (!may_pass(&error) || self.activation.failures >= ATTEMPTS) {
                    self.give_up(now, error.context("the components cannot be activated"));
                }
            }
        }
    }

    fn is_up(&mut self) {
        self.activation.done = true;
        if matches!(self.phase, Phase::Running) {
            tracing::info!(workflow = %self.id, domain = %self.domain, "workflow runs again");
        }
    }

    /// The effect of a component has ended. Whether its result still counts; `None`: no such component.
    fn finished(&mut self, part: Part) -> Option<bool> {
        let component = self.components.get_mut(part.place)?;
        if std::mem::take(&mut component.busy) {
            self.busy -= 1;
        }
        Some(component.epoch == part.epoch)
    }

    fn succeeded(&mut self, place: usize) {
        if let Some(component) = self.components.get_mut(place) {
            component.forget_failures();
        }
    }

    fn failed(&mut self, now: Millis, place: usize, error: Error, retry: bool) {
        let Some(component) = self.components.get_mut(place) else { return };
        component.failures = component.failures.saturating_add(1);
        component.retry_at = now + pause(component.failures);
        component.trouble.clone_from(&error.message);
        let what = format!("component '{}'", component.name);
        let first = component.failures == 1;
        let failures = component.failures;
        match self.phase {
            Phase::Starting if !retry || failures >= ATTEMPTS => self.give_up(now, error.context(what)),
            Phase::Running if first => {
                tracing::warn!(workflow = %self.id, domain = %self.domain, reason = %error, "{what} is not back yet");
            }
            _ => {}
        }
    }

    fn set_step(&mut self, place: usize, step: Step) {
        if let Some(component) = self.components.get_mut(place) {
            *self.tally.of(component.step) -= 1;
            *self.tally.of(step) += 1;
            component.step = step;
        }
    }
}

impl Component {
    /// A function has a state, a resource has none.
    fn new(id: ComponentId, name: &str, state: Option<StateSpec>, outputs: Vec<(String, usize)>) -> Self {
        Self {
            name: name.to_string(),
            kind: if state.is_some() { ComponentKind::Function } else { ComponentKind::Resource },
            state,
            outputs,
            id,
            known_as: id,
            epoch: 1,
            step: Step::Absent,
            busy: false,
            failures: 0,
            retry_at: Millis(0),
            trouble: String::new(),
        }
    }

    fn forget_failures(&mut self) {
        self.failures = 0;
        self.retry_at = Millis(0);
        self.trouble.clear();
    }
}
