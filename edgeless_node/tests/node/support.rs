//! A node to test, and the rest of the world as a fake peer that sends and receives events.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::client::{self, Connection, Options};
use edgeless_api::component::{
    ComponentKind, ComponentRef, ComponentSpec, FunctionClass, FunctionSpec, Patch, ResourceSpec, Start, StartContext,
    StatePolicy, StateSpec, Target,
};
use edgeless_api::event::{Kind, Reply, Trace};
use edgeless_api::node::PeerUpdate;
use edgeless_api::server::{Invocation, Server};
use edgeless_api::status::ComponentStatus;
use edgeless_api::{ComponentId, Error, Event, InstanceId, NodeId, StateId, Url, WorkflowId};
use edgeless_daemon::config::parse;
use edgeless_daemon::{Daemon, Handle, listen};
use edgeless_node::backends::Backends;
use edgeless_node::{Config, Node};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds.
pub(crate) async fn wait_until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "in vain: waited until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A node and the world around it.
pub(crate) struct TestNode {
    node: Node,
    pub(crate) components: client::Components,
    pub(crate) management: client::NodeManagement,
    pub(crate) invocation: client::Invocation,
    pub(crate) peer: FakePeer,
    pub(crate) directory: tempfile::TempDir,
    /// Its configuration.
    text: String,
}

/// The text of a configuration with free ports, in which nothing is written outside `directory`.
pub(crate) fn config_text(directory: &std::path::Path) -> String {
    let (state, cache) = (directory.join("state"), directory.join("cache"));
    format!(
        r#"[general]
node_id = "{}"
agent_url = "http://127.0.0.1:0"
invocation_url = "http://127.0.0.1:0"
metrics_url = "http://127.0.0.1:0"
# Nobody is there: these tests play the orchestrator.
orchestrator_url = "http://127.0.0.1:1"
state_directory = "{}"
[wasm_runtime]
max_instances = 32
memory_limit = "4MiB"
cpu_limit = "300ms"
cache_directory = "{}"
[limits]
call_timeout = "5s"
emit_wait = "500ms"
move_wait = "60s"
payload = "64KiB"
mailbox = 16
components = 64
grace = "1s"
"#,
        NodeId::random(),
        state.display(),
        cache.display()
    )
}

/// The text of a configuration of a node that runs containers.
pub(crate) fn containers_text(directory: &std::path::Path, sockets: &std::path::Path, lines: &str) -> String {
    let text = config_text(directory);
    format!("{text}\n[container_runtime]\nenabled = true\nsocket_directory = {sockets:?}\n{lines}\n")
}

impl TestNode {
    /// A node without resources.
    pub(crate) async fn start() -> Self {
        Self::with_resources("").await
    }

    /// A node with these lines in `[resources]`; `{dir}` stands for a directory of its own.
    pub(crate) async fn with_resources(lines: &str) -> Self {
        Self::with_config(&[], lines).await
    }

    /// A node whose configuration has these values instead of those of [`config_text`].
    pub(crate) async fn with(values: &[(&str, &str)]) -> Self {
        Self::with_config(values, "").await
    }

    /// A node with this line in `[general]`.
    pub(crate) async fn with_general(line: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = config_text(directory.path()).replacen("[general]\n", &format!("[general]\n{line}\n"), 1);
        Self::run(directory, text).await
    }

    /// Both.
    pub(crate) async fn with_config(values: &[(&str, &str)], resources: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let resources = resources.replace("{dir}", &directory.path().display().to_string());
        let mut text = config_text(directory.path());
        for (key, value) in values {
            let start = text.find(&format!("\n{key} = ")).unwrap_or_else(|| panic!("{key} is not configured")) + 1;
            let end = start + text[start..].find('\n').unwrap();
            text.replace_range(start..end, &format!("{key} = {value}"));
        }
        Self::run(directory, format!("{text}\n[resources]\n{resources}\n")).await
    }

    /// A node that runs containers, with these lines in `[container_runtime]`.
    pub(crate) async fn with_containers(lines: &str) -> Self {
        Self::with_containers_and(lines, "").await
    }

    /// A node that runs containers and has resources, with these lines in both sections.
    pub(crate) async fn with_containers_and(lines: &str, resources: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path().join("sockets");
        let text = containers_text(directory.path(), &sockets, lines);
        Self::run(directory, format!("{text}\n[resources]\n{resources}\n")).await
    }

    /// A node that runs containers and whose handlers may take so long.
    pub(crate) async fn with_containers_that_hurry(call_timeout: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = containers_text(directory.path(), &directory.path().join("sockets"), "");
        let hurried = format!("call_timeout = {call_timeout:?}");
        Self::run(directory, text.replace("call_timeout = \"5s\"", &hurried)).await
    }

    /// A node that runs containers, with their sockets here, and these lines in `[container_runtime]`.
    pub(crate) async fn with_containers_in(sockets: &std::path::Path, lines: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = containers_text(directory.path(), sockets, lines);
        Self::run(directory, text).await
    }

