//! What is believed of a node that registers, over the real wire.

use edgeless_api::node::{Hello, NodeKey, Proof};
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::*;

fn key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn signed(key: &Ed25519KeyPair, about: Registration) -> Registration {
    let signature = key.sign(&about.claim()).as_ref().try_into().unwrap();
    let key = NodeKey(key.public_key().as_ref().try_into().unwrap());
    Registration { proof: Some(Proof { key, signature }), ..about }
}

/// An address that is taken and does not answer, as long as the socket is there.
fn deaf() -> (tokio::net::TcpSocket, Url) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let url = Url::of(socket.local_addr().unwrap());
    (socket, url)
}

async fn metrics(orchestrator: &Orchestrator) -> String {
    let addr = orchestrator.metrics_url().unwrap().bind_addr().unwrap();
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

async fn is_counted(orchestrator: &Orchestrator, counts: [(&str, u64); 4]) {
    let text = metrics(orchestrator).await;
    for (reason, count) in counts {
        let line = format!("edgeless_orc_nodes_refused_total{{reason=\"{reason}\"}} {count}\n");
        assert!(text.contains(&line), "{line} is not in {text}");
    }
}

async fn monitored() -> Orchestrator {
    let mut config = config();
    config.general.metrics_url = Some(free());
    Orchestrator::start(config).await.unwrap()
}

#[tokio::test]
async fn a_node_whose_agent_url_does_not_answer_is_refused_and_the_domain_goes_on() {
    let orchestrator = monitored().await;
    let there = Node::join(orchestrator.url()).await;
    let registry = client::NodeRegistry::new(connection(orchestrator.url()));
    let (_deaf, url) = deaf();
    for (n, native) in [(1, true), (2, false)] {
        let lifetime = (!native).then_some(PATIENCE);
        let newcomer = Registration { native, lifetime, ..registration(NodeId::random(), &url) };
        let error = registry.update_node(newcomer.clone()).await.unwrap_err();
        let (part, code) =
            (format!("node {} gives agent_url {url}, where nothing answers: ", newcomer.node), error.code);
        assert!(code == Code::Rejected && error.message.contains(&part), "{error}");
        assert!(error.message.contains("check agent_url_announced and agent_url"), "{error}");
        is_counted(&orchestrator, [("address", n), ("key", 0), ("id", 0), ("limit", 0)]).await;
        let goodbye = Registration { leaving: true, ..newcomer };
        registry.update_node(goodbye).await.unwrap();
    }
    let controller = Controller::of(&orchestrator);
    let component = ComponentId::random();
    controller.run(component).await;
    assert!(there.runs(component).is_some());

    // Bound to one of the two addresses that the name may have.
    let (listener, bound) = listen(&free()).await.unwrap();
    let named: Url = format!("http://localhost:{}", bound.port()).parse().unwrap();
    let newcomer = signed(&key(1), Registration { agent_url: named, ..registration(NodeId::random(), &bound) });
    registry.update_node(newcomer.clone()).await.unwrap();
    drop(listener);
    registry.update_node(newcomer).await.expect("one that is known is not called again");
    is_counted(&orchestrator, [("address", 2), ("key", 0), ("id", 0), ("limit", 0)]).await;
}

#[tokio::test]
async fn a_node_that_is_not_the_one_that_it_says_it_is_is_refused_and_counted() {
    let orchestrator = monitored().await;
    let registry = client::NodeRegistry::new(connection(orchestrator.url()));
    let operations = client::Operations::new(connection(orchestrator.url()));
    let (_listener, url) = listen(&free()).await.unwrap();
    let (own, other) = (key(1), key(2));
    let about = registration(NodeId::random(), &url);
    let genuine = signed(&own, about.clone());

    let (_elsewhere, thief_url) = listen(&free()).await.unwrap();
    let forged =
        Proof { key: signed(&own, about.clone()).proof.unwrap().key, ..signed(&other, about.clone()).proof.unwrap() };
    let unproven = [
        ("signed with another key", Registration { proof: Some(forged), ..about.clone() }),
        ("another agent URL", Registration { agent_url: thief_url.clone(), ..genuine.clone() }),
        ("another invocation URL", Registration { invocation_url: thief_url.clone(), ..genuine.clone() }),
        ("another process", Registration { nonce: genuine.nonce.wrapping_add(1), ..genuine.clone() }),
        ("a goodbye", Registration { leaving: true, ..genuine.clone() }),
    ];
    let mut refused = 0;
    for is_known in [false, true] {
        if is_known {
            registry.update_node(genuine.clone()).await.unwrap();
        }
        for (what, unproven) in unproven.clone() {
            // An address at which the node is not needs no look at the signature.
            if is_known && unproven.agent_url != genuine.agent_url {
                continue;
            }
            let error = registry.update_node(unproven).await.expect_err(what);
            assert!(error.message.contains("is not signed with the key that it shows"), "{what}: {error}");
            refused += 1;
        }
    }
    let copy = signed(&own, Registration { agent_url: thief_url.clone(), nonce: 3, ..about.clone() });
    let error = registry.update_node(copy).await.unwrap_err();
    assert!(error.message.contains("is in use by the node at"), "{error}");
    let thief = Registration { agent_url: thief_url, nonce: 3, ..about.clone() };
    for thief in [signed(&other, thief.clone()), thief] {
        let error = registry.update_node(thief.clone()).await.unwrap_err();
        assert!(error.message.contains("is bound to another key"), "{error}");
        refused += 1;
    }
    is_counted(&orchestrator, [("address", 0), ("key", refused), ("id", 1), ("limit", 0)]).await;
    let error = operations.forget(about.node).await.unwrap_err();
    assert!(error.message.contains("is there: stop it first"), "{error}");

    registry.update_node(signed(&own, Registration { leaving: true, ..about.clone() })).await.unwrap();
    let reinstalled = signed(&other, Registration { nonce: 3, ..about.clone() });
    registry.update_node(reinstalled.clone()).await.expect_err("it is gone, and the id is still its own");
    let error = client_side(operations.drain(about.node).await).await;
    assert_eq!(error.code, Code::NotFound, "what is gone cannot be drained: {error}");
    operations.cordon(about.node, true).await.expect("it is remembered");
    operations.forget(about.node).await.unwrap();
    registry.update_node(reinstalled).await.unwrap();
    assert_eq!(operations.forget(NodeId::random()).await.unwrap_err().code, Code::NotFound);
}

/// The error with which a stream is refused, or begins.
async fn client_side<T>(answer: Result<Values<T>, Error>) -> Error {
    match answer {
        Ok(mut values) => values.next().await.unwrap().err().unwrap(),
        Err(error) => error,
    }
}

/// Whoever could open a link for a node could have it suspected by closing it.
#[tokio::test]
async fn a_link_is_taken_only_from_the_process_that_has_registered() {
    let orchestrator = monitored().await;
    let links = client::NodeLink::new(connection(orchestrator.url()));
    let (_listener, url) = listen(&free()).await.unwrap();
    let (own, other) = (key(1), key(2));
    let about = signed(&own, registration(NodeId::random(), &url));
    let hello = |key: Option<&Ed25519KeyPair>, nonce| {
        let hello = Hello { node: about.node, nonce, signature: None };
        let signature = key.map(|key| key.sign(&hello.claim()).as_ref().try_into().unwrap());
        Hello { signature, ..hello }
    };
    let error = links.open(hello(Some(&own), about.nonce)).await.unwrap_err();
    assert!(error.message.contains("its link is taken once it has registered"), "{error}");
    let registry = client::NodeRegistry::new(connection(orchestrator.url()));
    assert!(registry.update_node(about.clone()).await.unwrap().offers_link);
    for key in [None, Some(&other)] {
        let error = links.open(hello(key, about.nonce)).await.unwrap_err();
        assert!(error.code == Code::Rejected && error.message.contains("not signed with the key"), "{error}");
    }
    let error = links.open(hello(Some(&own), about.nonce.wrapping_add(1))).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");
    is_counted(&orchestrator, [("address", 0), ("key", 2), ("id", 0), ("limit", 0)]).await;

    let link = links.open(hello(Some(&own), about.nonce)).await.unwrap();
    let domain = client::Domain::new(connection(orchestrator.url()));
    assert!(domain.nodes().await.unwrap().iter().all(|node| !node.suspected));
    drop(link);
    // Its port is taken by something that does not answer: it stays suspected.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !domain.nodes().await.unwrap().iter().any(|node| node.suspected) {
        assert!(tokio::time::Instant::now() < deadline, "nobody noticed that the link has ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
