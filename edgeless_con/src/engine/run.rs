//! One workflow in its domains: each component as it is, and what is to be done next.
//!
//! ```text
//!  Starting:  Absent -> Created -> Wired -> Active     (a barrier after each, over all domains)
//!  Running:   the same in each domain by itself, when it has lost everything
//!  Stopping:  Absent <- all others
//! ```
//! Nothing here waits or calls: results are noted, and [`Run::advance`] derives the effects that are
//! due from what is wanted and what is there. A component has at most one effect under way in each
//! domain. A domain may lose everything at any time: then all of it is absent again, in the next epoch, or unsure if
//! the new process may have been given it already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, FunctionSpec, Patch, ResourceSpec, Row, Start,
    StartContext, StatePolicy, StateSpec, Target, VOLUME,
};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId, StateId, WorkflowId};
use edgeless_api::relocate;
use edgeless_api::workflow::{Mapping, Workflow, WorkflowStatus};
use edgeless_daemon::engine::{Millis, Ticket};
use uuid::Uuid;

use super::domains::{Domains, Reach};
use super::former::Former;
use super::keep::{Kept, Origin};
use super::moves::{Leftover, Move};
use super::place::{Place, Step, component_of, may_pass};
use super::{Answer, ComponentView, Effect, Part, Reply};
use crate::placement;

/// How often a step of a start is tried before the start is undone.
pub(super) const ATTEMPTS: u32 = 3;
/// How often a stop is tried at a domain that answers with a fault of its own.
const STOP_ATTEMPTS: u32 = 5;
/// How long whoever waits for the end of a stop is kept waiting; it goes on without them.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The time between a failure and the next attempt.
pub(super) fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_PAUSE)
}

/// A component of a workflow.
#[derive(Debug)]
pub(super) struct Component {
    pub(super) name: String,
    pub(super) kind: ComponentKind,
    pub(super) state: Option<StateSpec>,
    /// Output channel to the place of its target among the components.
    outputs: Vec<(String, usize)>,
    /// Those that have outputs to it.
    pub(super) senders: Vec<usize>,
    /// Chosen by the controller, for life.
    pub(super) id: ComponentId,
    /// Of all its places so far.
    pub(super) last_epoch: u64,
    pub(super) place: Place,
    /// Where it is to be moved.
    pub(super) next: Option<Place>,
    /// Senders in other domains are told that it runs nowhere, so that they keep their events.
    pub(super) is_parked: bool,
    /// Why it has not the state that it had before it was to move.
    pub(super) loss: String,
}

/// The components of a workflow: functions, then resources. `id` makes ids: of each function its state's and its
/// own, then those of the resources.
pub(super) fn components(workflow: &Workflow, mut id: impl FnMut() -> Uuid) -> Result<Vec<Component>, Error> {
    let names = workflow.functions().iter().map(|function| &function.name);
    let names = names.chain(workflow.resources().iter().map(|resource| &resource.name));
    let places: HashMap<&String, usize> = names.enumerate().map(|(place, name)| (name, place)).collect();
    let outputs = |mapping: &BTreeMap<String, String>| {
        mapping.iter().filter_map(|(channel, target)| Some((channel.clone(), *places.get(target)?))).collect()
    };
    let mut all = Vec::with_capacity(places.len());
    for function in workflow.functions() {
        let in_component = |error: Error| error.context(format!("component '{}'", function.name));
        let policy = placement::state_policy(&function.annotations).map_err(in_component)?;
        placement::check_scale(&function.annotations, policy).map_err(in_component)?;
        let state = StateSpec { id: StateId(id()), policy };
        let own = ComponentId(id());
        all.push(Component::new(own, &function.name, Some(state), outputs(&function.outputs)));
    }
    for resource in workflow.resources() {
        let own = ComponentId(id());
        all.push(Component::new(own, &resource.name, None, outputs(&resource.outputs)));
    }
    let edges = edges(&all);
    for (sender, target) in edges {
        if let Some(target) = all.get_mut(target) {
            target.senders.push(sender);
        }
    }
    Ok(all)
}

