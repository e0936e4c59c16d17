//! A function as a process of its own, against a node that only this file has.
//!
//! The process is this very test program, started again to run one "test" that is the `main` function
//! which [`export!`] makes: nothing but the image is missing for a container.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    missing_docs,
    reason = "tests"
)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use edgeless_function::*;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream, UnixListenerStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Status, Streaming};

#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod pb {
    tonic::include_proto!("edgeless_api");
}
use pb::guest_api_function_client::GuestApiFunctionClient;
use pb::guest_api_host_server::{GuestApiHost, GuestApiHostServer};
use pb::guest_link_server::{GuestLink, GuestLinkServer};
use pb::guest_message::Message as Said;
use pb::host_message::Message as Asked;

/// Does what its messages say.
struct Obedient {
    init: String,
}

impl Function for Obedient {
    fn handle_init(payload: Message, state: Option<Message>) -> Self {
        assert_ne!(payload, "bad", "a bad payload");
        log::info!("init {payload} {state:?}");
        Obedient { init: payload.to_string() }
    }

    fn handle_cast(&mut self, source: InstanceId, message: Message) {
        let text = message.to_string();
        match text.split_once(' ').unwrap_or((&text, "")) {
            ("echo", rest) => cast("out", rest),
            ("back", rest) => cast_raw(source, rest),
            ("later", rest) => delayed_cast(Duration::from_millis(250), "self", rest),
            ("save", rest) => {
                sync(rest);
                cast("out", "saved");
            }
            ("call", rest) => {
                let reply = call("peer", rest);
                cast("out", format!("{reply:?}"));
            }
            ("who", _) => cast("out", slf().to_string()),
            ("panic", rest) => panic!("{rest}"),
            _ => log::warn!("{source} said {text}"),
        }
    }

    fn handle_call(&mut self, _: InstanceId, message: Message) -> CallRet {
        match message.text().unwrap() {
            "nothing" => CallRet::Noreply,
            "error" => CallRet::Err,
            text => CallRet::reply(format!("{}: {text}", self.init)),
        }
    }

    fn handle_stop(&mut self) {
        cast("out", "stopping");
    }
}

impl Drop for Obedient {
    fn drop(&mut self) {
        // Seen where the node that hears of it is gone already.
        eprintln!("dropped {}", self.init);
    }
}

export!(Obedient);

const GUEST: &str = "EDGELESS_TEST_GUEST";

/// Not a test, but the process that the others start.
#[test]
fn guest_process() {
    if std::env::var_os(GUEST).is_some() {
        main();
    }
}

struct Process {
    child: Child,
    stderr: mpsc::UnboundedReceiver<String>,
}

