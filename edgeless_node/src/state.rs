//! What functions save with `sync`, and are given again when they start again on this node.
//!
//! A state is saved when it is on the disk, and it survives the node. It belongs to the newest instance of its
//! component: an older one, which may still be about, changes it no more. Former versions kept each state in a file of
//! its own, which becomes a record when it is first asked for. States that outlive the node as well are
//! [elsewhere](crate::shared).

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use edgeless_api::component::{StatePolicy, StateSpec};
use edgeless_api::journal::SavedState;
use edgeless_api::{ComponentId, Error, StateId};
use edgeless_daemon::store::{Change, Table};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use crate::copies::Copies;
use crate::records::Records;
use crate::shared::Shared;

/// What is known of each state.
const STATES: Table = "state";
/// What was saved.
const CONTENTS: Table = "state_bytes";

/// The states that are kept on this node.
#[derive(Clone, Debug)]
pub struct StateStore {
    records: Records,
    /// Where those are that are not kept on this node, if it can reach them.
    shared: Option<Shared>,
    /// Who is told of those that are; `None`: nobody.
    copies: Option<Arc<Copies>>,
    /// Those that somebody has in hand.
    cells: Arc<Mutex<HashMap<StateId, Weak<Cell>>>>,
}

/// The state of one component, for one instance of it.
#[derive(Clone, Debug)]
pub struct State {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// Nothing is kept; this is what the component came with.
    Nowhere(Option<Bytes>),
    /// In the store.
    Kept { cell: Arc<Cell>, epoch: u64, told: Option<Told> },
    /// Outside the node.
    Global(Arc<Global>),
}

/// Who hears of a state that is kept on the node.
#[derive(Clone, Debug)]
struct Told {
    component: ComponentId,
    copies: Arc<Copies>,
    /// What is saved is saved when they have it.
    is_replicated: bool,
    /// They have heard of a save of this instance, or were told.
    is_introduced: Arc<AtomicBool>,
}

/// A state outside the node, for one instance.
#[derive(Debug)]
struct Global {
    id: StateId,
    shared: Shared,
    /// `None`: whoever starts the instance counts none.
    epoch: Option<u64>,
    /// What the component had saved where it ran before.
    moved: Option<Bytes>,
    /// One writes at a time. The epoch, and how often it was saved, once that was asked for.
    held: AsyncMutex<Option<(u64, u64)>>,
}

#[derive(Debug)]
struct Cell {
    id: StateId,
    records: Records,
    /// One writes at a time.
    held: AsyncMutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// What is stored, once that was looked up.
    stored: Option<Option<SavedState>>,
    /// The newest epoch that was seen: older ones write no more.
    epoch: u64,
    /// The component is gone, and its state with it.
    is_over: bool,
}

fn put(id: StateId, about: SavedState, state: Bytes) -> Vec<Change> {
    let key = || Bytes::copy_from_slice(id.0.as_bytes());
    vec![Change::put(STATES, key(), about.encode()), Change::put(CONTENTS, key(), state)]
}

fn remove(key: &[u8]) -> Vec<Change> {
    [STATES, CONTENTS].map(|table| Change::remove(table, Bytes::copy_from_slice(key))).into()
}

impl StateStore {
    /// The states among these records, and those that are kept outside the node.
    pub fn new(records: Records, shared: Option<Shared>) -> Self {
        Self { records, shared, copies: None, cells: Arc::default() }
    }

    /// The same, of which the orchestrator is told.
    #[must_use]
    pub fn with_copies(self, copies: Arc<Copies>) -> Self {
        Self { copies: Some(copies), ..self }
    }

