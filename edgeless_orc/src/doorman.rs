//! Looks at what nodes say of themselves before the engine believes it: that they have the key that they show, and that
//! something answers where they say that they take commands.
//!
//! The engine sends here only what it does not know yet, so that a node which stays is looked at once. What is refused
//! is counted each time, and said in the log when it is not what was said of the node before.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::error::Error;
use edgeless_api::id::NodeId;
use edgeless_api::node::{Hello, NodeKey, Proof, Registration};
use edgeless_api::url::Url;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::engine::Note;
use crate::metrics::Metrics;
use crate::registry::{Fault, Refusal};

/// How long an address may take to answer, and how long a node waits until it is its turn.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most nodes that are called at the same time.
const CALLED: usize = 64;
/// The most addresses of one name that are tried.
const ADDRESSES: usize = 16;
/// The most nodes of which it is remembered why they were refused.
const REMEMBERED: usize = 1024;

/// What was refused; clones share it.
#[derive(Clone)]
pub(crate) struct Refusals {
    metrics: Arc<Metrics>,
    said: Arc<Mutex<BTreeMap<NodeId, String>>>,
}

impl Refusals {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, said: Arc::default() }
    }

    /// The announcement of a node is refused.
    pub(crate) fn add(&self, node: NodeId, (fault, error): Refusal) {
        let note = Note::NodeRefused { node, fault, error };
        self.metrics.count(&note);
        let text = note.to_string();
        if self.is_news(node, &text) {
            tracing::warn!("{text}");
        }
    }

    fn is_news(&self, node: NodeId, text: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(&node).is_some_and(|said| said == text) {
            return false;
        }
        if said.len() >= REMEMBERED {
            said.clear();
        }
        said.insert(node, text.to_string());
        true
    }

    /// A node is accepted.
    fn end(&self, node: NodeId) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }
}

/// Lets nodes in.
pub(crate) struct Doorman {
    refusals: Refusals,
    calls: Arc<Semaphore>,
}

impl Doorman {
    pub(crate) fn new(refusals: Refusals) -> Self {
        Self { refusals, calls: Arc::new(Semaphore::new(CALLED)) }
    }

    /// Looks at what a node says of itself.
    ///
    /// # Errors
    /// It is not true, or it is too busy here to look.
    pub(crate) async fn check(&self, about: &Registration) -> Result<(), Error> {
        if let Some(proof) = &about.proof
            && !is_signed(about, proof)
        {
            let node = about.node;
            let error = Error::rejected(format!(
                "the registration of node {node} is not signed with the key that it shows: it was changed on its way, \
                 or is not from that node"
            ));
            return Err(self.refuse(node, (Fault::Key, error)));
        }
        // Who leaves need not answer.
        if about.leaving { Ok(()) } else { self.call(about).await }
    }

    /// The engine has accepted a node.
    pub(crate) fn let_in(&self, node: NodeId) {
        self.refusals.end(node);
    }

    /// Looks at the signature of a link; `key` is that of the registration.
    ///
    /// # Errors
    /// It is not made with that.
    pub(crate) fn check_link(&self, hello: &Hello, key: Option<NodeKey>) -> Result<(), Error> {
        let Some(key) = key else { return Ok(()) };
        let verify = |signature: [u8; 64]| UnparsedPublicKey::new(&ED25519, key.0).verify(&hello.claim(), &signature);
        if hello.signature.is_some_and(|signature| verify(signature).is_ok()) {
            return Ok(());
        }
        let node = hello.node;
        let error = Error::rejected(format!(
            "the link of node {node} is not signed with the key of its registration: it was changed on its way, or is \
             not from that node"
        ));
        Err(self.refuse(node, (Fault::Key, error)))
    }

    fn refuse(&self, node: NodeId, refusal: Refusal) -> Error {
        let error = refusal.1.clone();
        self.refusals.add(node, refusal);
        error
    }

    async fn call(&self, about: &Registration) -> Result<(), Error> {
        let turn = timeout(PATIENCE, self.calls.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Error::unavailable("too many nodes register at the same time: try again later"));
        };
        let url = &about.agent_url;
        let reason = match timeout(PATIENCE, reach(url, turn)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {} seconds", PATIENCE.as_secs()),
        };
        let error = Error::rejected(format!(
            "node {} gives agent_url {url}, where nothing answers: {reason}; check agent_url_announced and agent_url in \
             its configuration",
            about.node
        ));
        Err(self.refuse(about.node, (Fault::Address, error)))
    }
}

fn is_signed(about: &Registration, proof: &Proof) -> bool {
    UnparsedPublicKey::new(&ED25519, proof.key.0).verify(&about.claim(), &proof.signature).is_ok()
}

/// Connects to whichever address of a host answers first, and hangs up.
pub(crate) async fn reach(url: &Url, turn: OwnedSemaphorePermit) -> std::io::Result<()> {
    let name = format!("{}:{}", url.host(), url.port());
    // A look-up goes on in a thread of its own when nobody waits for it any more, and keeps the turn until then.
    let found = tokio::spawn(async move {
        let addresses: Vec<SocketAddr> = lookup_host(name).await?.take(ADDRESSES).collect();
        std::io::Result::Ok((addresses, turn))
    });
    let (addresses, _turn) = found.await.map_err(std::io::Error::other)??;
    let mut calls: FuturesUnordered<_> = addresses.into_iter().map(TcpStream::connect).collect();
    let mut outcome = Err(std::io::Error::other("the host has no address"));
    while let Some(call) = calls.next().await {
        outcome = call.map(drop);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node tries again every two seconds: the log must not grow by as many lines.
    #[test]
    fn a_refusal_is_said_again_only_when_it_is_another_one() {
        let refusals = Refusals::new(Arc::new(Metrics::new()));
        let (one, two) = (NodeId::random(), NodeId::random());
        let said = [(one, "a"), (one, "a"), (two, "a"), (one, "b"), (one, "b")].map(|(n, s)| refusals.is_news(n, s));
        assert_eq!(said, [true, false, true, true, false]);
        refusals.end(one);
        assert!(refusals.is_news(one, "b"), "it was in meanwhile");
        (0..2 * REMEMBERED).for_each(|_| assert!(refusals.is_news(NodeId::random(), "a")));
        assert!(refusals.said.lock().unwrap().len() <= REMEMBERED);
    }
}
