//! Looks for domains that take components: one for all of them or, failing that, several.
//!
//! ```text
//!  candidates -> Plan of the whole, one domain after the other -> taken
//!             (none) -> cut -> Plan of each part -> taken
//!                        ^        (refused) -> Plan of its halves, down to the component that is refused
//!                        +----------------------------+
//! ```
//! A domain that refuses a part says why in words for people, so that the component that it does not take is found
//! by asking: the next cut puts that one elsewhere. If it takes every component but not all of them together, the
//! next cut gives it fewer. Domains that speak only EDGELESS 1.2 take workflows as a whole only: nobody could
//! tell them where components of other domains run.

use std::collections::{BTreeMap, BTreeSet};

use edgeless_api::component::{ComponentSpec, StatePolicy};
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{DomainId, NodeId, WorkflowId};
use edgeless_api::requirements::Requirements;
use edgeless_api::status::Placement;
use edgeless_api::workflow::Workflow;
use edgeless_daemon::engine::{Millis, Ticket};
use rand::RngExt;
use rand::seq::SliceRandom;
use uuid::Uuid;

use super::component::{self, Component};
use super::domains::Reach;
use super::run::{Run, Touched};
use super::{Answer, Effect, Engine, random_uuid};
use crate::cut;
use crate::placement::{self, Miss, Needs};

/// How often a workflow is cut anew.
const ROUNDS: u32 = 24;
/// The most questions to domains for one workflow, once no domain takes it as a whole.
const QUESTIONS: u64 = 512;

/// What a search is for.
#[derive(Debug)]
pub(super) enum Goal {
    Start {
        request: Option<Uuid>,
    },
    Plan,
    /// A user wants components to be in a domain.
    Migrate {
        to: DomainId,
    },
    /// Components were lost with their domain.
    Relocate,
}

/// Components for which domains are sought.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) goal: Goal,
    pub(super) askers: Vec<Ticket>,
    /// What is to be started; `None`: it runs.
    draft: Option<(Workflow, Vec<Component>)>,
    /// Their names and specifications.
    items: Vec<(String, ComponentSpec)>,
    /// Which of the components of the workflow they are.
    places: Vec<usize>,
    edges: Vec<(usize, usize)>,
    /// Those that stay where they are: the numbers follow those of the components that are placed.
    fixed: Vec<DomainId>,
    misses: Vec<(DomainId, Miss)>,
    /// The domains that would be candidates if they spoke more than EDGELESS 1.2.
    too_old: BTreeSet<DomainId>,
    /// Numbers the questions.
    asked: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Whole {
        /// The domain that is asked.
        asking: DomainId,
        /// Those that may be asked yet, the next one last.
        rest: Vec<DomainId>,
    },
    Parts(Parts),
}

/// How a division among several domains goes.
#[derive(Debug, Default)]
struct Parts {
    domains: Vec<DomainId>,
    /// For each component, whether each domain may take it.
    allowed: Vec<Vec<bool>>,
    /// The most components that each domain takes.
    most: Vec<usize>,
    assignment: Vec<usize>,
    /// The questions that are open.
    open: BTreeMap<u64, Question>,
    /// What domains have agreed to.
    agreed: BTreeMap<(usize, Vec<usize>), Vec<Placement>>,
    rounds: u32,
    /// How many components are placed; those that follow are where they stay.
    count: usize,
}

/// Asks a domain for some of the components.
#[derive(Clone, Debug)]
struct Question {
    domain: usize,
    components: Vec<usize>,
    /// The size of the part that is narrowed down by it; `None`: it is the part.
    of: Option<usize>,
}

/// Where all components go, and what their domains said of that.
type Found = (Vec<DomainId>, Vec<Placement>);

impl Search {
    fn new(goal: Goal, askers: Vec<Ticket>, items: Vec<(String, ComponentSpec)>, places: Vec<usize>) -> Self {
        Self {
            goal,
            askers,
            draft: None,
            items,
            places,
            edges: Vec::new(),
            fixed: Vec::new(),
            misses: Vec::new(),
            too_old: BTreeSet::new(),
            asked: 0,
            stage: Stage::Whole { asking: DomainId(String::new()), rest: Vec::new() },
        }
    }

