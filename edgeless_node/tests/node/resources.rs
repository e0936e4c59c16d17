//! Every class of resources, in a real node, through the wire: what holds for all of them first, then
//! what is particular to each.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::{ComponentKind, ResourceSpec};
use edgeless_api::event::{Kind, Reply, Trace};
use edgeless_api::node::{Registered, Registration};
use edgeless_api::server::{NodeRegistry, Server};
use edgeless_api::{ComponentId, ComponentSpec, Error, Event, InstanceId, Limits, NodeId, Url, WorkflowId};
use edgeless_daemon::config::parse;
use edgeless_daemon::{Daemon, Stopped};
use edgeless_node::Node;
use edgeless_node::resources::CLASSES;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::support::{PATIENCE, TestNode, config_text, context, wait_until};

/// A node that offers resources of all classes.
pub(crate) struct World {
    pub(crate) node: TestNode,
    pub(crate) ingress: SocketAddr,
    workflow: WorkflowId,
}

/// An address that was free a moment ago: whoever listens there does not say which port it got.
pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Lines for `[resources]` that name the providers of all classes.
fn providers() -> String {
    let names = CLASSES.iter().map(|class| &class.settings[0]);
    names.map(|name| format!("{} = '{}'\n", name.name, name.default.unwrap())).collect()
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let ingress = free_address();
        let mut lines = providers();
        lines += &format!("http_ingress_url = 'http://{ingress}'\nfile_log_directory = '{{dir}}/logs'\n");
        lines.extend(settings.iter().map(|(key, value)| format!("{key} = '{value}'\n")));
        Self { node: TestNode::with_resources(&lines).await, ingress, workflow: WorkflowId::random() }
    }

    async fn open(&self, class_type: &str, configuration: &[(&str, &str)]) -> Result<InstanceId, Error> {
        let spec = ResourceSpec {
            class_type: class_type.to_string(),
            configuration: configuration.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            workflow: self.workflow,
        };
        let id = self.node.create(ComponentSpec::Resource(spec), context(class_type)).await?;
        self.node.components.activate(&[id.function]).await.unwrap();
        Ok(id)
    }

    /// Opens an ingress that leads to the function, which is played by the test.
    pub(crate) async fn open_ingress(&self, configuration: &[(&str, &str)]) -> InstanceId {
        let id = self.open("http-ingress", configuration).await.unwrap();
        self.node.patch(ComponentKind::Resource, id, &[("new_request", self.node.peer.id)]).await;
        id
    }

    pub(crate) async fn close(&self, id: InstanceId) {
        self.node.stop(ComponentKind::Resource, id).await;
    }

    async fn cast(&self, target: InstanceId, payload: impl Into<Bytes>) {
        self.node.cast(target, payload).await;
    }

    async fn call(&self, target: InstanceId, payload: impl Into<Bytes>) -> Reply {
        self.node.call(target, payload).await
    }

    /// The request in the next call of the function, and who waits for its reply.
    pub(crate) async fn request(&self) -> (Value, Caller) {
        match self.node.peer.next().await {
            Event { source, kind: Kind::Call { payload, stream, .. }, trace, .. } => {
                (serde_json::from_slice(&payload).unwrap(), Caller { source, stream, trace })
            }
            other => panic!("{other:?} is no call"),
        }
    }

    pub(crate) async fn reply(&self, caller: Caller, reply: Reply) {
        let Caller { source: target, stream, trace } = caller;
        let (source, created) = (self.node.peer.id, SystemTime::UNIX_EPOCH);
        let event = Event { source, target, kind: Kind::Reply { reply, stream }, created, trace, id: None };
        self.node.invocation.handle(event).await.unwrap();
    }

    /// The answer to an HTTP request whose call is replied to with `reply`.
    pub(crate) async fn answer_to(&self, request: &str, reply: Reply) -> Answer {
        let replied = async {
            let (_, caller) = self.request().await;
            self.reply(caller, reply).await;
        };
        tokio::join!(self.http(request), replied).0
    }

    /// Sends an HTTP request as it stands and reads the answer to its end.
    pub(crate) async fn http(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.ingress).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Answer::read(&mut stream).await
    }

    fn log(&self, name: &str) -> PathBuf {
        self.node.directory.path().join("logs").join(name)
    }
}