/// Who sends events to whom, each pair once.
pub(super) fn edges(components: &[Component]) -> BTreeSet<(usize, usize)> {
    let outputs = components.iter().enumerate();
    outputs.flat_map(|(from, component)| component.outputs.iter().map(move |(_, to)| (from, *to))).collect()
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

/// Some components with their specifications, to be planned.
pub(super) fn items(
    workflow: &Workflow,
    id: WorkflowId,
    components: &[Component],
    places: &[usize],
) -> Vec<(String, ComponentSpec)> {
    let item = |place: &usize| {
        let component = components.get(*place)?;
        Some((component.name.clone(), spec(workflow, id, *place, component)?))
    };
    places.iter().filter_map(item).collect()
}

#[derive(Debug)]
pub(super) enum Phase {
    Starting,
    Running,
    Stopping {
        /// Why the start failed; `None`: it had succeeded.
        cause: Option<Error>,
        answer_by: Millis,
        answered: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    fn is_empty(&self) -> bool {
        self.unsure + self.created + self.wired + self.active + self.held == 0
    }

    fn stage(&self) -> Stage {
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
struct Activation {
    /// The components that are being activated, each with its epoch.
    batch: Vec<(usize, u64)>,
    busy: bool,
    failures: u32,
    retry_at: Millis,
    /// Raised when the domain has lost everything, so that an answer from before is recognised.
    round: u64,
}

/// The part of a workflow that is in one domain.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) domain: DomainId,
    pub(super) origin: Origin,
    tally: Tally,
    /// How many components have an effect under way.
    pub(super) busy: usize,
    activation: Activation,
    /// The stage for which effects were last derived for all components.
    derived: Option<Stage>,
}

/// Who is to be told that a workflow has ended.
#[derive(Debug)]
pub(super) struct Farewell {
    /// Why the start failed; `None`: it had succeeded.
    pub(super) refusal: Option<Error>,
    pub(super) starters: Vec<Ticket>,
    pub(super) stoppers: Vec<Ticket>,
}

/// The place that the effect of a component was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Where the component is.
    Here,
    /// Where it is to be moved.
    Next,
    /// Where it was: the index among those that are left over.
    Left(usize),
}

/// A workflow that domains were found for.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: WorkflowId,
    /// `None` once it is of no more use.
    pub(super) workflow: Option<Workflow>,
    request: Option<Uuid>,
    pub(super) components: Vec<Component>,
    pub(super) sites: Vec<Site>,
    pub(super) phase: Phase,
    starters: Vec<Ticket>,
    stoppers: Vec<Ticket>,
    /// A move that is under way.
    pub(super) change: Option<Move>,
    /// Places that components have left, where something may run yet.
    pub(super) leftovers: Vec<Leftover>,
    /// Domains that components have left not long ago.
    pub(super) formers: Vec<Former>,
    /// After how long a domain that is merely out of reach is given up.
    pub(super) relocate_after: Option<Duration>,
    /// When to look for another home again, and how often there was none.
    pub(super) homeless: (Millis, u32),
    /// Those who wait for a move that has ended.
    pub(super) answers: Vec<(Ticket, Reply)>,
    pub(super) kept: Kept,
}

impl Run {
    /// A workflow each of whose components has a domain.
    pub(super) fn new(
        id: WorkflowId,
        workflow: Workflow,
        components: Vec<Component>,
        homes: &[DomainId],
        domains: &Domains,
        request: Option<Uuid>,
        starters: Vec<Ticket>,
    ) -> Self {
        let mut run = Self::bare(id, Some(workflow), components, request, Phase::Starting);
        run.starters = starters;
        for (place, home) in homes.iter().enumerate() {
            let site = run.site(home, || domains.origin(home));
            if let Some(component) = run.components.get_mut(place) {
                component.place.site = site;
            }
            run.tally(site, Step::Absent, 1);
        }
        run
    }

    /// A workflow whose components are nowhere.
    pub(super) fn bare(
        id: WorkflowId,
        workflow: Option<Workflow>,
        components: Vec<Component>,
        request: Option<Uuid>,
        phase: Phase,
    ) -> Self {
        // The workflow was checked when it was read.
        let relocate = workflow.as_ref().and_then(|workflow| relocate::parse(workflow.annotations()).ok());
        Self {
            id,
            workflow,
            request,
            components,
            sites: Vec::new(),
            phase,
            starters: Vec::new(),
            stoppers: Vec::new(),
            change: None,
            leftovers: Vec::new(),
            formers: Vec::new(),
            relocate_after: relocate.flatten(),
            homeless: (Millis(0), 0),
            answers: Vec::new(),
            kept: Kept::nothing(),
        }
    }

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

    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. })
    }

    /// The workflow, if it was started, so that a restart of the controller changes nothing, and nobody asked for its
    /// end.
    pub(super) fn running(&self) -> Option<&Workflow> {
        let is_running = matches!(self.phase, Phase::Running) && self.kept.is_running();
        is_running.then_some(self.workflow.as_ref()).flatten()
    }

    pub(super) fn is_settled(&self) -> bool {
        (0..self.sites.len()).all(|site| self.stage(site) == Stage::Settled)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.leftovers.is_empty() && (0..self.sites.len()).all(|site| self.stage(site) == Stage::Gone)
    }

    pub(super) fn status(&self) -> WorkflowStatus {
        let mapping = |component: &Component| {
            let domain = self.domain_of(component.place.site)?.clone();
            Some(Mapping { name: component.name.clone(), component: component.place.known_as, domain })
        };
        WorkflowStatus { workflow: self.id, mapping: self.components.iter().filter_map(mapping).collect() }
    }

    /// The components as whoever looks at them needs them.
    pub(super) fn parts(&self) -> Vec<ComponentView> {
        let view = |component: &Component| {
            let (place, domain) = (&component.place, self.domain_of(component.place.site)?);
            Some(ComponentView {
                name: component.name.clone(),
                domain: domain.clone(),
                id: place.known_as,
                epoch: place.epoch,
                is_up: place.step == Step::Active,
                trouble: place.trouble.clone(),
                loss: component.loss.clone(),
            })
        };
        self.components.iter().filter_map(view).collect()
    }

    /// Names the component that its domain knows by this id.
    pub(super) fn part(&self, id: ComponentId) -> Option<Part> {
        let place = self.components.iter().position(|component| component.place.known_as == id)?;
        let epoch = self.components.get(place)?.place.epoch;
        Some(Part { workflow: self.id, place, epoch })
    }

    /// A component has other limits, and is started with them from now on.
    pub(super) fn limit(&mut self, ticket: Ticket, part: Part, changes: &Annotations) -> Result<(), Error> {
        let gone = || super::unknown(part.workflow);
        let is_running = self.running().is_some();
        let (Some(workflow), Some(component), true) =
            (self.workflow.as_mut(), self.components.get(part.place), is_running)
        else {
            return Err(gone());
        };
        let name = &component.name;
        if component.place.epoch != part.epoch {
            // It may have been started again with the limits from before.
            return Err(Error::unavailable(format!("'{name}' was started again meanwhile: try again in a moment")));
        }
        if component.next.is_some() {
            return Err(Error::unavailable(format!("'{name}' is being moved: try again in a moment")));
        }
        workflow.annotate(&component.name, changes).map_err(Error::rejected)?;
        self.kept.has_changed = true;
        self.answers.push((ticket, Ok(Answer::Limited)));
        Ok(())
    }

    /// Some components with their specifications, to be planned.
    pub(super) fn items(&self, places: &[usize]) -> Vec<(String, ComponentSpec)> {
        self.workflow.as_ref().map(|workflow| items(workflow, self.id, &self.components, places)).unwrap_or_default()
    }

    /// All is as it shall be: the start has succeeded.
    pub(super) fn runs(&mut self) {
        self.phase = Phase::Running;
        self.kept.has_changed = true;
    }

    /// Those who wait for a start that has succeeded.
    pub(super) fn started(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.starters)
    }

    /// A start that nothing was done for is given up. Those who wait, and the request.
    pub(super) fn abandoned(&mut self) -> (Vec<Ticket>, Vec<Ticket>, Option<Uuid>) {
        (std::mem::take(&mut self.starters), std::mem::take(&mut self.stoppers), self.request)
    }

    /// The disk does not take what becomes of the workflow. Those who are told so.
    pub(super) fn not_written(&mut self, now: Millis, error: &Error) -> Vec<(Ticket, Reply)> {
        self.move_not_written(now, error);
        if matches!(self.phase, Phase::Running) && !self.kept.is_running() {
            self.give_up(now, error.clone());
        }
        let mut told = std::mem::take(&mut self.answers);
        told.extend(std::mem::take(&mut self.stoppers).into_iter().map(|ticket| (ticket, Err(error.clone()))));
        told
    }

    pub(super) fn log_started(&self) {
        let domains: Vec<_> = self.sites.iter().map(|site| site.domain.0.as_str()).collect();
        tracing::info!(workflow = %self.id, domain = domains.join(", "), components = self.components.len(), "workflow started");
    }

    /// The start has failed: what is there is stopped, and then the cause is told.
    pub(super) fn give_up(&mut self, now: Millis, cause: Error) {
        self.wind_down(now, Some(cause));
    }

    fn wind_down(&mut self, now: Millis, cause: Option<Error>) {
        self.cancel(now, Error::not_found("the workflow was stopped before it was moved"));
        self.phase = Phase::Stopping { cause, answer_by: now + PATIENCE, answered: false };
        self.kept.has_changed = true;
        for component in &mut self.components {
            component.place.forget_failures();
        }
    }

    /// A user wants it to end. False if it has ended, as far as users can see.
    pub(super) fn stop(&mut self, now: Millis, ticket: Ticket) -> bool {
        if let Phase::Stopping { answered: true, .. } = self.phase {
            return false;
        }
        self.stoppers.push(ticket);
        match self.phase {
            Phase::Running if self.kept.is_running() => self.wind_down(now, None),
            Phase::Starting | Phase::Running => {
                self.give_up(now, Error::rejected("the workflow was stopped while it was being started"));
            }
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

    /// Whether nothing can be done for what is left before a domain is in reach again.
    fn waits_for_domains(&self, domains: &Domains) -> bool {
        let is_away = |site: usize| self.domain_of(site).is_none_or(|domain| domains.reach(domain).is_none());
        let sites = self.sites.iter().enumerate();
        let mut left = sites.filter(|(_, site)| !site.tally.is_empty() || site.busy > 0);
        left.all(|(index, site)| site.busy == 0 && is_away(index))
            && self.leftovers.iter().all(|left| left.place.busy.is_none() && is_away(left.place.site))
    }

    /// The answers that are due once nothing is left, or what is left takes too long.
    pub(super) fn farewell(&mut self, now: Millis, domains: &Domains) -> Option<Farewell> {
        let is_over = self.is_stopping() && (self.is_gone() || self.waits_for_domains(domains));
        let Phase::Stopping { cause, answer_by, answered } = &mut self.phase else { return None };
        if *answered || !(is_over || now >= *answer_by) {
            return None;
        }
        *answered = true;
        let refusal = cause.take();
        self.workflow = None;
        self.kept.has_changed = true;
        let left = self.components.iter().filter(|own| own.place.is_anything()).count() + self.leftovers.len();
        match &refusal {
            Some(reason) => tracing::info!(workflow = %self.id, %reason, left, "workflow refused"),
            None => tracing::info!(workflow = %self.id, left, "workflow stopped"),
        }
        Some(Farewell {
            refusal,
            starters: std::mem::take(&mut self.starters),
            stoppers: std::mem::take(&mut self.stoppers),
        })
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

    fn stage(&self, site: usize) -> Stage {
        let Some(own) = self.sites.get(site) else { return Stage::Settled };
        match self.phase {
            Phase::Stopping { .. } if own.tally.is_empty() && own.busy == 0 => Stage::Gone,
            Phase::Stopping { .. } => Stage::Stop,
            Phase::Starting => self.sites.iter().map(|site| site.tally.stage()).min().unwrap_or(Stage::Settled),
            Phase::Running => own.tally.stage(),
        }
    }

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
        let mut spec = spec(self.workflow.as_ref()?, self.id, place, component)?;
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

    /// Something moves, or has left something behind.
    pub(super) fn is_changing(&self) -> bool {
        self.change.is_some() || !self.leftovers.is_empty()
    }

    /// The domain in which an effect of a component is under way.
    pub(super) fn domain_of_part(&self, part: Part) -> Option<&DomainId> {
        let component = self.components.get(part.place)?;
        let own = std::iter::once(&component.place).chain(&component.next);
        let left = self.leftovers.iter().filter(|left| left.component == part.place).map(|left| &left.place);
        let mut places = own.chain(left);
        self.domain_of(places.find(|place| place.busy == Some(part.epoch))?.site)
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

impl Component {
    /// A function has a state, a resource has none.
    pub(super) fn new(id: ComponentId, name: &str, state: Option<StateSpec>, outputs: Vec<(String, usize)>) -> Self {
        Self {
            name: name.to_string(),
            kind: if state.is_some() { ComponentKind::Function } else { ComponentKind::Resource },
            state,
            outputs,
            senders: Vec::new(),
            id,
            last_epoch: 1,
            place: Place::new(0, 1, id),
            next: None,
            is_parked: false,
            loss: String::new(),
        }
    }

    /// An epoch that no place of it had.
    pub(super) fn next_epoch(&mut self) -> u64 {
        self.last_epoch += 1;
        self.last_epoch
    }

    /// It has something to remember when it moves.
    pub(super) fn has_state(&self) -> bool {
        self.state.is_some_and(|state| state.policy != StatePolicy::Transient)
    }

    pub(super) fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }
}

impl Run {
    /// Why a component is not where it could run.
    pub(super) fn waits(&mut self, place: usize, reason: String) {
        if let Some(component) = self.components.get_mut(place) {
            component.place.trouble = reason;
        }
    }

    /// Whether a component keeps something in its domain that cannot be moved.
    pub(super) fn has_volumes(&self, place: usize) -> bool {
        let function = self.workflow.as_ref().and_then(|workflow| workflow.functions().get(place));
        function.is_some_and(|function| function.annotations.keys().any(|key| key.starts_with(VOLUME)))
    }
}
