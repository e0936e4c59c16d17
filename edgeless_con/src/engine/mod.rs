//! The decisions of a controller: workflows wanted, domains there, effects that bring them together.
//!
//! ```text
//!  Start -> candidates -> Plan, one domain after the other -> Create all -> Patch all -> Activate -> Reply
//!             (none: Reply)                                     (refused: Stop what is there -> Reply)
//! ```
//! Pure: no clock, no I/O, no randomness but a seeded one. Level-triggered: an event marks what it
//! touches, and the difference between what is wanted and what is there is derived again, so that a
//! lost reply or a restarted domain needs no path of its own. Accepted workflows live in memory only.

mod domains;
mod requests;
mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use edgeless_api::Url;
use edgeless_api::component::{Annotations, ComponentKind, ComponentRef, ComponentSpec, Patch, Start};
use edgeless_api::domain::{DomainCapabilities, DomainRegistered, DomainRegistration, DomainState};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId, NodeId, WorkflowId};
use edgeless_api::status::Placement;
use edgeless_api::workflow::{Workflow, WorkflowStatus};
use edgeless_daemon::engine::{Millis, Ticket};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use crate::placement::{self, Miss, Needs};
use domains::{Domains, Reach, Seen};
use requests::{Known, Requests};
use run::{Component, Farewell, Run, Touched};

/// What happens to a controller.
#[derive(Clone, Debug)]
pub enum Event {
    /// A user wants a workflow to run. A repeat with the same request id is the same wish.
    Start {
        /// Who waits.
        ticket: Ticket,
        /// What shall run.
        workflow: Workflow,
        /// Names the wish.
        request: Option<Uuid>,
    },
    /// A user asks where the components of a workflow would go.
    Plan {
        /// Who waits.
        ticket: Ticket,
        /// What would run.
        workflow: Workflow,
    },
    /// A user wants a workflow to end.
    Stop {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        workflow: WorkflowId,
    },
    /// The domain of a component has granted it other limits: it is started with them from now on.
    Limit {
        /// Who waits.
        ticket: Ticket,
        /// Which.
        part: Part,
        /// What is different.
        changes: Annotations,
    },
    /// An orchestrator announces its domain.
    Register {
        /// Who waits.
        ticket: Ticket,
        /// What it says.
        registration: DomainRegistration,
    },
    /// A domain of the configuration, which is followed, says how it is.
    DomainUp(DomainState),
    /// A domain of the configuration cannot be followed.
    DomainLost {
        /// Which.
        domain: DomainId,
        /// Why.
        reason: Error,
    },
    /// The result of [`Effect::Plan`].
    Planned {
        /// The workflow that was to be planned.
        workflow: WorkflowId,
        /// Where its components would go.
        result: Result<Vec<Placement>, Error>,
    },
    /// The result of [`Effect::Create`].
    Created {
        /// The component.
        part: Part,
        /// What the domain knows it by.
        result: Result<ComponentRef, Error>,
    },
    /// The result of [`Effect::Patch`].
    Patched {
        /// The component.
        part: Part,
        /// Whether it has its outputs.
        result: Result<(), Error>,
    },
    /// The result of [`Effect::Activate`].
    Activated {
        /// The workflow.
        workflow: WorkflowId,
        /// As in the effect.
        round: u64,
        /// Whether its components may emit.
        result: Result<(), Error>,
    },
    /// The result of [`Effect::Stop`].
    Stopped {
        /// The component.
        part: Part,
        /// Whether it is gone.
        result: Result<(), Error>,
    },
    /// Time passes.
    Tick,
}

