//! Delivery at least once: what a component sends is kept until its target has handled it.
//!
//! ```text
//!  handler: state, events -+-> one commit: state, outbox, id of its input -> input settled, reply sent, events sent
//!  source: event ----------+                                                                        |
//!                                         removed with a later commit <- settled as handled <-------+
//!                                         sent again, or put aside    <- anything else      <-------+
//! ```
//! A handler whose input is kept somewhere, or that may send what is to be kept here, changes nothing until it has come to
//! its end: what it saves and sends is written down together with the id of its input, and goes out after that. While
//! that is written, the next events are handled already; should the write fail, all of them are undone, and their senders
//! repeat them. So an event whose handler has come to its end is never handled again, as long as the records survive,
//! and one whose handler has not is.
//!
//! - [`inbox`], [`outbox`]: what is known of the events that come and of those that go.
//! - [`dead`]: what was tried often enough, until a user decides about it.
//! - [`past`]: what the process before has left, and what a component takes along when it moves.

pub mod dead;
pub mod inbox;
pub mod outbox;
pub mod past;
#[cfg(test)]
mod simulation;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::delivery::{Deliveries, Delivery};
use edgeless_api::journal::{OutboxEvent, SavedState};
use edgeless_api::{Error, EventId, InstanceId};
use edgeless_daemon::store::{Change, Table};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};

use crate::books::Ledger;
use crate::event::Cause;
use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;
use crate::outputs::Outputs;
use crate::records::{Chain, Records};
use crate::state::State;
use dead::Dead;
use inbox::{Arrival, Inbox};
use outbox::{Admitted, EVENTS, Outbox, Outgoing, Verdict};
use past::{Letter, Past};

/// Events that are not handled.
pub(crate) const OUTBOX: Table = "outbox";
/// Whose numbers they have.
pub(crate) const NUMBERS: Table = "outbox_numbers";
/// What was handled.
pub(crate) const HANDLED: Table = "handled";
/// Events that were given up.
pub(crate) const DEAD: Table = "dead";

/// Handlers that have come to their end and are not on the disk yet, of one component.
const COMMITS: u32 = 64;
/// Events that are settled and whose records are still there, of one component.
const SETTLED: usize = 64;
/// How long these may stay, if there is nothing else to be written.
const SETTLED_FOR: Duration = Duration::from_millis(200);
/// The payloads that a component takes along when it moves, bytes: it is one message.
const MOVED: usize = 16 << 20;
/// How long what a stopped component has sent may take to be handled.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// What the records of one instance begin with: its id, by which the node's next process goes on with it.
pub(crate) type Key = [u8; 16];

pub(crate) fn numbered(key: &Key, number: u64) -> Bytes {
    [key.as_slice(), &number.to_be_bytes()].concat().into()
}

/// What is kept of the events of one component.
#[derive(Debug)]
pub struct Custody {
    key: Key,
    records: Records,
    deliveries: Deliveries,
    /// How often a target may refuse an event.
    tries: u32,
    inbox: Mutex<Inbox>,
    outbox: Mutex<Outbox>,
    dead: Mutex<Dead>,
    /// Held while dead letters are sent again or dropped: by one user at a time.
    burial: AsyncMutex<()>,
    /// There is room in the outbox, or it is empty.
    room: Notify,
    /// What the handler in hand has done, if it counts only at its end.
    stage: Mutex<Option<Stage>>,
    /// Held while a commit is made: they are written in the order in which they are made.
    order: AsyncMutex<Chain>,
    commits: Arc<Semaphore>,
    queue: Mutex<Queue>,
    lanes: Mutex<HashMap<String, Lane>>,
    /// Why a commit failed, until its component begins anew.
    failure: watch::Sender<Option<String>>,
    is_flushing: AtomicBool,
    /// One handler at a time is in hand, and what it does counts at its end.
    is_single: AtomicBool,
    /// Nothing is sent any more.
    is_closed: AtomicBool,
}

/// Who sends an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The handler in hand, if one is.
    Handler,
    /// Something that goes on beside handlers: a timer, or what was held back.
    Elsewhere,
}

/// What one handler has done.
#[derive(Debug, Default)]
struct Stage {
    state: Option<Bytes>,
    events: Vec<OutboxEvent>,
    bytes: usize,
    is_too_much: bool,
}

