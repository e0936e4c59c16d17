//! Keeps workflows on the disk: what is not durable is neither acknowledged nor acted upon.
//!
//! ```text
//!  event -> Run::advance -> effects ------------------------------------------------------> out
//!                            \ (the record has changed) held, Persist -> Persisted: kept -> out, advance again
//!                                                                                  (not)    -> they have failed
//! ```
//! While a record is being written nothing more is derived for its workflow, so that one write is under way for each
//! at most. A record says no more than what must outlive the process: all steps of a start are one record, and so
//! are all of a stop. What cannot be written is tried again; who waits is told the reason.

use bytes::Bytes;
use edgeless_api::Url;
use edgeless_api::binary::{Binary, Digest};
use edgeless_api::component::{StatePolicy, StateSpec};
use edgeless_api::error::Error;
use edgeless_api::id::{DomainId, WorkflowId};
use edgeless_api::record;
use edgeless_daemon::engine::Millis;

use super::component::{self, Component};
use super::moves::{Leftover, Move};
use super::place::{Place, Step};
use super::run::{PATIENCE, Phase, Run, Slot, Touched, pause};
use super::{Answer, Effect, Engine, Settings};

/// The longest time before a write is tried again: somebody may wait for the answer.
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// What a workflow relies on of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Of the process that was given what is there.
    pub(super) nonce: u64,
    pub(super) native: bool,
    pub(super) url: Url,
}

/// What the disk has of a workflow.
#[derive(Debug)]
pub(super) struct Kept {
    stored: Option<Stored>,
    writing: Option<Writing>,
    failures: u32,
    retry_at: Millis,
    /// The record may be another one since it was last looked at.
    pub(super) has_changed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    digest: Digest,
    phase: record::Phase,
}

/// A write that is under way.
#[derive(Debug)]
struct Writing {
    op: u64,
    /// What the disk has then; `None`: nothing.
    outcome: Option<Stored>,
    /// What was derived with it.
    held: Vec<Effect>,
}

impl Kept {
    pub(super) fn nothing() -> Self {
        Self { stored: None, writing: None, failures: 0, retry_at: Millis(0), has_changed: true }
    }

    /// A restart of the controller would let it run on.
    pub(super) fn is_running(&self) -> bool {
        self.stored.is_some_and(|stored| stored.phase == record::Phase::Running)
    }

    fn failed(&mut self, now: Millis) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + pause(self.failures).min(LONGEST_PAUSE);
    }
}

impl Run {
    /// What must outlive the process.
    fn record(&self) -> record::Workflow {
        let phase = match &self.phase {
            Phase::Running => record::Phase::Running,
            // A start that is being undone need not be known as such: a restart would undo it, too.
            Phase::Starting | Phase::Stopping { cause: Some(_), .. } => record::Phase::Starting,
            Phase::Stopping { cause: None, .. } => record::Phase::Stopping,
        };
        let mut domains = Vec::new();
        let mut indices = vec![None; self.sites.len()];
        let mut domain = |site: usize| {
            let (Some(own), Some(index)) = (self.sites.get(site), indices.get_mut(site)) else { return 0 };
            *index.get_or_insert_with(|| {
                let Origin { nonce, native, url } = own.origin.clone();
                domains.push(record::Domain { id: own.domain.clone(), nonce, native, url });
                domains.len() - 1
            })
        };
        let mut components = Vec::with_capacity(self.components.len());
        for own in &self.components {
            let place = self.place_record(own, &own.place, Slot::Here, domain(own.place.site));
            let next = own.next.as_ref().map(|next| self.place_record(own, next, Slot::Next, domain(next.site)));
            components.push(record::Component {
                id: own.id,
                name: own.name.clone(),
                state: own.state.map(|state| state.id),
                last_epoch: own.last_epoch,
                place,
                next,
                parked: own.is_parked,
            });
        }
        let mut leftovers = Vec::with_capacity(self.leftovers.len());
        for (index, left) in self.leftovers.iter().enumerate() {
            let Some(own) = self.components.get(left.component) else { continue };
            let place = self.place_record(own, &left.place, Slot::Left(index), domain(left.place.site));
            leftovers.push(record::Leftover { component: left.component, place, drains: left.drains });
        }
        let asked = self.workflow.clone().filter(|_| phase != record::Phase::Stopping);
        record::Workflow { id: self.id, asked, request: self.request(), phase, domains, components, leftovers }
    }

