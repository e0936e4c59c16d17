//! What operators do with nodes and components: each request is passed on to the domain that it is about.

use async_trait::async_trait;
use edgeless_api::client;
use edgeless_api::decision::Decision;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId, NodeId};
use edgeless_api::operations::{DrainProgress, Relocation};
use edgeless_api::server::{Operations, Values};
use edgeless_api::status::ComponentStatus;
use edgeless_daemon::engine::Inbox;
use futures_util::StreamExt;

use crate::engine::{Engine, Peer};
use crate::shell::{Peers, quick};

/// The most domains that are asked for a node at the same time.
const ASKED: usize = 16;

/// Finds the domain of a node or a component, and asks it.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    inbox: Inbox<Engine>,
    peers: Peers,
}

impl Operator {
    pub(crate) fn new(inbox: Inbox<Engine>, peers: Peers) -> Self {
        Self { inbox, peers }
    }

    /// The domain of a node: as the engine has learnt it, or else as the domains say it now.
    async fn domain_of(&self, node: NodeId) -> Result<Peer, Error> {
        let learnt = self.inbox.read(move |engine, _| engine.domain_of(node).map(|id| engine.peers(Some(&id)))).await?;
        if let Some(peers) = learnt
            && let Some(peer) = peers?.into_iter().next()
        {
            return Ok(peer);
        }
        let peers = self.inbox.read(|engine, _| engine.peers(None)).await??;
        let has_it = |peer: Peer| async move {
            let nodes = quick(self.peers.link(&peer).ok()?.domain.nodes()).await.ok()?;
            nodes.iter().any(|own| own.node == node).then_some(peer)
        };
        let mut found = std::pin::pin!(futures_util::stream::iter(peers).map(has_it).buffer_unordered(ASKED));
        while let Some(peer) = found.next().await {
            if let Some(peer) = peer {
                return Ok(peer);
            }
        }
        Err(no_node(node))
    }

    /// Asks every domain to do something with a node that is gone: those that remember it do.
    async fn in_memory<F>(&self, node: NodeId, ask: impl Fn(client::Operations) -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>>,
    {
        let peers = self.inbox.read(|engine, _| engine.peers(None)).await??;
        let asked = peers.into_iter().map(|peer| {
            let asked = self.operations(&peer).map(&ask);
            async move { quick(asked?).await.map_err(of_domain(&peer.domain)) }
        });
        let answers: Vec<_> = futures_util::stream::iter(asked).buffer_unordered(ASKED).collect().await;
        answers.into_iter().max_by_key(weight).unwrap_or_else(|| Err(no_node(node))).map_err(|error| match error.code {
            Code::NotFound | Code::Unimplemented => no_node(node),
            _ => error,
        })
    }

    fn operations(&self, peer: &Peer) -> Result<client::Operations, Error> {
        Ok(self.peers.link(peer)?.operations)
    }
}

fn no_node(node: NodeId) -> Error {
    Error::not_found(format!(
        "there is no node {node} in a domain that is in reach; `edgeless_cli node list` shows those that there are"
    ))
}

/// How much the answer of one domain counts among those of several: most, that one has the node and refuses; least,
/// that one does not have it.
fn weight(answer: &Result<(), Error>) -> u8 {
    match answer.as_ref().map_err(|error| error.code) {
        Err(Code::NotFound | Code::Unimplemented) => 0,
        Err(Code::Unavailable | Code::Timeout | Code::Bug) => 1,
        Ok(()) => 2,
        Err(Code::Rejected | Code::Exhausted | Code::NeedsCode) => 3,
    }
}

/// A refusal speaks for itself; with other errors it helps to know who did not answer.
fn of_domain(domain: &DomainId) -> impl FnOnce(Error) -> Error {
    move |error| match error.code {
        Code::Rejected | Code::NotFound | Code::Exhausted => error,
        Code::Unimplemented => Error::unimplemented(format!("the orchestrator of {domain} cannot do this: update it")),
        _ => error.context(format!("domain {domain}")),
    }
}

#[async_trait]
impl Operations for Operator {
    async fn cordon(&self, node: NodeId, cordoned: bool) -> Result<(), Error> {
        match self.domain_of(node).await {
            Ok(peer) => self.operations(&peer)?.cordon(node, cordoned).await.map_err(of_domain(&peer.domain)),
            Err(error) if error.code == Code::NotFound => {
                self.in_memory(node, |domain| async move { domain.cordon(node, cordoned).await }).await
            }
            Err(error) => Err(error),
        }
    }

    async fn forget(&self, node: NodeId) -> Result<(), Error> {
        self.in_memory(node, |domain| async move { domain.forget(node).await }).await
    }

    async fn drain(&self, node: NodeId) -> Result<Values<DrainProgress>, Error> {
        let peer = self.domain_of(node).await?;
        self.operations(&peer)?.drain(node).await.map_err(of_domain(&peer.domain))
    }

    async fn residents(&self, node: NodeId) -> Result<Vec<ComponentStatus>, Error> {
        let peer = self.domain_of(node).await?;
        self.operations(&peer)?.residents(node).await.map_err(of_domain(&peer.domain))
    }

    async fn plan_loss(&self, node: NodeId) -> Result<Vec<Relocation>, Error> {
        let peer = self.domain_of(node).await?;
        self.operations(&peer)?.plan_loss(node).await.map_err(of_domain(&peer.domain))
    }

    async fn move_component(&self, component: ComponentId, node: NodeId) -> Result<(), Error> {
        let view = self.inbox.read(move |engine, _| engine.part(component)).await??;
        let peer = view.peer.map_err(Error::unavailable)?;
        let other = self.domain_of(node).await?.domain;
        if other != peer.domain {
            return Err(Error::rejected(format!(
                "component {component} runs in {}, and node {node} is of {other}: \
                 `edgeless_cli workflow migrate-component` moves it to another domain",
                peer.domain
            )));
        }
        self.operations(&peer)?.move_component(component, node).await.map_err(of_domain(&peer.domain))
    }

    async fn why(&self, component: ComponentId) -> Result<Decision, Error> {
        let view = self.inbox.read(move |engine, _| engine.part(component)).await??;
        let peer = view.peer.map_err(Error::unavailable)?;
        self.operations(&peer)?.why(component).await.map_err(of_domain(&peer.domain))
    }
}