    pub(super) fn is_new_workflow(&self) -> bool {
        matches!(self.goal, Goal::Start { .. } | Goal::Plan)
    }

    fn item(&self, component: usize) -> Option<(String, ComponentSpec)> {
        self.items.get(component).cloned()
    }
}

/// Whether a domain as a whole has what a component needs.
fn fits(spec: &ComponentSpec, domain: &DomainCapabilities) -> bool {
    let offers = match spec {
        ComponentSpec::Function(function) => {
            let is_global = function.state.policy == StatePolicy::Global;
            domain.runtimes.contains(&function.class.function_type) && (!is_global || domain.num_global_state > 0)
        }
        ComponentSpec::Resource(resource) => domain.resource_classes.contains(&resource.class_type),
    };
    let has = |needs: Requirements| {
        needs.labels.iter().all(|label| domain.labels.contains(label))
            && (needs.any_labels.is_empty() || needs.any_labels.iter().any(|label| domain.labels.contains(label)))
            && needs.providers.iter().all(|provider| domain.resource_providers.contains(provider))
            && (!needs.tee || domain.num_tee > 0)
            && (!needs.tpm || domain.num_tpm > 0)
    };
    offers && domain.num_nodes > 0 && Requirements::parse(spec.annotations()).is_ok_and(has)
}

impl Engine {
    /// Looks for domains for a workflow that does not run.
    pub(super) fn search(&mut self, id: WorkflowId, workflow: Workflow, goal: Goal, ticket: Ticket) {
        let count = self.runs.len() + self.searches.values().filter(|search| search.is_new_workflow()).count();
        if count >= self.max_workflows {
            let limit = self.max_workflows;
            let reason = format!(
                "there are {count} workflows, and {limit} are the limit: stop one, or raise 'max_workflows' of the controller"
            );
            return self.refuse(id, &goal, vec![ticket], Error::exhausted(reason));
        }
        let components = match component::components(&workflow, || random_uuid(&mut self.rng)) {
            Ok(components) => components,
            Err(error) => return self.refuse(id, &goal, vec![ticket], error),
        };
        let places: Vec<usize> = (0..components.len()).collect();
        let items = component::items(&workflow, id, &components, &places);
        let mut search = Search::new(goal, vec![ticket], items, places);
        search.edges = component::edges(&components).into_iter().collect();
        let rest = self.candidates(&Needs::of(&workflow), &mut search);
        search.stage = Stage::Whole { asking: DomainId(String::new()), rest };
        search.draft = Some((workflow, components));
        self.ask_next(Millis(0), id, search);
    }

    /// The domains that may take everything, in the order in which they are asked from the last one on.
    fn candidates(&mut self, needs: &Needs, search: &mut Search) -> Vec<DomainId> {
        let mut rest = Vec::new();
        for (domain, capabilities) in self.domains.all() {
            let miss = match capabilities {
                Some(capabilities) => needs.miss(capabilities),
                None => Some(self.domains.miss(domain)),
            };
            match miss {
                Some(miss) => search.misses.push((domain.clone(), miss)),
                None => rest.push(domain.clone()),
            }
        }
        rest.shuffle(&mut self.rng);
        rest
    }

    /// A user wants a workflow, or one component of it, to be in a domain.
    pub(super) fn migrate(
        &mut self,
        now: Millis,
        ticket: Ticket,
        id: WorkflowId,
        to: DomainId,
        component: Option<&str>,
    ) {
        match self.migration(id, &to, component) {
            Ok((places, items)) => {
                let mut search = Search::new(Goal::Migrate { to: to.clone() }, vec![ticket], items, places);
                search.stage = Stage::Whole { asking: to.clone(), rest: vec![to] };
                self.ask_next(now, id, search);
            }
            Err(error) => self.reply(ticket, Err(error)),
        }
    }