    fn place_record(&self, component: &Component, own: &Place, slot: Slot, domain: usize) -> record::Place {
        let native = self.sites.get(own.site).is_some_and(|site| site.origin.native);
        // Whoever hands over has done so, or is about to.
        let may_be_released = own.may_be_gone || component.is_parked;
        let step = match own.step {
            _ if !matches!(self.phase, Phase::Running) => record::Step::MayBeThere,
            Step::Active if !may_be_released && slot == Slot::Here => record::Step::There,
            Step::Released => record::Step::Released,
            // Our orchestrators can be asked for it again; of others it must be known whether they were.
            Step::Absent if !native && own.busy.is_none() => record::Step::Absent,
            _ => record::Step::MayBeThere,
        };
        record::Place {
            domain,
            epoch: own.epoch,
            known_as: (own.known_as != component.id).then_some(own.known_as),
            step,
            uncounted: own.uncounted,
            state: own.state.clone(),
        }
    }

    /// The workflow that a record is of, as a restart of the controller finds it.
    ///
    /// # Errors
    /// The record contradicts itself.
    fn restored(record: record::Workflow, stored: Digest) -> Result<Self, Error> {
        let kept = Kept { stored: Some(Stored { digest: stored, phase: record.phase }), ..Kept::nothing() };
        let mut ids = record.components.iter().flat_map(|own| own.state.map(|id| id.0).into_iter().chain([own.id.0]));
        let components = match &record.asked {
            Some(asked) => component::components(asked, || ids.next().unwrap_or_default())?,
            None => record.components.iter().map(stopped).collect(),
        };
        let is_same = |(one, other): (&Component, &record::Component)| one.id == other.id && one.name == other.name;
        if components.len() != record.components.len() || !components.iter().zip(&record.components).all(is_same) {
            return Err(Error::rejected("its components are not those of the workflow"));
        }
        let stopping = |cause| Phase::Stopping { cause, answer_by: Millis(0) + PATIENCE, answered: false };
        let phase = match record.phase {
            record::Phase::Running => Phase::Running,
            record::Phase::Starting => stopping(Some(Error::unavailable(
                "the controller was restarted before the workflow had started: start it again",
            ))),
            record::Phase::Stopping => stopping(None),
        };
        let mut run = Self::bare(record.id, record.asked, components, record.request, phase);
        run.kept = kept;
        for domain in &record.domains {
            let origin = Origin { nonce: domain.nonce, native: domain.native, url: domain.url.clone() };
            run.site(&domain.id, || origin);
        }
        let mut moving = Vec::new();
        for (place, own) in record.components.into_iter().enumerate() {
            let Some(component) = run.components.get_mut(place) else { continue };
            component.last_epoch = own.last_epoch;
            component.is_parked = own.parked;
            component.place = restored_place(component, own.place);
            if let Some(next) = own.next {
                component.next = Some(restored_place(component, next));
                moving.push(place);
            }
            let (site, step) = (component.place.site, component.place.step);
            run.tally(site, step, 1);
        }
        for left in record.leftovers {
            let Some(component) = run.components.get(left.component) else { continue };
            let place = restored_place(component, left.place);
            run.leftovers.push(Leftover::restored(left.component, place, left.drains));
        }
        if !moving.is_empty() {
            run.change = Some(Move::restored(moving));
            run.cancel(Millis(0), Error::unavailable("the controller was restarted"));
        }
        run.doubt_outputs();
        Ok(run)
    }

    /// Marks those that may not have been told yet what became of others.
    fn doubt_outputs(&mut self) {
        let is_as_it_began = self.sites.len() == 1 && self.components.iter().all(|own| own.last_epoch == 1);
        for place in 0..self.components.len() {
            let Some(site) = self.components.get(place).map(|own| own.place.site) else { continue };
            let is_exported = self.is_exported(place, site);
            if let Some(own) = self.components.get_mut(place).map(|own| &mut own.place).filter(|own| own.is_wired()) {
                own.is_exported = is_exported;
                own.is_stale = !is_as_it_began;
            }
        }
    }