/// Commits that are not on the disk yet, oldest first.
#[derive(Default)]
struct Queue {
    commits: VecDeque<Commit>,
    is_served: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("commits", &self.commits.len()).finish_non_exhaustive()
    }
}

/// What is done once a commit is on the disk, or could not be written.
pub type End = Box<dyn FnOnce(Result<(), Error>) + Send>;

struct Commit {
    written: BoxFuture<'static, Result<(), Error>>,
    handled: Option<EventId>,
    admitted: Admitted,
    state: Option<(State, SavedState)>,
    end: End,
    _permit: OwnedSemaphorePermit,
}

/// Events on one output that are to be sent, in order.
#[derive(Debug, Default)]
struct Lane {
    numbers: VecDeque<u64>,
    is_served: bool,
}

/// The duty to say what became of an event that is kept. Dropped, it says that it did not arrive.
#[derive(Debug)]
pub struct Receipt {
    outputs: Outputs,
    number: u64,
    is_settled: bool,
}

impl Ticket for Receipt {
    fn settle(mut self, fate: Fate) {
        self.is_settled = true;
        self.outputs.settled(self.number, fate);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.is_settled {
            self.outputs.settled(self.number, Fate::Dropped(Dropped::SenderGone));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Custody {
    /// Keeps the events of an instance among these records, as its annotations say, and goes on from its past.
    pub fn new(
        id: InstanceId,
        records: Records,
        deliveries: Deliveries,
        tries: u32,
        past: Past,
        ledger: &Ledger,
    ) -> Self {
        let books = |output: &str| ledger.of(output).open();
        Self {
            key: *id.function.as_bytes(),
            records,
            deliveries,
            tries,
            inbox: Mutex::new(Inbox::new(past.handled)),
            outbox: Mutex::new(Outbox::new(past.numbers, past.events, books)),
            dead: Mutex::new(Dead::new(past.dead.into_iter().map(|(number, letter)| (number, letter.known())))),
            burial: AsyncMutex::default(),
            room: Notify::new(),
            stage: Mutex::default(),
            order: AsyncMutex::default(),
            commits: Arc::new(Semaphore::new(COMMITS as usize)),
            queue: Mutex::default(),
            lanes: Mutex::default(),
            failure: watch::Sender::new(None),
            is_flushing: AtomicBool::new(false),
            is_single: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
        }
    }

    /// One handler at a time is in hand from here on.
    pub fn set_single(&self) {
        self.is_single.store(true, Ordering::Release);
    }

    fn is_single(&self) -> bool {
        self.is_single.load(Ordering::Acquire)
    }

    /// Whether the events on an output are kept.
    pub fn keeps(&self, output: &str) -> bool {
        self.deliveries.of(output) == Delivery::AtLeastOnce
    }

    /// Adds an event to what the handler in hand has done; gives it back if no such handler is in hand.
    fn stage(&self, event: OutboxEvent, most: usize) -> Result<Result<(), Dropped>, Box<OutboxEvent>> {
        let mut stage = lock(&self.stage);
        let Some(stage) = stage.as_mut() else { return Err(Box::new(event)) };
        let is_small_enough = stage.events.is_empty() || stage.bytes.saturating_add(event.payload.len()) <= most;
        if stage.events.len() >= EVENTS || !is_small_enough {
            stage.is_too_much = true;
            return Ok(Err(Dropped::OutboxFull));
        }
        stage.bytes += event.payload.len();
        stage.events.push(event);
        Ok(Ok(()))
    }

    /// Adds a state to what the handler in hand has done; gives it back if no such handler is in hand.
    pub(crate) fn stage_state(&self, state: Bytes) -> Option<Bytes> {
        match lock(&self.stage).as_mut() {
            Some(stage) => {
                stage.state = Some(state);
                None
            }
            None => Some(state),
        }
    }

    /// Whether a handler is in hand whose doings count at its end.
    pub(crate) fn is_staging(&self) -> bool {
        lock(&self.stage).is_some()
    }

    /// Resolves when something that the component did could not be written down, with the reason.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        match failed {
            Some(reason) => reason,
            // The sender lives as long as this.
            None => std::future::pending().await,
        }
    }

    /// Waits until all that was done is on the disk, or is undone. The component begins anew from there.
    /// Whether something was undone.
    pub async fn begin_anew(&self) -> bool {
        let _all = self.all_commits().await;
        *self.order.lock().await = Chain::default();
        self.failure.send_replace(None).is_some()
    }

    /// Returns when all that was done is on the disk, or is undone. Nothing is done while what it returns is held.
    async fn all_commits(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes it.
        self.commits.acquire_many(COMMITS).await.ok()
    }

    /// From here on nothing is sent, and nothing is taken in.
    async fn close(&self) {
        let _all = self.all_commits().await;
        self.is_closed.store(true, Ordering::Release);
    }

    /// Whether there is room for what the handler of such an event may send, or is in time.
    pub async fn is_open(&self, id: Option<&EventId>, most: usize, wait: Duration) -> bool {
        if !self.deliveries.is_any_sure() {
            return true;
        }
        let times = match id {
            None => 1,
            // Those who send each other events must not wait for each other.
            Some(id) if id.outbox != self.outbox_id() => 2,
            // Its own events make the room that they need.
            Some(_) => 3,
        };
        self.has_room(most, times, wait).await
    }

    async fn has_room(&self, most: usize, times: usize, wait: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let room = self.room.notified();
            if lock(&self.outbox).has_room(most, times) {
                return true;
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return false;
            }
        }
    }
}