/// Who waits for a reply.
pub(crate) struct Caller {
    source: InstanceId,
    stream: u64,
    trace: Trace,
}

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Reads an answer after which the server closes the connection.
    pub(crate) async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("no answer in time").unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP response: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_string() }
    }
}

pub(crate) fn response(status: u16, body: &str, headers: Value) -> Reply {
    Reply::Message(json!({"status": status, "body": body.as_bytes(), "headers": headers}).to_string().into())
}

/// A resource of a class, with an event that it can handle.
struct Sample {
    configuration: Vec<(&'static str, String)>,
    call: Vec<u8>,
    is_answered: bool,
}

/// `None`: the machine lacks what the class needs. The other value is to be kept as long as the sample.
async fn sample(class_type: &str) -> Option<(Sample, Box<dyn Send>)> {
    Some(match class_type {
        // It is a source: it takes no events, and says so.
        "http-ingress" => (Sample { configuration: vec![], call: b"".to_vec(), is_answered: false }, Box::new(())),
        "http-egress" => {
            let web = Web::start().await;
            let request = web.request("/echo", "POST", Some("hello")).to_string().into();
            (Sample { configuration: vec![], call: request, is_answered: true }, Box::new(web))
        }
        "file-log" => {
            let configuration = vec![("filename", "sample.log".to_string())];
            (Sample { configuration, call: b"a line".to_vec(), is_answered: true }, Box::new(()))
        }
        "redis" => {
            let redis = Redis::start().await?;
            redis.command(&["SET", "some-key", "its value"]);
            let configuration = vec![("url", redis.url())];
            (Sample { configuration, call: b"some-key".to_vec(), is_answered: true }, Box::new(redis))
        }
        other => panic!("'{other}' needs a sample here"),
    })
}

/// An orchestrator that passes on what nodes announce.
struct Orchestrator(mpsc::Sender<Registration>);

#[async_trait]
impl NodeRegistry for Orchestrator {
    async fn update_node(&self, node: Registration) -> Result<Registered, Error> {
        self.0.send(node).await.map_err(Error::bug)?;
        Ok(Registered::new(None))
    }

    async fn wake(&self, _components: Vec<ComponentId>) -> Result<(), Error> {
        Ok(())
    }

    async fn locate(&self, _node: NodeId) -> Result<Option<Url>, Error> {
        Ok(None)
    }
}

#[tokio::test]
async fn every_class_is_announced() {
    let (listener, url) = edgeless_daemon::listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (announced, mut announcements) = mpsc::channel(16);
    let registry =
        Server::new(Limits::default(), CancellationToken::new()).node_registry(Arc::new(Orchestrator(announced)));
    tokio::spawn(registry.serve(listener));

    let directory = tempfile::tempdir().unwrap();
    let general = config_text(directory.path()).replace("http://127.0.0.1:1\"", &format!("{url}\""));
    let files = format!("file_log_directory = '{}'\n", directory.path().display());
    let text = format!("{general}[resources]\nhttp_ingress_url = 'http://127.0.0.1:0'\n{files}{}", providers());
    let _node = Node::start(parse(&text, std::iter::empty()).unwrap()).await.unwrap();

    let registration = tokio::time::timeout(PATIENCE, announcements.recv()).await.unwrap().unwrap();
    for class in CLASSES {
        let found = registration.providers.iter().find(|provider| provider.class_type == class.class_type).unwrap();
        assert_eq!(found.outputs, class.outputs, "{}", class.class_type);
        assert_eq!(Some(found.id.as_str()), class.settings[0].default);
    }
}

#[tokio::test]
async fn an_unknown_key_is_refused_and_the_known_ones_are_named() {
    let world = World::start().await;
    for class in CLASSES {
        let error = world.open(class.class_type, &[("colour", "red")]).await.unwrap_err().to_string();
        assert!(error.contains("'colour'"), "{error}");
        for key in class.configurations {
            assert!(error.contains(key.name), "{error}");
        }
    }
}

#[tokio::test]
async fn a_call_is_answered_until_the_resource_is_stopped() {
    let world = World::start().await;
    for class in CLASSES {
        let name = class.class_type;
        let Some((sample, _kept)) = sample(name).await else { continue };
        let configuration: Vec<_> = sample.configuration.iter().map(|(key, value)| (*key, value.as_str())).collect();
        // Twice, because what was not freed is in the way of the second.
        for _ in 0..2 {
            let id = world.open(name, &configuration).await.unwrap();
            let reply = world.call(id, sample.call.clone()).await;
            assert_eq!(reply != Reply::Error, sample.is_answered, "{name}: {reply:?}");
            world.close(id).await;
            assert_eq!(world.call(id, sample.call.clone()).await, Reply::Error, "{name}");
        }
    }
}

mod http_ingress {
    use super::*;

