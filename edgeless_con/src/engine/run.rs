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

use std::time::Duration;

use edgeless_api::component::{Annotations, ComponentSpec, VOLUME};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, DomainId, WorkflowId};
use edgeless_api::relocate;
use edgeless_api::workflow::{Mapping, Workflow, WorkflowStatus};
use edgeless_daemon::engine::{Millis, Ticket};
use uuid::Uuid;

use super::component::{Component, items};
use super::domains::Domains;
use super::former::Former;
use super::keep::Kept;
use super::moves::{Leftover, Move};
use super::place::Step;
use super::site::{Site, Stage};
use super::{Answer, ComponentView, Part, Reply};

/// How often a step of a start is tried before the start is undone.
pub(super) const ATTEMPTS: u32 = 3;
/// How long whoever waits for the end of a stop is kept waiting; it goes on without them.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The time between a failure and the next attempt.
pub(super) fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_PAUSE)
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

/// Which components an event touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    All,
    One(usize),
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

    /// Something moves, or has left something behind.
    pub(super) fn is_changing(&self) -> bool {
        self.change.is_some() || !self.leftovers.is_empty()
    }

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
