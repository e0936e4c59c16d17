//! Does what the engine decides: calls nodes, answers requests, writes the log.
//!
//! It decides nothing. Each call has a deadline and ends in [`Event::Done`]; the connection to a
//! node is made by its first call and made anew when the node has another address.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::client::{self, Connection};
use edgeless_api::component::{ComponentRef, Row};
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::error::Error;
use edgeless_api::id::NodeId;
use edgeless_api::url::Url;
use edgeless_daemon::engine::{Replies, Running};
use edgeless_daemon::store::Store;
use edgeless_daemon::supply::Supply;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::doorman::Refusals;
use crate::engine::{Answer, Call, Effect, Engine, Event, Note, Outcome, Peer};
use crate::metrics::Metrics;
use crate::prober::Prober;

/// A start may compile code.
const CREATE: Duration = Duration::from_secs(60);
/// Anything else is quick.
const CALL: Duration = Duration::from_secs(10);
/// The most changes of rows that a follower may lag behind before it is told all rows again.
pub(crate) const ROWS: usize = 256;

/// The services of one node.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) components: client::Components,
    supply: Supply,
    management: client::NodeManagement,
    /// Ends the calls that are under way.
    cancel: CancellationToken,
}

/// The connections to the nodes; clones share them.
#[derive(Clone)]
pub(crate) struct Links {
    limits: edgeless_api::Limits,
    open: Arc<Mutex<HashMap<NodeId, (Url, Link)>>>,
}

impl Links {
    pub(crate) fn new(limits: edgeless_api::Limits) -> Self {
        Self { limits, open: Arc::default() }
    }

    /// The connection to a node.
    pub(crate) fn to(&self, peer: &Peer) -> Result<Link, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((url, link)) = open.get(&peer.node)
            && *url == peer.agent_url
        {
            return Ok(link.clone());
        }
        let options = client::Options { deadline: CREATE, limits: self.limits, ..client::Options::default() };
        let connection = Connection::lazy(&peer.agent_url, options)?;
        let components = client::Components::new(connection.clone());
        let link = Link {
            supply: Supply::new(components.clone()),
            components,
            management: client::NodeManagement::new(connection),
            cancel: CancellationToken::new(),
        };
        open.insert(peer.node, (peer.agent_url.clone(), link.clone()));
        Ok(link)
    }

    /// Nobody waits for a node that is lost.
    fn forget(&self, node: NodeId) {
        if let Some((_, link)) = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&node) {
            link.cancel.cancel();
        }
    }
}

/// The hands of the engine.
pub(crate) struct Shell {
    pub(crate) links: Links,
    pub(crate) replies: Replies<Answer>,
    pub(crate) capabilities: watch::Sender<DomainCapabilities>,
    /// The rows that have changed for other domains.
    pub(crate) rows: broadcast::Sender<Vec<Row>>,
    pub(crate) metrics: Arc<Metrics>,
    /// The nodes that the engine does not take.
    pub(crate) refusals: Refusals,
    /// Finds out which nodes are gone.
    pub(crate) prober: Prober,
    /// What keeps the domain.
    pub(crate) store: Option<Store>,
}

impl edgeless_daemon::engine::Shell<Engine> for Shell {
    fn run(&mut self, effect: Effect) -> Option<Running<Engine>> {
        match effect {
            Effect::Call(op, peer, call) => {
                let (link, metrics) = (self.links.to(&peer), self.metrics.clone());
                return Some(Box::pin(async move {
                    let result = match link {
                        Ok(link) => within_deadline(&peer, call, &link, &metrics).await,
                        Err(error) => Err(error),
                    };
                    Event::Done(op, result)
                }));
            }
            Effect::Persist(op, changes) => {
                let store = self.store.clone();
                return Some(Box::pin(async move {
                    let written = match store {
                        Some(store) => store.write(changes).await,
                        None => Err(Error::bug("there is no file to keep the domain in")),
                    };
                    Event::Persisted(op, written)
                }));
            }
            Effect::Probe(op, peer) => {
                let (prober, node) = (self.prober.clone(), peer.node);
                return Some(Box::pin(async move { Event::Probed(op, node, prober.ask(&peer.agent_url).await) }));
            }
            Effect::Forget(node) => self.links.forget(node),
            Effect::Reply(ticket, answer) => self.replies.answer(ticket, answer),
            Effect::Publish(capabilities) => {
                self.metrics.nodes.set(capabilities.num_nodes.into());
                self.capabilities.send_replace(capabilities);
            }
            Effect::PublishRows(rows) => {
                // Without followers nobody needs them: who comes is told all rows first.
                self.rows.send(rows).ok();
            }
            Effect::Note(Note::NodeRefused { node, fault, error }) => self.refusals.add(node, (fault, error)),
            Effect::Note(note) => {
                self.metrics.count(&note);
                if note.is_warning() {
                    tracing::warn!("{note}");
                } else {
                    tracing::info!("{note}");
                }
            }
        }
        None
    }
}

async fn within_deadline(peer: &Peer, call: Call, link: &Link, metrics: &Metrics) -> Result<Outcome, Error> {
    let deadline = match &call {
        Call::Create(_) => CREATE,
        Call::Release { grace, .. } => CALL + *grace,
        _ => CALL,
    };
    let late = || Error::timeout(format!("{} did not answer in {} seconds", peer.agent_url, deadline.as_secs()));
    let gone = || Error::unavailable(format!("node {} was lost", peer.node));
    let call = tokio::time::timeout(deadline, perform(peer, call, link, metrics));
    let performed = link.cancel.run_until_cancelled(call).await;
    performed.map_or_else(|| Err(gone()), |result| result.unwrap_or_else(|_| Err(late())))
}

async fn perform(peer: &Peer, call: Call, link: &Link, metrics: &Metrics) -> Result<Outcome, Error> {
    match call {
        Call::Create(start) => {
            let carries = || metrics.count_code();
            return link.supply.start(*start, peer.native, carries).await.map(Outcome::Started);
        }
        Call::Reset => link.management.reset().await?,
        Call::UpdatePeers(update) => link.management.update_peers(update).await?,
        Call::SetOutputs(kind, patch) => link.components.patch(kind, patch).await?,
        Call::Activate(instance) => link.components.activate(&[instance]).await?,
        Call::Stop(kind, instance) => link.components.stop(kind, ComponentRef::Instance(instance)).await?,
        Call::SetRows(rows) => link.components.set_rows(rows).await?,
        Call::Release { instance, grace } => {
            return link.components.release(instance, grace).await.map(Outcome::Released);
        }
    }
    Ok(Outcome::Done)
}