    #[tokio::test]
    async fn a_request_is_a_call_and_its_reply_the_response() {
        let world = World::start().await;
        world.open_ingress(&[("host", "example.com"), ("methods", "GET,POST")]).await;
        let http = world.http(
            "POST /a/b?c=d HTTP/1.1\r\nHost: example.com\r\nX-Own: 1\r\nx-own: 2\r\nX-Bin: \u{e9}\r\n\
             Connection: close\r\nContent-Length: 3\r\n\r\nhi\n",
        );
        let function = async {
            let (request, caller) = world.request().await;
            world.reply(caller, response(201, "made", json!({"X-Answer": "42"}))).await;
            request
        };
        let (answer, request) = tokio::join!(http, function);
        let headers = json!({"host": "example.com", "x-own": "1, 2", "connection": "close", "content-length": "3"});
        let expected = json!({
            "protocol": "Unknown", "host": "example.com", "headers": headers,
            "body": [104, 105, 10], "method": "Post", "path": "/a/b?c=d",
        });
        assert_eq!(request, expected);
        assert_eq!((answer.status, answer.body.as_str()), (201, "made"));
        assert!(answer.head.contains("x-answer: 42"), "{}", answer.head);
    }

    #[tokio::test]
    async fn what_nobody_takes_is_not_found() {
        let world = World::start().await;
        let get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(world.http(get).await.status, 404, "there is no resource");
        let unwired = world.open("http-ingress", &[]).await.unwrap();
        assert_eq!(world.http(get).await.status, 404, "its output leads nowhere");
        world.close(unwired).await;

        let id = world.open_ingress(&[("host", "a"), ("method", "GET"), ("wf_id", "true")]).await;
        for path in ["/", &format!("/?wf_id={}", WorkflowId::random())] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            assert_eq!(world.http(&request).await.status, 404, "another workflow");
        }
        let own = |method: &str, host: &str| {
            let workflow = world.workflow;
            format!("{method} /?x&wf_id={workflow} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        };
        assert_eq!(world.http(&own("GET", "b")).await.status, 404, "another host");
        assert_eq!(world.http(&own("PUT", "a")).await.status, 404, "another method");
        assert_eq!(world.answer_to(&own("GET", "a"), response(200, "", json!({}))).await.status, 200);
        world.close(id).await;
        assert_eq!(world.http(&own("GET", "a")).await.status, 404, "it was stopped");
    }

    #[tokio::test]
    async fn methods_that_functions_do_not_know_are_answered() {
        let world = World::start().await;
        world.open_ingress(&[]).await;
        let answer = world.http("OPTIONS / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(answer.status, 405);
        assert!(answer.head.contains("allow: get, head, post, put, delete, patch"), "{}", answer.head);
        let answer = world.http("BREW / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert_eq!(answer.status, 501);
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_function_that_fails_or_replies_nonsense_is_a_bad_gateway() {
        let world = World::start().await;
        world.open_ingress(&[]).await;
        let nonsense = |text: &'static str| Reply::Message(text.into());
        for reply in [
            Reply::Error,
            Reply::Empty,
            nonsense("hello"),
            response(42, "", json!({})),
            response(101, "", json!({"upgrade": "websocket"})),
            response(200, "", json!({"x": "a\r\nb: c"})),
        ] {
            let answer = world.answer_to(GET, reply.clone()).await;
            assert_eq!(answer.status, 502, "{reply:?}");
            assert!(answer.body.trim_end().lines().count() == 1, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_function_has_no_say_in_the_framing() {
        let world = World::start().await;
        world.open_ingress(&[]).await;
        let headers = json!({"content-length": "1", "transfer-encoding": "chunked", "connection": "keep-alive"});
        let answer = world.answer_to(GET, response(200, "hello", headers)).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
        assert!(answer.head.contains("content-length: 5"), "{}", answer.head);
        assert!(!answer.head.contains("chunked"), "{}", answer.head);

        let answer = world.answer_to(GET, response(204, "hello", json!({}))).await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));

        let head = GET.replace("GET", "HEAD");
        let answer = world.answer_to(&head, response(200, "hello", json!({}))).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        assert!(answer.head.contains("content-length: 5"), "{}", answer.head);
    }

    #[tokio::test]
    async fn a_function_that_does_not_answer_is_a_timeout() {
        let world = World::start_with(&[("http_ingress_timeout", "100ms")]).await;
        world.open_ingress(&[]).await;
        assert_eq!(world.http(GET).await.status, 504);
    }

    #[tokio::test]
    async fn requests_are_served_concurrently_up_to_the_limit() {
        let world = World::start_with(&[("http_ingress_max_requests", "2")]).await;
        world.open_ingress(&[]).await;
        let function = async {
            let (_, first) = world.request().await;
            let (_, second) = world.request().await;
            let third = world.http(GET).await;
            world.reply(second, response(200, "second", json!({}))).await;
            world.reply(first, response(200, "first", json!({}))).await;
            third
        };
        let (one, other, third) = tokio::join!(world.http(GET), world.http(GET), function);
        assert_eq!((one.status, other.status, third.status), (200, 200, 503));
        assert!(third.head.contains("retry-after: 1"), "{}", third.head);
        assert_eq!(world.answer_to(GET, response(200, "", json!({}))).await.status, 200, "it recovers");
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused() {
        let settings = [
            ("http_ingress_max_body", "1KiB"),
            ("http_ingress_max_buffered", "1KiB"),
            // How long the rest of a refused body is waited for.
            ("http_ingress_read_timeout", "500ms"),
        ];
        let world = World::start_with(&settings).await;
        world.open_ingress(&[]).await;
        let large = "x".repeat(1025);
        let post = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
        for request in [
            format!("{post}Content-Length: 1025\r\n\r\n{large}"),
            format!("{post}Content-Length: 99999999999\r\n\r\n"),
            format!("{post}Transfer-Encoding: chunked\r\n\r\n401\r\n{large}\r\n0\r\n\r\n"),
        ] {
            assert_eq!(world.http(&request).await.status, 413, "{request}");
        }
        let expecting = format!("{post}Content-Length: 1025\r\nExpect: 100-continue\r\n\r\n");
        let answer = world.http(&expecting).await;
        assert_eq!(answer.status, 413, "at once, and instead of 100");
        let fits = format!("{post}Content-Length: 1024\r\n\r\n{}", &large[1..]);
        assert_eq!(world.answer_to(&fits, response(200, "", json!({}))).await.status, 200);
        let metrics = world.node.metrics().await;
        assert!(metrics.contains("requests_refused_total{status=\"413\"} 4"), "{metrics}");
    }

    /// In JSON a body grows: it may fit as a body and yet not as an event.
    #[tokio::test]
    async fn a_request_that_is_too_large_for_an_event_is_refused() {
        let world = World::start().await;
        world.open_ingress(&[]).await;
        let size = 40_000;
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n{}",
            "x".repeat(size)
        );
        assert_eq!(world.http(&request).await.status, 413);
    }

    #[tokio::test]
    async fn bodies_share_a_limited_memory() {
        let world =
            World::start_with(&[("http_ingress_max_body", "4KiB"), ("http_ingress_max_buffered", "4KiB")]).await;
        world.open_ingress(&[]).await;
        let post = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4096\r\n\r\n";
        let mut first = TcpStream::connect(world.ingress).await.unwrap();
        first.write_all(format!("{post}{}", "x".repeat(4096)).as_bytes()).await.unwrap();
        let (_, caller) = world.request().await;
        let second = world.http(&format!("{post}{}", "x".repeat(4096))).await;
        assert_eq!(second.status, 503);
        world.reply(caller, response(200, "", json!({}))).await;
        assert_eq!(Answer::read(&mut first).await.status, 200);
    }

    #[tokio::test]
    async fn a_client_that_is_too_slow_is_told_so() {
        let world = World::start_with(&[("http_ingress_read_timeout", "100ms")]).await;
        world.open_ingress(&[]).await;
        for (request, what) in [
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel", "body"),
            ("GET / HTTP/1.1\r\nHost:", "head"),
        ] {
            assert_eq!(world.http(request).await.status, 408, "{what}");
        }
    }

    #[tokio::test]
    async fn what_is_no_http_is_refused() {
        let world = World::start().await;
        world.open_ingress(&[]).await;
        for request in [
            "hello\r\n\r\n",
            "GET / HTTP/1.1\r\nno header\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        ] {
            assert_eq!(world.http(request).await.status, 400, "{request}");
        }
        let huge = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
        assert_eq!(world.http(&huge).await.status, 431);
    }

    /// A refusal must not cost the connection, nor the next request its beginning.
    #[tokio::test]
    async fn a_connection_outlives_a_refused_body() {
        let world = World::start().await;
        world.open_ingress(&[("host", "a")]).await;
        let body = "x".repeat(100_000);
        let refused = format!("POST / HTTP/1.1\r\nHost: b\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let both = format!("{refused}{GET}");
        let answer = world.answer_to(&both, response(200, "hello", json!({}))).await;
        assert_eq!(answer.status, 404);
        assert!(answer.body.contains("HTTP/1.1 200 OK") && answer.body.ends_with("hello"), "{}", answer.body);
    }

    #[tokio::test]
    async fn a_body_can_be_cast() {
        let world = World::start().await;
        world.open_ingress(&[("host", "a"), ("async", "true")]).await;
        world.open_ingress(&[("host", "b"), ("async", "true"), ("encode_base64", "true")]).await;
        for (host, payload) in [("a", "hello"), ("b", "aGVsbG8=")] {
            let request =
                format!("PUT / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello");
            let answer = world.http(&request).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "OK"));
            assert_eq!(world.node.peer.next_cast().await, payload);
        }
    }

    #[tokio::test]
    async fn of_several_that_match_each_gets_its_share() {
        let world = World::start().await;
        let ids = [world.open_ingress(&[("async", "true")]).await, world.open_ingress(&[("async", "true")]).await];
        let mut shares = [0; 2];
        for _ in 0..64 {
            assert_eq!(world.http(GET).await.status, 200);
            let source = world.node.peer.next().await.source;
            shares[ids.iter().position(|id| *id == source).unwrap()] += 1;
        }
        assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
    }

    #[tokio::test]
    async fn a_request_in_hand_is_answered_when_the_node_stops() {
        let world = World::start().await;
        world.open_ingress(&[]).await;
        let mut client = TcpStream::connect(world.ingress).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let (_, Caller { source: target, stream, trace }) = world.request().await;
        let (source, invocation, ingress) = (world.node.peer.id, world.node.invocation.clone(), world.ingress);
        let stopping = tokio::spawn(world.node.stop_node());
        wait_until("it takes no more connections", || async { TcpStream::connect(ingress).await.is_err() }).await;
        let kind = Kind::Reply { reply: response(200, "late", json!({})), stream };
        let reply = Event { source, target, kind, created: SystemTime::UNIX_EPOCH, trace, id: None };
        invocation.handle(reply).await.unwrap();
        let answer = Answer::read(&mut client).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "late"));
        assert_eq!(stopping.await.unwrap(), Stopped::Clean);
        assert!(TcpStream::connect(ingress).await.is_err(), "the port is free again");
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let world = World::start().await;
        let general = config_text(world.node.directory.path());
        let text =
            format!("{general}[resources]\nhttp_ingress_provider = 'i'\nhttp_ingress_url = 'http://{}'", world.ingress);
        let started = Node::start(parse(&text, std::iter::empty()).unwrap()).await;
        let error = started.map(drop).unwrap_err().to_string();
        assert!(error.contains(&world.ingress.to_string()), "{error}");
    }
}

/// A web server.
struct Web {
    addr: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Web {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Web {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(Self::answer);
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { addr, server }
    }

    async fn answer(request: Request<hyper::body::Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
        let response = Response::builder().header("x-a", "1").header("x-a", "2");
        let response = match head.uri.path() {
            "/echo" => {
                let text = format!(
                    "{} {} {:?} {:?} {}",
                    head.method,
                    head.uri,
                    header("x-own"),
                    header("content-length"),
                    String::from_utf8_lossy(&body)
                );
                response.status(201).body(Full::from(text))
            }
            "/large" => response.body(Full::from(vec![b'x'; 2048])),
            "/moved" => response.status(302).header("location", "/echo").body(Full::default()),
            _ => std::future::pending().await,
        };
        Ok(response.unwrap())
    }

    fn request(&self, path: &str, method: &str, body: Option<&str>) -> Value {
        let (first, rest) = method.split_at(1);
        json!({
            "protocol": "HTTP",
            "host": self.addr.to_string(),
            "headers": {"X-Own": "mine", "content-length": "999"},
            "body": body.map(str::as_bytes),
            "method": first.to_string() + &rest.to_ascii_lowercase(),
            "path": path,
        })
    }
}

mod http_egress {
    use super::*;

    async fn exchange(world: &World, id: InstanceId, request: &Value) -> Option<Value> {
        match world.call(id, request.to_string()).await {
            Reply::Message(payload) => Some(serde_json::from_slice(&payload).unwrap()),
            Reply::Error => None,
            Reply::Empty => panic!("an empty reply"),
        }
    }

    fn text(response: &Value) -> String {
        String::from_utf8(serde_json::from_value(response["body"].clone()).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_request_is_sent_and_its_response_is_the_reply() {
        let (world, web) = (World::start().await, Web::start().await);
        let id = world.open("http-egress", &[]).await.unwrap();
        for (method, body, expected) in [
            ("POST", Some("hello"), "POST /echo?a=b Some(\"mine\") Some(\"5\") hello"),
            ("GET", Some(""), "GET /echo?a=b Some(\"mine\") None "),
            ("DELETE", None, "DELETE /echo?a=b Some(\"mine\") None "),
        ] {
            let response = exchange(&world, id, &web.request("/echo?a=b", method, body)).await.unwrap();
            assert_eq!((&response["status"], text(&response).as_str()), (&json!(201), expected));
            assert_eq!(response["headers"]["x-a"], "1, 2");
        }
        let response = exchange(&world, id, &web.request("/moved", "GET", None)).await.unwrap();
        assert_eq!(response["status"], 201, "redirections are followed");
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_an_error() {
        let settings = [("http_egress_timeout", "200ms"), ("http_egress_max_body", "1KiB")];
        let (world, web) = (World::start_with(&settings).await, Web::start().await);
        let id = world.open("http-egress", &[]).await.unwrap();
        let with = |key: &str, value: Value| {
            let mut request = web.request("/echo", "GET", None);
            request[key] = value;
            request
        };
        for (request, what) in [
            (json!("hello"), "no request"),
            (with("method", json!("GET")), "no method"),
            (with("host", json!(free_address().to_string())), "nobody is there"),
            (with("host", json!("")), "no host"),
            (with("headers", json!({"a b": "c"})), "no header"),
            (with("protocol", json!("HTTPS")), "no TLS there"),
            (web.request("/large", "GET", None), "too large"),
            (web.request("/never", "GET", None), "too slow"),
        ] {
            assert_eq!(exchange(&world, id, &request).await, None, "{what}");
        }
        world.cast(id, web.request("/echo", "GET", None).to_string()).await;
        assert!(exchange(&world, id, &web.request("/echo", "GET", None)).await.is_some(), "it goes on");
    }

    /// A server that does not answer must not hold up those that do.
    #[tokio::test]
    async fn requests_are_sent_concurrently() {
        let (world, web) = (World::start().await, Web::start().await);
        let id = world.open("http-egress", &[]).await.unwrap();
        let (never, echo) = (web.request("/never", "GET", None), web.request("/echo", "GET", None));
        let others = async {
            for _ in 0..3 {
                assert!(exchange(&world, id, &echo).await.is_some());
            }
            world.close(id).await;
        };
        let (unanswered, ()) = tokio::join!(exchange(&world, id, &never), others);
        assert_eq!(unanswered, None, "it ends with the resource");
    }
}

mod file_log {
    use super::*;

    /// Whether this process has a file open.
    fn is_open(path: &std::path::Path) -> bool {
        let mut descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        descriptors.any(|entry| std::fs::read_link(entry.unwrap().path()).is_ok_and(|open| open == path))
    }

    #[tokio::test]
    async fn events_are_lines_in_their_order() {
        let world = World::start().await;
        let id = world.open("file-log", &[("filename", "deep/events.log")]).await.unwrap();
        for number in 0..50 {
            world.cast(id, format!("event {number}")).await;
        }
        assert_eq!(world.call(id, "two\nlines").await, Reply::Message(Bytes::new()));
        let path = world.log("deep/events.log").canonicalize().unwrap();
        let expected: String = (0..50).map(|number| format!("event {number}\n")).collect();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected + "two\\nlines\n");
        assert!(is_open(&path));
        world.close(id).await;
        assert!(!is_open(&path));
    }

    #[tokio::test]
    async fn a_line_says_when_and_from_whom() {
        let world = World::start().await;
        let configuration = [("filename", "a.log"), ("add-timestamp", ""), ("add-source-id", "false")];
        let id = world.open("file-log", &configuration).await.unwrap();
        world.call(id, "hello").await;
        let text = std::fs::read_to_string(world.log("a.log")).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.len() == "2026-01-01T00:00:00.000000Z".len() && time.ends_with('Z'), "{time}");
        assert_eq!(rest, format!("{} hello\n", world.node.peer.id));
    }

    #[tokio::test]
    async fn a_name_that_leads_out_of_the_directory_is_refused() {
        let world = World::start().await;
        std::os::unix::fs::symlink(world.node.directory.path(), world.log("up")).unwrap();
        for name in ["../stolen", "/tmp/stolen", "up/stolen", "a/../../stolen", ""] {
            let error = world.open("file-log", &[("filename", name)]).await.unwrap_err().to_string();
            assert!(error.contains("'filename'"), "{error}");
        }
        assert!(!world.node.directory.path().join("stolen").exists());
        let error = world.open("file-log", &[]).await.unwrap_err().to_string();
        assert!(error.contains("'filename'"), "{error}");
    }

    #[tokio::test]
    async fn a_full_file_is_an_error() {
        let world = World::start_with(&[("file_log_max_size", "10")]).await;
        let id = world.open("file-log", &[("filename", "a.log")]).await.unwrap();
        assert_ne!(world.call(id, "123456789").await, Reply::Error);
        assert_eq!(world.call(id, "x").await, Reply::Error);
    }
}

/// A Redis server.
pub(crate) struct Redis {
    addr: SocketAddr,
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
    /// `None`: there is no Redis on this machine, which is said, or a failure if it is required.
    pub(crate) async fn start() -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "redis"), "redis-server is required and not installed");
            let test = std::thread::current().name().unwrap_or_default().to_string();
            // Not by a macro, whose output would be captured.
            let mut stderr = std::io::stderr();
            writeln!(stderr, "skipped: redis: {test}: redis-server is not installed").unwrap();
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let addr = free_address();
        let redis = Self { addr, server: Self::spawn(addr, &directory), _directory: directory };
        redis.ready().await;
        Some(redis)
    }

    fn spawn(addr: SocketAddr, directory: &tempfile::TempDir) -> Child {
        Command::new("redis-server")
            .args(["--bind", &addr.ip().to_string(), "--port", &addr.port().to_string(), "--save", ""])
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn ready(&self) {
        wait_until("redis-server listens", || async { TcpStream::connect(self.addr).await.is_ok() }).await;
    }

    async fn restart(&mut self) {
        self.stop();
        self.come_back().await;
    }

    pub(crate) fn stop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    pub(crate) async fn come_back(&mut self) {
        self.server = Self::spawn(self.addr, &self._directory);
        self.ready().await;
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    pub(crate) fn command(&self, command: &[&str]) -> redis::Value {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        redis::cmd(command[0]).arg(&command[1..]).query(&mut connection).unwrap()
    }

    fn value(&self, key: &str) -> Option<String> {
        redis::from_redis_value(self.command(&["GET", key])).unwrap()
    }

    /// Connections besides the one that asks.
    fn connections(&self) -> usize {
        let list: String = redis::from_redis_value(self.command(&["CLIENT", "LIST"])).unwrap();
        list.lines().count() - 1
    }
}

mod redis_resource {
    use super::*;

    #[tokio::test]
    async fn a_cast_sets_and_a_call_gets() {
        let Some(server) = Redis::start().await else { return };
        let world = World::start().await;
        let plain = world.open("redis", &[("url", &server.url()), ("key", "plain")]).await.unwrap();
        let configuration = [("url", &*server.url()), ("key", "own"), ("add-workflow-id", "")];
        let prefixed = world.open("redis", &configuration).await.unwrap();
        for number in 0..20 {
            world.cast(plain, format!("value {number}")).await;
        }
        world.cast(prefixed, "mine").await;
        assert_eq!(world.call(plain, "plain").await, Reply::Message("value 19".into()));
        let key = format!("{}:own", world.workflow);
        wait_until("the value is set", || async { server.value(&key).as_deref() == Some("mine") }).await;
        assert_eq!(world.call(plain, key).await, Reply::Message("mine".into()));
        assert_eq!(world.call(plain, "none such").await, Reply::Error);
    }

    #[tokio::test]
    async fn a_server_that_comes_back_is_used_again() {
        let Some(mut server) = Redis::start().await else { return };
        let world = World::start().await;
        let id = world.open("redis", &[("url", &server.url()), ("key", "key")]).await.unwrap();
        world.cast(id, "before").await;
        assert_eq!(world.call(id, "key").await, Reply::Message("before".into()));
        server.restart().await;
        world.cast(id, "after").await;
        assert_eq!(world.call(id, "key").await, Reply::Message("after".into()), "nothing is lost");
    }

    #[tokio::test]
    async fn the_connection_ends_with_the_resource() {
        let Some(server) = Redis::start().await else { return };
        let world = World::start().await;
        let id = world.open("redis", &[("url", &server.url())]).await.unwrap();
        assert_eq!(server.connections(), 1);
        world.close(id).await;
        wait_until("the connection is closed", || async { server.connections() == 0 }).await;
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_a_refusal_that_keeps_the_password() {
        let world = World::start().await;
        let addr = free_address();
        let url = format!("redis://user:secret@{addr}");
        let error = world.open("redis", &[("url", &url)]).await.unwrap_err().to_string();
        assert!(error.contains(&addr.to_string()) && !error.contains("secret"), "{error}");
    }
}
