//! What goes wrong with containers, and who suffers: on the real Docker engine of this machine.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgeless_api::client::{self, Connection, GuestHost, Options};
use edgeless_api::component::{ComponentKind, ComponentRef, ComponentSpec, FunctionSpec, SERVICE, Start, StartContext};
use edgeless_api::event::{Kind, Reply, Trace};
use edgeless_api::guest::{Goal, Tell};
use edgeless_api::node::PeerUpdate;
use edgeless_api::status::{ComponentStatus, State};
use edgeless_api::{Code, Event, InstanceId, NodeId};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::docker::{ask, contained, containers_of, docker, has_docker, image, networks_of, skip, start, start_spec};
use crate::support::{FakePeer, PATIENCE, TestNode, containers_text, context, wait_until};

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
    let name = format!("edgeless-test-foreign:{}", Uuid::new_v4().simple());
    let root = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| std::fs::write(root.path().join(file), text).unwrap();
    let tar = |archive: &str, files: &[&str]| {
        let made = Command::new("tar").current_dir(&root).arg("-cf").arg(archive).args(files).status().unwrap();
        assert!(made.success());
    };
    put("guest", "nothing that could run");
    tar("layer.tar", &["guest"]);
    let layer = Sha256::digest(std::fs::read(root.path().join("layer.tar")).unwrap());
    let layer: String = layer.iter().map(|byte| format!("{byte:02x}")).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    put(
        "config.json",
        &format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Entrypoint":["/guest"]}},
                "rootfs":{{"type":"layers","diff_ids":["sha256:{layer}"]}}}}"#
        ),
    );
    put("manifest.json", &format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#));
    tar("image.tar", &["manifest.json", "config.json", "layer.tar"]);
    docker(&["load", "-i", root.path().join("image.tar").to_str().unwrap()]).unwrap();
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
        (("command", r#"["no-such-command"]"#), ["exit code 2", "it said last", "guest function|web|"]),
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
async fn a_function_that_hangs_is_replaced() {
    if !has_docker("a_function_that_hangs_is_replaced") {
        return;
    }
    let node = TestNode::with_containers_that_hurry("200ms").await;
    let guest = named(&node, "guest", &[]).await;
    node.cast(guest, "spin 3600000").await;
    wait_until("it is replaced", || async {
        ask(&node, guest, "echo on").await == "on" && node.status(guest).await.restarts == 1
    })
    .await;
    let reason = node.status(guest).await.reason;
    assert!(reason.starts_with("it hangs: it has answered nothing for "), "{reason}");
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
        let error = said.unwrap_err();
        assert_eq!(error.code, Code::Rejected, "{error}: with the token '{token}'");
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

/// What is being started is nobody's yet: no component, no stop handler, but a container.
#[tokio::test]
async fn a_node_that_stops_while_a_function_starts_leaves_nothing() {
    if !has_docker("a_node_that_stops_while_a_function_starts_leaves_nothing") {
        return;
    }
    let sockets = tempfile::tempdir().unwrap();
    let node = TestNode::with_containers_in(sockets.path(), "start_timeout = \"1h\"").await;
    let components = client::Components::new(Connection::lazy(node.agent_url(), Options::default()).unwrap());
    let starting = tokio::spawn(async move {
        let spec = ComponentSpec::Function(contained("CONTAINER", &[("command", r#"["sleep"]"#)]));
        components.start(Start { spec, context: Some(context("guest")) }).await
    });
    wait_until("its container runs", || async { containers_of(&node, "{{.State}}") == ["running"] }).await;
    let id = node.id();
    assert_eq!(node.stop_node().await, edgeless_daemon::Stopped::Clean);
    let refused = starting.await.unwrap().unwrap_err();
    assert_eq!((refused.code, &*refused.message), (Code::Unavailable, "the node is being stopped"));
    assert_eq!(left_of(id), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(sockets.path()).map_or(0, Iterator::count), 0);
}

/// The program of the node, and the orchestrator as far as it can tell.
struct Program {
    child: Child,
    components: client::Components,
    invocation: client::Invocation,
    peer: FakePeer,
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

/// What a program is run with, again and again.
struct Setup {
    directory: tempfile::TempDir,
    node: NodeId,
    invocation: u16,
}

impl Setup {
    fn new(lines: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = containers_text(directory.path(), &directory.path().join("sockets"), lines);
        let value = |key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line.split('"').nth(1).unwrap().to_string()
        };
        let (node, invocation) = (value("node_id").parse().unwrap(), free_port());
        let text = text.replace(
            "invocation_url = \"http://127.0.0.1:0\"",
            &format!("invocation_url = \"http://127.0.0.1:{invocation}\""),
        );
        std::fs::write(directory.path().join("node.toml"), text).unwrap();
        Self { directory, node, invocation }
    }

    /// The same for a node that has lost what it had written down, so that only its containers are left.
    async fn run_without_journal(&self) -> Program {
        std::fs::remove_file(edgeless_node::records::file(&self.directory.path().join("state"), self.node)).unwrap();
        self.run().await
    }

    async fn run(&self) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgeless_node_d"))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.by_ref().map(Result::unwrap).find(|line| line.contains(" is ready at ")).unwrap();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("node: {line}")));
        let agent = ready.split(" is ready at ").nth(1).unwrap().split(' ').next().unwrap().to_string();
        let connection = |url: &str| Connection::lazy(&url.parse().unwrap(), Options::default()).unwrap();
        let peer = FakePeer::start(self.node).await;
        let management = client::NodeManagement::new(connection(&agent));
        management.update_peers(PeerUpdate::Add(peer.id.node, peer.url.clone())).await.unwrap();
        Program {
            child,
            components: client::Components::new(connection(&agent)),
            invocation: client::Invocation::new(connection(&format!("http://127.0.0.1:{}", self.invocation))),
            peer,
        }
    }

    /// Its containers that run: id and name.
    fn running(&self) -> Vec<(String, String)> {
        let filter = format!("label=org.edgeless.node={}", self.node);
        let listed = docker(&["ps", "--no-trunc", "--filter", &filter, "--format", "{{.ID}} {{.Names}}"]).unwrap();
        listed.lines().filter_map(|line| line.split_once(' ')).map(|(id, name)| (id.into(), name.into())).collect()
    }
}

impl Program {
    async fn start(&self, spec: &FunctionSpec, context: &StartContext) -> InstanceId {
        let spec = ComponentSpec::Function(spec.clone());
        match self.components.start(Start { spec, context: Some(context.clone()) }).await.unwrap() {
            ComponentRef::Instance(id) => id,
            ComponentRef::Component(id) => panic!("a node answered with {id:?}"),
        }
    }

    async fn ask(&self, target: InstanceId, command: &str) -> String {
        let stream = self.peer.next_stream.fetch_add(1, Ordering::Relaxed);
        let payload = Bytes::copy_from_slice(command.as_bytes());
        let event = Event {
            source: self.peer.id,
            target,
            kind: Kind::Call { payload, stream, remaining: None },
            created: std::time::SystemTime::now(),
            trace: Trace::default(),
            id: None,
        };
        let reply = self.peer.expect_reply(stream).await;
        self.invocation.handle(event).await.unwrap();
        match tokio::time::timeout(PATIENCE, reply).await.expect("a reply").unwrap().kind {
            Kind::Reply { reply: Reply::Message(payload), .. } => String::from_utf8(payload.to_vec()).unwrap(),
            other => format!("{other:?}"),
        }
    }

    async fn status(&self, id: InstanceId) -> ComponentStatus {
        self.components.status(&[id.function]).await.unwrap().remove(0)
    }

    /// What it has in memory, KiB.
    fn memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Ends it without a word.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to end, and waits until it has.
    async fn stop(mut self) {
        kill_process(pid_of(&self.child), Signal::TERM).unwrap();
        wait_until("the node has ended", || {
            let ended = self.child.try_wait().unwrap().is_some();
            async move { ended }
        })
        .await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The size of the files in which the engine keeps what a container says.
fn log_size(container: &str) -> u64 {
    let path = docker(&["inspect", "-f", "{{.LogPath}}", container]).unwrap();
    let path = std::path::Path::new(&path);
    let name = path.file_name().unwrap().to_str().unwrap();
    let files = std::fs::read_dir(path.parent().unwrap()).unwrap().map(Result::unwrap);
    let of_log = files.filter(|file| file.file_name().to_str().unwrap().starts_with(name));
    of_log.map(|file| file.metadata().map_or(0, |file| file.len())).sum()
}

/// The node takes it as slowly as it can use it, the engine keeps the end of it.
#[tokio::test]
async fn a_container_that_floods_its_log_harms_nobody() {
    if !has_docker("a_container_that_floods_its_log_harms_nobody") {
        return;
    }
    let setup = Setup::new("");
    let node = setup.run().await;
    let loud = node.start(&contained("CONTAINER", &[]), &context("loud")).await;
    let other = node.start(&contained("CONTAINER", &[]), &context("other")).await;
    let (container, _) = setup.running().into_iter().find(|(_, name)| name.contains("-loud-")).unwrap();
    assert_eq!(node.ask(loud, "echo before").await, "before");
    let before = node.memory();
    // 20 MB by the time that the engine has wrapped each line.
    node.ask(loud, "flood 200000").await;
    wait_until("the last line of the flood is written", || async {
        assert_eq!(node.ask(other, "echo meanwhile").await, "meanwhile");
        assert!(node.status(loud).await.log.len() <= 10);
        docker(&["logs", "--tail", "1", &container]).unwrap().contains("line 199999 ")
    })
    .await;
    assert_eq!(node.ask(loud, "echo after").await, "after");
    let (size, grown) = (log_size(&container), node.memory().saturating_sub(before));
    assert!(size < 3 << 20, "the engine keeps {size} bytes");
    assert!(grown < 32 << 10, "the node has grown by {grown} KiB");
    node.stop().await;
    assert_eq!(left_of(setup.node), Vec::<String>::new());
}

/// A service goes on as if nothing had been; a function begins anew, for it cannot be booted twice; what
/// nobody wants any more goes.
#[tokio::test]
async fn a_node_that_is_killed_takes_over_what_is_wanted_and_removes_the_rest() {
    if !has_docker("a_node_that_is_killed_takes_over_what_is_wanted_and_removes_the_rest") {
        return;
    }
    // Nothing is removed before it was claimed, however slow the machine is.
    let setup = Setup::new("adopt_within = \"1h\"");
    let node = setup.run().await;
    let (function, of_function) = (contained("CONTAINER", &[("network", "platform")]), context("function"));
    let service = contained(SERVICE, &[("network", "full"), ("command", r#"["web"]"#), ("health", "tcp:8080")]);
    let of_service = context("service");
    let first = node.start(&function, &of_function).await;
    node.start(&service, &of_service).await;
    // Of a workflow of its own, with a network of its own.
    node.start(&contained("CONTAINER", &[("network", "full")]), &context("unwanted")).await;
    assert_eq!(node.ask(first, "echo before").await, "before");
    let before = setup.running();
    let id_of = |running: &[(String, String)], name: &str| {
        let ids: Vec<_> = running.iter().filter(|(_, other)| other.contains(&format!("-{name}-"))).collect();
        assert_eq!(ids.len(), 1, "{name}: {running:?}");
        ids[0].0.clone()
    };
    node.kill();
    assert_eq!(setup.running(), before, "they go on without their node");
    // As a node leaves them that is killed while it replaces one.
    let labels =
        [format!("org.edgeless.node={}", setup.node), format!("org.edgeless.component={}", of_function.component)];
    let run = ["run", "-d", "--network=none", "--label", &labels[0], "--label", &labels[1]];
    let second = docker(&[&run[..], &["--name", &format!("edgeless-test-{}", setup.node), image(), "sleep"]].concat());
    let second = second.unwrap();

    let again = |context: &StartContext| StartContext { epoch: 2, ..context.clone() };
    let node = setup.run_without_journal().await;
    let function_again = node.start(&function, &again(&of_function)).await;
    let service_again = node.start(&service, &again(&of_service)).await;
    assert_eq!(node.ask(function_again, "echo again").await, "again");
    assert_eq!(node.status(service_again).await.state, State::Running);
    let after = setup.running();
    assert_eq!(after.len(), 3, "one function, one service, one that waits to be taken over: {after:?}");
    assert_eq!(id_of(&before, "service"), id_of(&after, "service"), "the very same");
    assert_ne!(id_of(&before, "function"), id_of(&after, "function"));
    assert!(after.iter().all(|(id, _)| *id != second), "{after:?}");
    assert!(left_of(setup.node).iter().any(|rule| rule.starts_with("-A INPUT")), "the filter is there");
    // Its network goes with the service, for nothing else is part of it.
    let networks = || left_of(setup.node).iter().filter(|thing| thing.starts_with("network")).count();
    assert_eq!(networks(), 3);
    node.components.stop(ComponentKind::Function, ComponentRef::Instance(service_again)).await.unwrap();
    wait_until("the network of the service is gone", || async { networks() == 2 }).await;
    node.kill();

    // Once more, and nobody wants anything.
    let text = std::fs::read_to_string(setup.directory.path().join("node.toml")).unwrap();
    let text = text.replace("adopt_within = \"1h\"", "adopt_within = \"1s\"");
    std::fs::write(setup.directory.path().join("node.toml"), text).unwrap();
    let node = setup.run_without_journal().await;
    wait_until("nothing is left", || async { left_of(setup.node).is_empty() }).await;
    let sockets = setup.directory.path().join("sockets");
    assert_eq!(std::fs::read_dir(sockets).map_or(0, Iterator::count), 0);
    node.stop().await;
}

/// Or it would run on beside the next one of its component.
#[tokio::test]
async fn what_cannot_be_taken_over_is_removed() {
    if !has_docker("what_cannot_be_taken_over_is_removed") {
        return;
    }
    let setup = Setup::new("adopt_within = \"1h\"\nmax_containers = 2");
    let node = setup.run().await;
    let (service, lost) = (contained(SERVICE, &[("command", r#"["web"]"#), ("health", "tcp:8080")]), context("lost"));
    node.start(&service, &lost).await;
    node.kill();
    let text = std::fs::read_to_string(setup.directory.path().join("node.toml")).unwrap();
    let text = text.replace("max_containers = 2", "max_containers = 1");
    std::fs::write(setup.directory.path().join("node.toml"), text).unwrap();
    let node = setup.run_without_journal().await;
    node.start(&contained("CONTAINER", &[]), &context("first")).await;
    assert_eq!(setup.running().len(), 2, "the service may still be taken over");
    let start = Start { spec: ComponentSpec::Function(service), context: Some(StartContext { epoch: 2, ..lost }) };
    let refused = node.components.start(start).await.unwrap_err();
    assert!(refused.message.contains("container_runtime.max_containers"), "{refused}");
    let running = setup.running();
    assert!(running.len() == 1 && running[0].1.contains("-first-"), "{running:?}");
    node.stop().await;
    assert_eq!(left_of(setup.node), Vec::<String>::new());
}

/// An engine of the test's own, beside that of the machine.
struct Dockerd {
    directory: tempfile::TempDir,
    bridge: String,
    child: Mutex<Option<Child>>,
}

impl Dockerd {
    /// One whose bridge has this address; `None`: this machine has no such program, or the test may not run it.
    fn new(address: &str) -> Option<Self> {
        let is_there = Command::new("dockerd").arg("--version").output().is_ok_and(|said| said.status.success());
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("daemon.json"), "{}").unwrap();
        let bridge = format!("edgt{:08x}", rand::random::<u32>());
        let can_run = is_there && geteuid().is_root() && ip(&["link", "add", &bridge, "type", "bridge"]);
        can_run.then(|| {
            assert!(ip(&["addr", "add", address, "dev", &bridge]) && ip(&["link", "set", &bridge, "up"]));
            Self { directory, bridge, child: Mutex::new(None) }
        })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn docker(&self, args: &[&str]) -> Result<String, String> {
        let host = format!("unix://{}", self.path("socket"));
        docker(&[&["-H", &host], args].concat())
    }

    /// Starts it, and waits until it answers. The rules of the machine's filter and its networks are left alone:
    /// its bridge is one of its own, for an engine that wants none removes that of the others.
    async fn start(&self) {
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        // It waits for a containerd that is dead and that nobody has buried yet.
        std::fs::remove_file(self.path("exec/containerd/containerd.pid")).ok();
        let child = Command::new("dockerd")
            .args(["--config-file", &self.path("daemon.json"), "--data-root", &self.path("data")])
            .args(["--exec-root", &self.path("exec"), "--pidfile", &self.path("pid")])
            .args(["-H", &format!("unix://{}", self.path("socket"))])
            .args([
                "--bridge",
                &self.bridge,
                "--iptables=false",
                "--ip6tables=false",
                "--ip-masq=false",
                "--storage-driver=vfs",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.child.lock().unwrap() = Some(child);
        let began = Instant::now();
        while let Err(error) = self.docker(&["version"]) {
            let said = || std::fs::read_to_string(self.directory.path().join("log")).unwrap();
            assert!(began.elapsed() < PATIENCE * 3, "{error}:\n{}", said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends it: with `KILL` its containers go on, with `TERM` it ends them.
    async fn end(&self, signal: Signal) {
        let Some(mut child) = self.child.lock().unwrap().take() else { return };
        kill_process(pid_of(&child), signal).unwrap();
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE * 3, "the engine does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Or the next would take it for one that it may use.
        while self.processes("containerd --config").next().is_some() {
            assert!(began.elapsed() < PATIENCE * 3, "the engine's containerd does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The processes that belong to it alone, by the beginning of their command line.
    fn processes(&self, command: &str) -> impl Iterator<Item = Pid> {
        let directory = self.directory.path().display().to_string();
        let is_ours = move |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(&directory) && line.contains(command)
        };
        let all =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        all.filter(is_ours).filter_map(Pid::from_raw)
    }

    fn load(&self, image: &str) {
        let archive = self.path("image.tar");
        docker(&["save", "-o", &archive, image]).unwrap();
        self.docker(&["load", "-i", &archive]).unwrap();
    }

    fn containers(&self) -> Vec<String> {
        let listed = self.docker(&["ps", "-a", "-q"]).unwrap();
        listed.lines().map(ToString::to_string).collect()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let child = self.child.get_mut().map_or(None, Option::take);
        if let Some(mut child) = child {
            kill_process(pid_of(&child), Signal::TERM).ok();
            child.wait().ok();
        }
        // Of an engine that was killed, where the test failed before it was started again.
        for shim in self.processes("containerd-shim") {
            let children = format!("/proc/{0}/task/{0}/children", shim.as_raw_nonzero());
            let children = std::fs::read_to_string(children).unwrap_or_default();
            kill_process(shim, Signal::KILL).ok();
            for child in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                kill_process(child, Signal::KILL).ok();
            }
        }
        let directory = self.path("");
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&directory)) {
            Command::new("umount").args(["-l", mount]).status().ok();
        }
        ip(&["link", "del", &self.bridge]);
    }
}

/// Whether a command of the network's own command line succeeds.
fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn functions_return_when_the_engine_does() {
    const NAME: &str = "functions_return_when_the_engine_does";
    if !has_docker(NAME) {
        return;
    }
    let Some(engine) = Dockerd::new("10.228.0.1/24") else {
        skip(NAME, "there is no dockerd that it may run");
        return;
    };
    let socket = engine.path("socket");
    // Other addresses than those of the nodes at the machine's engine: the two engines do not know of each other.
    let node = TestNode::with_containers(&format!("docker_socket = {socket:?}\nsubnet = \"10.229.0.0/16\"")).await;
    let spec = contained("CONTAINER", &[("network", "full")]);
    let refused = start_spec(&node, "guest", spec.clone()).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable, "{refused}");
    assert!(refused.message.contains(&format!("the Docker engine at {socket} cannot be reached")), "{refused}");

    engine.start().await;
    engine.load(image());
    let mut started = start_spec(&node, "guest", spec.clone()).await;
    let began = Instant::now();
    while started.as_ref().is_err_and(|error| error.code == Code::Unavailable) && began.elapsed() < PATIENCE {
        started = start_spec(&node, "guest", spec.clone()).await;
    }
    let guest = started.unwrap();
    assert_eq!(ask(&node, guest, "echo one").await, "one");
    let away = format!("the Docker engine at {socket} cannot be reached");

    for (signal, state) in [
        // It ends its containers.
        (Signal::TERM, State::Restarting),
        // They go on, and are ended by the engine that follows.
        (Signal::KILL, State::Running),
    ] {
        let restarts = node.status(guest).await.restarts;
        engine.end(signal).await;
        wait_until("it is seen that the engine is away", || async {
            let status = node.status(guest).await;
            status.state == state && status.reason.contains(&away)
        })
        .await;
        if state == State::Running {
            assert_eq!(ask(&node, guest, "echo alone").await, "alone");
        }
        engine.start().await;
        wait_for_restarts(&node, guest, restarts + 1).await;
        wait_until("it answers again", || async { ask(&node, guest, "echo back").await == "back" }).await;
        assert_eq!(node.status(guest).await.restarts, restarts + 1);
        wait_until("nothing is doubled", || async { engine.containers().len() == 1 }).await;
    }
    node.stop(ComponentKind::Function, guest).await;
    wait_until("nothing is left", || async { engine.containers().is_empty() }).await;
    assert_eq!(engine.docker(&["network", "ls", "-q", "--filter", "label=org.edgeless.node"]).unwrap(), "");
    node.stop_node().await;
    engine.end(Signal::TERM).await;
}

#[tokio::test]
async fn what_a_container_says_is_heard_also_after_the_engine_was_started_again() {
    const NAME: &str = "what_a_container_says_is_heard_also_after_the_engine_was_started_again";
    if !has_docker(NAME) {
        return;
    }
    let Some(engine) = Dockerd::new("10.230.0.1/24") else {
        skip(NAME, "there is no dockerd that it may run");
        return;
    };
    std::fs::write(engine.path("daemon.json"), r#"{"live-restore": true}"#).unwrap();
    engine.start().await;
    engine.load(image());
    let lines = format!("docker_socket = {:?}\nsubnet = \"10.231.0.0/16\"", engine.path("socket"));
    let node = TestNode::with_containers(&lines).await;
    let guest = start_spec(&node, "guest", contained("CONTAINER", &[])).await.unwrap();
    let heard = async |line: &str| {
        let log = node.status(guest).await.log;
        log.iter().filter(|said| said.message == line).count()
    };
    ask(&node, guest, "flood 1").await;
    wait_until("it is heard before", || async { heard("line 0 of a flood").await == 1 }).await;
    engine.end(Signal::KILL).await;
    engine.start().await;
    ask(&node, guest, "flood 2").await;
    wait_until("it is heard after", || async { heard("line 1 of a flood").await == 1 }).await;
    assert_eq!(heard("line 0 of a flood").await, 2, "each line once");
    assert_eq!(node.status(guest).await.restarts, 0);
    node.stop_node().await;
    assert_eq!(engine.containers(), Vec::<String>::new());
    engine.end(Signal::TERM).await;
}
