//! What goes wrong with containers, and who suffers: on the real Docker engine of this machine.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use edgeless_api::client::{Connection, GuestHost, Options};
use edgeless_api::component::{ComponentKind, FunctionSpec, SERVICE};
use edgeless_api::event::Reply;
use edgeless_api::guest::{Goal, Tell};
use edgeless_api::status::State;
use edgeless_api::{Code, InstanceId, NodeId};

use crate::docker::{ask, contained, containers_of, docker, has_docker, networks_of, start, start_spec};
use crate::support::{TestNode, wait_until};

/// The one container of a component.
fn container_of(node: &TestNode, name: &str) -> String {
    let prefix = format!("edgeless-{}-{name}-", &node.id().to_string()[..8]);
    let all = containers_of(node, "{{.ID}} {{.Names}}");
    let of_it: Vec<_> =
        all.iter().filter_map(|line| line.split_once(' ')).filter(|(_, n)| n.starts_with(&prefix)).collect();
    let [(id, _)] = of_it[..] else { panic!("{name} has not one container but {all:?}") };
    id.to_string()
}

async fn named(node: &TestNode, name: &str, annotations: &[(&str, &str)]) -> InstanceId {
    start_spec(node, name, contained("CONTAINER", annotations)).await.unwrap()
}

/// Waits until it was replaced so often and runs.
async fn wait_for_restarts(node: &TestNode, id: InstanceId, restarts: u64) {
    wait_until("the function is replaced", || async {
        let status = node.status(id).await;
        status.restarts == restarts && status.state == State::Running
    })
    .await;
}

/// Waits until nothing is left of the containers of a node.
async fn wait_for_nothing(node: &TestNode, after: &str) {
    wait_until(&format!("nothing is left after: {after}"), || async {
        containers_of(node, "{{.ID}}").is_empty() && networks_of(node).is_empty()
    })
    .await;
}

/// A port that was free a moment ago: one that no outgoing connection is given by itself.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 1000).unwrap() * 20;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2000;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// The guest as a process of this machine; ends with it.
struct Process(Child);