    /// The same node in another process, as it were.
    pub(crate) async fn restart(self) -> Self {
        assert_eq!(self.node.stop().await, edgeless_daemon::Stopped::Clean);
        Self::run(self.directory, self.text).await
    }

    /// The same node again, after a crash.
    pub(crate) async fn crash(self) -> Self {
        self.node.kill().await;
        Self::run(self.directory, self.text).await
    }

    async fn run(directory: tempfile::TempDir, text: String) -> Self {
        let config: Config = parse(&text, std::iter::empty()).unwrap();
        let node = Node::start(config).await.unwrap();
        let connection = |url: &Url| Connection::lazy(url, Options::default()).unwrap();
        let peer = FakePeer::start(node.id()).await;
        let management = client::NodeManagement::new(connection(node.addr()));
        management.update_peers(PeerUpdate::Add(peer.id.node, peer.url.clone())).await.unwrap();
        Self {
            components: client::Components::new(connection(node.addr())),
            invocation: client::Invocation::new(connection(node.invocation_url())),
            management,
            node,
            peer,
            directory,
            text,
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.node.id()
    }

    pub(crate) fn agent_url(&self) -> &Url {
        self.node.addr()
    }

    pub(crate) fn invocation_url(&self) -> &Url {
        self.node.invocation_url()
    }

    pub(crate) fn metrics_url(&self) -> &Url {
        self.node.metrics_url().unwrap()
    }

    pub(crate) fn backends(&self) -> &Backends {
        self.node.backends()
    }

    /// Starts a module, written as text or already in binary, and lets it emit.
    pub(crate) async fn start_module(&self, module: &[u8], annotations: &[(&str, &str)]) -> Result<InstanceId, Error> {
        let id = self.create(function(module, annotations), context("function")).await?;
        self.components.activate(&[id.function]).await.unwrap();
        Ok(id)
    }

    /// Opens a resource and lets it emit.
    pub(crate) async fn start_resource(
        &self,
        class: &str,
        configuration: &[(&str, &str)],
    ) -> Result<InstanceId, Error> {
        let id = self.create(resource(class, configuration), context(class)).await?;
        self.components.activate(&[id.function]).await.unwrap();
        Ok(id)
    }

    /// The first step of a start only.
    pub(crate) async fn create(&self, spec: ComponentSpec, context: StartContext) -> Result<InstanceId, Error> {
        match self.components.start(Start { spec, context: Some(context) }).await? {
            ComponentRef::Instance(id) => Ok(id),
            ComponentRef::Component(id) => panic!("a node answered with {id:?}"),
        }
    }

    pub(crate) async fn patch(&self, kind: ComponentKind, id: InstanceId, outputs: &[(&str, InstanceId)]) {
        let outputs: BTreeMap<_, _> =
            outputs.iter().map(|(name, target)| (name.to_string(), Target::Instance(*target))).collect();
        self.components.patch(kind, Patch::new(id.function, outputs)).await.unwrap();
    }

    pub(crate) async fn stop(&self, kind: ComponentKind, id: InstanceId) {
        self.components.stop(kind, ComponentRef::Instance(id)).await.unwrap();
    }

    pub(crate) async fn cast(&self, target: InstanceId, payload: impl Into<Bytes>) {
        let event = Event {
            source: self.peer.id,
            target,
            kind: Kind::Cast(payload.into()),
            created: SystemTime::now(),
            trace: Trace::default(),
            id: None,
        };
        self.invocation.handle(event).await.unwrap();
    }

    /// Calls and waits for the reply.
    pub(crate) async fn call(&self, target: InstanceId, payload: impl Into<Bytes>) -> Reply {
        self.begin_call(target, payload, None).await.reply().await
    }

    /// Calls, with so much time for it. The node has the call when this returns.
    pub(crate) async fn begin_call(
        &self,
        target: InstanceId,
        payload: impl Into<Bytes>,
        remaining: Option<Duration>,
    ) -> PendingCall {
        let stream = self.peer.next_stream.fetch_add(1, Ordering::Relaxed);
        let event = Event {
            source: self.peer.id,
            target,
            kind: Kind::Call { payload: payload.into(), stream, remaining },
            created: SystemTime::now(),
            trace: Trace { trace_id: 7, span_id: 8 },
            id: None,
        };
        let reply = self.peer.expect_reply(stream).await;
        self.invocation.handle(event).await.unwrap();
        PendingCall { target, reply }
    }

    /// Answers a call that the peer got, in the name of `source`.
    pub(crate) async fn answer(&self, call: &Event, source: InstanceId, reply: Reply) {
        let Kind::Call { stream, .. } = call.kind else { panic!("{call:?} is no call") };
        let kind = Kind::Reply { reply, stream };
        let event =
            Event { source, target: call.source, kind, created: SystemTime::UNIX_EPOCH, trace: call.trace, id: None };
        self.invocation.handle(event).await.unwrap();
    }

    pub(crate) async fn status(&self, id: InstanceId) -> ComponentStatus {
        self.components.status(&[id.function]).await.unwrap().remove(0)
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        http_get(self.metrics_url(), "/metrics").await.1
    }

    /// The value of one metric: 0 if there is none; the sum if it has several series.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.metrics().await;
        let series = text.lines().filter(|line| line.starts_with(name));
        series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().expect(line)).sum()
    }

    /// How many events were dropped for a cause.
    pub(crate) async fn dropped(&self, cause: &str) -> u64 {
        self.metric(&format!("events_dropped_total{{cause=\"{cause}\"}}")).await
    }

    /// Ends the node without a goodbye.
    pub(crate) async fn kill(self) {
        self.node.kill().await;
    }

    pub(crate) async fn stop_node(self) -> edgeless_daemon::Stopped {
        self.node.stop().await
    }
}

