//! How a node shows its orchestrator who it is, and what it says when it is refused.

use std::sync::Arc;

use async_trait::async_trait;
use edgeless_api::node::{Registered, Registration};
use edgeless_api::server::{NodeRegistry, Server};
use edgeless_api::{Code, ComponentId, Error, Limits, NodeId, Url};
use edgeless_daemon::Daemon;
use edgeless_daemon::config::parse;
use edgeless_node::{Config, Node};
use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::support::{PATIENCE, TestNode, config_text, http_get, wait_until};

type Answer = oneshot::Sender<Result<Registered, Error>>;

/// An orchestrator whose answers the test gives.
struct Orchestrator(mpsc::Sender<(Registration, Answer)>);

#[async_trait]
impl NodeRegistry for Orchestrator {
    async fn update_node(&self, node: Registration) -> Result<Registered, Error> {
        let (answer, answered) = oneshot::channel();
        self.0.send((node, answer)).await.map_err(Error::bug)?;
        answered.await.map_err(Error::bug)?
    }

    async fn wake(&self, _: Vec<ComponentId>) -> Result<(), Error> {
        Err(Error::unimplemented("not played here"))
    }

    async fn locate(&self, _: NodeId) -> Result<Option<Url>, Error> {
        Err(Error::unimplemented("not played here"))
    }
}

async fn next(asked: &mut mpsc::Receiver<(Registration, Answer)>) -> (Registration, Answer) {
    let next = tokio::time::timeout(PATIENCE, asked.recv()).await;
    next.expect("no announcement").expect("no orchestrator")
}

fn is_signed(about: &Registration) -> bool {
    let proof = about.proof.expect("it has a key");
    UnparsedPublicKey::new(&ED25519, proof.key.0).verify(&about.claim(), &proof.signature).is_ok()
}

#[tokio::test]
async fn a_node_signs_what_it_announces_with_the_key_in_its_directory_and_says_why_it_is_refused() {
    let (listener, url) = edgeless_daemon::listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (asking, mut asked) = mpsc::channel(1);
    let server = Server::new(Limits::default(), CancellationToken::new()).node_registry(Arc::new(Orchestrator(asking)));
    tokio::spawn(server.serve(listener));
    let mut node = TestNode::with(&[("orchestrator_url", &format!("\"{url}\""))]).await;

    for reason in ["its address is wrong", "its key is wrong"] {
        let (_, answer) = next(&mut asked).await;
        answer.send(Err(Error::rejected(reason))).unwrap();
        let says_so = async || {
            let (status, body) = http_get(node.metrics_url(), "/readyz").await;
            status == 503 && body.contains(reason)
        };
        wait_until("it says why it is not ready", says_so).await;
    }
    let mut seen: Vec<Registration> = Vec::new();
    for _ in 0..2 {
        let (about, answer) = next(&mut asked).await;
        answer.send(Ok(Registered::new(None))).unwrap();
        wait_until("it is ready", async || http_get(node.metrics_url(), "/readyz").await.0 == 200).await;
        let (restarted, goodbye) = tokio::join!(node.restart(), async {
            loop {
                let (about, answer) = next(&mut asked).await;
                answer.send(Ok(Registered::new(None))).unwrap();
                if about.leaving {
                    return about;
                }
            }
        });
        node = restarted;
        seen.extend([about, goodbye]);
    }
    assert!(seen.iter().all(is_signed), "{seen:?}");
    assert!(seen.iter().all(|about| about.key() == seen[0].key()), "{seen:?}");
    assert_eq!(seen[0].nonce, seen[1].nonce);
    assert_ne!(seen[0].nonce, seen[2].nonce, "the same node in another process");
}

#[tokio::test]
async fn a_node_does_not_start_with_a_damaged_key() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("node.key"), "nonsense").unwrap();
    let config: Config = parse(&config_text(directory.path()), std::iter::empty()).unwrap();
    let id = config.general.node_id;
    let error = Node::start(config).await.err().unwrap();
    assert_eq!(error.code, Code::Rejected);
    let file = state.join("node.key").display().to_string();
    assert!(error.message.starts_with(&format!("{file} is damaged")), "{error}");
    assert!(error.message.contains(&format!("edgeless_cli node forget {id}")), "{error}");
}
