//! The links of nodes to their orchestrator: what is gone is noticed at once, and what is only cut off is not moved.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use edgeless_api::status::State;
use edgeless_api::workflow::WorkflowStatus;
use edgeless_api::{NodeId, Url};
use edgeless_inabox::{Cluster, Domain};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::cluster::{cast, status_of};
use super::support::{function, get, lines, relay_module, resource, wait_until, workflow};

/// Of a domain in which nothing happens because of a deadline: no test is as patient.
const LONG: u64 = 600;

/// Between two daemons: connections that can be cut, and all of them for as long as it is shut.
struct Proxy {
    address: SocketAddr,
    cut: Arc<watch::Sender<()>>,
    is_shut: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
}

impl Proxy {
    async fn to(target: &Url) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            cut: Arc::default(),
            is_shut: Arc::default(),
            accepted: Arc::default(),
        };
        let (cut, is_shut, accepted) = (proxy.cut.clone(), proxy.is_shut.clone(), proxy.accepted.clone());
        let (host, port) = (target.host().to_string(), target.port());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if is_shut.load(Ordering::SeqCst) {
                    continue;
                }
                accepted.fetch_add(1, Ordering::SeqCst);
                let (mut cut, host) = (cut.subscribe(), host.clone());
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect((host, port)).await {
                        tokio::select! {
                            _ = copy_bidirectional(&mut near, &mut far) => {}
                            _ = cut.changed() => {}
                        }
                    }
                });
            }
        });
        proxy
    }

    fn url(&self) -> Url {
        Url::of(self.address)
    }

    fn cut(&self) {
        self.cut.send_replace(());
    }

    fn shut(&self) {
        self.is_shut.store(true, Ordering::SeqCst);
        self.cut();
    }

    fn open(&self) {
        self.is_shut.store(false, Ordering::SeqCst);
    }
}

/// A domain with this keep-alive, and one node that is `fixed`.
async fn cluster(directory: &Path, keep_alive: u64) -> Cluster {
    let domain = Domain::new("domain-1").unwrap().labels(vec![vec!["fixed".to_string()]]);
    let domain = domain.configure(|config| config.baseline.keep_alive_interval_secs = keep_alive);
    Cluster::builder(directory).domain(domain).start().await.unwrap()
}

/// Adds a node whose way to its orchestrator, and back, leads through proxies.
async fn add_behind_proxies(cluster: &mut Cluster) -> (NodeId, [Proxy; 2]) {
    let up = Proxy::to(cluster.orchestrator_url(0).unwrap()).await;
    // Nobody else takes it in the moment until the node does.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let down = Proxy::to(&Url::of(free)).await;
    let id = cluster.add_node_with(0, vec![], |config| {
        config.general.orchestrator_url = Some(up.url());
        config.general.agent_url = Url::of(free);
        config.general.agent_url_announced = Some(down.url());
    });
    let id = id.await.unwrap();
    cluster.until_known().await.unwrap();
    (id, [up, down])
}

/// `first` and the log on the fixed node, and between them `second` on another one.
async fn start(cluster: &Cluster, at: NodeId) -> WorkflowStatus {
    let (relay, fixed) = (relay_module(), ("label_match_all", "fixed"));
    let flow = workflow(
        vec![
            function("first", &relay, &[("out", "second")], &[fixed]),
            function("second", &relay, &[("out", "log")], &[]),
        ],
        vec![resource("log", "file-log", &[], &[("filename", "log"), fixed])],
    );
    let workflows = cluster.workflows().unwrap();
    loop {
        let started = workflows.start(flow.clone(), None).await.unwrap();
        if node_of(cluster, &started).await == Some(at) {
            return started;
        }
        workflows.stop(started.workflow).await.unwrap();
    }
}

/// Where `second` runs.
async fn node_of(cluster: &Cluster, started: &WorkflowStatus) -> Option<NodeId> {
    let status = status_of(cluster, started, "second").await;
    status.instance.filter(|_| status.state == State::Running).map(|instance| instance.node)
}

/// Whether `name` of a metric of the orchestrator has this value.
async fn has_lost(cluster: &Cluster, nodes: u64) -> bool {
    let text = get(cluster.metrics_urls()[1].unwrap(), "/metrics").await;
    text.lines().any(|line| line.starts_with("edgeless_orc_nodes_lost_total") && line.ends_with(&format!(" {nodes}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_on_a_killed_node_runs_elsewhere_long_before_its_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = cluster(directory.path(), LONG).await;
    let lost = cluster.add_node(vec![]).await.unwrap();
    cluster.until_known().await.unwrap();
    let started = start(&cluster, lost).await;
    cluster.kill_node(lost).await;
    wait_until("it runs on the other node", || async {
        node_of(&cluster, &started).await.is_some_and(|node| node != lost)
    })
    .await;
    let first = status_of(&cluster, &started, "first").await.instance.unwrap();
    let log = directory.path().join("log");
    wait_until("its sender was told", || async {
        cast(&cluster, first, "x").await;
        !lines(&log).is_empty()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_link_is_cut_again_and_again_keeps_what_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = cluster(directory.path(), LONG).await;
    let (node, [up, _]) = add_behind_proxies(&mut cluster).await;
    let started = start(&cluster, node).await;
    let before = status_of(&cluster, &started, "second").await.instance;
    for _ in 0..3 {
        let accepted = up.accepted.load(Ordering::SeqCst);
        up.cut();
        // It is there again at once, and not at its next announcement.
        wait_until("it comes back", || async { up.accepted.load(Ordering::SeqCst) > accepted }).await;
    }
    assert!(has_lost(&cluster, 0).await, "nothing was lost");
    assert_eq!(status_of(&cluster, &started, "second").await.instance, before);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_back_at_once_when_their_orchestrator_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = cluster(directory.path(), LONG).await;
    let node = cluster.add_node(vec![]).await.unwrap();
    cluster.until_known().await.unwrap();
    let started = start(&cluster, node).await;
    cluster.restart_orchestrator(0).await.unwrap();
    wait_until("it is known where all runs", || async { node_of(&cluster, &started).await == Some(node) }).await;
    cluster.stop().await;
}

/// Whoever is cut off goes on until it is back; then it must end what runs elsewhere by then, and nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_the_newer_one_goes_on_when_a_node_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = cluster(directory.path(), 1).await;
    let (node, [up, down]) = add_behind_proxies(&mut cluster).await;
    let started = start(&cluster, node).await;
    let old = status_of(&cluster, &started, "second").await.instance.unwrap();
    let runs = async |cluster: &Cluster| {
        let url = cluster.nodes().iter().find(|own| own.id() == node).unwrap().metrics_url().unwrap().clone();
        get(&url, "/metrics").await.lines().any(|line| line.starts_with("function_count{") && !line.ends_with(" 0"))
    };

    up.shut();
    down.shut();
    wait_until("it runs on the other node", || async {
        node_of(&cluster, &started).await.is_some_and(|other| other != node)
    })
    .await;
    assert!(runs(&cluster).await, "a node that is alone keeps running");

    up.open();
    down.open();
    wait_until("the older copy has ended", || async { !runs(&cluster).await }).await;
    let status = status_of(&cluster, &started, "second").await;
    let new = status.instance.unwrap();
    assert!(new.node != node && new != old && status.epoch > 1, "{status:?}");
    let first = status_of(&cluster, &started, "first").await.instance.unwrap();
    cast(&cluster, first, "x").await;
    let log = directory.path().join("log");
    wait_until("it is logged", || async { !lines(&log).is_empty() }).await;
    assert_eq!(lines(&log), ["x"], "once");
    cluster.stop().await;
}