impl Process {
    fn start(port: u16) -> Self {
        let program = std::env::current_exe().unwrap();
        let program = program.parent().unwrap().parent().unwrap().join("examples/guest");
        let mut child = Command::new(program)
            .args(["function", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on port"), "{line}");
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn attached(port: u16) -> FunctionSpec {
    let mut spec = contained("CONTAINER", &[]);
    spec.class.code = format!("grpc:http://127.0.0.1:{port}");
    spec
}

/// An image of one file for a machine that this is not.
fn foreign_image() -> String {
    let name = format!("edgeless-test-foreign:{}", uuid::Uuid::new_v4().simple());
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("guest"), "nothing that could run").unwrap();
    let archive = root.path().join("image.tar");
    let made = Command::new("tar").arg("-C").arg(root.path()).arg("-cf").arg(&archive).arg("guest").status().unwrap();
    assert!(made.success());
    let platform = if cfg!(target_arch = "aarch64") { "linux/amd64" } else { "linux/arm64" };
    let change = "ENTRYPOINT [\"/guest\"]";
    docker(&["import", "--platform", platform, "-c", change, archive.to_str().unwrap(), &name]).unwrap();
    name
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    if !has_docker("a_start_that_fails_says_why_and_leaves_nothing") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let refused = async |spec: FunctionSpec| -> String { start_spec(&node, "guest", spec).await.unwrap_err().message };

    let missing = "no-such-registry.invalid/guest:1";
    let mut spec = contained("CONTAINER", &[]);
    spec.class.code = format!("container:{missing}");
    let reason = refused(spec).await;
    assert!(reason.contains(missing) && reason.contains("docker load"), "{reason}");

    let foreign = foreign_image();
    let mut spec = contained("CONTAINER", &[]);
    spec.class.code = format!("container:{foreign}");
    let reason = refused(spec).await;
    docker(&["rmi", &foreign]).unwrap();
    assert!(reason.contains(&foreign) && reason.contains("this node is linux/"), "{reason}");

    for (annotations, parts) in [
        (("env:REFUSE", "boot"), ["it refused to boot", "I refuse to boot", "listening on port 7101"]),
        (
            ("init-payload", "fail"),
            ["its initialisation failed", "I refuse to be initialised", "listening on port 7101"],
        ),
        (("command", r#"["fail","some last words"]"#), ["exit code 3", "it said last", "some last words"]),
        (("command", r#"["no-such-command"]"#), ["exit code 2", "it said last", "guest function|web|fail"]),
    ] {
        let reason = refused(contained("CONTAINER", &[annotations])).await;
        assert!(parts.iter().all(|part| reason.contains(part)), "{annotations:?}: {reason}");
        wait_for_nothing(&node, annotations.1).await;
    }
    node.stop_node().await;
}

#[tokio::test]
async fn a_container_that_never_opens_its_port_is_not_waited_for_for_ever() {
    if !has_docker("a_container_that_never_opens_its_port_is_not_waited_for_for_ever") {
        return;
    }
    let node = TestNode::with_containers("start_timeout = \"1s\"").await;
    let reason = start(&node, &[("command", r#"["sleep"]"#)]).await.unwrap_err().message;
    assert!(reason.contains("nothing answers at http://") && reason.contains("it said nothing"), "{reason}");
    wait_for_nothing(&node, "a port that is never opened").await;
    node.stop_node().await;
}

#[tokio::test]
async fn a_container_that_is_killed_is_replaced() {
    if !has_docker("a_container_that_is_killed_is_replaced") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let guest = named(&node, "guest", &[]).await;
    let first = container_of(&node, "guest");
    docker(&["kill", &first]).unwrap();
    wait_for_restarts(&node, guest, 1).await;
    assert_eq!(ask(&node, guest, "echo idle").await, "idle");
    let reason = node.status(guest).await.reason;
    assert!(reason.contains("the container was killed"), "{reason}");

    // While it handles an event.
    let second = container_of(&node, "guest");
    assert_ne!(first, second);
    let pending = node.begin_call(guest, "sleep 600000", None).await;
    docker(&["kill", &second]).unwrap();
    assert_eq!(pending.reply().await, Reply::Error);
    wait_for_restarts(&node, guest, 2).await;
    assert_eq!(ask(&node, guest, "echo busy").await, "busy");

    // By itself, and by somebody who tidies up.
    assert_eq!(ask(&node, guest, "exit 7").await, "(error)");
    wait_for_restarts(&node, guest, 3).await;
    let reason = node.status(guest).await.reason;
    assert!(reason.contains("the container ended with exit code 7"), "{reason}");
    docker(&["rm", "-f", &container_of(&node, "guest")]).unwrap();
    wait_for_restarts(&node, guest, 4).await;
    assert_eq!(ask(&node, guest, "echo again").await, "again");

    node.stop(ComponentKind::Function, guest).await;
    wait_for_nothing(&node, "containers that were killed").await;
    node.stop_node().await;
}

/// Also when it is silent for longer than connections usually are: it may just have no processor.
#[tokio::test]
async fn a_container_that_is_paused_harms_only_itself() {
    if !has_docker("a_container_that_is_paused_harms_only_itself") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let (paused, other) = (named(&node, "paused", &[]).await, named(&node, "other", &[]).await);
    let container = container_of(&node, "paused");
    docker(&["pause", &container]).unwrap();
    let call = node.begin_call(paused, "echo never", Some(Duration::from_millis(300))).await;
    assert_eq!(ask(&node, other, "echo meanwhile").await, "meanwhile");
    assert_eq!(call.reply().await, Reply::Error);
    // Each of these ends by the longest that a handler may take.
    for _ in 0..4 {
        assert_eq!(ask(&node, paused, "echo never").await, "(error)");
        assert_eq!(ask(&node, other, "echo meanwhile").await, "meanwhile");
    }
    docker(&["unpause", &container]).unwrap();
    wait_until("it answers again", || async { ask(&node, paused, "echo back").await == "back" }).await;
    let status = node.status(paused).await;
    assert_eq!((status.restarts, status.state), (0, State::Running), "{:?}", status.log);
    assert_eq!(container_of(&node, "paused"), container);
    node.stop_node().await;
}

#[tokio::test]
async fn a_container_that_needs_too_much_memory_is_killed_alone() {
    if !has_docker("a_container_that_needs_too_much_memory_is_killed_alone") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let (greedy, other) = (named(&node, "greedy", &[("memory", "64MiB")]).await, named(&node, "other", &[]).await);
    assert_eq!(ask(&node, greedy, "alloc 256").await, "(error)");
    assert_eq!(ask(&node, other, "echo still here").await, "still here");
    wait_for_restarts(&node, greedy, 1).await;
    let status = node.status(greedy).await;
    assert!(status.reason.contains("it needed more than its limit of memory"), "{}", status.reason);
    assert_eq!(ask(&node, greedy, "echo modest").await, "modest");
    assert_eq!(node.status(other).await.restarts, 0);
    node.stop_node().await;
}

#[tokio::test]
async fn containers_call_each_other_and_speak_for_themselves_only() {
    if !has_docker("containers_call_each_other_and_speak_for_themselves_only") {
        return;
    }
    let node = TestNode::with_containers("").await;
    let (a, b, c) = (named(&node, "a", &[]).await, named(&node, "b", &[]).await, named(&node, "c", &[]).await);
    node.patch(ComponentKind::Function, a, &[("out", b)]).await;
    node.patch(ComponentKind::Function, b, &[("out", c)]).await;
    node.patch(ComponentKind::Function, c, &[("out", node.peer.id)]).await;
    assert_eq!(ask(&node, a, "call call echo deep").await, "deep");

    // What would go to the peer if it were believed.
    let answer = ask(&node, a, &format!("forge {}", c.function)).await;
    assert!(answer.starts_with("refused:") && answer.contains("may not speak as"), "{answer}");
    let log = node.status(a).await.log;
    assert!(log.iter().any(|line| line.message.contains("it tried to speak as")), "{log:?}");
    // A process of this machine that knows the id of an instance, and no token.
    let url = ask(&node, a, "host").await.parse().unwrap();
    let host = || Connection::lazy(&url, Options::default()).unwrap();
    for token in ["", "guessed"] {
        let stranger = GuestHost::new(host(), token).unwrap();
        let said = stranger.tell(c, Tell::Cast(Goal::Output("out".into()), "forged".into())).await;
        assert_eq!(said.unwrap_err().code, Code::Rejected, "with the token '{token}'");
    }
    // In order with what is forged, if that went through.
    assert_eq!(ask(&node, c, "cast true").await, "(empty)");
    assert_eq!(node.peer.next_cast().await, "true");
    node.stop_node().await;
}

#[tokio::test]
async fn a_server_that_shows_no_token_is_attached_only_if_that_is_allowed() {
    if !has_docker("a_server_that_shows_no_token_is_attached_only_if_that_is_allowed") {
        return;
    }
    let (port, node) = (free_port(), TestNode::with_containers("").await);
    let _server = Process::start(port);
    let refused = start_spec(&node, "server", attached(port)).await.unwrap_err();
    assert!(refused.message.contains("container_runtime.allow_untokened"), "{refused}");
    node.stop_node().await;

    let (port, node) = (free_port(), TestNode::with_containers("allow_untokened = true").await);
    let _server = Process::start(port);
    let server = start_spec(&node, "server", attached(port)).await.unwrap();
    node.patch(ComponentKind::Function, server, &[("out", node.peer.id)]).await;
    assert_eq!(ask(&node, server, "echo here").await, "here");
    node.cast(server, "cast there").await;
    assert_eq!(node.peer.next_cast().await, "there");
    node.stop_node().await;
}

/// What it was told in its Boot it does not know any more: it is booted again, be it idle or not.
#[tokio::test]
async fn a_server_that_dies_is_attached_again_when_it_is_back() {
    if !has_docker("a_server_that_dies_is_attached_again_when_it_is_back") {
        return;
    }
    let (port, node) = (free_port(), TestNode::with_containers("allow_untokened = true").await);
    let nothing = start_spec(&node, "server", attached(port)).await.unwrap_err();
    assert_eq!(nothing.code, Code::Unavailable, "{nothing}");
    assert!(nothing.message.contains(&format!("nothing answers at http://127.0.0.1:{port}")), "{nothing}");

    let process = Process::start(port);
    let server = start_spec(&node, "server", attached(port)).await.unwrap();
    drop(process);
    wait_until("it is seen that the server is gone", || async {
        let status = node.status(server).await;
        status.state == State::Restarting && status.reason.contains("nothing answers at")
    })
    .await;
    assert_eq!(node.status(server).await.restarts, 0);
    let process = Process::start(port);
    wait_for_restarts(&node, server, 1).await;
    assert_eq!(ask(&node, server, "echo back").await, "back");

    let pending = node.begin_call(server, "sleep 600000", None).await;
    drop(process);
    assert_eq!(pending.reply().await, Reply::Error);
    let _process = Process::start(port);
    wait_for_restarts(&node, server, 2).await;
    assert_eq!(ask(&node, server, "echo again").await, "again");
    node.stop_node().await;
}

/// What is there of a node, whether it runs or not.
fn left_of(node: NodeId) -> Vec<String> {
    let filter = format!("label=org.edgeless.node={node}");
    let containers = docker(&["ps", "-a", "--filter", &filter, "--format", "container {{.Names}}"]).unwrap();
    let networks = docker(&["network", "ls", "--filter", &filter, "--format", "network {{.Name}}"]).unwrap();
    let chain = format!("EDGELESS-{}", &node.to_string()[..8]);
    let rules = Command::new("iptables").args(["-w", "30", "-S"]).output().unwrap();
    let rules = String::from_utf8(rules.stdout).unwrap();
    let rules = rules.lines().filter(|line| line.contains(&chain));
    containers.lines().chain(networks.lines()).chain(rules).map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_node_that_stops_leaves_nothing() {
    if !has_docker("a_node_that_stops_leaves_nothing") {
        return;
    }
    let sockets = tempfile::tempdir().unwrap();
    let node = TestNode::with_containers_in(sockets.path(), "").await;
    named(&node, "platform", &[("network", "platform")]).await;
    named(&node, "full", &[("network", "full")]).await;
    // Does not end when it is told to.
    let service = contained(SERVICE, &[("network", "full"), ("command", r#"["sleep"]"#)]);
    start_spec(&node, "service", service).await.unwrap();
    let there = left_of(node.id());
    let count = |what: &str| there.iter().filter(|thing| thing.starts_with(what)).count();
    assert_eq!((count("container"), count("network")), (3, 3), "{there:?}");
    assert!(count("-N") == 1 && count("-A INPUT") == 1, "{there:?}");
    // Of a start that was cut off by SIGKILL, if there ever was one.
    let old = sockets.path().join(format!("edgeless-{}-old-00000000", &node.id().to_string()[..8]));
    std::fs::create_dir_all(old).unwrap();
    let id = node.id();
    node.stop_node().await;
    assert_eq!(left_of(id), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(sockets.path()).unwrap().count(), 0);
}
