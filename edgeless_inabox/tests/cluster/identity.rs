//! A node that pretends to be another one: real daemons over real sockets.

use std::path::Path;

use edgeless_api::status::State;
use edgeless_api::{NodeId, Url};
use edgeless_daemon::config::{Config as _, parse};
use edgeless_daemon::{Daemon, Handle};
use edgeless_inabox::{Cluster, Domain};
use edgeless_node::Node;

use super::cluster::{cast, status_of};
use super::support::{function, get, lines, relay_module, resource, wait_until, workflow};

/// A node with the id of another one, and a directory of its own.
async fn impostor(directory: &Path, id: NodeId, orchestrator: &Url) -> Node {
    let free = || "http://127.0.0.1:0".parse::<Url>().unwrap();
    let mut config: edgeless_node::Config = parse(&edgeless_node::Config::template(), std::iter::empty()).unwrap();
    let general = &mut config.general;
    general.node_id = id;
    (general.agent_url, general.invocation_url, general.metrics_url) = (free(), free(), Some(free()));
    general.orchestrator_url = Some(orchestrator.clone());
    general.state_directory = directory.join("impostor");
    config.wasm_runtime.cache_directory = Some(directory.join("cache-impostor"));
    config.wasm_runtime.max_instances = 64;
    let text = |value: String| toml::Value::String(value);
    config.resources.insert("http_ingress_url".into(), text(free().to_string()));
    config.resources.insert("file_log_directory".into(), text(directory.display().to_string()));
    Node::start(config).await.unwrap()
}

/// How often the key of a node was refused.
async fn refused(cluster: &Cluster) -> u64 {
    let text = get(cluster.metrics_urls()[1].unwrap(), "/metrics").await;
    let line = "edgeless_orc_nodes_refused_total{reason=\"key\"} ";
    text.lines().find_map(|text| text.strip_prefix(line)).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_the_id_of_another_is_refused_while_that_is_there_and_after_it_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    // Longer than a busy machine may hold up a node that is there.
    let domain = Domain::new("domain-1").unwrap().nodes(2);
    let domain = domain.configure(|config| config.baseline.keep_alive_interval_secs = 8);
    let mut cluster = Cluster::builder(directory.path()).domain(domain).start().await.unwrap();
    let (workflows, operations) = (cluster.workflows().unwrap(), cluster.operations().unwrap());
    let (first, second) = (cluster.nodes()[0].id(), cluster.nodes()[1].id());
    let flow = workflow(
        vec![function("relay", &relay_module(), &[("out", "log")], &[])],
        vec![resource("log", "file-log", &[], &[("filename", "log")])],
    );
    let started = workflows.start(flow, None).await.unwrap();
    let log = directory.path().join("log");
    let mut sent = 0;
    let mut goes_on = async |cluster: &Cluster| {
        let relay = status_of(cluster, &started, "relay").await;
        cast(cluster, relay.instance.unwrap(), "event").await;
        sent += 1;
        wait_until("the event is logged", async || lines(&log).len() == sent).await;
    };
    goes_on(&cluster).await;

    let impostor = impostor(directory.path(), first, cluster.orchestrator_url(0).unwrap()).await;
    let says_why = async || {
        let text = get(impostor.metrics_url().unwrap(), "/readyz").await;
        text.starts_with("HTTP/1.1 503") && text.contains("is bound to another key")
    };
    wait_until("the impostor says why it is refused", says_why).await;
    assert!(refused(&cluster).await > 0);
    let known = async || {
        let nodes = workflows.nodes(None).await.unwrap();
        nodes.into_iter().map(|node| (node.node, node.agent_url)).collect::<Vec<_>>()
    };
    let own_url = cluster.nodes()[0].addr().clone();
    assert!(known().await.contains(&(first, own_url)), "its agent is where it was");
    goes_on(&cluster).await;

    cluster.kill_node(first).await;
    wait_until("the node is lost", async || known().await.len() == 1).await;
    let before = refused(&cluster).await;
    wait_until("the impostor tries again", async || refused(&cluster).await > before + 1).await;
    assert_eq!(known().await.len(), 1, "the id is still that of the node that is gone");
    assert!(says_why().await);
    let is_elsewhere = async |name| {
        let status = status_of(&cluster, &started, name).await;
        status.state == State::Running && status.instance.is_some_and(|instance| instance.node == second)
    };
    wait_until("all runs on the other node", async || is_elsewhere("relay").await && is_elsewhere("log").await).await;
    goes_on(&cluster).await;

    operations.forget(first).await.unwrap();
    let is_known = async || known().await.iter().any(|(node, url)| *node == first && url == impostor.addr());
    wait_until("it is a new node", is_known).await;
    wait_until("it says so", async || get(impostor.metrics_url().unwrap(), "/readyz").await.contains("ready\n")).await;
    impostor.stop().await;
    cluster.stop().await;
}