    #[expect(clippy::type_complexity, reason = "two lists about the same components")]
    fn migration(
        &self,
        id: WorkflowId,
        to: &DomainId,
        component: Option<&str>,
    ) -> Result<(Vec<usize>, Vec<(String, ComponentSpec)>), Error> {
        let run = self.run(id)?;
        self.peers(Some(to))?;
        if self.searches.contains_key(&id) {
            return Err(Error::unavailable("the workflow is being moved: try again in a moment"));
        }
        let places = run.movable(&self.domains, to, component)?;
        let items = run.items(&places);
        Ok((places, items))
    }

    /// Looks for other domains for components that were lost with theirs.
    pub(super) fn relocate(&mut self, now: Millis, id: WorkflowId, places: Vec<usize>) {
        let Some(run) = self.runs.get(&id) else { return };
        let items = run.items(&places);
        let others = (0..run.components.len()).filter(|place| !places.contains(place));
        let order: Vec<usize> = places.iter().copied().chain(others).collect();
        let number: BTreeMap<usize, usize> = order.iter().enumerate().map(|(number, place)| (*place, number)).collect();
        let edge = |(from, to): (usize, usize)| Some((*number.get(&from)?, *number.get(&to)?));
        let mut search = Search::new(Goal::Relocate, Vec::new(), items, places);
        search.edges = component::edges(&run.components).into_iter().filter_map(edge).collect();
        let fixed = order.iter().skip(search.places.len());
        search.fixed = fixed.filter_map(|place| run.home(*place).cloned()).collect();
        let mut needs = Needs::default();
        for (name, spec) in &search.items {
            needs.add(name, spec);
        }
        let rest = self.candidates(&needs, &mut search);
        if search.fixed.is_empty() {
            search.stage = Stage::Whole { asking: DomainId(String::new()), rest };
            return self.ask_next(now, id, search);
        }
        self.divide(now, id, search);
    }

    /// Asks the next domain that may take everything, or goes on with several.
    fn ask_next(&mut self, now: Millis, id: WorkflowId, mut search: Search) {
        loop {
            let Stage::Whole { asking, rest } = &mut search.stage else { return };
            let Some(domain) = rest.pop() else { break };
            let Some(Reach { peer, .. }) = self.domains.reach(&domain) else {
                let miss = self.domains.miss(&domain);
                search.misses.push((domain, miss));
                continue;
            };
            *asking = domain;
            search.asked += 1;
            let (ask, items) = (search.asked, search.items.clone());
            self.effects.push(Effect::Plan { peer, workflow: id, ask, items });
            self.searches.insert(id, search);
            return;
        }
        match search.goal {
            Goal::Migrate { .. } => self.not_found(now, id, search),
            _ => self.divide(now, id, search),
        }
    }

    /// Takes note of the answer to a question.
    pub(super) fn planned(&mut self, now: Millis, id: WorkflowId, ask: u64, result: Result<Vec<Placement>, Error>) {
        let Some(mut search) = self.searches.remove(&id) else { return };
        let question = match &mut search.stage {
            Stage::Whole { .. } if search.asked == ask => None,
            Stage::Parts(parts) if parts.open.contains_key(&ask) => parts.open.remove(&ask),
            _ => {
                self.searches.insert(id, search);
                return;
            }
        };
        let domain = match (&search.stage, &question) {
            (Stage::Parts(parts), Some(question)) => parts.domains.get(question.domain).cloned(),
            (Stage::Whole { asking, .. }, _) => Some(asking.clone()),
            _ => None,
        };
        let Some(domain) = domain else { return };
        match &result {
            Ok(_) => self.domains.is_native(&domain, true),
            Err(error) if error.code == Code::Unimplemented => self.domains.is_native(&domain, false),
            Err(_) => {}
        }
        match question {
            None => self.planned_whole(now, id, search, domain, result),
            Some(question) => self.planned_part(now, id, search, &question, domain, result),
        }
    }