/// A call that the node has.
pub(crate) struct PendingCall {
    target: InstanceId,
    reply: tokio::sync::oneshot::Receiver<Event>,
}

impl PendingCall {
    /// Waits for the reply.
    pub(crate) async fn reply(self) -> Reply {
        let event = tokio::time::timeout(PATIENCE, self.reply).await.expect("a reply").unwrap();
        assert_eq!(event.source, self.target, "a reply comes from who was called");
        assert_eq!(event.trace, Trace { trace_id: 7, span_id: 8 }, "a reply belongs to its call");
        match event.kind {
            Kind::Reply { reply, .. } => reply,
            other => panic!("{other:?} is no reply"),
        }
    }
}

/// A request over a plain socket: status and body.
pub(crate) async fn http_get(url: &Url, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect((url.host(), url.port())).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n\r\n", url.host(), url.port());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

pub(crate) fn function(module: &[u8], annotations: &[(&str, &str)]) -> ComponentSpec {
    ComponentSpec::Function(FunctionSpec {
        class: FunctionClass {
            id: "test".into(),
            function_type: "RUST_WASM".into(),
            version: "0.1".into(),
            binary: Bytes::copy_from_slice(module).into(),
            code: String::new(),
            outputs: vec![],
        },
        annotations: pairs(annotations),
        state: StateSpec { id: StateId::random(), policy: StatePolicy::NodeLocal },
        workflow: WorkflowId::random(),
    })
}

pub(crate) fn resource(class: &str, configuration: &[(&str, &str)]) -> ComponentSpec {
    ComponentSpec::Resource(ResourceSpec {
        class_type: class.into(),
        configuration: pairs(configuration),
        workflow: WorkflowId::random(),
    })
}

pub(crate) fn context(name: &str) -> StartContext {
    StartContext::new(ComponentId::random(), 1, name)
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// Another node, as far as the tested one can tell. Its only instance answers calls by `answer`.
pub(crate) struct FakePeer {
    /// The instance that sends and gets events.
    pub(crate) id: InstanceId,
    pub(crate) url: Url,
    pub(crate) next_stream: AtomicU64,
    inbox: Arc<Inbox>,
    events: Mutex<mpsc::Receiver<Event>>,
    cancel: CancellationToken,
}

#[derive(Default)]
struct Replies(Mutex<HashMap<u64, tokio::sync::oneshot::Sender<Event>>>);

struct Inbox {
    events: mpsc::Sender<Event>,
    replies: Replies,
}

#[async_trait]
impl Invocation for Inbox {
    async fn handle(&self, event: Event) -> Result<(), Error> {
        if let Kind::Reply { stream, .. } = event.kind {
            if let Some(waiting) = self.replies.0.lock().await.remove(&stream) {
                waiting.send(event).ok();
            }
        } else {
            self.events.send(event).await.ok();
        }
        Ok(())
    }
}

impl FakePeer {
    pub(crate) async fn start(_node: NodeId) -> Self {
        let (sender, events) = mpsc::channel(1024);
        let inbox = Arc::new(Inbox { events: sender, replies: Replies::default() });
        let (listener, url) = listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let cancel = CancellationToken::new();
        let server = Server::new(edgeless_api::Limits::default(), cancel.clone()).invocation(inbox.clone());
        tokio::spawn(server.serve(listener));
        Self {
            id: InstanceId::random(NodeId::random()),
            url,
            next_stream: AtomicU64::new(1),
            inbox,
            events: Mutex::new(events),
            cancel,
        }
    }

    pub(crate) async fn expect_reply(&self, stream: u64) -> tokio::sync::oneshot::Receiver<Event> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.inbox.replies.0.lock().await.insert(stream, sender);
        receiver
    }

    /// The next event, be it a cast or a call.
    pub(crate) async fn next(&self) -> Event {
        let mut events = self.events.lock().await;
        tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").unwrap()
    }

    /// The payload of the next cast.
    pub(crate) async fn next_cast(&self) -> Bytes {
        match self.next().await.kind {
            Kind::Cast(payload) => payload,
            other => panic!("{other:?} is no cast"),
        }
    }

    /// The next event if one is there already.
    pub(crate) async fn try_next(&self) -> Option<Event> {
        self.events.lock().await.try_recv().ok()
    }
}

impl Drop for FakePeer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
