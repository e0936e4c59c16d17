//! What the node asks of its orchestrator on behalf of events: to start what runs nowhere, and where
//! another node is.
//!
//! Events may come by the thousand: requests are collected, answers shared and remembered for a while, so
//! that the orchestrator hears little.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edgeless_api::client::{Connection, NodeRegistry, Options};
use edgeless_api::{Code, ComponentId, Error, NodeId, Url};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// Components that wait to be asked for; more come when their events ask again.
const COMPONENTS: usize = 4096;
/// How long it is remembered where a node is, or that it is nowhere.
const REMEMBERED: Duration = Duration::from_secs(1);
/// Nodes that are asked for within that time; all others are taken to be unknown.
const NODES: usize = 256;
/// How long an orchestrator that cannot start components is left alone.
const DEAF: Duration = Duration::from_secs(60);

/// Asks the orchestrator of one node.
#[derive(Debug)]
pub struct Requests {
    registry: NodeRegistry,
    runtime: Handle,
    waking: Mutex<Waking>,
    located: Mutex<HashMap<NodeId, Located>>,
}

#[derive(Debug, Default)]
struct Waking {
    components: BTreeSet<ComponentId>,
    is_under_way: bool,
    deaf_until: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Located {
    asked: Instant,
    answer: Arc<OnceCell<Option<Url>>>,
}

impl Located {
    fn is_fresh(&self) -> bool {
        !self.answer.initialized() || self.asked.elapsed() < REMEMBERED
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Requests {
    /// Asks the orchestrator at `url`. Must be called in the tokio runtime of the node.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(url: &Url) -> Result<Arc<Self>, Error> {
        let connection = Connection::lazy(url, Options { deadline: DEADLINE, ..Options::default() })?;
        Ok(Arc::new(Self {
            registry: NodeRegistry::new(connection),
            runtime: Handle::current(),
            waking: Mutex::default(),
            located: Mutex::default(),
        }))
    }

    /// Says that events wait for a component that runs nowhere. Waits for nothing; what is said while a
    /// request is under way goes with the next one.
    pub fn wake(self: &Arc<Self>, component: ComponentId) {
        let mut waking = lock(&self.waking);
        let is_deaf = waking.deaf_until.is_some_and(|until| Instant::now() < until);
        if is_deaf || waking.components.len() >= COMPONENTS {
            return;
        }
        waking.components.insert(component);
        if !waking.is_under_way {
            waking.is_under_way = true;
            let me = self.clone();
            self.runtime.spawn(async move { me.wake_all().await });
        }
    }

    async fn wake_all(&self) {
        loop {
            let components: Vec<_> = {
                let mut waking = lock(&self.waking);
                if waking.components.is_empty() {
                    waking.is_under_way = false;
                    return;
                }
                std::mem::take(&mut waking.components).into_iter().collect()
            };
            // Events that still wait ask again.
            if let Err(error) = self.registry.wake(&components).await {
                tracing::debug!(components = components.len(), %error, "the orchestrator cannot be asked to start");
                if error.code == Code::Unimplemented {
                    lock(&self.waking).deaf_until = Some(Instant::now() + DEAF);
                }
            }
        }
    }

    /// Where a node takes events; `None`: nobody knows. Whoever asks for the same node shares the answer.
    pub async fn locate(&self, node: NodeId) -> Option<Url> {
        let answer = {
            let mut located = lock(&self.located);
            if located.len() >= NODES {
                located.retain(|_, located| located.is_fresh());
            }
            match located.get(&node).filter(|located| located.is_fresh()) {
                Some(located) => located.answer.clone(),
                None if located.len() >= NODES => return None,
                None => {
                    let answer = Arc::<OnceCell<_>>::default();
                    located.insert(node, Located { asked: Instant::now(), answer: answer.clone() });
                    answer
                }
            }
        };
        let ask = async || match self.registry.locate(node).await {
            Ok(url) => url,
            Err(error) => {
                tracing::debug!(%node, %error, "the orchestrator cannot be asked for a node");
                None
            }
        };
        answer.get_or_init(ask).await.clone()
    }
}