    fn planned_whole(
        &mut self,
        now: Millis,
        id: WorkflowId,
        mut search: Search,
        domain: DomainId,
        result: Result<Vec<Placement>, Error>,
    ) {
        let placements = match result {
            Ok(placements) => placements,
            // An EDGELESS 1.2 orchestrator cannot be asked; it will say so when it starts components.
            Err(error) if error.code == Code::Unimplemented => {
                search.items.iter().map(|(name, _)| somewhere(&domain, name)).collect()
            }
            Err(error) => {
                search.misses.push((domain, placement::miss(error)));
                return self.ask_next(now, id, search);
            }
        };
        if !matches!(search.goal, Goal::Plan) && self.domains.reach(&domain).is_none() {
            let miss = self.domains.miss(&domain);
            search.misses.push((domain, miss));
            return self.ask_next(now, id, search);
        }
        let homes = vec![domain; search.items.len()];
        self.found(now, id, search, (homes, placements));
    }

    /// Domains were found for all components.
    fn found(&mut self, now: Millis, id: WorkflowId, search: Search, (homes, placements): Found) {
        match (search.goal, search.draft) {
            (Goal::Plan, _) => {
                for ticket in search.askers {
                    self.reply(ticket, Ok(Answer::Planned(placements.clone())));
                }
            }
            (Goal::Start { request }, Some((workflow, components))) => {
                let places = components.iter().enumerate();
                self.places.extend(places.map(|(place, component)| (component.id, (id, place))));
                let run = Run::new(id, workflow, components, &homes, &self.domains, request, search.askers);
                self.runs.insert(id, run);
                self.advance(now, id, Touched::All);
            }
            (goal, _) => {
                let is_relocation = matches!(goal, Goal::Relocate);
                let Some(run) = self.runs.get_mut(&id).filter(|run| run.running().is_some()) else {
                    return self.answer_all(search.askers, &Err(super::unknown(id)));
                };
                if run.change.is_some() {
                    let error = Error::unavailable("the workflow is being moved: try again in a moment");
                    return self.answer_all(search.askers, &Err(error));
                }
                let mut homes: Vec<(usize, DomainId)> = search.places.into_iter().zip(homes).collect();
                // What was lost may have come back meanwhile.
                let is_back = |place: usize| run.home(place).is_some_and(|home| self.domains.reach(home).is_some());
                homes.retain(|(place, _)| !is_relocation || !is_back(*place));
                if !homes.is_empty() {
                    run.begin_move(homes, &self.domains, search.askers, is_relocation);
                }
                self.advance(now, id, Touched::All);
            }
        }
    }

    /// No domains were found.
    fn not_found(&mut self, now: Millis, id: WorkflowId, search: Search) {
        match &search.goal {
            Goal::Migrate { to } => {
                let reason = match search.misses.into_iter().next() {
                    Some((_, Miss::Refused(reason))) => Error::rejected(format!("{to} cannot host it: {reason}")),
                    Some((_, miss)) => Error::unavailable(format!("{to} cannot host it: {}", miss.reason())),
                    None => Error::unavailable(format!("{to} cannot be asked: try again in a moment")),
                };
                self.answer_all(search.askers, &Err(reason));
            }
            Goal::Relocate => {
                let reason = placement::refusal(search.misses);
                if let Some(run) = self.runs.get_mut(&id) {
                    run.no_home(now, &reason);
                }
            }
            Goal::Start { .. } | Goal::Plan => {
                let mut error = placement::refusal(search.misses);
                if !search.too_old.is_empty() {
                    let names: Vec<_> = search.too_old.iter().take(8).map(|domain| domain.0.as_str()).collect();
                    let what = if names.len() == 1 { "speaks" } else { "speak" };
                    error.message.push_str(&format!(
                        "; {} {what} only EDGELESS 1.2 and cannot host a part of a workflow",
                        names.join(", ")
                    ));
                }
                self.refuse(id, &search.goal, search.askers, error);
            }
        }
    }