/// What a handler does, from the arrival of its event to its end. Given up in the middle, it has done nothing.
#[derive(Debug)]
pub struct Transaction {
    outputs: Outputs,
    id: Option<EventId>,
    is_over: bool,
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.is_over
            && let Some(custody) = self.outputs.custody()
        {
            lock(&custody.stage).take();
            if let Some(id) = &self.id {
                lock(&custody.inbox).give_up(id);
            }
        }
    }
}

impl Transaction {
    /// Whether it sent more than may be kept.
    pub fn is_too_much(&self) -> bool {
        let is_too_much = |stage: &Option<Stage>| stage.as_ref().is_some_and(|stage| stage.is_too_much);
        self.outputs.custody().is_some_and(|custody| is_too_much(&lock(&custody.stage)))
    }

    /// The handler has come to its end. Returns when what it did is about to be written down; `end` follows when it is.
    pub async fn commit(mut self, state: &State, end: End) {
        self.is_over = true;
        let Some(custody) = self.outputs.custody() else { return end(Ok(())) };
        let stage = lock(&custody.stage).take().unwrap_or_default();
        let saved = stage.state.map(|bytes| (state.clone(), bytes));
        let events = stage.events.into_iter().map(|event| self.outputs.outgoing(event)).collect();
        self.outputs.commit(Vec::new(), saved, events, self.id, end).await;
    }
}

impl Outputs {
    /// A handler begins, for an event with this id if it has one. `None`: nothing that it does is kept.
    ///
    /// # Errors
    /// The event was here before.
    pub fn begin(&self, id: Option<&EventId>) -> Result<Option<Transaction>, Arrival> {
        let Some(custody) = self.custody() else { return Ok(None) };
        let is_single = custody.is_single();
        if id.is_none() && !(is_single && custody.deliveries.is_any_sure()) {
            return Ok(None);
        }
        if let Some(id) = id {
            match lock(&custody.inbox).arrive(id) {
                (Arrival::New, None) => {}
                (Arrival::New, Some(forgotten)) => {
                    self.write_later(vec![Change::remove(HANDLED, of_outbox(&custody.key, forgotten))]);
                }
                (arrival, _) => return Err(arrival),
            }
        }
        if is_single {
            *lock(&custody.stage) = Some(Stage::default());
        }
        Ok(Some(Transaction { outputs: self.clone(), id: id.copied(), is_over: false }))
    }

