//! What the orchestrator is told of the states that functions save on this node.
//!
//! A copy is waited for: what is replicated is saved once the orchestrator has it, too. Of other states it is told that
//! they were saved, so that it knows for which node to wait when that is lost. The first save of an instance waits until
//! it has heard, but not for one that is away; of those that follow the last is told a moment later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::client::{Connection, NodeRegistry, Options};
use edgeless_api::journal::{Saved, SavedState};
use edgeless_api::{Code, ComponentId, Error, NodeId, Url};
use tokio::runtime::Handle;

/// How long the orchestrator may take to keep a copy.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to hear of the first save of an instance.
const MOMENT: Duration = Duration::from_secs(1);
/// The pause between two times that it is told of saves.
const PAUSE: Duration = Duration::from_millis(500);

/// Tells the orchestrator of one node.
#[derive(Debug)]
pub struct Copies {
    node: NodeId,
    registry: NodeRegistry,
    runtime: Handle,
    max_state: usize,
    telling: Mutex<Telling>,
}

#[derive(Debug, Default)]
struct Telling {
    /// The last save of each function that was not told.
    saved: BTreeMap<ComponentId, SavedState>,
    is_under_way: bool,
}

impl Copies {
    /// Tells the orchestrator at `url`, and sends it states up to a size. Must be called in the tokio runtime of the
    /// node.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(node: NodeId, url: &Url, max_state: usize) -> Result<Arc<Self>, Error> {
        let connection = Connection::lazy(url, Options { deadline: DEADLINE, ..Options::default() })?;
        let registry = NodeRegistry::new(connection);
        Ok(Arc::new(Self { node, registry, runtime: Handle::current(), max_state, telling: Mutex::default() }))
    }

    fn telling(&self) -> MutexGuard<'_, Telling> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a copy kept. When it returns the orchestrator has it on its disk.
    ///
    /// # Errors
    /// It is too large; the component was placed again meanwhile; the orchestrator cannot keep it, or is away.
    pub async fn keep(&self, component: ComponentId, about: SavedState, state: Bytes) -> Result<(), Error> {
        if state.len() > self.max_state {
            return Err(Error::exhausted(format!(
                "a state of {} bytes is too large to be replicated: limits.payload is {}",
                state.len(),
                self.max_state
            )));
        }
        let saved = Saved { component, about, state: Some(state) };
        let kept = self.registry.saved(self.node, vec![saved]).await;
        kept.map_err(|error| error.context("the orchestrator does not keep a copy"))
    }

    /// Tells the orchestrator of the first save of an instance, at once; if that cannot be, later.
    pub async fn introduce(self: &Arc<Self>, component: ComponentId, about: SavedState) {
        let saved = Saved { component, about, state: None };
        let told = tokio::time::timeout(MOMENT, self.registry.saved(self.node, vec![saved])).await;
        if !matches!(told, Ok(Ok(()))) {
            self.tell(component, about);
        }
    }

    /// Has the orchestrator told of a save, soon.
    pub fn tell(self: &Arc<Self>, component: ComponentId, about: SavedState) {
        let mut telling = self.telling();
        telling.saved.insert(component, about);
        if !telling.is_under_way {
            telling.is_under_way = true;
            let me = self.clone();
            self.runtime.spawn(async move { me.tell_all().await });
        }
    }

    /// Forgets what was to be told of a component that is stopped.
    pub fn forget(&self, component: ComponentId) {
        self.telling().saved.remove(&component);
    }

    async fn tell_all(&self) {
        loop {
            let all = {
                let mut telling = self.telling();
                if telling.saved.is_empty() {
                    telling.is_under_way = false;
                    return;
                }
                std::mem::take(&mut telling.saved)
            };
            let saved = |(component, about): (&ComponentId, &SavedState)| Saved {
                component: *component,
                about: *about,
                state: None,
            };
            let told = self.registry.saved(self.node, all.iter().map(saved).collect()).await;
            if let Err(error) = told {
                tracing::debug!(count = all.len(), %error, "the orchestrator cannot be told what was saved");
                if error.code != Code::Unimplemented {
                    let mut telling = self.telling();
                    for (component, about) in all {
                        telling.saved.entry(component).or_insert(about);
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