    fn answer_all(&mut self, askers: Vec<Ticket>, reply: &super::Reply) {
        for ticket in askers {
            self.reply(ticket, reply.clone());
        }
    }

    /// Begins to divide the components among several domains.
    fn divide(&mut self, now: Millis, id: WorkflowId, mut search: Search) {
        let mut parts = Parts::default();
        let mut columns = Vec::new();
        for (domain, capabilities) in self.domains.all() {
            let has_fixed = search.fixed.contains(domain);
            let Some(capabilities) = capabilities else {
                if has_fixed {
                    columns.push((domain.clone(), vec![false; search.items.len()]));
                }
                continue;
            };
            let mut column: Vec<bool> = search.items.iter().map(|(_, spec)| fits(spec, capabilities)).collect();
            if self.domains.is_too_old(domain) {
                if column.contains(&true) {
                    search.too_old.insert(domain.clone());
                }
                column.fill(false);
            }
            if has_fixed || column.contains(&true) {
                columns.push((domain.clone(), column));
            }
        }
        columns.shuffle(&mut self.rng);
        let is_one = columns.len() < 2 && search.fixed.is_empty();
        let count = search.items.len();
        let allowed = |component| columns.iter().map(|(_, column)| column.get(component) == Some(&true)).collect();
        parts.allowed = (0..count).map(allowed).collect();
        let stays = |home: &DomainId| columns.iter().map(|(domain, _)| domain == home).collect();
        parts.allowed.extend(search.fixed.iter().map(stays));
        parts.count = count;
        parts.most = vec![usize::MAX; columns.len()];
        parts.domains = columns.into_iter().map(|(domain, _)| domain).collect();
        search.stage = Stage::Parts(parts);
        if is_one || count == 0 || (count == 1 && search.fixed.is_empty()) {
            return self.not_found(now, id, search);
        }
        self.cut_again(now, id, search);
    }

    /// Cuts once more, with what has been learnt since, and asks for each part.
    fn cut_again(&mut self, now: Millis, id: WorkflowId, mut search: Search) {
        let seed = self.rng.random();
        let Stage::Parts(parts) = &mut search.stage else { return };
        parts.rounds += 1;
        let problem = cut::Problem { edges: &search.edges, allowed: &parts.allowed, most: &parts.most };
        let cut = if parts.rounds > ROUNDS { None } else { cut::cut(&problem, seed) };
        let Some(assignment) = cut else { return self.not_found(now, id, search) };
        parts.assignment = assignment;
        let mut wanted: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (component, domain) in parts.assignment.iter().enumerate().take(parts.count) {
            wanted.entry(*domain).or_default().push(component);
        }
        wanted.retain(|domain, components| !parts.agreed.contains_key(&(*domain, components.clone())));
        for (domain, components) in wanted {
            self.question(id, &mut search, Question { domain, components, of: None });
        }
        self.go_on(now, id, search);
    }

    /// Asks a domain for some components; one that is out of reach takes none.
    fn question(&mut self, id: WorkflowId, search: &mut Search, question: Question) {
        let items = question.components.iter().filter_map(|component| search.item(*component)).collect();
        let Stage::Parts(parts) = &mut search.stage else { return };
        let Some(domain) = parts.domains.get(question.domain).cloned() else { return };
        let Some(Reach { peer, .. }) = self.domains.reach(&domain) else {
            parts.exclude(question.domain, None);
            return;
        };
        search.asked += 1;
        self.effects.push(Effect::Plan { peer, workflow: id, ask: search.asked, items });
        parts.open.insert(search.asked, question);
    }

