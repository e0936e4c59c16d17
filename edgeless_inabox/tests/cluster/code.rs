//! How often the code of a function travels: once over each hop, as the daemons count it.

use std::path::Path;

use edgeless_api::workflow::Workflow;
use edgeless_api::{NodeId, Url};
use edgeless_inabox::Cluster;

use super::support::{function, get, relay_module, wait_until, workflow};

/// A workflow that runs on one node.
fn pinned(node: NodeId) -> Workflow {
    workflow(vec![function("f", &relay_module(), &[], &[("node_id_match_any", &node.to_string())])], vec![])
}

/// The sum of the series whose line has all these parts.
async fn sum(url: &Url, parts: &[&str]) -> u64 {
    let text = get(url, "/metrics").await;
    let lines = text.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().expect(line)).sum()
}

/// The starts that carried code, from the controller and from the orchestrator.
async fn carried(cluster: &Cluster) -> (u64, u64) {
    let [controller, orchestrator] = cluster.metrics_urls().map(Option::unwrap);
    let of_controller = sum(controller, &["edgeless_controller_code_sent_total "]).await;
    (of_controller, sum(orchestrator, &["edgeless_orc_code_sent_total "]).await)
}

/// How often a node compiled, and how often it found what it had compiled before.
async fn compiled_and_loaded(cluster: &Cluster, node: NodeId) -> (u64, u64) {
    let node = cluster.nodes().iter().find(|own| own.id() == node).unwrap();
    let count = async |step| sum(node.metrics_url().unwrap(), &["function_start_times_count", step]).await;
    (count("step=\"Compile\"").await, count("step=\"Load\"").await)
}

fn is_kept(directory: &Path, node: NodeId) -> bool {
    let files = std::fs::read_dir(directory.join(format!("cache-{node}"))).into_iter().flatten();
    let is_module = |path: std::path::PathBuf| path.extension().is_some_and(|kind| kind == "module");
    files.flatten().any(|entry| is_module(entry.path()))
}

#[tokio::test(flavor = "multi_thread")]
async fn code_travels_once_over_each_hop() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).nodes(2).start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let [first, second] = [cluster.nodes()[0].id(), cluster.nodes()[1].id()];
    workflows.start(pinned(first), None).await.unwrap();
    assert_eq!(carried(&cluster).await, (1, 1));
    let again = workflows.start(pinned(first), None).await.unwrap();
    workflows.stop(again.workflow).await.unwrap();
    workflows.start(pinned(first), None).await.unwrap();
    assert_eq!(carried(&cluster).await, (1, 1), "all of them have it");
    workflows.start(pinned(second), None).await.unwrap();
    assert_eq!(carried(&cluster).await, (1, 2), "the second node gets it from the orchestrator");
    assert_eq!(compiled_and_loaded(&cluster, second).await, (1, 0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_one_workflow_share_their_code() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).start().await.unwrap();
    let relay = relay_module();
    let functions = (0..20).map(|number| function(&format!("f{number}"), &relay, &[], &[])).collect();
    cluster.workflows().unwrap().start(workflow(functions, vec![]), None).await.unwrap();
    assert_eq!(carried(&cluster).await, (1, 1));
    assert_eq!(compiled_and_loaded(&cluster, cluster.nodes()[0].id()).await, (1, 0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_needs_no_code() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::builder(directory.path()).start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let node = cluster.nodes()[0].id();
    workflows.start(pinned(node), None).await.unwrap();
    wait_until("the module is kept", || async { is_kept(directory.path(), node) }).await;
    cluster.restart_node(node).await.unwrap();
    wait_until("it runs there again", || async { compiled_and_loaded(&cluster, node).await == (0, 1) }).await;
    cluster.until_known().await.unwrap();
    workflows.start(pinned(node), None).await.unwrap();
    assert_eq!(compiled_and_loaded(&cluster, node).await, (0, 1));
    assert_eq!(carried(&cluster).await, (1, 1));
    cluster.stop().await;
}