impl Process {
    fn start(variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "guest_process", "--nocapture"]).env(GUEST, "1").envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (said, stderr) = mpsc::unbounded_channel();
        std::thread::spawn(move || lines.for_each(|line| said.send(line.unwrap()).unwrap_or_default()));
        Self { child, stderr }
    }

    /// One that serves on a port.
    async fn serving() -> (Self, SocketAddr) {
        let mut process = Self::start(&[("EDGELESS_HOST_SOCKET", "/nonexistent"), ("EDGELESS_PORT", "0")]);
        let line = process.line().await;
        let port = line.strip_prefix("serving a function on 0.0.0.0:").unwrap().parse().unwrap();
        (process, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The next line that it says; nothing more is an empty one.
    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(Duration::from_secs(20), self.stderr.recv()).await;
        line.expect("the process says nothing").unwrap_or_default()
    }

    /// Its exit code, and the last line that it said.
    async fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let mut last = String::new();
        while let Some(line) = self.stderr.recv().await {
            last = line;
        }
        (status.code(), last)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The node's end of a stream.
struct Link {
    token: Option<String>,
    said: Streaming<pb::GuestMessage>,
    ask: mpsc::UnboundedSender<Result<pb::HostMessage, Status>>,
    asked: u64,
}

impl Link {
    fn send(&self, id: u64, message: Asked) {
        self.ask.send(Ok(pb::HostMessage { id, message: Some(message) })).unwrap();
    }

    /// Sends a request, and gives its number.
    fn ask(&mut self, message: Asked) -> u64 {
        self.asked += 1;
        self.send(self.asked, message);
        self.asked
    }

    fn cast(&mut self, text: &str) -> u64 {
        self.ask(Asked::Cast(event(text)))
    }

    async fn next(&mut self) -> pb::GuestMessage {
        let next = tokio::time::timeout(Duration::from_secs(20), self.said.message()).await;
        next.expect("the guest says nothing").unwrap().expect("the guest has ended the stream")
    }

    async fn says(&mut self, id: u64, said: Said) {
        assert_eq!(self.next().await, pb::GuestMessage { id, request: 0, message: Some(said) });
    }

    /// The next message, which is a request of the guest.
    async fn asks(&mut self, id: u64, said: Said) -> u64 {
        let pb::GuestMessage { id: of, request, message } = self.next().await;
        assert_eq!((of, message), (id, Some(said)));
        assert_ne!(request, 0);
        request
    }

    async fn start(&mut self, init: &str) {
        let boot = self.ask(Asked::Boot(pb::BootData { instance_id: Some(instance(7)), ..pb::BootData::default() }));
        self.says(boot, Said::Done(())).await;
        let init_payload = init.to_owned();
        let number = self.ask(Asked::Init(pb::FunctionInstanceInit { init_payload, ..Default::default() }));
        self.says(number, Said::Log(log_line(&format!("init {init} None")))).await;
        self.says(number, Said::Done(())).await;
    }

    async fn ended(&mut self) {
        assert_eq!(self.said.message().await.unwrap(), None);
    }
}

fn instance(last: u8) -> pb::InstanceId {
    let node_id = "fda6ce79-46df-4f96-a0d2-456f720f606c".to_owned();
    pb::InstanceId { node_id, function_id: format!("00000000-0000-0000-0000-0000000000{last:02x}") }
}

fn event(text: &str) -> pb::InputEventData {
    pb::InputEventData { src: Some(instance(1)), msg: text.to_owned().into() }
}

fn out(text: &str) -> Said {
    Said::Cast(pb::GuestOutput { alias: "out".into(), msg: text.to_owned().into() })
}

fn log_line(text: &str) -> pb::GuestLog {
    pb::GuestLog { level: pb::TelemetryLogLevel::LogInfo.into(), target: module_path!().into(), msg: text.into() }
}

fn reply(text: &str) -> pb::CallReturn {
    pb::CallReturn { r#type: pb::CallRetType::CallRetReply.into(), msg: text.to_owned().into() }
}

struct Links(mpsc::UnboundedSender<Link>);

#[tonic::async_trait]
impl GuestLink for Links {
    type AttachStream = UnboundedReceiverStream<Result<pb::HostMessage, Status>>;

    async fn attach(
        &self,
        request: tonic::Request<Streaming<pb::GuestMessage>>,
    ) -> Result<tonic::Response<Self::AttachStream>, Status> {
        let token = request.metadata().get("edgeless-token").map(|token| token.to_str().unwrap().to_owned());
        let (ask, asked) = mpsc::unbounded_channel();
        self.0.send(Link { token, said: request.into_inner(), ask, asked: 0 }).unwrap();
        Ok(tonic::Response::new(UnboundedReceiverStream::new(asked)))
    }
}

/// A node behind a socket, until it is dropped.
struct SocketNode {
    links: mpsc::UnboundedReceiver<Link>,
    server: tokio::task::JoinHandle<()>,
}

impl SocketNode {
    fn start(path: &std::path::Path) -> Self {
        std::fs::remove_file(path).ok();
        let listener = UnixListener::bind(path).unwrap();
        let (sender, links) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(GuestLinkServer::new(Links(sender)))
            .serve_with_incoming(UnixListenerStream::new(listener));
        Self { links, server: tokio::spawn(async { server.await.unwrap() }) }
    }

    async fn link(&mut self) -> Link {
        tokio::time::timeout(Duration::from_secs(20), self.links.recv()).await.expect("nobody attaches").unwrap()
    }
}

impl Drop for SocketNode {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Setup {
    process: Process,
    link: Link,
    node: SocketNode,
    folder: tempfile::TempDir,
}

/// A guest that has found its node behind a socket.
async fn over_a_socket() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let mut node = SocketNode::start(&path);
    let process = Process::start(&[("EDGELESS_HOST_SOCKET", path.to_str().unwrap())]);
    let link = node.link().await;
    Setup { process, link, node, folder }
}

#[tokio::test]
async fn a_function_lives_from_boot_to_stop_over_a_socket() {
    let Setup { process, mut link, node: _node, .. } = over_a_socket().await;
    link.start("a").await;

    let number = link.cast("echo hello");
    link.says(number, out("hello")).await;
    link.says(number, Said::Done(())).await;

    let number = link.cast("back again");
    link.says(number, Said::CastRaw(pb::GuestOutputRaw { dst: Some(instance(1)), msg: "again".into() })).await;
    link.says(number, Said::Done(())).await;

    let number = link.cast("later tick");
    let delayed = pb::GuestDelayed { alias: "self".into(), msg: "tick".into(), delay: 250 };
    link.says(number, Said::DelayedCast(delayed)).await;
    link.says(number, Said::Done(())).await;

    let number = link.cast("who");
    let pb::InstanceId { node_id, function_id } = instance(7);
    link.says(number, out(&format!("InstanceId(node_id: {node_id}, function_id: {function_id})"))).await;
    link.says(number, Said::Done(())).await;

    for (text, kind, answer) in [
        ("hi", pb::CallRetType::CallRetReply, "a: hi"),
        ("nothing", pb::CallRetType::CallRetNoReply, ""),
        ("error", pb::CallRetType::CallRetErr, ""),
    ] {
        let number = link.ask(Asked::Call(event(text)));
        link.says(number, Said::Returned(pb::CallReturn { r#type: kind.into(), msg: answer.into() })).await;
    }

    let number = link.ask(Asked::Stop(()));
    link.says(number, out("stopping")).await;
    link.says(number, Said::Done(())).await;
    link.ended().await;
    assert_eq!(process.end().await, (Some(0), "dropped a".into()));
}

/// The state must be saved before the function goes on, for it may say then that it is.
#[tokio::test]
async fn a_sync_waits_until_the_state_is_saved() {
    let Setup { process: _process, mut link, node: _node, .. } = over_a_socket().await;
    link.start("").await;
    let number = link.cast("save 42");
    let request = link.asks(number, Said::Sync("42".into())).await;
    let quiet = tokio::time::timeout(Duration::from_millis(50), link.said.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    link.send(request, Asked::Synced(()));
    link.says(number, out("saved")).await;
    link.says(number, Said::Done(())).await;
}

/// A node sends ahead, and while a handler waits for the answer to its own call, what was sent ahead is
/// before that answer.
#[tokio::test]
async fn an_answer_passes_the_requests_that_wait() {
    let Setup { process: _process, mut link, node: _node, .. } = over_a_socket().await;
    link.start("").await;
    let calling = link.cast("call me");
    let rest: Vec<u64> = (0..63).map(|i| link.cast(&format!("echo {i}"))).collect();
    let named = pb::GuestOutput { alias: "peer".into(), msg: "me".into() };
    let request = link.asks(calling, Said::Call(named)).await;
    link.send(request, Asked::Reply(reply("yes")));
    link.says(calling, out("Reply(\"yes\")")).await;
    link.says(calling, Said::Done(())).await;
    for (i, number) in rest.into_iter().enumerate() {
        link.says(number, out(&i.to_string())).await;
        link.says(number, Said::Done(())).await;
    }
}

#[tokio::test]
async fn a_panic_is_told_and_ends_the_process() {
    let Setup { process, mut link, node: _node, .. } = over_a_socket().await;
    link.start("").await;
    let number = link.cast("panic at the disco");
    link.cast("echo never");
    let Some(Said::Log(line)) = link.next().await.message else { panic!("no log") };
    assert_eq!((line.level, line.target.as_str()), (0, "panic"));
    assert!(line.msg.starts_with("at the disco, at ") && line.msg.contains("tests/container.rs:"), "{}", line.msg);
    link.says(number, Said::Failed(line.msg)).await;
    link.ended().await;
    assert_eq!(process.end().await.0, Some(101));
}

#[tokio::test]
async fn what_the_node_refuses_is_a_panic() {
    let Setup { process, mut link, node: _node, .. } = over_a_socket().await;
    link.start("").await;
    let number = link.cast("call nobody");
    let request = link.next().await.request;
    link.send(request, Asked::Refused("the output 'peer' is not mapped".into()));
    link.next().await;
    let pb::GuestMessage { id, message: Some(Said::Failed(reason)), .. } = link.next().await else {
        panic!("not a failure")
    };
    assert_eq!(id, number);
    assert!(reason.starts_with("the output 'peer' is not mapped, at "), "{reason}");
    assert_eq!(process.end().await.0, Some(101));
}

/// Whoever starts the node again gets the functions in its containers again, and never two at once.
#[tokio::test]
async fn a_restarted_node_boots_the_function_anew() {
    let Setup { mut process, mut link, node, folder } = over_a_socket().await;
    link.start("first").await;
    let number = link.cast("call into the void");
    link.asks(number, Said::Call(pb::GuestOutput { alias: "peer".into(), msg: "into the void".into() })).await;
    drop((node, link));
    assert_eq!(process.line().await, "dropped first");
    assert!(process.line().await.starts_with("cannot attach to the node at "));

    let mut node = SocketNode::start(&folder.path().join("host.sock"));
    let mut link = node.link().await;
    link.start("second").await;
    let number = link.ask(Asked::Call(event("hi")));
    link.says(number, Said::Returned(reply("second: hi"))).await;

    link.start("third").await;
    assert_eq!(process.line().await, "dropped second");
    link.ask(Asked::Stop(()));
    assert_eq!(process.end().await, (Some(0), "dropped third".into()));
}

#[tokio::test]
async fn a_signal_ends_the_process() {
    let Setup { mut process, mut link, node: _node, .. } = over_a_socket().await;
    link.start("").await;
    let killed = Command::new("kill").arg(process.child.id().to_string()).status().unwrap();
    assert!(killed.success());
    assert_eq!(process.line().await, "", "no stop handler runs, nothing is dropped");
    assert_eq!(process.end().await.0, Some(0));
}

#[tokio::test]
async fn requests_out_of_order_are_refused() {
    let Setup { process: _process, mut link, node: _node, .. } = over_a_socket().await;
    let number = link.cast("early");
    link.says(number, Said::Failed("the function is not booted".into())).await;
    link.start("").await;
    let number = link.ask(Asked::Init(pb::FunctionInstanceInit::default()));
    link.says(number, Said::Failed("the function is initialized already".into())).await;
}

/// What a guest asks of a node that knows unary calls only, in the words of a test.
#[derive(Clone, Default)]
struct OldNode {
    said: Arc<Mutex<Vec<String>>>,
    tokens: Arc<Mutex<Vec<Option<String>>>>,
}

impl OldNode {
    fn note<T>(&self, request: &tonic::Request<T>, originator: Option<&pb::InstanceId>, what: String) {
        assert_eq!(originator, Some(&instance(7)));
        let token = request.metadata().get("edgeless-token").map(|token| token.to_str().unwrap().to_owned());
        self.tokens.lock().unwrap().push(token);
        self.said.lock().unwrap().push(what);
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().unwrap())
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

type Wire<T> = Result<tonic::Response<T>, Status>;

#[tonic::async_trait]
impl GuestApiHost for OldNode {
    async fn cast(&self, request: tonic::Request<pb::OutputEventData>) -> Wire<()> {
        let cast = request.get_ref();
        self.note(&request, cast.originator.as_ref(), format!("cast {} {}", cast.alias, text(&cast.msg)));
        Ok(tonic::Response::new(()))
    }

    async fn cast_raw(&self, request: tonic::Request<pb::OutputEventDataRaw>) -> Wire<()> {
        let cast = request.get_ref();
        assert_eq!(cast.dst, Some(instance(1)));
        self.note(&request, cast.originator.as_ref(), format!("cast_raw {}", text(&cast.msg)));
        Ok(tonic::Response::new(()))
    }

    async fn call(&self, request: tonic::Request<pb::OutputEventData>) -> Wire<pb::CallReturn> {
        let call = request.get_ref();
        self.note(&request, call.originator.as_ref(), format!("call {} {}", call.alias, text(&call.msg)));
        match text(&call.msg) {
            "down" => Err(Status::unavailable("the other side is gone")),
            "refused" => Err(Status::failed_precondition("the output 'peer' is not mapped")),
            text => Ok(tonic::Response::new(reply(text))),
        }
    }

    async fn call_raw(&self, _: tonic::Request<pb::OutputEventDataRaw>) -> Wire<pb::CallReturn> {
        unreachable!("nothing here calls so")
    }

    async fn telemetry_log(&self, request: tonic::Request<pb::TelemetryLogEvent>) -> Wire<()> {
        let line = request.get_ref();
        let what = format!("log {} {} {}", line.log_level, line.target, line.msg.split(", at ").next().unwrap());
        self.note(&request, line.originator.as_ref(), what);
        Ok(tonic::Response::new(()))
    }

    async fn slf(&self, _: tonic::Request<()>) -> Wire<pb::InstanceId> {
        unreachable!("a guest knows itself from its boot")
    }

    async fn delayed_cast(&self, request: tonic::Request<pb::DelayedEventData>) -> Wire<()> {
        let cast = request.get_ref();
        let metadata = cast.metadata.as_ref().unwrap();
        assert_eq!((metadata.trace_id.len(), metadata.span_id.len()), (16, 8));
        let what = format!("delayed_cast {} {} {}", cast.delay, cast.alias, text(&cast.msg));
        self.note(&request, cast.originator.as_ref(), what);
        Ok(tonic::Response::new(()))
    }

    async fn sync(&self, request: tonic::Request<pb::SyncData>) -> Wire<()> {
        let state = request.get_ref();
        self.note(&request, state.originator.as_ref(), format!("sync {}", text(&state.serialized_state)));
        Ok(tonic::Response::new(()))
    }
}

async fn served_by(router: tonic::transport::server::Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async { router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });
    url
}

async fn function_at(address: SocketAddr) -> GuestApiFunctionClient<tonic::transport::Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    GuestApiFunctionClient::new(endpoint.connect().await.unwrap())
}

fn boot(url: &str, token: &str) -> pb::BootData {
    let (guest_api_host_endpoint, token) = (url.to_owned(), token.to_owned());
    pb::BootData { guest_api_host_endpoint, instance_id: Some(instance(7)), token }
}

#[tokio::test]
async fn an_old_node_is_spoken_to_in_unary_calls() {
    // An EDGELESS 1.x node gives no token; one that does and has no streams is asked once.
    for token in ["", "secret"] {
        let node = OldNode::default();
        let url = served_by(Server::builder().add_service(GuestApiHostServer::new(node.clone()))).await;
        let (process, address) = Process::serving().await;
        let mut function = function_at(address).await;

        let early = function.cast(event("echo early")).await.unwrap_err();
        assert_eq!((early.code(), early.message()), (Code::FailedPrecondition, "the function is not booted"));
        let booted = function.boot(boot(&url, token)).await.unwrap();
        assert_eq!(booted.metadata().get("edgeless-sdk").unwrap(), "2");
        let early = function.call(event("early")).await.unwrap_err();
        assert_eq!((early.code(), early.message()), (Code::FailedPrecondition, "the function is not initialized"));

        let serialized_state = "41".into();
        function.init(pb::FunctionInstanceInit { init_payload: "a".into(), serialized_state }).await.unwrap();
        for message in ["echo b", "back c", "later d", "save e", "call f", "call down"] {
            function.cast(event(message)).await.unwrap();
        }
        assert_eq!(function.call(event("hi")).await.unwrap().into_inner(), reply("a: hi"));
        function.stop(()).await.unwrap();
        assert_eq!(process.end().await, (Some(0), "dropped a".into()));
        let expected = [
            &format!("log 2 {} init a Some(\"41\")", module_path!()),
            "cast out b",
            "cast_raw c",
            "delayed_cast 250 self d",
            "sync e",
            "cast out saved",
            "call peer f",
            "cast out Reply(\"f\")",
            "call peer down",
            "cast out Err",
            "cast out stopping",
        ];
        assert_eq!(node.said(), expected);
        let shown = (!token.is_empty()).then(|| token.to_owned());
        assert!(node.tokens.lock().unwrap().iter().all(|token| *token == shown));
    }
}

#[tokio::test]
async fn a_panic_is_told_to_an_old_node() {
    for (message, place) in [("panic now", "now"), ("call refused", "the output 'peer' is not mapped")] {
        let node = OldNode::default();
        let url = served_by(Server::builder().add_service(GuestApiHostServer::new(node.clone()))).await;
        let (process, address) = Process::serving().await;
        let mut function = function_at(address).await;
        function.boot(boot(&url, "")).await.unwrap();
        function.init(pb::FunctionInstanceInit::default()).await.unwrap();
        node.said();
        let failed = function.cast(event(message)).await.unwrap_err();
        assert_eq!(failed.code(), Code::Internal);
        assert!(failed.message().starts_with(&format!("{place}, at ")), "{}", failed.message());
        assert_eq!(process.end().await.0, Some(101));
        assert_eq!(node.said().pop().unwrap(), format!("log 0 panic {place}"));
    }
}

#[tokio::test]
async fn a_boot_says_what_is_wrong_with_it() {
    let (_process, address) = Process::serving().await;
    let mut function = function_at(address).await;
    for (boot, code, reason) in [
        (pb::BootData::default(), Code::InvalidArgument, "instance_id: two UUIDs are needed"),
        (boot("https://node:1", ""), Code::InvalidArgument, "a guest speaks http only"),
        (boot("http://127.0.0.1:1", "secret"), Code::Unavailable, "onnection refused"),
    ] {
        let refused = function.boot(boot).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(reason), "{refused}");
    }
}

/// Over the stream, that is, and yet it may still be asked over the port.
#[tokio::test]
async fn a_booted_guest_attaches_with_its_token() {
    let (sender, mut links) = mpsc::unbounded_channel();
    let url = served_by(Server::builder().add_service(GuestLinkServer::new(Links(sender)))).await;
    let (mut process, address) = Process::serving().await;
    let mut function = function_at(address).await;
    let booted = function.boot(boot(&url, "secret")).await.unwrap();
    assert_eq!(booted.metadata().get("edgeless-sdk").unwrap(), "2");
    let mut link = links.try_recv().expect("it attaches before it answers");
    assert_eq!(link.token.as_deref(), Some("secret"));

    let init = link.ask(Asked::Init(pb::FunctionInstanceInit { init_payload: "a".into(), ..Default::default() }));
    link.says(init, Said::Log(log_line("init a None"))).await;
    link.says(init, Said::Done(())).await;
    let number = link.cast("echo stream");
    link.says(number, out("stream")).await;
    link.says(number, Said::Done(())).await;
    function.cast(event("echo unary")).await.unwrap();
    link.says(0, out("unary")).await;

    drop(link);
    assert_eq!(process.line().await, "dropped a");
    let gone = function.cast(event("echo nobody")).await.unwrap_err();
    assert_eq!(gone.code(), Code::Aborted);

    function.boot(boot(&url, "secret")).await.unwrap();
    let mut link = links.try_recv().unwrap();
    function.init(pb::FunctionInstanceInit { init_payload: "b".into(), ..Default::default() }).await.unwrap();
    link.says(0, Said::Log(log_line("init b None"))).await;
    function.stop(()).await.unwrap();
    link.says(0, out("stopping")).await;
    link.ended().await;
    assert_eq!(process.end().await, (Some(0), "dropped b".into()));
}

/// Not a test of speed, but what shows it: `cargo test --release … speed -- --nocapture --ignored`.
#[tokio::test]
#[ignore = "measures"]
async fn speed() {
    let Setup { process: _process, mut link, node: _node, .. } = over_a_socket().await;
    link.start("").await;
    let echo = async |link: &mut Link, ahead: usize, rounds: usize| {
        let begun = Instant::now();
        for _ in 0..ahead {
            link.cast("echo x");
        }
        for round in 0..rounds {
            link.next().await;
            link.next().await;
            if round + ahead < rounds {
                link.cast("echo x");
            }
        }
        begun.elapsed().as_nanos() as f64 / rounds as f64 / 1000.0
    };
    for ahead in [1, 64] {
        echo(&mut link, ahead, 1000).await;
        println!("{ahead} ahead: {:.2} us for a cast and its output", echo(&mut link, ahead, 20_000).await);
    }
}