    fn planned_part(
        &mut self,
        now: Millis,
        id: WorkflowId,
        mut search: Search,
        question: &Question,
        domain: DomainId,
        result: Result<Vec<Placement>, Error>,
    ) {
        let Stage::Parts(parts) = &mut search.stage else { return };
        let (number, components) = (question.domain, &question.components);
        match result {
            Ok(placements) => {
                parts.agreed.insert((number, components.clone()), placements);
                parts.agreed_to_all(question);
            }
            Err(error) if error.code == Code::Unimplemented => {
                parts.exclude(number, None);
                search.too_old.insert(domain);
            }
            Err(error) if !error.code.is_refusal() => parts.exclude(number, None),
            Err(_) if components.len() < 2 => parts.exclude(number, components.first().copied()),
            Err(_) => {
                let size = components.len();
                let (one, other) = components.split_at(size / 2);
                for half in [one, other] {
                    let half = Question { domain: number, components: half.to_vec(), of: Some(size) };
                    self.question(id, &mut search, half);
                }
            }
        }
        self.go_on(now, id, search);
    }

    /// Waits for answers, or sees whether all parts are agreed to.
    fn go_on(&mut self, now: Millis, id: WorkflowId, search: Search) {
        let Stage::Parts(parts) = &search.stage else { return };
        if search.asked > QUESTIONS {
            return self.not_found(now, id, search);
        }
        if !parts.open.is_empty() {
            self.searches.insert(id, search);
            return;
        }
        match parts.found() {
            Some(found) if found.0.iter().all(|domain| self.domains.reach(domain).is_some()) => {
                self.found(now, id, search, found);
            }
            _ => self.cut_again(now, id, search),
        }
    }
}

impl Parts {
    /// A domain takes nothing more, or not this component.
    fn exclude(&mut self, domain: usize, component: Option<usize>) {
        for (index, row) in self.allowed.iter_mut().enumerate().take(self.count) {
            if component.is_none_or(|component| component == index)
                && let Some(allowed) = row.get_mut(domain)
            {
                *allowed = false;
            }
        }
        if component.is_none() {
            // An answer to another question does not change it.
            self.open.retain(|_, question| question.domain != domain);
            self.agreed.retain(|(of, _), _| *of != domain);
        }
    }

    /// A domain takes both halves of what it does not take as a whole: it is given fewer.
    fn agreed_to_all(&mut self, question: &Question) {
        let Some(size) = question.of else { return };
        let part: Vec<usize> = {
            let number = question.domain;
            let all = self.assignment.iter().enumerate();
            all.filter(|(_, domain)| **domain == number).map(|(component, _)| component).collect()
        };
        let is_narrowing = self.open.values().any(|other| other.domain == question.domain);
        let is_excluded = part
            .iter()
            .any(|component| self.allowed.get(*component).and_then(|row| row.get(question.domain)) == Some(&false));
        if !is_narrowing && !is_excluded && size > 1 {
            let fewer = if part.len() > 8 { part.len() * 3 / 4 } else { part.len() - 1 };
            if let Some(most) = self.most.get_mut(question.domain) {
                *most = (*most).min(fewer);
            }
        }
    }

    /// The domains of all components, if each has agreed to its part.
    fn found(&self) -> Option<Found> {
        let count = self.count;
        let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (component, domain) in self.assignment.iter().enumerate().take(count) {
            parts.entry(*domain).or_default().push(component);
        }
        let mut placements: Vec<&[Placement]> = vec![&[]; count];
        for (domain, components) in parts {
            let agreed = self.agreed.get(&(domain, components.clone()))?;
            // A component may have several instances.
            let by_component = agreed.chunk_by(|one, other| one.name == other.name);
            for (component, instances) in components.into_iter().zip(by_component) {
                *placements.get_mut(component)? = instances;
            }
        }
        let homes = self.assignment.iter().take(count).map(|domain| self.domains.get(*domain).cloned());
        Some((homes.collect::<Option<_>>()?, placements.concat()))
    }
}

/// Where a component goes in a domain that says nothing of its nodes.
fn somewhere(domain: &DomainId, name: &str) -> Placement {
    Placement { name: name.to_string(), domain: domain.clone(), node: NodeId::NONE, hostname: String::new() }
}
