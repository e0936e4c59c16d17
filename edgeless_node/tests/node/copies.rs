//! What the orchestrator hears of the states that functions save, and the copies that it keeps.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::{ComponentSpec, StartContext, StatePolicy};
use edgeless_api::journal::Saved;
use edgeless_api::node::{Registered, Registration};
use edgeless_api::server::{NodeRegistry, Server};
use edgeless_api::status::State;
use edgeless_api::{ComponentId, Error, NodeId, Url};
use edgeless_daemon::listen;
use tokio_util::sync::CancellationToken;

use super::durable::{keeper, said};
use super::support::{TestNode, context, function, wait_until};

/// An orchestrator that remembers what it is told, or refuses it.
#[derive(Default)]
struct Above {
    saved: Mutex<Vec<Saved>>,
    refusal: Mutex<Option<Error>>,
}

#[async_trait]
impl NodeRegistry for Above {
    async fn update_node(&self, _node: Registration) -> Result<Registered, Error> {
        Ok(Registered::new(Some(Duration::from_secs(60))))
    }

    async fn wake(&self, _components: Vec<ComponentId>) -> Result<(), Error> {
        Ok(())
    }

    async fn locate(&self, _node: NodeId) -> Result<Option<Url>, Error> {
        Ok(None)
    }

    async fn saved(&self, _node: NodeId, states: Vec<Saved>) -> Result<(), Error> {
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        self.saved.lock().unwrap().extend(states);
        Ok(())
    }
}

impl Above {
    async fn start() -> (Arc<Self>, TestNode) {
        let above = Arc::new(Self::default());
        let (listener, url) = listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let server = Server::new(edgeless_api::Limits::default(), CancellationToken::new());
        tokio::spawn(server.node_registry(above.clone()).serve(listener));
        (above, TestNode::with(&[("orchestrator_url", &format!("\"{url}\""))]).await)
    }

    /// What it was told last: epoch, count and state.
    fn last(&self) -> Option<(u64, u64, Option<Bytes>)> {
        let saved = self.saved.lock().unwrap();
        saved.last().map(|saved| (saved.about.epoch, saved.about.syncs, saved.state.clone()))
    }
}

fn with(policy: StatePolicy) -> ComponentSpec {
    let mut spec = function(&keeper(), &[]);
    if let ComponentSpec::Function(function) = &mut spec {
        function.state.policy = policy;
    }
    spec
}

#[tokio::test]
async fn what_is_replicated_is_saved_once_there_is_a_copy() {
    let (above, node) = Above::start().await;
    let first = context("keeper");
    let spec = with(StatePolicy::Replicated);
    let id = node.create(spec.clone(), first.clone()).await.unwrap();
    node.cast(id, "copied").await;
    node.call(id, "").await;
    assert_eq!(above.last(), Some((1, 1, Some(Bytes::from_static(b"copied")))));
    assert_eq!(above.saved.lock().unwrap()[0].component, first.component);

    *above.refusal.lock().unwrap() = Some(Error::rejected("'keeper' was placed again meanwhile"));
    node.cast(id, "refused").await;
    wait_until("it breaks", || async { node.status(id).await.restarts == 1 }).await;
    let reason = node.status(id).await.reason;
    assert!(reason.contains("cannot save the state: the orchestrator does not keep a copy"), "{reason}");
    assert!(reason.contains("was placed again meanwhile"), "{reason}");
    *above.refusal.lock().unwrap() = None;

    // What it brings along is newer than what is here, and is copied, too.
    let moved = StartContext { epoch: 2, state: Some("from elsewhere".into()), ..first };
    let id = node.create(spec, moved).await.unwrap();
    assert_eq!(node.call(id, "").await, said("from elsewhere"));
    let (epoch, _, state) = above.last().unwrap();
    assert_eq!((epoch, state), (2, Some(Bytes::from_static(b"from elsewhere"))));
}

#[tokio::test]
async fn a_replicated_state_is_not_saved_while_the_orchestrator_is_away() {
    let node = TestNode::start().await;
    let id = node.create(with(StatePolicy::Replicated), context("keeper")).await.unwrap();
    node.cast(id, "alone").await;
    wait_until("it breaks", || async {
        let status = node.status(id).await;
        status.state == State::Running && status.restarts == 1
    })
    .await;
    let reason = node.status(id).await.reason;
    assert!(reason.contains("the orchestrator does not keep a copy"), "{reason}");
}

#[tokio::test]
async fn of_what_is_kept_on_the_node_it_is_told_that_it_was_saved() {
    let (above, node) = Above::start().await;
    let id = node.create(with(StatePolicy::NodeLocal), context("keeper")).await.unwrap();
    assert_eq!(above.last(), None);
    node.cast(id, "first").await;
    node.call(id, "").await;
    assert_eq!(above.last(), Some((1, 1, None)), "the first is known when it is saved");
    node.cast(id, "second").await;
    node.cast(id, "third").await;
    wait_until("the last is told", || async { above.last() == Some((1, 3, None)) }).await;

    // One that cannot hear of it is no reason to fail, and is told later.
    *above.refusal.lock().unwrap() = Some(Error::unavailable("the disk is full"));
    let other = StartContext { component: ComponentId::random(), ..context("other") };
    let id = node.create(with(StatePolicy::NodeLocal), other.clone()).await.unwrap();
    node.cast(id, "kept").await;
    node.call(id, "").await;
    assert_eq!(node.status(id).await.restarts, 0);
    *above.refusal.lock().unwrap() = None;
    let is_told = || async { above.saved.lock().unwrap().iter().any(|saved| saved.component == other.component) };
    wait_until("it is told", is_told).await;
}
