//! What functions have saved, when the node that they ran on is lost.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::NodeId;
use edgeless_api::workflow::WorkflowStatus;
use edgeless_inabox::{Cluster, Domain};

use super::cluster::{cast, status_of};
use super::support::{function, lines, resource, skip, wait_until, workflow};

/// Saves what is cast to it, and then passes it on; what it is given at its start it passes on as well.
fn keeper_module() -> Bytes {
    wat::parse_str(
        r#"(module
            (import "env" "cast_asm" (func $cast (param i32 i32 i32 i32)))
            (import "env" "sync_asm" (func $sync (param i32 i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "out")
            (global $top (mut i32) (i32.const 1024))
            (func (export "edgeless_mem_alloc") (param $len i32) (result i32)
                (local $at i32)
                (local.set $at (global.get $top))
                (global.set $top (i32.add (global.get $top) (local.get $len)))
                (local.get $at))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear") (global.set $top (i32.const 1024)))
            (func (export "handle_init_asm") (param i32 i32) (param $state i32) (param $len i32)
                (if (local.get $len)
                    (then (call $cast (i32.const 0) (i32.const 3) (local.get $state) (local.get $len)))))
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $sync (local.get $payload) (local.get $len))
                (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len)))
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))
            (func (export "handle_stop_asm")))"#,
    )
    .unwrap()
    .into()
}

/// A keeper on one of two nodes, and a log on a third.
async fn keeping(cluster: &Cluster, state: &str) -> (WorkflowStatus, NodeId) {
    let annotations = [("label_match_all", "free"), ("state", state)];
    let flow = workflow(
        vec![function("keeper", &keeper_module(), &[("out", "log")], &annotations)],
        vec![resource("log", "file-log", &[], &[("filename", "log"), ("label_match_all", "fixed")])],
    );
    let started = cluster.workflows().unwrap().start(flow, None).await.unwrap();
    let home = status_of(cluster, &started, "keeper").await.instance.unwrap().node;
    (started, home)
}

fn three_nodes() -> Vec<Vec<String>> {
    ["fixed", "free", "free"].map(|label| vec![label.to_string()]).to_vec()
}

/// Casts this to the keeper, and waits until it has saved it.
async fn save(cluster: &Cluster, started: &WorkflowStatus, directory: &std::path::Path, what: &str) {
    let instance = status_of(cluster, started, "keeper").await.instance.unwrap();
    cast(cluster, instance, what).await;
    wait_until("it is saved", || async { lines(&directory.join("log")).last().is_some_and(|line| line == what) }).await;
}

async fn runs_elsewhere(cluster: &Cluster, started: &WorkflowStatus, lost: NodeId) {
    wait_until("it runs elsewhere", || async {
        let status = status_of(cluster, started, "keeper").await;
        status.instance.is_some_and(|instance| instance.node != lost)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicated_state_is_there_when_its_node_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let domain = Domain::new("d").unwrap().nodes(3).labels(three_nodes());
    let mut cluster = Cluster::builder(directory.path()).domain(domain).start().await.unwrap();
    let (started, home) = keeping(&cluster, "replicated").await;
    save(&cluster, &started, directory.path(), "first").await;
    save(&cluster, &started, directory.path(), "newest").await;
    // Also the orchestrator may end meanwhile.
    cluster.kill_node(home).await;
    cluster.restart_orchestrator(0).await.unwrap();
    runs_elsewhere(&cluster, &started, home).await;
    let all = ["first", "newest", "newest"];
    wait_until("it begins with what it saved", || async { lines(&directory.path().join("log")) == all }).await;
    cluster.stop().await;
}

/// Whether the keeper says this of itself.
async fn says(cluster: &Cluster, started: &WorkflowStatus, text: &str) -> bool {
    status_of(cluster, started, "keeper").await.reason.contains(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn node_local_state_is_waited_for_and_missed_aloud() {
    let directory = tempfile::tempdir().unwrap();
    let domain = |grace| {
        let domain = Domain::new("d").unwrap().nodes(3).labels(three_nodes());
        domain.configure(move |config| config.baseline.state_grace = grace)
    };
    // Its node is back in time, however late that is.
    let cluster = Cluster::builder(&directory.path().join("back")).domain(domain(Duration::from_secs(3600)));
    let mut cluster = cluster.start().await.unwrap();
    let (started, home) = keeping(&cluster, "node-local").await;
    save(&cluster, &started, &directory.path().join("back"), "kept").await;
    cluster.stop_node(home).await;
    wait_until("it waits", || async { says(&cluster, &started, "which alone has its state").await }).await;
    cluster.restart_node(home).await.unwrap();
    let log = directory.path().join("back").join("log");
    wait_until("it begins with what it saved", || async { lines(&log) == ["kept", "kept"] }).await;
    assert_eq!(status_of(&cluster, &started, "keeper").await.instance.unwrap().node, home);
    cluster.stop().await;

    // It does not come back.
    let cluster = Cluster::builder(&directory.path().join("lost")).domain(domain(Duration::from_secs(1)));
    let mut cluster = cluster.start().await.unwrap();
    let (started, home) = keeping(&cluster, "node-local").await;
    save(&cluster, &started, &directory.path().join("lost"), "lost").await;
    cluster.kill_node(home).await;
    runs_elsewhere(&cluster, &started, home).await;
    let missing = "state lost: it runs without its state: 1 syncs, the last at ";
    wait_until("it says what is missing", || async { says(&cluster, &started, missing).await }).await;
    assert_eq!(lines(&directory.path().join("lost").join("log")), ["lost"], "it begins anew");
    cluster.stop().await;
}

struct Redis {
    url: String,
    server: Child,
    _directory: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

impl Redis {
    async fn start(test: &str) -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            skip("redis", test, "redis-server is not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &addr.port().to_string(), "--save", "", "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("redis-server listens", || async { tokio::net::TcpStream::connect(addr).await.is_ok() }).await;
        Some(Self { url: format!("redis://{addr}"), server, _directory: directory })
    }
}

static STATE_URL: OnceLock<String> = OnceLock::new();

#[tokio::test(flavor = "multi_thread")]
async fn global_state_is_there_when_its_node_is_lost() {
    let Some(redis) = Redis::start("global_state_is_there_when_its_node_is_lost").await else { return };
    STATE_URL.set(redis.url.clone()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::builder(directory.path())
        .domain(Domain::new("d").unwrap().nodes(3).labels(three_nodes()))
        .configure_nodes(|config| config.general.state_url = STATE_URL.get().cloned().unwrap_or_default())
        .start()
        .await
        .unwrap();
    let (started, home) = keeping(&cluster, "global").await;
    save(&cluster, &started, directory.path(), "first").await;
    save(&cluster, &started, directory.path(), "newest").await;
    cluster.kill_node(home).await;
    runs_elsewhere(&cluster, &started, home).await;
    let all = ["first", "newest", "newest"];
    wait_until("it begins with what it saved", || async { lines(&directory.path().join("log")) == all }).await;
    let instance = status_of(&cluster, &started, "keeper").await.instance.unwrap();
    assert_ne!(instance.node, home);
    cluster.workflows().unwrap().stop(started.workflow).await.unwrap();
    cluster.stop().await;
}