    /// Sends an event that is kept until it is handled. Within a handler that counts at its end it goes out then.
    ///
    /// # Errors
    /// It is not kept, and not sent; that is counted.
    pub(crate) async fn cast_surely(
        &self,
        output: &str,
        payload: Bytes,
        cause: Cause,
        from: Origin,
    ) -> Result<(), Dropped> {
        let Some(custody) = self.custody() else { return Err(self.lost_on(output, Dropped::NotKept)) };
        let options = self.router().options();
        if payload.len() > options.max_payload {
            return Err(self.lost_on(output, Dropped::TooLarge));
        }
        let sent = std::time::SystemTime::now();
        let (output, reason) = (output.to_string(), String::new());
        let event = OutboxEvent { output, payload, trace: cause.trace, sent, tries: 0, reason };
        let event = match from {
            Origin::Handler => match custody.stage(event, options.queued) {
                Ok(staged) => return staged,
                Err(event) => *event,
            },
            Origin::Elsewhere => event,
        };
        if !custody.has_room(options.queued, 1, options.emit_wait).await {
            return Err(self.lost_on(&event.output, Dropped::OutboxFull));
        }
        let (written, done) = tokio::sync::oneshot::channel();
        let outgoing = self.outgoing(event);
        self.commit(Vec::new(), None, vec![outgoing], None, Box::new(move |result| _ = written.send(result))).await;
        match done.await {
            Ok(Ok(())) => Ok(()),
            // It was counted where it was undone.
            Ok(Err(_)) | Err(_) => Err(Dropped::NotKept),
        }
    }

    fn outgoing(&self, event: OutboxEvent) -> Outgoing {
        let books = self.books(&event.output);
        outbox::outgoing(event, &books)
    }

    /// Has all of this written down, or nothing; also when whoever asks for it goes away.
    async fn commit(
        &self,
        changes: Vec<Change>,
        saved: Option<(State, Bytes)>,
        events: Vec<Outgoing>,
        handled: Option<EventId>,
        end: End,
    ) {
        let (outputs, (queued, is_queued)) = (self.clone(), tokio::sync::oneshot::channel());
        self.router().spawn(async move {
            outputs.commit_to_its_end(changes, saved, events, handled, end).await;
            queued.send(()).ok();
        });
        is_queued.await.ok();
    }

