//! The decisions of a controller: workflows wanted, domains there, effects that bring them together.
//!
//! ```text
//!  Start -> candidates -> Plan, one domain after the other -> Create all -> Patch all -> Activate -> Reply
//!           (none: cut, Plan of each part; or Reply)            (refused: Stop what is there -> Reply)
//! ```
//! `search` finds domains, `run` keeps one workflow in its domains, `moves` takes components from one to
//! another, `loss` tells domains that are away from those that are gone. Of a run, `site` is the part in one domain,
//! `derive` says what is to be done next, `outputs` what that is wired to, and `answers` takes note of what became
//! of it.
//!
//! Pure: no clock, no I/O, no randomness but a seeded one. Level-triggered: an event marks what it
//! touches, and the difference between what is wanted and what is there is derived again, so that a
//! lost reply or a restarted domain needs no path of its own. `keep` has each workflow written to the disk before
//! anything is done or said that relies on it.

mod answers;
mod component;
mod derive;
mod domains;
mod former;
mod keep;
mod loss;
mod moves;
mod outputs;
mod place;
mod requests;
mod run;
mod search;
mod site;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::component::{Annotations, ComponentKind, ComponentRef, ComponentSpec, Patch, Row, Start};
use edgeless_api::domain::{DomainCapabilities, DomainRegistered, DomainRegistration, DomainState};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, DomainId, NodeId, WorkflowId};
use edgeless_api::node::NodeInfo;
use edgeless_api::status::Placement;
use edgeless_api::workflow::{Workflow, WorkflowStatus};
use edgeless_api::{Binary, Url};
use edgeless_daemon::engine::{Millis, Ticket};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use domains::{Domains, Seen};
pub use loss::Pulse;
use requests::{Known, Requests};
use run::{Farewell, Run, Touched};
use search::{Goal, Search};

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
    /// A user wants a workflow, or one component of it, to be in another domain.
    Migrate {
        /// Who waits.
        ticket: Ticket,
        /// Which workflow.
        workflow: WorkflowId,
        /// Where to.
        domain: DomainId,
        /// The name of the component; `None`: all.
        component: Option<String>,
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
        /// As in the effect.
        ask: u64,
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
        site: usize,
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
    /// The result of [`Effect::Release`].
    Released {
        /// The component.
        part: Part,
        /// The state that it had.
        result: Result<Option<Bytes>, Error>,
    },
    /// A domain that is followed says where components run to which others have outputs.
    Rows {
        /// Which domain.
        domain: DomainId,
        /// Where they run.
        rows: Vec<Row>,
    },
    /// The result of [`Effect::Nodes`].
    Nodes {
        /// Whose nodes.
        domain: DomainId,
        /// Which.
        result: Result<Vec<NodeInfo>, Error>,
    },
    /// The result of [`Effect::Probe`].
    Probed {
        /// Which domain.
        domain: DomainId,
        /// How much of it is left.
        pulse: Pulse,
    },
    /// The result of [`Effect::Persist`].
    Persisted {
        /// The workflow that was written.
        workflow: WorkflowId,
        /// As in the effect.
        op: u64,
        /// Whether it is on the disk.
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
        /// The workflow that they are of.
        workflow: WorkflowId,
        /// Comes back with the result.
        ask: u64,
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
        site: usize,
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
    /// Stop a component that runs elsewhere from now on, and fetch its state.
    Release {
        /// Where.
        peer: Peer,
        /// Which.
        part: Part,
        /// What the domain knows it by.
        id: ComponentId,
        /// How long it may handle what waits for it.
        grace: Duration,
    },
    /// Tell a domain where components run that have left it: it forwards what still comes for them.
    Tell {
        /// Whom to tell.
        peer: Peer,
        /// Where they run.
        rows: Vec<Row>,
    },
    /// Follow where a domain runs the components to which others have outputs, until it is forgotten or has moved.
    Follow(Peer),
    /// Ask a domain for its nodes.
    Nodes(Peer),
    /// Try to connect to all that belongs to a domain.
    Probe {
        /// Which.
        domain: DomainId,
        /// Its orchestrator and its nodes.
        urls: Vec<Url>,
    },
    /// Write what a restart of the controller must know of a workflow.
    Persist {
        /// Which.
        workflow: WorkflowId,
        /// Comes back with the result.
        op: u64,
        /// What to write; `None`: nothing is to be known of it any more.
        record: Option<Bytes>,
        /// The code that the record names.
        code: Vec<Binary>,
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
    /// To a migration.
    Migrated(WorkflowStatus),
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
    /// How long a domain must be out of reach before it is seen whether anything of it is left.
    pub domain_grace: Duration,
}

/// Where the components of a workflow are, for whoever wants to ask about them.
#[derive(Clone, Debug)]
pub struct WorkflowView {
    /// Of each domain, whom to ask, or why nobody can be asked.
    pub peers: BTreeMap<DomainId, Result<Peer, String>>,
    /// In the order of the workflow: functions, then resources.
    pub components: Vec<ComponentView>,
}

/// A component, for whoever wants to ask about it.
#[derive(Clone, Debug)]
pub struct ComponentView {
    /// Its name in the workflow.
    pub name: String,
    /// Its domain.
    pub domain: DomainId,
    /// What its domain knows it by.
    pub id: ComponentId,
    /// How often it was given to the domain.
    pub epoch: u64,
    /// It was created, wired and activated.
    pub is_up: bool,
    /// Why it last failed to be.
    pub trouble: String,
    /// Why it has not the state that it had before it moved; empty: it has.
    pub loss: String,
}

/// One component, for whoever wants to ask its domain about it.
#[derive(Clone, Debug)]
pub struct PartView {
    /// Names it to the engine, as it is now.
    pub part: Part,
    /// Its domain.
    pub domain: DomainId,
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

/// The engine of a controller.
#[derive(Debug)]
pub struct Engine {
    rng: StdRng,
    max_workflows: usize,
    grace: Duration,
    domains: Domains,
    searches: HashMap<WorkflowId, Search>,
    runs: BTreeMap<WorkflowId, Run>,
    /// Of each component, its workflow and its place there.
    places: HashMap<ComponentId, (WorkflowId, usize)>,
    requests: Requests,
    /// When to look at a workflow again.
    timers: BTreeSet<(Millis, WorkflowId)>,
    started: u64,
    refused: u64,
    /// Numbers the writes.
    writes: u64,
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
            Event::Migrate { ticket, workflow, domain, component } => {
                self.migrate(now, ticket, workflow, domain, component.as_deref());
            }
            Event::Limit { ticket, part, changes } => {
                let run = self.runs.get_mut(&part.workflow).ok_or_else(|| unknown(part.workflow));
                match run.and_then(|run| run.limit(ticket, part, &changes)) {
                    Ok(()) => self.advance(now, part.workflow, Touched::One(part.place)),
                    Err(error) => self.reply(ticket, Err(error)),
                }
            }
            Event::Register { ticket, registration } => self.register(now, ticket, registration),
            Event::DomainUp(state) => {
                let (domain, seen) = self.domains.watched(now, state);
                self.seen(now, &domain, seen);
            }
            Event::DomainLost { domain, reason } => {
                if self.domains.lost(now, &domain, reason) {
                    self.lost(now, &domain);
                }
            }
            Event::Planned { workflow, ask, result } => self.planned(now, workflow, ask, result),
            Event::Created { part, result } => self.component(now, part, |run, domains| {
                let Some(domain) = run.domain_of_part(part) else { return };
                let (native, signs) = (domains.speaks_ours(domain), domains.signs(domain));
                if result.as_ref().err().is_none_or(|error| !error.code.is_refusal()) {
                    run.may_have_started(part, signs);
                }
                run.created(now, part, result, native);
            }),
            Event::Patched { part, result } => self.component(now, part, |run, _| run.patched(now, part, result)),
            Event::Stopped { part, result } => self.component(now, part, |run, _| run.stopped(now, part, result)),
            Event::Released { part, result } => self.component(now, part, |run, _| run.released(now, part, result)),
            Event::Activated { workflow, site, round, result } => {
                if let Some(run) = self.runs.get_mut(&workflow) {
                    run.activated(now, site, round, result);
                    self.advance(now, workflow, Touched::All);
                }
            }
            Event::Rows { domain, rows } => self.rows(now, &domain, rows),
            Event::Nodes { domain, result } => self.learnt(now, &domain, result),
            Event::Probed { domain, pulse } => self.probed(now, &domain, pulse),
            Event::Persisted { workflow, op, result } => self.persisted(now, workflow, op, result),
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
            grace: settings.domain_grace,
            domains: Domains::new(settings.orchestrators, settings.max_domains),
            searches: HashMap::new(),
            runs: BTreeMap::new(),
            places: HashMap::new(),
            requests: Requests::default(),
            timers: BTreeSet::new(),
            started: 0,
            refused: 0,
            writes: 0,
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
        let components = self.run(id)?.parts();
        let domains: BTreeSet<&DomainId> = components.iter().map(|component| &component.domain).collect();
        let peers = domains.into_iter().map(|domain| (domain.clone(), self.peer(domain))).collect();
        Ok(WorkflowView { peers, components })
    }

    /// One component, for whoever wants to ask its domain about it.
    ///
    /// # Errors
    /// There is no such component.
    pub fn part(&self, id: ComponentId) -> Result<PartView, Error> {
        // One of an EDGELESS 1.2 domain is known by an id that the domain has given it.
        let indexed = self.places.get(&id).and_then(|(workflow, _)| self.run(*workflow).ok()?.part(id));
        let part = indexed.or_else(|| self.running().find_map(|(_, run)| run.part(id)));
        let found = part.and_then(|part| Some((part, self.run(part.workflow).ok()?.home(part.place)?)));
        let (part, domain) = found.ok_or_else(|| {
            Error::not_found(format!(
                "there is no component {id} in a workflow that runs; `edgeless_cli workflow inspect all` shows them"
            ))
        })?;
        Ok(PartView { part, domain: domain.clone(), peer: self.peer(domain) })
    }

    /// The domain of a node, as far as it was learnt.
    pub fn domain_of(&self, node: NodeId) -> Option<DomainId> {
        self.domains.domain_of(node).cloned()
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
                if let Some(search) = self.searches.get_mut(&id).filter(|search| search.is_new_workflow()) {
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
        self.runs.iter().filter(|(_, run)| run.is_in(domain)).map(|(id, _)| *id).collect()
    }

    /// A domain gave a sign of life.
    fn seen(&mut self, now: Millis, domain: &DomainId, seen: Seen) {
        if seen == Seen::Still {
            return;
        }
        let (origin, signs) = (self.domains.origin(domain), self.domains.signs(domain));
        for id in self.runs_in(domain) {
            if let Some(run) = self.runs.get_mut(&id) {
                run.seen(domain, &origin, seen == Seen::Fresh, signs);
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
                && run.lives_in(domain)
            {
                run.give_up(now, Error::unavailable(format!("the start was given up: {domain} {reason}")));
            }
            self.advance(now, id, Touched::All);
        }
    }

    /// Domains say where components run.
    fn rows(&mut self, now: Millis, domain: &DomainId, rows: Vec<Row>) {
        let mut touched = BTreeSet::new();
        for row in rows {
            let Some((workflow, place)) = self.places.get(&row.component).copied() else { continue };
            if self.runs.get_mut(&workflow).is_some_and(|run| run.heard(place, domain, row)) {
                touched.insert(workflow);
            }
        }
        for workflow in touched {
            self.advance(now, workflow, Touched::All);
        }
    }

    /// An effect of a component has ended.
    fn component(&mut self, now: Millis, part: Part, note: impl FnOnce(&mut Run, &Domains)) {
        let Some(run) = self.runs.get_mut(&part.workflow) else { return };
        run.kept.has_changed |= run.is_changing();
        note(run, &self.domains);
        // A sender that has been told where a component is may be what the end of another place waits for.
        let touched = if run.is_changing() { Touched::All } else { Touched::One(part.place) };
        self.advance(now, part.workflow, touched);
    }

    /// Derives what is to be done for a workflow, and answers those who wait for it.
    fn advance(&mut self, now: Millis, id: WorkflowId, touched: Touched) {
        if !self.may_advance(now, id) {
            return;
        }
        let Some(run) = self.runs.get_mut(&id) else { return };
        let (was_changing, others) = (run.is_changing(), std::mem::take(&mut self.effects));
        let again = run.advance(now, &self.domains, touched, &mut self.effects);
        if let Some(deadline) = again.into_iter().chain(run.answer_by()).min() {
            self.timers.insert((deadline, id));
        }
        for (ticket, reply) in std::mem::take(&mut run.answers) {
            self.effects.push(Effect::Reply { ticket, reply });
        }
        for domain in run.exporting() {
            self.effects.extend(self.domains.follow(domain).map(Effect::Follow));
        }
        if run.is_starting() && run.is_settled() {
            run.runs();
        }
        if run.running().is_some() {
            let (askers, status) = (run.started(), run.status());
            for ticket in askers {
                self.reply(ticket, Ok(Answer::Started(status.clone())));
            }
        } else if let Some(farewell) = run.farewell(now, &self.domains) {
            let request = run.request();
            self.say(farewell, request);
        }
        let derived = std::mem::replace(&mut self.effects, others);
        self.keep(id, was_changing, derived);
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
        let in_use = || runs.values().flat_map(Run::domains_in_use).collect();
        for domain in self.domains.forget(in_use) {
            for run in self.runs.values_mut() {
                run.forgotten(&domain);
            }
            self.effects.push(Effect::Forget(domain));
        }
        self.learn_nodes(now);
        self.look_after_losses(now);
        while let Some((deadline, id)) = self.timers.first().copied()
            && deadline <= now
        {
            self.timers.remove(&(deadline, id));
            self.advance(now, id, Touched::All);
        }
    }
}
