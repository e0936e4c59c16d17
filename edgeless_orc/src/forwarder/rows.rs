//! Where the components of the domain run, and where its nodes are.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use edgeless_api::component::Row;
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_api::url::Url;
use edgeless_daemon::engine::Inbox;

use crate::engine::Engine;

/// How old an answer may be.
const FRESH: Duration = Duration::from_millis(100);
/// The same of the addresses of nodes, which hardly ever change.
const ADDRESSES: Duration = Duration::from_secs(5);
/// Rows that are remembered.
const ROWS: usize = 65_536;

/// How to reach a node of the domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contact {
    /// Where it takes events.
    pub(crate) events: Url,
    /// Where it takes commands.
    pub(crate) agent: Url,
}

/// What a forwarder asks the domain.
#[async_trait]
pub(crate) trait Rows: Send + Sync + 'static {
    /// Where a component runs; `None`: it is not one of the domain.
    async fn row(&self, component: ComponentId) -> Result<Option<Row>, Error>;
    /// How to reach a node; `None`: it is not one of the domain.
    async fn contact(&self, node: NodeId) -> Result<Option<Contact>, Error>;
}

/// Asks the engine, and again only after a moment.
pub(crate) struct EngineRows {
    inbox: Inbox<Engine>,
    rows: Mutex<HashMap<ComponentId, (Instant, Option<Row>)>>,
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    asked: Option<Instant>,
    contacts: HashMap<NodeId, Contact>,
}

impl EngineRows {
    pub(crate) fn new(inbox: Inbox<Engine>) -> Self {
        Self { inbox, rows: Mutex::default(), nodes: Mutex::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Rows for EngineRows {
    async fn row(&self, component: ComponentId) -> Result<Option<Row>, Error> {
        let fresh = |(asked, _): &&(Instant, Option<Row>)| asked.elapsed() < FRESH;
        if let Some((_, row)) = lock(&self.rows).get(&component).filter(fresh) {
            return Ok(row.clone());
        }
        let row = self.inbox.read(move |engine, _| row_of(engine, component)).await?;
        let mut rows = lock(&self.rows);
        if rows.len() >= ROWS {
            rows.retain(|_, (asked, _)| asked.elapsed() < FRESH);
        }
        rows.insert(component, (Instant::now(), row.clone()));
        Ok(row)
    }

    async fn contact(&self, node: NodeId) -> Result<Option<Contact>, Error> {
        {
            let nodes = lock(&self.nodes);
            let age = nodes.asked.map(|asked| asked.elapsed());
            let found = nodes.contacts.get(&node);
            let good_for = if found.is_some() { ADDRESSES } else { FRESH };
            if age.is_some_and(|age| age < good_for) {
                return Ok(found.cloned());
            }
        }
        let infos = self.inbox.read(|engine, _| engine.nodes()).await?;
        let contacts =
            infos.into_iter().map(|info| (info.node, Contact { events: info.invocation_url, agent: info.agent_url }));
        let mut nodes = lock(&self.nodes);
        *nodes = Nodes { asked: Some(Instant::now()), contacts: contacts.collect() };
        Ok(nodes.contacts.get(&node).cloned())
    }
}

fn row_of(engine: &Engine, component: ComponentId) -> Option<Row> {
    let status = engine.view(&[component]).pop()?.status;
    let mut instances: Vec<_> = status.instances.iter().map(|one| one.instance).collect();
    if instances.is_empty() {
        instances.extend(status.instance);
    }
    Some(Row::new(component, status.epoch, instances))
}