    /// A domain gave a sign of life that may mean something.
    pub(super) fn seen(&mut self, domain: &DomainId, origin: &Origin, fresh: bool, signs: u64) {
        let Some(site) = self.sites.iter_mut().find(|site| site.domain == *domain) else { return };
        let before = std::mem::replace(&mut site.origin, origin.clone());
        self.kept.has_changed |= before != *origin;
        if fresh || before.nonce != origin.nonce {
            self.lost_everything(domain, signs);
        }
    }

    /// An effect was not carried out, because what it relied on could not be written.
    fn undone(&mut self, now: Millis, effect: Effect, native: bool, error: &Error) {
        // Not the domain has refused it, whatever the disk says.
        let error = Error::unavailable(&error.message);
        match effect {
            // It is certain that it is not there.
            Effect::Create { part, .. } => self.created(now, part, Err(Error::exhausted(error)), native),
            Effect::Patch { part, .. } => self.patched(now, part, Err(error)),
            Effect::Activate { site, round, .. } => self.activated(now, site, round, Err(error)),
            Effect::Stop { part, .. } => self.stopped(now, part, Err(error)),
            Effect::Release { part, .. } => self.released(now, part, Err(error)),
            _ => {}
        }
    }
}

/// A component of which no more is to be known than how to stop it.
fn stopped(own: &record::Component) -> Component {
    let state = own.state.map(|id| StateSpec { id, policy: StatePolicy::Transient });
    Component::new(own.id, &own.name, state, Vec::new())
}

fn restored_place(component: &Component, own: record::Place) -> Place {
    let step = match own.step {
        record::Step::There => Step::Active,
        record::Step::Released => Step::Released,
        record::Step::Absent => Step::Absent,
        // It was there if the domain has given it an id.
        record::Step::MayBeThere if own.known_as.is_some() => Step::Created,
        record::Step::MayBeThere => Step::Unsure,
    };
    let known_as = own.known_as.unwrap_or(component.id);
    let restored = Place::new(own.domain, own.epoch, known_as);
    Place { step, uncounted: own.uncounted, state: own.state, ..restored }
}

/// The code that a workflow is made of.
fn code(run: &Run, record: &record::Workflow) -> Vec<Binary> {
    let functions = run.workflow.as_ref().filter(|_| record.asked.is_some()).map(|asked| asked.functions());
    let binaries = functions.unwrap_or_default().iter().map(|function| &function.class.binary);
    binaries.filter(|binary| !binary.is_empty()).cloned().collect()
}

impl Engine {
    /// An engine with the workflows of which there are records.
    ///
    /// What ran runs on, and needs nothing. What was being started is undone, what was being stopped goes on, and
    /// what was being moved stays where it was, all once its domains are in reach.
    ///
    /// # Errors
    /// A record contradicts itself.
    pub fn restore(settings: Settings, seed: u64, records: Vec<record::Workflow>) -> Result<Self, Error> {
        let mut engine = Self::new(settings, seed);
        for record in records {
            let id = record.id;
            for domain in &record.domains {
                engine.domains.restore(domain);
            }
            match record.request {
                Some(request) if record.phase == record::Phase::Starting => engine.requests.pending(request, id),
                Some(request) => engine.requests.finished(request, Ok(id)),
                None => {}
            }
            let stored = Digest::of(&record.encode());
            let run = Run::restored(record, stored).map_err(|error| error.context(format!("the workflow {id}")))?;
            let places = run.components.iter().enumerate();
            engine.places.extend(places.map(|(place, component)| (component.id, (id, place))));
            engine.runs.insert(id, run);
        }
        Ok(engine)
    }