/// What a controller does.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask a domain where these components would go.
    Plan {
        /// Whom to ask.
        peer: Peer,
        /// The workflow that they make up.
        workflow: WorkflowId,
        /// Their names and specifications.
        items: Vec<(String, ComponentSpec)>,
    },
    /// Start a component that emits nothing yet.
    Create {
        /// Where.
        peer: Peer,
        /// Which.
        part: Part,
        /// What to say.
        start: Box<Start>,
        /// The domain speaks our fields and services, not only EDGELESS 1.2.
        native: bool,
    },
    /// Set the outputs of a component.
    Patch {
        /// Where.
        peer: Peer,
        /// Which.
        part: Part,
        /// What it is.
        kind: ComponentKind,
        /// What to say.
        patch: Patch,
    },
    /// Let the components of a workflow emit.
    Activate {
        /// Where.
        peer: Peer,
        /// Which workflow.
        workflow: WorkflowId,
        /// Comes back with the result.
        round: u64,
        /// What the domain knows the components by.
        ids: Vec<Uuid>,
    },
    /// Stop a component.
    Stop {
        /// Where.
        peer: Peer,
        /// Which.
        part: Part,
        /// What it is.
        kind: ComponentKind,
        /// What the domain knows it by.
        id: ComponentId,
    },
    /// Answer a request.
    Reply {
        /// Who waits.
        ticket: Ticket,
        /// The answer.
        reply: Reply,
    },
    /// A domain will not be called again.
    Forget(DomainId),
}

/// The answer to a request that was granted.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To a start.
    Started(WorkflowStatus),
    /// To a plan.
    Planned(Vec<Placement>),
    /// To a stop.
    Stopped,
    /// To other limits.
    Limited,
    /// To a registration.
    Registered(DomainRegistered),
}

/// The answer to a request.
pub type Reply = Result<Answer, Error>;

/// A domain and where its orchestrator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The domain.
    pub domain: DomainId,
    /// Its orchestrator.
    pub url: Url,
}

/// Names a component in an effect and in its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its workflow.
    pub workflow: WorkflowId,
    /// Its place among the components of the workflow.
    pub place: usize,
    /// Its epoch when the effect began.
    pub epoch: u64,
}

/// What an engine is made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The domains of the configuration.
    pub orchestrators: Vec<(DomainId, Url)>,
    /// The most workflows at a time.
    pub max_workflows: usize,
    /// The most domains at a time.
    pub max_domains: usize,
}

/// Where the components of a workflow are, for whoever wants to ask about them.
#[derive(Clone, Debug)]
pub struct WorkflowView {
    /// Their domain.
    pub domain: DomainId,
    /// Whom to ask about them, or why nobody can be asked.
    pub peer: Result<Peer, String>,
    /// In the order of the workflow: functions, then resources.
    pub components: Vec<ComponentView>,
}

/// A component, for whoever wants to ask about it.
#[derive(Clone, Debug)]
pub struct ComponentView {
    /// Its name in the workflow.
    pub name: String,
    /// What its domain knows it by.
    pub id: ComponentId,
    /// How often it was given to the domain.
    pub epoch: u64,
    /// It was created, wired and activated.
    pub is_up: bool,
    /// Why it last failed to be.
    pub trouble: String,
}

/// One component, for whoever wants to ask its domain about it.
#[derive(Clone, Debug)]
pub struct PartView {
    /// Names it to the engine, as it is now.
    pub part: Part,
    /// Whom to ask about it, or why nobody can be asked.
    pub peer: Result<Peer, String>,
}

/// The controller in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Domains that can be given work.
    pub domains_in_reach: usize,
    /// Domains that are known.
    pub domains: usize,
    /// Workflows that run.
    pub workflows: usize,
    /// Workflows that were started since the controller started.
    pub started: u64,
    /// Workflows that were refused since the controller started.
    pub refused: u64,
}

/// What a search for a domain is for.
#[derive(Debug)]
enum Goal {
    Start { request: Option<Uuid> },
    Plan,
}

/// A workflow for which a domain is sought.
#[derive(Debug)]
struct Search {
    workflow: Workflow,
    components: Vec<Component>,
    goal: Goal,
    askers: Vec<Ticket>,
    /// The domain that is asked.
    asking: DomainId,
    /// Those that may be asked yet, the next one last.
    rest: Vec<DomainId>,
    misses: Vec<(DomainId, Miss)>,
}