    /// The state of a component, for its instance of this epoch. `None`: whoever starts it counts none.
    ///
    /// # Errors
    /// Its policy is not available; it belongs to a newer instance; it cannot be read.
    pub async fn state(&self, spec: &StateSpec, component: ComponentId, epoch: Option<u64>) -> Result<State, Error> {
        match spec.policy {
            StatePolicy::Transient => Ok(State::none()),
            StatePolicy::NodeLocal | StatePolicy::Replicated => {
                let is_replicated = spec.policy == StatePolicy::Replicated;
                let told = |copies: &Arc<Copies>| Told {
                    component,
                    copies: copies.clone(),
                    is_replicated,
                    is_introduced: Arc::default(),
                };
                // Whoever counts no epochs keeps no copies.
                let told = self.copies.as_ref().filter(|_| epoch.is_some()).map(told);
                if is_replicated && told.is_none() {
                    return Err(Error::rejected("state=replicated: nobody here keeps a copy: write state=node-local"));
                }
                let (cell, epoch) = self.claim(spec.id, epoch).await?;
                Ok(State { place: Place::Kept { cell, epoch, told } })
            }
            StatePolicy::Global => {
                let shared = self.shared.clone().ok_or_else(|| {
                    Error::rejected("state=global: this node does not say where that is: write its state_url")
                })?;
                // Nobody asks before an instance is made: the server may be away, and is tried again then.
                let global = Global { id: spec.id, shared, epoch, moved: None, held: AsyncMutex::default() };
                Ok(State { place: Place::Global(Arc::new(global)) })
            }
        }
    }

    async fn claim(&self, id: StateId, epoch: Option<u64>) -> Result<(Arc<Cell>, u64), Error> {
        loop {
            let cell = self.cell(id);
            let mut held = cell.held.lock().await;
            if held.is_over {
                self.give_up(&cell);
                continue;
            }
            let newest = cell.newest(&mut held).await?;
            let epoch = epoch.unwrap_or(newest);
            if epoch < newest {
                return Err(older(epoch, newest));
            }
            held.epoch = epoch;
            drop(held);
            return Ok((cell, epoch));
        }
    }

    fn cell(&self, id: StateId) -> Arc<Cell> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = cells.get(&id).and_then(Weak::upgrade) {
            return cell;
        }
        if cells.len() == cells.capacity() {
            cells.retain(|_, cell| cell.strong_count() > 0);
        }
        let cell = Arc::new(Cell { id, records: self.records.clone(), held: AsyncMutex::default() });
        cells.insert(id, Arc::downgrade(&cell));
        cell
    }

    /// Nobody is given this cell any more.
    fn give_up(&self, cell: &Arc<Cell>) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if cells.get(&cell.id).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(cell))) {
            cells.remove(&cell.id);
        }
    }

    /// Forgets the state of a component that is stopped, if it does not belong to a newer instance. Nobody saves it
    /// from here on.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn forget(&self, state: &State) -> Result<(), Error> {
        match &state.place {
            Place::Nowhere(_) => Ok(()),
            Place::Kept { cell, epoch, told } => {
                told.iter().for_each(Told::forget);
                self.forget_kept(cell.id, *epoch).await
            }
            Place::Global(global) => global.remove().await,
        }
    }

    /// Forgets the state of a component that runs elsewhere from now on, with what it saved here.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn hand_over(&self, state: &State) -> Result<(), Error> {
        match &state.place {
            // It is where it was.
            Place::Nowhere(_) | Place::Global(_) => Ok(()),
            Place::Kept { cell, epoch, told } => {
                told.iter().for_each(Told::forget);
                self.forget_kept(cell.id, *epoch).await
            }
        }
    }

    async fn forget_kept(&self, id: StateId, epoch: u64) -> Result<(), Error> {
        let cell = self.cell(id);
        let mut held = cell.held.lock().await;
        // What cannot be read is removed all the same.
        let newest = cell.newest(&mut held).await.unwrap_or(held.epoch);
        if newest > epoch || held.is_over {
            return Ok(());
        }
        held.is_over = true;
        let removed = match held.stored {
            Some(None) => Ok(()),
            _ => self.records.write(remove(id.0.as_bytes())).await,
        };
        // Only now, so that a start that comes meanwhile finds nothing of it, and loses nothing by it.
        self.give_up(&cell);
        removed
    }

    /// Forgets all states that are kept on this node. Nobody who has one in hand saves it from here on.
    ///
    /// # Errors
    /// They cannot be removed from the disk.
    pub async fn forget_all(&self) -> Result<(), Error> {
        let cells = std::mem::take(&mut *self.cells.lock().unwrap_or_else(PoisonError::into_inner));
        for cell in cells.values().filter_map(Weak::upgrade) {
            cell.held.lock().await.is_over = true;
        }
        let all: Vec<Change> = self.records.all(STATES).await?.iter().flat_map(|(key, _)| remove(key)).collect();
        if all.is_empty() { Ok(()) } else { self.records.write(all).await }
    }
}

