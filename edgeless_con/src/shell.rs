//! Does what the engine decides: calls orchestrators, writes records and answers requests.
//!
//! Each domain has one connection and a limited number of calls under way, so that a slow domain
//! delays itself only. Every call has a deadline, and what a peer says in an error is cut to a length
//! that can be kept. Nothing is decided here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::client::{self, Connection};
use edgeless_api::component::ComponentRef;
use edgeless_api::error::Error;
use edgeless_api::id::DomainId;
use edgeless_daemon::engine::{Replies, Running, Shell};
use edgeless_daemon::supply::Supply;
use tokio::sync::Semaphore;

use crate::engine::{Effect, Engine, Event, Peer, Reply};
use crate::metrics::Metrics;
use crate::probe::probe;
use crate::rows::Followers;
use crate::store::Records;

/// The most calls to one domain at a time. A start may carry code: this bounds the memory it takes.
const CALLS: usize = 32;
/// The time for a question that is answered without starting anything.
const QUICK: Duration = Duration::from_secs(5);
/// The longest reason of a failure that is kept, bytes.
const MAX_REASON: usize = 4096;

/// The connections to the domains, by domain.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    options: client::Options,
    table: Arc<Mutex<HashMap<DomainId, Link>>>,
}

/// The connection to one domain.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    url: edgeless_api::Url,
    pub(crate) components: client::Components,
    pub(crate) domain: client::Domain,
    pub(crate) operations: client::Operations,
    supply: Supply,
    calls: Arc<Semaphore>,
}

impl Peers {
    pub(crate) fn new(options: client::Options) -> Self {
        Self { options, table: Arc::default() }
    }

    /// The connection to a domain; a new one if it has moved.
    pub(crate) fn link(&self, peer: &Peer) -> Result<Link, Error> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = table.get(&peer.domain).filter(|link| link.url == peer.url) {
            return Ok(link.clone());
        }
        let connection = Connection::lazy(&peer.url, self.options)?;
        let components = client::Components::new(connection.clone());
        let link = Link {
            url: peer.url.clone(),
            supply: Supply::new(components.clone()),
            components,
            domain: client::Domain::new(connection.clone()),
            operations: client::Operations::new(connection),
            calls: Arc::new(Semaphore::new(CALLS)),
        };
        table.insert(peer.domain.clone(), link.clone());
        Ok(link)
    }

    fn forget(&self, domain: &DomainId) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(domain);
    }
}

/// Ends a question that takes too long.
pub(crate) async fn quick<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Err(Error::timeout(format!("no answer within {} s", QUICK.as_secs())));
    tokio::time::timeout(QUICK, call).await.unwrap_or_else(late)
}

/// Cuts the reason of an error to a length that can be kept.
fn brief(mut error: Error) -> Error {
    if error.message.len() > MAX_REASON {
        error.message.truncate(error.message.floor_char_boundary(MAX_REASON));
        error.message.push('…');
    }
    error
}

/// Makes a call when it is the domain's turn.
async fn call<T, F>(link: Result<Link, Error>, make: impl FnOnce(Link) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let link = link?;
    let calls = link.calls.clone();
    // The semaphore is never closed.
    let turn = calls.acquire().await.map_err(Error::bug)?;
    let result = make(link).await.map_err(brief);
    drop(turn);
    result
}

/// The shell of the controller's engine.
pub(crate) struct Executor {
    peers: Peers,
    replies: Replies<Reply>,
    metrics: Arc<Metrics>,
    followers: Followers,
    records: Records,
}

impl Executor {
    pub(crate) fn new(
        peers: Peers,
        replies: Replies<Reply>,
        metrics: Arc<Metrics>,
        followers: Followers,
        records: Records,
    ) -> Self {
        Self { peers, replies, metrics, followers, records }
    }
}

impl Shell<Engine> for Executor {
    fn run(&mut self, effect: Effect) -> Option<Running<Engine>> {
        Some(match effect {
            Effect::Plan { peer, workflow, ask, items } => {
                let link = self.peers.link(&peer);
                // Carries no code, so that it need not wait behind starts that do.
                let plan = async move { quick(link?.domain.plan(items)).await };
                Box::pin(async move { Event::Planned { workflow, ask, result: plan.await.map_err(brief) } })
            }
            Effect::Create { peer, part, start, native } => {
                let (link, metrics) = (self.peers.link(&peer), self.metrics.clone());
                Box::pin(async move {
                    let start =
                        |link: Link| async move { link.supply.start(*start, native, || metrics.count_code()).await };
                    let result = call(link, start).await;
                    Event::Created { part, result }
                })
            }
            Effect::Patch { peer, part, kind, patch } => {
                let link = self.peers.link(&peer);
                Box::pin(async move {
                    let result = call(link, |link| async move { link.components.patch(kind, patch).await }).await;
                    Event::Patched { part, result }
                })
            }
            Effect::Activate { peer, workflow, site, round, ids } => {
                let link = self.peers.link(&peer);
                Box::pin(async move {
                    let result = call(link, |link| async move { link.components.activate(&ids).await }).await;
                    Event::Activated { workflow, site, round, result }
                })
            }
            Effect::Stop { peer, part, kind, id } => {
                let link = self.peers.link(&peer);
                let id = ComponentRef::Component(id);
                Box::pin(async move {
                    let result = call(link, |link| async move { link.components.stop(kind, id).await }).await;
                    Event::Stopped { part, result }
                })
            }
            Effect::Release { peer, part, id, grace } => {
                let link = self.peers.link(&peer);
                Box::pin(async move {
                    let release = |link: Link| async move { link.components.release(id.0, grace).await };
                    let result = call(link, release).await;
                    Event::Released { part, result }
                })
            }
            Effect::Tell { peer, rows } => {
                let link = self.peers.link(&peer);
                tokio::spawn(async move {
                    let told = call(link, |link| async move { link.components.set_rows(rows).await }).await;
                    if let Err(error) = told {
                        // What still comes there is dropped, and counted.
                        tracing::warn!(domain = %peer.domain, %error, "a domain cannot be told where what has left it runs");
                    }
                });
                return None;
            }
            Effect::Follow(peer) => {
                match self.peers.link(&peer) {
                    Ok(link) => self.followers.follow(peer.domain, link.domain),
                    Err(error) => tracing::error!(domain = %peer.domain, %error, "the domain cannot be followed"),
                }
                return None;
            }
            Effect::Nodes(peer) => {
                let link = self.peers.link(&peer);
                let nodes = async move { quick(link?.domain.nodes()).await };
                Box::pin(async move { Event::Nodes { domain: peer.domain, result: nodes.await.map_err(brief) } })
            }
            Effect::Probe { domain, urls } => {
                Box::pin(async move { Event::Probed { domain, pulse: probe(urls).await } })
            }
            Effect::Persist { workflow, op, record, code } => {
                let records = self.records.clone();
                Box::pin(async move {
                    let result = records.persist(workflow, record, code).await;
                    Event::Persisted { workflow, op, result }
                })
            }
            Effect::Reply { ticket, reply } => {
                self.replies.answer(ticket, reply);
                return None;
            }
            Effect::Forget(domain) => {
                self.followers.forget(&domain);
                self.peers.forget(&domain);
                return None;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_any_length_is_cut_between_characters() {
        let error = brief(Error::rejected("é".repeat(MAX_REASON)));
        assert!(error.message.len() <= MAX_REASON + '…'.len_utf8() && error.message.ends_with("é…"));
        assert_eq!(brief(Error::rejected("short")), Error::rejected("short"));
    }
}
