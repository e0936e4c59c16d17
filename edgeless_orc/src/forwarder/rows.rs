//! Where the components of the domain run, and where its nodes are.

use std::collections::HashMap;
use std::hash::Hash;
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
/// Answers of each kind that are remembered.
const ANSWERS: usize = 65_536;

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
    rows: Fresh<ComponentId, Row>,
    contacts: Fresh<NodeId, Contact>,
}

/// Answers that are good for a moment; `None` is one too.
struct Fresh<K, V>(Mutex<HashMap<K, (Instant, Option<V>)>>);

impl<K: Eq + Hash, V: Clone> Fresh<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, key: &K) -> Option<Option<V>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(asked, _)| asked.elapsed() < FRESH).map(|(_, answer)| answer.clone())
    }

    fn keep(&self, key: K, answer: Option<V>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ANSWERS {
            known.retain(|_, (asked, _)| asked.elapsed() < FRESH);
        }
        known.insert(key, (Instant::now(), answer));
    }
}

impl EngineRows {
    pub(crate) fn new(inbox: Inbox<Engine>) -> Self {
        Self { inbox, rows: Fresh::new(), contacts: Fresh::new() }
    }
}

#[async_trait]
impl Rows for EngineRows {
    async fn row(&self, component: ComponentId) -> Result<Option<Row>, Error> {
        if let Some(row) = self.rows.get(&component) {
            return Ok(row);
        }
        let row = self.inbox.read(move |engine, _| engine.row_of(component)).await?;
        self.rows.keep(component, row.clone());
        Ok(row)
    }

    async fn contact(&self, node: NodeId) -> Result<Option<Contact>, Error> {
        if let Some(contact) = self.contacts.get(&node) {
            return Ok(contact);
        }
        let contact = self.inbox.read(move |engine, _| engine.contact(node)).await?;
        let contact = contact.map(|(events, agent)| Contact { events, agent });
        self.contacts.keep(node, contact.clone());
        Ok(contact)
    }
}