    /// Whether something may be derived for a workflow; if not, it is looked at again when it may.
    pub(super) fn may_advance(&mut self, now: Millis, id: WorkflowId) -> bool {
        let Some(kept) = self.runs.get(&id).map(|run| &run.kept) else { return false };
        if kept.writing.is_some() {
            return false;
        }
        if kept.failures > 0 && now < kept.retry_at {
            self.timers.insert((kept.retry_at, id));
            return false;
        }
        true
    }

    /// Lets effects out, or has the record written on which they rely first.
    pub(super) fn keep(&mut self, id: WorkflowId, was_changing: bool, derived: Vec<Effect>) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let has_changed = std::mem::take(&mut run.kept.has_changed) || was_changing || run.is_changing();
        let mut code_of_it = Vec::new();
        // Tests look at every record, so that no change goes unnoticed.
        let write: Option<(Option<Bytes>, Option<Stored>)> = if run.is_gone() {
            Some((None, None))
        } else if has_changed || cfg!(test) {
            let record = run.record();
            let bytes = record.encode();
            let outcome = Stored { digest: Digest::of(&bytes), phase: record.phase };
            let is_new = run.kept.stored != Some(outcome);
            debug_assert!(has_changed || !is_new, "a change went unnoticed: {record:?}");
            code_of_it = code(run, &record);
            is_new.then_some((Some(bytes), Some(outcome)))
        } else {
            None
        };
        let Some((record, outcome)) = write else { return self.effects.extend(derived) };
        // To look is to change nothing.
        let (looks, held): (Vec<_>, Vec<_>) =
            derived.into_iter().partition(|effect| matches!(effect, Effect::Follow(_)));
        self.effects.extend(looks);
        self.writes += 1;
        let op = self.writes;
        run.kept.writing = Some(Writing { op, outcome, held });
        self.effects.push(Effect::Persist { workflow: id, op, record, code: code_of_it });
    }

    /// Takes note of whether a record was written.
    pub(super) fn persisted(&mut self, now: Millis, id: WorkflowId, op: u64, result: Result<(), Error>) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let Some(Writing { outcome, held, .. }) = run.kept.writing.take_if(|writing| writing.op == op) else { return };
        if let Err(error) = result {
            return self.not_persisted(now, id, held, &error);
        }
        if run.kept.failures > 0 {
            tracing::info!(workflow = %id, "what becomes of the workflow can be written again");
        }
        run.kept.failures = 0;
        self.effects.extend(held);
        if outcome.is_none() {
            return self.remove(id);
        }
        let was_running = run.kept.is_running();
        run.kept.stored = outcome;
        if run.kept.is_running() && !was_running {
            run.log_started();
            self.started += 1;
            if let Some(request) = run.request() {
                self.requests.finished(request, Ok(id));
            }
        }
        self.advance(now, id, Touched::All);
    }

    fn remove(&mut self, id: WorkflowId) {
        let Some(run) = self.runs.remove(&id) else { return };
        for component in &run.components {
            self.places.remove(&component.id);
        }
    }

    /// A record was not written: nothing of what relied on it has happened.
    fn not_persisted(&mut self, now: Millis, id: WorkflowId, held: Vec<Effect>, error: &Error) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if run.kept.stored.is_none() {
            // Nothing of it is anywhere.
            let (starters, stoppers, request) = run.abandoned();
            self.remove(id);
            self.refuse(id, &super::search::Goal::Start { request }, starters, error.clone());
            for ticket in stoppers {
                self.reply(ticket, Ok(Answer::Stopped));
            }
            return;
        }
        run.kept.failed(now);
        if run.kept.failures == 1 {
            tracing::error!(workflow = %id, reason = %error, "what becomes of a workflow cannot be written: trying again");
        }
        self.timers.insert((run.kept.retry_at, id));
        run.kept.has_changed = true;
        let mut replies = run.not_written(now, error);
        for effect in held {
            match effect {
                Effect::Reply { ticket, reply } => replies.push((ticket, reply)),
                effect => {
                    let native = matches!(&effect, Effect::Create { native: true, .. });
                    run.undone(now, effect, native, error);
                }
            }
        }
        for (ticket, reply) in replies {
            self.reply(ticket, reply.and(Err(error.clone())));
        }
    }
}