/// The engine of a controller.
#[derive(Debug)]
pub struct Engine {
    rng: StdRng,
    max_workflows: usize,
    domains: Domains,
    searches: HashMap<WorkflowId, Search>,
    runs: BTreeMap<WorkflowId, Run>,
    requests: Requests,
    /// When to look at a workflow again.
    timers: BTreeSet<(Millis, WorkflowId)>,
    started: u64,
    refused: u64,
    effects: Vec<Effect>,
}

fn random_uuid(rng: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

fn unknown(workflow: WorkflowId) -> Error {
    Error::not_found(format!("there is no workflow {workflow}; `edgeless_cli workflow list` shows those that run"))
}

impl edgeless_daemon::engine::Engine for Engine {
    type Event = Event;
    type Effect = Effect;
    type Answer = Reply;

    fn on(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        match event {
            Event::Start { ticket, workflow, request } => self.start(ticket, workflow, request),
            Event::Plan { ticket, workflow } => {
                let id = WorkflowId(random_uuid(&mut self.rng));
                self.search(id, workflow, Goal::Plan, ticket);
            }
            Event::Stop { ticket, workflow } => self.stop(now, ticket, workflow),
            Event::Limit { ticket, part, changes } => {
                let run = self.runs.get_mut(&part.workflow).ok_or_else(|| unknown(part.workflow));
                let kept = run.and_then(|run| run.limit(part, &changes));
                self.reply(ticket, kept.map(|()| Answer::Limited));
            }
            Event::Register { ticket, registration } => self.register(now, ticket, registration),
            Event::DomainUp(state) => {
                let (domain, seen) = self.domains.watched(now, state);
                self.seen(now, &domain, seen);
            }
            Event::DomainLost { domain, reason } => {
                if self.domains.lost(&domain, reason) {
                    self.lost(now, &domain);
                }
            }
            Event::Planned { workflow, result } => self.planned(now, workflow, result),
            Event::Created { part, result } => self.component(now, part, |run, native| {
                run.created(now, part, result, native);
            }),
            Event::Patched { part, result } => self.component(now, part, |run, _| run.patched(now, part, result)),
            Event::Stopped { part, result } => self.component(now, part, |run, _| run.stopped(now, part, result)),
            Event::Activated { workflow, round, result } => {
                if let Some(run) = self.runs.get_mut(&workflow) {
                    run.activated(now, round, result);
                    self.advance(now, workflow, Touched::All);
                }
            }
            Event::Tick => self.tick(now),
        }
        std::mem::take(&mut self.effects)
    }

    fn tick() -> Event {
        Event::Tick
    }
}

impl Engine {
    /// An engine without workflows. The same seed and the same events give the same effects.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            max_workflows: settings.max_workflows,
            domains: Domains::new(settings.orchestrators, settings.max_domains),
            searches: HashMap::new(),
            runs: BTreeMap::new(),
            requests: Requests::default(),
            timers: BTreeSet::new(),
            started: 0,
            refused: 0,
            effects: Vec::new(),
        }
    }

    /// The workflows that run.
    pub fn list(&self) -> Vec<WorkflowId> {
        self.running().map(|(id, ..)| id).collect()
    }

    /// A workflow as it was asked for, and where it runs.
    ///
    /// # Errors
    /// There is no such workflow.
    pub fn inspect(&self, id: WorkflowId) -> Result<(Workflow, WorkflowStatus), Error> {
        let run = self.run(id)?;
        Ok((run.running().cloned().ok_or_else(|| unknown(id))?, run.status()))
    }

    /// A workflow, for whoever wants to ask its domain about it.
    ///
    /// # Errors
    /// There is no such workflow.
    pub fn view(&self, id: WorkflowId) -> Result<WorkflowView, Error> {
        let run = self.run(id)?;
        let domain = run.domain().clone();
        Ok(WorkflowView { peer: self.peer(&domain), domain, components: run.parts() })
    }

    /// One component, for whoever wants to ask its domain about it.
    ///
    /// # Errors
    /// There is no such component.
    pub fn part(&self, id: ComponentId) -> Result<PartView, Error> {
        let mut found = self.running().filter_map(|(_, run)| Some((run.part(id)?, run.domain())));
        let (part, domain) = found.next().ok_or_else(|| {
            Error::not_found(format!(
                "there is no component {id} in a workflow that runs; `edgeless_cli workflow inspect all` shows them"
            ))
        })?;
        Ok(PartView { part, peer: self.peer(domain) })
    }

    fn peer(&self, domain: &DomainId) -> Result<Peer, String> {
        let peer = self.domains.reach(domain).map(|reach| reach.peer);
        peer.ok_or_else(|| format!("the domain {domain} {}", self.domains.why_out_of_reach(domain)))
    }

    /// What the domains in reach have: of one domain, or of all.
    pub fn domains(&self, domain: Option<&DomainId>) -> BTreeMap<DomainId, DomainCapabilities> {
        let wanted = self.domains.all().filter(|(id, _)| domain.is_none_or(|wanted| wanted == *id));
        wanted.filter_map(|(id, capabilities)| Some((id.clone(), capabilities?.clone()))).collect()
    }

    /// Whom to ask about one domain, or about all that are in reach.
    ///
    /// # Errors
    /// There is no such domain, or it is out of reach.
    pub fn peers(&self, domain: Option<&DomainId>) -> Result<Vec<Peer>, Error> {
        let reached = |id: &DomainId| self.domains.reach(id).map(|reach| reach.peer);
        let Some(id) = domain else { return Ok(self.domains.all().filter_map(|(id, _)| reached(id)).collect()) };
        if let Some(peer) = reached(id) {
            return Ok(vec![peer]);
        }
        if self.domains.all().any(|(known, _)| known == id) {
            return Err(Error::unavailable(format!("the domain {id} {}", self.domains.why_out_of_reach(id))));
        }
        let known: Vec<_> = self.domains.all().take(16).map(|(id, _)| id.0.as_str()).collect();
        Err(Error::not_found(format!("there is no domain '{id}'; there are: {}", known.join(", "))))
    }

    /// The controller in numbers.
    pub fn summary(&self) -> Summary {
        let (mut domains, mut domains_in_reach) = (0, 0);
        for (_, capabilities) in self.domains.all() {
            domains += 1;
            domains_in_reach += usize::from(capabilities.is_some());
        }
        let workflows = self.running().count();
        Summary { domains_in_reach, domains, workflows, started: self.started, refused: self.refused }
    }

    fn running(&self) -> impl Iterator<Item = (WorkflowId, &Run)> {
        self.runs.iter().filter(|(_, run)| run.running().is_some()).map(|(id, run)| (*id, run))
    }

    fn run(&self, id: WorkflowId) -> Result<&Run, Error> {
        self.runs.get(&id).filter(|run| run.running().is_some()).ok_or_else(|| unknown(id))
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        self.effects.push(Effect::Reply { ticket, reply });
    }

    fn start(&mut self, ticket: Ticket, workflow: Workflow, request: Option<Uuid>) {
        if let Some(known) = request.and_then(|request| self.requests.get(request).cloned()) {
            return self.repeat(ticket, known);
        }
        let id = WorkflowId(random_uuid(&mut self.rng));
        if let Some(request) = request {
            self.requests.pending(request, id);
        }
        self.search(id, workflow, Goal::Start { request }, ticket);
    }

    /// Answers a request that was made before, or lets its asker wait with the first one.
    fn repeat(&mut self, ticket: Ticket, known: Known) {
        match known {
            Known::Refused(error) => self.reply(ticket, Err(error)),
            Known::Pending(id) | Known::Started(id) => {
                if let Some(search) = self.searches.get_mut(&id) {
                    return search.askers.push(ticket);
                }
                match self.runs.get_mut(&id) {
                    Some(run) if run.running().is_some() => {
                        let status = run.status();
                        self.reply(ticket, Ok(Answer::Started(status)));
                    }
                    Some(run) if matches!(known, Known::Pending(_)) => run.join(ticket),
                    _ => {
                        let reason = format!("this request has started the workflow {id}, which was stopped since");
                        self.reply(ticket, Err(Error::not_found(reason)));
                    }
                }
            }
        }
    }

    fn search(&mut self, id: WorkflowId, workflow: Workflow, goal: Goal, ticket: Ticket) {
        let count = self.runs.len() + self.searches.len();
        if count >= self.max_workflows {
            let limit = self.max_workflows;
            let reason = format!(
                "there are {count} workflows, and {limit} are the limit: stop one, or raise 'max_workflows' of the controller"
            );
            return self.refuse(id, &goal, vec![ticket], Error::exhausted(reason));
        }
        let components = match run::components(&workflow, &mut self.rng) {
            Ok(components) => components,
            Err(error) => return self.refuse(id, &goal, vec![ticket], error),
        };
        let needs = Needs::of(&workflow);
        let (mut rest, mut misses) = (Vec::new(), Vec::new());
        for (domain, capabilities) in self.domains.all() {
            let miss = match capabilities {
                Some(capabilities) => needs.miss(capabilities),
                None => Some(self.domains.miss(domain)),
            };
            match miss {
                Some(miss) => misses.push((domain.clone(), miss)),
                None => rest.push(domain.clone()),
            }
        }
        rest.shuffle(&mut self.rng);
        let asking = DomainId(String::new());
        let search = Search { workflow, components, goal, askers: vec![ticket], asking, rest, misses };
        self.ask_next(id, search);
    }

    /// Asks the next domain that may host a workflow, or refuses the workflow.
    fn ask_next(&mut self, id: WorkflowId, mut search: Search) {
        while let Some(domain) = search.rest.pop() {
            let Some(Reach { peer, .. }) = self.domains.reach(&domain) else {
                let miss = self.domains.miss(&domain);
                search.misses.push((domain, miss));
                continue;
            };
            let items = run::items(&search.workflow, id, &search.components);
            self.effects.push(Effect::Plan { peer, workflow: id, items });
            search.asking = domain;
            self.searches.insert(id, search);
            return;
        }
        self.refuse(id, &search.goal, search.askers, placement::refusal(search.misses));
    }

    fn planned(&mut self, now: Millis, id: WorkflowId, result: Result<Vec<Placement>, Error>) {
        let Some(mut search) = self.searches.remove(&id) else { return };
        let domain = search.asking.clone();
        match &result {
            Ok(_) => self.domains.is_native(&domain, true),
            Err(error) if error.code == Code::Unimplemented => self.domains.is_native(&domain, false),
            Err(_) => {}
        }
        let placements = match result {
            Ok(placements) => placements,
            // An EDGELESS 1.2 orchestrator cannot be asked; it will say so when it starts components.
            Err(error) if error.code == Code::Unimplemented => somewhere(&domain, &search.components),
            Err(error) => {
                search.misses.push((domain, placement::miss(error)));
                return self.ask_next(id, search);
            }
        };
        match search.goal {
            Goal::Plan => {
                for ticket in search.askers {
                    self.reply(ticket, Ok(Answer::Planned(placements.clone())));
                }
            }
            Goal::Start { .. } if self.domains.reach(&domain).is_none() => {
                let miss = self.domains.miss(&domain);
                search.misses.push((domain, miss));
                self.ask_next(id, search);
            }
            Goal::Start { request } => {
                let run = Run::new(id, search.workflow, search.components, domain, request, search.askers);
                self.runs.insert(id, run);
                self.advance(now, id, Touched::All);
            }
        }
    }

    fn refuse(&mut self, id: WorkflowId, goal: &Goal, askers: Vec<Ticket>, error: Error) {
        if let Goal::Start { request } = goal {
            tracing::info!(workflow = %id, reason = %error, "workflow refused");
            self.refused += 1;
            if let Some(request) = request {
                self.requests.finished(*request, Err(error.clone()));
            }
        }
        for ticket in askers {
            self.reply(ticket, Err(error.clone()));
        }
    }

    fn stop(&mut self, now: Millis, ticket: Ticket, id: WorkflowId) {
        if self.runs.get_mut(&id).is_some_and(|run| run.stop(now, ticket)) {
            self.advance(now, id, Touched::All);
        } else {
            self.reply(ticket, Err(unknown(id)));
        }
    }

    fn register(&mut self, now: Millis, ticket: Ticket, registration: DomainRegistration) {
        match self.domains.registered(now, registration) {
            Ok((registered, domain, seen)) => {
                self.reply(ticket, Ok(Answer::Registered(registered)));
                self.seen(now, &domain, seen);
            }
            Err(error) => self.reply(ticket, Err(error)),
        }
    }

    fn runs_in(&self, domain: &DomainId) -> Vec<WorkflowId> {
        self.runs.iter().filter(|(_, run)| run.domain() == domain).map(|(id, _)| *id).collect()
    }

    /// A domain gave a sign of life.
    fn seen(&mut self, now: Millis, domain: &DomainId, seen: Seen) {
        if seen == Seen::Still {
            return;
        }
        for id in self.runs_in(domain) {
            if let Some(run) = self.runs.get_mut(&id)
                && seen == Seen::Fresh
            {
                run.lost_everything();
            }
            self.advance(now, id, Touched::All);
        }
    }

    /// A domain went out of reach. What runs there stays there; what was being started is given up.
    fn lost(&mut self, now: Millis, domain: &DomainId) {
        let reason = self.domains.why_out_of_reach(domain);
        for id in self.runs_in(domain) {
            if let Some(run) = self.runs.get_mut(&id)
                && run.is_starting()
            {
                run.give_up(now, Error::unavailable(format!("the start was given up: {domain} {reason}")));
            }
            self.advance(now, id, Touched::All);
        }
    }

    /// An effect of a component has ended.
    fn component(&mut self, now: Millis, part: Part, note: impl FnOnce(&mut Run, bool)) {
        let Some(run) = self.runs.get_mut(&part.workflow) else { return };
        let native = self.domains.reach(run.domain()).is_some_and(|reach| reach.native);
        note(run, native);
        self.advance(now, part.workflow, Touched::One(part.place));
    }

    /// Derives what is to be done for a workflow, and answers those who wait for it.
    fn advance(&mut self, now: Millis, id: WorkflowId, touched: Touched) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let reach = self.domains.reach(run.domain());
        let again = reach.as_ref().and_then(|reach| run.advance(now, reach, touched, &mut self.effects));
        if let Some(deadline) = again.into_iter().chain(run.answer_by()).min() {
            self.timers.insert((deadline, id));
        }
        if run.is_starting() && run.is_settled() {
            let (askers, status, request) = (run.started(), run.status(), run.request());
            self.started += 1;
            if let Some(request) = request {
                self.requests.finished(request, Ok(id));
            }
            for ticket in askers {
                self.reply(ticket, Ok(Answer::Started(status.clone())));
            }
            return;
        }
        let (farewell, request) = (run.farewell(now, reach.is_some()), run.request());
        if run.is_gone() {
            self.runs.remove(&id);
        }
        if let Some(farewell) = farewell {
            self.say(farewell, request);
        }
    }

    fn say(&mut self, farewell: Farewell, request: Option<Uuid>) {
        if let Some(error) = farewell.refusal {
            self.refused += 1;
            for ticket in farewell.starters {
                self.reply(ticket, Err(error.clone()));
            }
            if let Some(request) = request {
                self.requests.finished(request, Err(error));
            }
        }
        for ticket in farewell.stoppers {
            self.reply(ticket, Ok(Answer::Stopped));
        }
    }

    fn tick(&mut self, now: Millis) {
        for domain in self.domains.expire(now) {
            self.lost(now, &domain);
        }
        let runs = &self.runs;
        let in_use = || runs.values().map(|run| run.domain().clone()).collect();
        let forgotten = self.domains.forget(in_use);
        self.effects.extend(forgotten.into_iter().map(Effect::Forget));
        while let Some((deadline, id)) = self.timers.first().copied()
            && deadline <= now
        {
            self.timers.remove(&(deadline, id));
            self.advance(now, id, Touched::All);
        }
    }
}

/// Where components go in a domain that says nothing of its nodes.
fn somewhere(domain: &DomainId, components: &[Component]) -> Vec<Placement> {
    let place = |name: &str| Placement {
        name: name.to_string(),
        domain: domain.clone(),
        node: NodeId::NONE,
        hostname: String::new(),
    };
    run::names(components).map(place).collect()
}