    async fn commit_to_its_end(
        &self,
        mut changes: Vec<Change>,
        saved: Option<(State, Bytes)>,
        events: Vec<Outgoing>,
        handled: Option<EventId>,
        end: End,
    ) {
        let Some(custody) = self.custody() else { return end(Ok(())) };
        let Ok(permit) = custody.commits.clone().acquire_owned().await else { return };
        if custody.is_closed.load(Ordering::Acquire) {
            if let Some(id) = &handled {
                lock(&custody.inbox).give_up(id);
            }
            for Outgoing { entry, .. } in events {
                entry.settle(Fate::Dropped(Dropped::NotKept));
            }
            return end(Err(Error::unavailable("its component was stopped or moved")));
        }
        let chain = custody.order.lock().await;
        let (mut state, mut failed) = (None, None);
        if let Some((place, bytes)) = saved {
            match place.prepare(bytes).await {
                Ok((prepared, about)) => {
                    changes.extend(prepared);
                    state = Some((place, about));
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(id) = &handled {
            let record = lock(&custody.inbox).handle(id).encode();
            changes.push(Change::put(HANDLED, of_outbox(&custody.key, id.outbox), record));
        }
        let mut admitted = Admitted::default();
        if !(events.is_empty() && changes.is_empty()) {
            admitted = lock(&custody.outbox).admit(&custody.key, events, &mut changes);
        }
        let written = match failed {
            Some(error) => {
                // What follows builds on it.
                chain.end();
                Err(error)
            }
            None if changes.is_empty() => Ok(std::future::ready(Ok(())).boxed()),
            None => {
                let chain = custody.is_single().then(|| chain.clone());
                custody.records.enqueue_in(chain, changes).await.map(FutureExt::boxed)
            }
        };
        let written = written.unwrap_or_else(|error| std::future::ready(Err(error)).boxed());
        let is_served = {
            let mut queue = lock(&custody.queue);
            queue.commits.push_back(Commit { written, handled, admitted, state, end, _permit: permit });
            std::mem::replace(&mut queue.is_served, true)
        };
        drop(chain);
        if !is_served {
            self.router().spawn(self.clone().serve_commits());
        }
    }

    async fn serve_commits(self) {
        let Some(custody) = self.custody() else { return };
        loop {
            let commit = {
                let mut queue = lock(&custody.queue);
                let commit = queue.commits.pop_front();
                queue.is_served = commit.is_some();
                commit
            };
            let Some(commit) = commit else { return };
            let result = commit.written.await;
            match &result {
                Ok(()) => {
                    if let Some(id) = &commit.handled {
                        lock(&custody.inbox).written(id);
                    }
                    if let Some((state, about)) = &commit.state {
                        state.written(*about).await;
                    }
                    lock(&custody.outbox).written(&commit.admitted);
                    self.dispatch(commit.admitted.numbers.clone());
                }
                Err(error) => {
                    if let Some(id) = &commit.handled {
                        lock(&custody.inbox).give_up(id);
                    }
                    lock(&custody.outbox).take_back(commit.admitted);
                    custody.room.notify_waiters();
                    if let Some((state, _)) = &commit.state {
                        state.unsure().await;
                    }
                    if custody.is_single() {
                        // The first is the reason of those that follow it.
                        custody.failure.send_if_modified(|failure| {
                            let is_first = failure.is_none();
                            failure.get_or_insert_with(|| error.to_string());
                            is_first
                        });
                    }
                }
            }
            (commit.end)(result);
        }
    }

    /// Sends what was sent before and is not handled yet; called once the outputs are known.
    pub fn resume(&self) {
        if let Some(custody) = self.custody() {
            let all = lock(&custody.outbox).all();
            self.dispatch(all);
        }
    }

    /// Sends events of the outbox, those on one output in order.
    fn dispatch(&self, numbers: impl IntoIterator<Item = u64>) {
        let Some(custody) = self.custody().filter(|custody| !custody.is_closed.load(Ordering::Acquire)) else { return };
        let mut idle = Vec::new();
        {
            let outbox = lock(&custody.outbox);
            let mut lanes = lock(&custody.lanes);
            for number in numbers {
                let Some((event, _)) = outbox.get(number) else { continue };
                let lane = match lanes.get_mut(&event.output) {
                    Some(lane) => lane,
                    None => lanes.entry(event.output.clone()).or_default(),
                };
                lane.numbers.push_back(number);
                if !std::mem::replace(&mut lane.is_served, true) {
                    idle.push(event.output.clone());
                }
            }
        }
        for output in idle {
            let mut serving = Box::pin(self.clone().serve_lane(output));
            // Mostly nothing has to be waited for.
            if serving.as_mut().now_or_never().is_none() {
                self.router().spawn(serving);
            }
        }
    }

    async fn serve_lane(self, output: String) {
        self.opened().await;
        while let Some((number, payload, cause, id)) = self.next_of(&output) {
            match self.route_of(&output) {
                Some(route) => {
                    let receipt = Receipt { outputs: self.clone(), number, is_settled: false };
                    // What became of it the receipt hears.
                    self.router().cast_kept(self.id(), &route, receipt, payload, cause, id).await.ok();
                }
                None => self.settled(number, Fate::Dropped(Dropped::Unmapped)),
            }
        }
    }

    fn next_of(&self, output: &str) -> Option<(u64, Bytes, Cause, EventId)> {
        let custody = self.custody()?;
        let outbox = lock(&custody.outbox);
        let mut lanes = lock(&custody.lanes);
        let lane = lanes.get_mut(output)?;
        if custody.is_closed.load(Ordering::Acquire) {
            lane.numbers.clear();
        }
        while let Some(number) = lane.numbers.pop_front() {
            if let Some((event, id)) = outbox.get(number) {
                let cause = Cause { trace: event.trace, deadline: None };
                return Some((number, event.payload.clone(), cause, id));
            }
        }
        lane.is_served = false;
        None
    }

    /// The fate of an event is known.
    fn settled(&self, number: u64, fate: Fate) {
        let Some(custody) = self.custody().filter(|custody| !custody.is_closed.load(Ordering::Acquire)) else { return };
        let (verdict, settled) = {
            let mut outbox = lock(&custody.outbox);
            (outbox.settle(&custody.key, number, fate, custody.tries), outbox.settled())
        };
        match verdict {
            Verdict::Done => {
                custody.room.notify_waiters();
                let is_due = settled >= SETTLED;
                if is_due || !custody.is_flushing.swap(true, Ordering::AcqRel) {
                    let outputs = self.clone();
                    self.router().spawn(async move {
                        if !is_due {
                            tokio::time::sleep(SETTLED_FOR).await;
                        }
                        outputs.flush().await;
                    });
                }
            }
            Verdict::Again(back_off) => {
                let outputs = self.clone();
                self.router().spawn(async move {
                    tokio::time::sleep(back_off).await;
                    outputs.dispatch([number]);
                });
            }
            Verdict::Dead(event, changes) => {
                custody.room.notify_waiters();
                self.router().count(Dropped::DeadLetter);
                tracing::warn!(component = %self.id().function, number, ?fate, "an event was tried often enough and is a dead letter");
                self.bury(number, *event, changes.to_vec());
            }
        }
    }

    /// Removes the records of what is settled.
    async fn flush(&self) {
        let Some(custody) = self.custody() else { return };
        custody.is_flushing.store(false, Ordering::Release);
        let mut changes = Vec::new();
        let settled = lock(&custody.outbox).clear_settled(&custody.key, &mut changes);
        if !changes.is_empty() && custody.records.write(changes).await.is_err() {
            // With the next: until then it would only be sent again.
            lock(&custody.outbox).take_back(Admitted { settled, ..Admitted::default() });
        }
    }

    fn write_later(&self, changes: Vec<Change>) {
        let Some(custody) = self.custody().cloned() else { return };
        self.router().spawn(async move {
            if let Err(error) = custody.records.write(changes).await {
                tracing::warn!(%error, "it could not be written down what became of an event");
            }
        });
    }

    /// Waits until everything that was sent is handled, or so long.
    pub async fn drained(&self, wait: Duration) {
        let Some(custody) = self.custody() else { return };
        let empty = async {
            loop {
                let room = custody.room.notified();
                if lock(&custody.outbox).waiting() == 0 {
                    return;
                }
                room.await;
            }
        };
        tokio::time::timeout(wait, empty).await.ok();
    }

    /// Nothing is sent any more: the node is reset, or stops.
    pub async fn close(&self, is_reset: bool) {
        let Some(custody) = self.custody() else { return };
        custody.close().await;
        if is_reset {
            lock(&custody.outbox).lose(Dropped::Stopping);
            custody.room.notify_waiters();
        }
    }

    /// Whether something that was sent is not handled.
    pub fn has_unhandled(&self) -> bool {
        self.custody().is_some_and(|custody| lock(&custody.outbox).waiting() > 0)
    }

    /// What the component takes along, with the state that it saved. From here on nothing is sent, unless there is too
    /// much of it for one message: then it goes out from here.
    pub async fn pack(&self, state: Option<Bytes>) -> Option<Bytes> {
        let Some(custody) = self.custody() else { return state };
        // What is being sent again comes to its end first.
        let _turn = custody.burial.lock().await;
        if lock(&custody.outbox).bytes() > MOVED {
            let handled = lock(&custody.inbox).handled().map(|(outbox, handled)| (outbox, handled.clone())).collect();
            return Past { handled, ..Past::default() }.with(state).encode();
        }
        custody.close().await;
        let dead = custody.all_dead().await.into_iter().map(|(number, event)| (number, Letter::Whole(event))).collect();
        let outbox = lock(&custody.outbox);
        let (numbers, events) = if outbox.is_used() { Some(outbox.contents()) } else { None }.unzip();
        let handled = lock(&custody.inbox).handled().map(|(outbox, handled)| (outbox, handled.clone())).collect();
        Past { numbers, events: events.unwrap_or_default(), handled, dead }.with(state).encode()
    }

    /// Forgets all, once what was sent is handled, or could not be for a while: the component is stopped for good.
    pub async fn forget_events(&self) {
        let Some(custody) = self.custody() else { return };
        if !custody.is_closed.load(Ordering::Acquire) {
            self.drained(LAST_WORDS).await;
            custody.close().await;
            let lost = lock(&custody.outbox).lose(Dropped::Stopping);
            custody.room.notify_waiters();
            if lost > 0 {
                tracing::warn!(component = %self.id().function, lost, "events of a component that was stopped were not handled");
            }
        }
        // Most components have nothing, and to look for it is work for the disk.
        let has_sent = lock(&custody.outbox).is_used();
        let has_records = has_sent || lock(&custody.inbox).handled().next().is_some();
        if !has_records {
            return;
        }
        if let Err(error) = past::forget(&custody.records, &custody.key).await {
            tracing::warn!(%error, "the events of a component that was stopped could not be removed");
        }
    }
}

pub(crate) fn of_outbox(key: &Key, outbox: uuid::Uuid) -> Bytes {
    [key.as_slice(), outbox.as_bytes()].concat().into()
}