impl Cell {
    /// What is stored.
    async fn stored(&self, held: &mut MutexGuard<'_, Held>) -> Result<Option<SavedState>, Error> {
        if let Some(stored) = held.stored {
            return Ok(stored);
        }
        let stored = match self.records.get(STATES, self.id.0.as_bytes()).await? {
            Some(record) => Some(SavedState::decode(&record)?),
            None => self.take_over().await?,
        };
        held.stored = Some(stored);
        Ok(stored)
    }

    /// The newest epoch that is known here.
    async fn newest(&self, held: &mut MutexGuard<'_, Held>) -> Result<u64, Error> {
        let stored = self.stored(held).await?;
        Ok(held.epoch.max(stored.map_or(0, |stored| stored.epoch)))
    }

    /// Makes a record of what a former version kept in a file, and removes that.
    async fn take_over(&self) -> Result<Option<SavedState>, Error> {
        let file = self.records.directory().join(self.id.to_string());
        let state = match tokio::fs::read(&file).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            state => state.map_err(|error| cannot("read", &file, &error))?,
        };
        let written = tokio::fs::metadata(&file).await.and_then(|about| about.modified());
        let about = SavedState { epoch: 0, syncs: 0, at: written.unwrap_or(UNIX_EPOCH) };
        self.records.write(put(self.id, about, state.into())).await?;
        // Should it stay: the record is asked for first.
        if let Err(error) = tokio::fs::remove_file(&file).await {
            tracing::warn!(file = %file.display(), %error, "the state that a former version kept was taken over, and its file could not be removed");
        }
        Ok(Some(about))
    }

    async fn save(&self, epoch: u64, state: Bytes) -> Result<SavedState, Error> {
        let mut held = self.held.lock().await;
        let about = self.next(&mut held, epoch).await?;
        // Unknown, should it be given up in the middle.
        held.stored = None;
        self.records.write(put(self.id, about, state)).await?;
        held.stored = Some(Some(about));
        Ok(about)
    }

    /// What is to be written so that the state is saved. Whoever asks for it writes it, or says that it [could not
    /// be](State::unsure).
    async fn prepare(&self, epoch: u64, state: Bytes) -> Result<(Vec<Change>, SavedState), Error> {
        let mut held = self.held.lock().await;
        let about = self.next(&mut held, epoch).await?;
        held.stored = Some(Some(about));
        Ok((put(self.id, about, state), about))
    }

    /// What is known of the state once this epoch has saved it once more.
    async fn next(&self, held: &mut MutexGuard<'_, Held>, epoch: u64) -> Result<SavedState, Error> {
        if held.is_over {
            return Err(Error::rejected("its component was stopped"));
        }
        if epoch < held.epoch {
            return Err(older(epoch, held.epoch));
        }
        let before = self.stored(held).await?;
        let syncs = before.map_or(0, |before| before.syncs).saturating_add(1);
        Ok(SavedState { epoch, syncs, at: SystemTime::now() })
    }
}

impl Told {
    async fn hear(&self, about: SavedState) {
        if self.is_introduced.swap(true, Ordering::Relaxed) {
            self.copies.tell(self.component, about);
        } else {
            self.copies.introduce(self.component, about).await;
        }
    }

    async fn save(&self, about: SavedState, state: Bytes) -> Result<(), Error> {
        if self.is_replicated {
            return self.copies.keep(self.component, about, state).await;
        }
        self.hear(about).await;
        Ok(())
    }

    fn forget(&self) {
        self.copies.forget(self.component);
    }
}

impl Global {
    async fn load(&self) -> Result<Option<Bytes>, Error> {
        let mut held = self.held.lock().await;
        // Also when it was asked for before: a newer instance may have it by now.
        let claimed = self.shared.claim(self.id, held.map(|(epoch, _)| epoch).or(self.epoch)).await?;
        *held = Some((claimed.epoch, claimed.syncs));
        match (claimed.state, &self.moved) {
            // Wherever the component ran before, it saved it there, unless that was another server.
            (Some(state), _) => Ok(Some(state)),
            (None, None) => Ok(None),
            (None, Some(moved)) => {
                self.write(&mut held, moved).await?;
                Ok(Some(moved.clone()))
            }
        }
    }

    async fn save(&self, state: &[u8]) -> Result<(), Error> {
        let mut held = self.held.lock().await;
        self.write(&mut held, state).await
    }

    async fn write(&self, held: &mut MutexGuard<'_, Option<(u64, u64)>>, state: &[u8]) -> Result<(), Error> {
        let (epoch, syncs) = match **held {
            Some(held) => held,
            None => {
                let claimed = self.shared.claim(self.id, self.epoch).await?;
                (claimed.epoch, claimed.syncs)
            }
        };
        let syncs = syncs.saturating_add(1);
        self.shared.save(self.id, epoch, syncs, state).await?;
        **held = Some((epoch, syncs));
        Ok(())
    }

    async fn remove(&self) -> Result<(), Error> {
        let held = self.held.lock().await;
        // One that has never had an instance has nothing to remove.
        let Some(epoch) = held.map(|(epoch, _)| epoch).or(self.epoch) else { return Ok(()) };
        self.shared.remove(self.id, epoch).await
    }
}

/// Saves on the node first: whatever becomes of the copy, it is not newer than that.
async fn save_kept(cell: &Cell, epoch: u64, told: Option<&Told>, state: Bytes) -> Result<(), Error> {
    let about = cell.save(epoch, state.clone()).await?;
    match told {
        Some(told) => told.save(about, state).await,
        None => Ok(()),
    }
}

fn older(epoch: u64, newest: u64) -> Error {
    Error::rejected(format!("its component was placed here again meanwhile: epoch {epoch} is older than {newest}"))
}

fn cannot(attempt: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::unavailable(format!("cannot {attempt} {}: {error}", path.display()))
}

impl State {
    /// A state that is never kept.
    pub fn none() -> Self {
        Self { place: Place::Nowhere(None) }
    }

    /// The same, of a component that saved this where it ran before: it replaces what was saved here.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn moved(self, state: Bytes) -> Result<Self, Error> {
        match &self.place {
            Place::Kept { .. } => self.save(state).await.map(|()| self),
            Place::Nowhere(_) => Ok(Self { place: Place::Nowhere(Some(state)) }),
            Place::Global(global) => {
                let Global { id, shared, epoch, .. } = &**global;
                let (shared, held) = (shared.clone(), AsyncMutex::default());
                let global = Global { id: *id, shared, epoch: *epoch, moved: Some(state), held };
                Ok(Self { place: Place::Global(Arc::new(global)) })
            }
        }
    }

    /// Whether anything is kept of it.
    pub fn is_anywhere(&self) -> bool {
        !matches!(self.place, Place::Nowhere(_))
    }

    /// Whether it can be saved together with something else that is written down on this node.
    pub fn is_here(&self) -> bool {
        match &self.place {
            Place::Kept { told, .. } => !told.as_ref().is_some_and(|told| told.is_replicated),
            Place::Nowhere(_) | Place::Global(_) => false,
        }
    }

    /// What is to be written on this node so that the state is saved, and what is known of it then; only where it
    /// [is here](Self::is_here).
    ///
    /// # Errors
    /// The component has a newer instance, or none any more.
    pub(crate) async fn prepare(&self, state: Bytes) -> Result<(Vec<Change>, SavedState), Error> {
        match &self.place {
            Place::Nowhere(_) | Place::Global(_) => Err(Error::bug("a state that is not kept here")),
            Place::Kept { cell, epoch, .. } => {
                cell.prepare(*epoch, state).await.map_err(|error| error.context("cannot save the state"))
            }
        }
    }

    /// What was [prepared](Self::prepare) is written.
    pub(crate) async fn written(&self, about: SavedState) {
        if let Place::Kept { told: Some(told), .. } = &self.place {
            told.hear(about).await;
        }
    }

    /// What was [prepared](Self::prepare) could not be written.
    pub(crate) async fn unsure(&self) {
        if let Place::Kept { cell, .. } = &self.place {
            cell.held.lock().await.stored = None;
        }
    }

    /// What was saved last.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn load(&self) -> Result<Option<Bytes>, Error> {
        let cell = match &self.place {
            Place::Nowhere(moved) => return Ok(moved.clone()),
            Place::Kept { cell, .. } => cell,
            Place::Global(global) => return global.load().await,
        };
        let mut held = cell.held.lock().await;
        match cell.stored(&mut held).await? {
            Some(_) => cell.records.get(CONTENTS, cell.id.0.as_bytes()).await,
            None => Ok(None),
        }
    }

    /// Replaces what was saved. When it returns that is on the disk, or where the policy says.
    ///
    /// # Errors
    /// It cannot be written, or the component has a newer instance, or none any more.
    pub async fn save(&self, state: Bytes) -> Result<(), Error> {
        let saved = match &self.place {
            Place::Nowhere(_) => Ok(()),
            Place::Kept { cell, epoch, told } => save_kept(cell, *epoch, told.as_ref(), state).await,
            Place::Global(global) => global.save(&state).await,
        };
        saved.map_err(|error| error.context("cannot save the state"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use edgeless_api::NodeId;
    use uuid::Uuid;

    use super::*;

    const NODE: NodeId = NodeId(Uuid::from_u128(1));
    const ONE: ComponentId = ComponentId(Uuid::from_u128(2));

    async fn states(directory: &Path) -> StateStore {
        StateStore::new(Records::open(directory, NODE).await.unwrap(), None)
    }

    fn kept() -> StateSpec {
        StateSpec { id: StateId::random(), policy: StatePolicy::NodeLocal }
    }

    async fn about(states: &StateStore, spec: &StateSpec) -> Option<SavedState> {
        let record = states.records.get(STATES, spec.id.0.as_bytes()).await.unwrap();
        record.map(|record| SavedState::decode(&record).unwrap())
    }

    #[tokio::test]
    async fn what_was_saved_is_loaded_until_it_is_forgotten_also_by_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        let spec = kept();
        let began = SystemTime::now() - Duration::from_millis(1);
        let before = states(directory.path()).await;
        let state = before.state(&spec, ONE, Some(3)).await.unwrap();
        assert_eq!(state.load().await.unwrap(), None);
        state.save(Bytes::from_static(b"first")).await.unwrap();
        state.save(Bytes::from_static(&[1, 0xff])).await.unwrap();
        before.records.close();
        let error = state.save(Bytes::from_static(b"late")).await.unwrap_err();
        assert!(error.message.contains("shutting down"), "{error}");

        let states = states(directory.path()).await;
        let saved = about(&states, &spec).await.unwrap();
        assert_eq!((saved.epoch, saved.syncs), (3, 2));
        assert!(saved.at >= began && saved.at <= SystemTime::now());
        let state = states.state(&spec, ONE, Some(3)).await.unwrap();
        assert_eq!(state.load().await.unwrap().unwrap(), &[1, 0xff][..]);
        states.forget_kept(spec.id, 2).await.unwrap();
        assert_eq!(about(&states, &spec).await, Some(saved), "it belongs to a newer instance");
        states.forget_kept(spec.id, 3).await.unwrap();
        assert_eq!(about(&states, &spec).await, None);
        assert_eq!(states.state(&spec, ONE, Some(1)).await.unwrap().load().await.unwrap(), None);
        let error = state.save(Bytes::from_static(b"late")).await.unwrap_err();
        assert!(error.message.contains("was stopped"), "{error}");
        assert_eq!(states.records.all(CONTENTS).await.unwrap(), []);
    }

    /// An instance that was given up may be about for a while yet, and must not undo what its successor does.
    #[tokio::test]
    async fn a_state_belongs_to_the_newest_instance() {
        let directory = tempfile::tempdir().unwrap();
        let (states, spec) = (states(directory.path()).await, kept());
        let old = states.state(&spec, ONE, Some(1)).await.unwrap();
        old.save(Bytes::from_static(b"old")).await.unwrap();
        let new = states.state(&spec, ONE, Some(2)).await.unwrap();
        assert_eq!(new.load().await.unwrap().unwrap(), "old", "it goes on from there");
        let refusal = |error: Error| assert!(error.message.contains("epoch 1 is older than 2"), "{error}");
        refusal(old.save(Bytes::from_static(b"older")).await.unwrap_err());
        let new = new.moved(Bytes::from_static(b"from elsewhere")).await.unwrap();
        refusal(old.save(Bytes::from_static(b"older")).await.unwrap_err());
        assert_eq!(new.load().await.unwrap().unwrap(), "from elsewhere");
        drop((old, new));
        // Nobody has it in hand, and still it is known who wrote it.
        refusal(states.state(&spec, ONE, Some(1)).await.unwrap_err());
        let uncounted = states.state(&spec, ONE, None).await.unwrap();
        uncounted.save(Bytes::from_static(b"more")).await.unwrap();
        assert_eq!(about(&states, &spec).await.unwrap().epoch, 2);
    }

    #[tokio::test]
    async fn all_are_forgotten_at_once_and_epochs_begin_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (states, specs) = (states(directory.path()).await, [kept(), kept()]);
        let mut before = Vec::new();
        for spec in &specs {
            let state = states.state(spec, ONE, Some(9)).await.unwrap();
            state.save(Bytes::from_static(b"x")).await.unwrap();
            before.push(state);
        }
        states.forget_all().await.unwrap();
        for (spec, before) in specs.iter().zip(&before) {
            assert!(before.save(Bytes::from_static(b"late")).await.is_err());
            let state = states.state(spec, ONE, Some(1)).await.unwrap();
            assert_eq!(state.load().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_file_of_a_former_version_is_taken_over_once() {
        let directory = tempfile::tempdir().unwrap();
        let (spec, other) = (kept(), kept());
        let file = |spec: &StateSpec| directory.path().join(spec.id.to_string());
        for spec in [&spec, &other] {
            std::fs::write(file(spec), "saved before").unwrap();
        }
        let states = states(directory.path()).await;
        let state = states.state(&spec, ONE, Some(1)).await.unwrap();
        assert_eq!(state.load().await.unwrap().unwrap(), "saved before");
        assert!(!file(&spec).exists());
        assert!(file(&other).exists(), "it may be that of another node in this directory");
        // As if the file could not be removed.
        std::fs::write(file(&spec), "saved before").unwrap();
        state.save(Bytes::from_static(b"saved since")).await.unwrap();
        drop(state);
        let state = states.state(&spec, ONE, Some(2)).await.unwrap();
        assert_eq!(state.load().await.unwrap().unwrap(), "saved since");
        states.forget_kept(other.id, 0).await.unwrap();
        assert!(!file(&other).exists(), "a component that is stopped leaves nothing");
        assert_eq!(about(&states, &other).await, None);
    }

    #[tokio::test]
    async fn nodes_may_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (states, spec) = (states(directory.path()).await, kept());
        let other = StateStore::new(Records::open(directory.path(), NodeId::random()).await.unwrap(), None);
        states.state(&spec, ONE, Some(1)).await.unwrap().save(Bytes::from_static(b"here")).await.unwrap();
        assert_eq!(other.state(&spec, ONE, Some(1)).await.unwrap().load().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_damaged_store_is_named_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = crate::records::file(directory.path(), NODE);
        std::fs::write(&file, b"no records".repeat(1000)).unwrap();
        let error = Records::open(directory.path(), NODE).await.unwrap_err();
        assert!(error.message.contains(&file.display().to_string()) && error.message.contains("is damaged"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"no records".repeat(1000));
    }
}
