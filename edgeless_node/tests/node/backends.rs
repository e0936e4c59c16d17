//! Servers behind the HTTP ingress of a real node: who gets a request, and that what passes is not
//! changed, not gathered and not waited for longer than it must.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use edgeless_daemon::Stopped;
use edgeless_node::backends::{Backend, Guard};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::resources::{Answer, World, free_address, response};
use super::support::{PATIENCE, wait_until};

type AnyBody = BoxBody<Bytes, hyper::Error>;

/// A web server.
struct Server {
    name: &'static str,
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// The connections that it has accepted.
    connections: AtomicUsize,
    /// The requests that it has seen.
    requests: AtomicUsize,
    /// Lets the answers to `/held` go on.
    go_on: Notify,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, shared) = (listener.local_addr().unwrap(), Arc::new(Shared::default()));
        let own = shared.clone();
        let task = tokio::spawn(async move {
            // They end with this task.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::Relaxed);
                let shared = own.clone();
                let service = hyper::service::service_fn(move |request| {
                    let shared = shared.clone();
                    async move { Ok::<_, Infallible>(answer(name, &shared, request).await) }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                connections.spawn(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
            }
        });
        Self { name, addr, shared, task }
    }

    fn backend(&self, host: &str, path: &str) -> Backend {
        backend(self.name, self.addr, host, path)
    }

    fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    async fn has_seen(&self, requests: usize) {
        wait_until("it has the request", || async { self.shared.requests.load(Ordering::Relaxed) >= requests }).await;
    }
}

fn backend(name: &str, to: SocketAddr, host: &str, path: &str) -> Backend {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_string());
    Backend { name: name.into(), host: given(host), path: given(path), to }
}

async fn answer(name: &str, shared: &Arc<Shared>, mut request: Request<Incoming>) -> Response<AnyBody> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let full = |text: String| Full::from(text).map_err(|never| match never {}).boxed();
    let builder = Response::builder();
    let response = match request.uri().path() {
        // What is received is sent at once.
        "/echo" => builder.body(request.into_body().boxed()),
        "/length" => {
            let mut length = 0;
            while let Some(frame) = request.body_mut().frame().await {
                length += frame.map_or(0, |frame| frame.data_ref().map_or(0, Bytes::len));
            }
            builder.body(full(length.to_string()))
        }
        "/early" => {
            // Who closes at once may destroy its answer.
            tokio::spawn(request.into_body().collect());
            builder.status(413).body(full("too large for me".into()))
        }
        "/head" => builder.body(full(format!("{} {} {:?}", request.method(), request.uri(), request.headers()))),
        "/hop" => builder
            .header("connection", "x-secret")
            .header("x-secret", "1")
            .header("keep-alive", "timeout=7")
            .header("proxy-connection", "keep-alive")
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .body(full("hop".into())),
        "/never" => std::future::pending().await,
        "/held" => {
            let (sender, receiver) = mpsc::channel(1);
            let shared = shared.clone();
            tokio::spawn(async move {
                sender.send("begin ").await.unwrap();
                shared.go_on.notified().await;
                sender.send("end").await.ok();
            });
            builder.body(stream(receiver))
        }
        "/upgrade" => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
                to.write_all(b"welcome ").await.unwrap();
                tokio::io::copy(&mut from, &mut to).await.ok();
                to.shutdown().await.ok();
            });
            let answered = [("connection", "upgrade"), ("upgrade", "echo"), ("sec-websocket-accept", "yes")];
            let builder = answered.iter().fold(builder, |builder, (key, value)| builder.header(*key, *value));
            builder.status(StatusCode::SWITCHING_PROTOCOLS).body(full(String::new()))
        }
        _ => builder.header("content-type", "text/plain").body(full(name.to_string())),
    };
    response.unwrap()
}

fn stream(receiver: mpsc::Receiver<&'static str>) -> AnyBody {
    let frames = ReceiverStream::new(receiver).map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
    BodyExt::boxed(StreamBody::new(frames))
}

/// A node with one server behind it, which takes all requests.
async fn world_with(settings: &[(&str, &str)]) -> (World, Server, Guard) {
    let (world, server) = (World::start_with(settings).await, Server::start("web").await);
    let guard = world.node.backends().add(server.backend("", "")).unwrap();
    (world, server, guard)
}

fn client<B>() -> Client<HttpConnector, B>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n")
}

/// Far more than an event, or all bodies of requests to functions, may have.
const LARGE: usize = 16 << 20;

#[tokio::test]
async fn bodies_pass_both_ways_while_they_are_sent() {
    let settings = [("http_ingress_max_body", "1KiB"), ("http_ingress_max_buffered", "1KiB")];
    let (world, _server, _guard) = world_with(&settings).await;
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let body = StreamBody::new(ReceiverStream::new(receiver).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes))));
    let request = Request::post(format!("http://{}/echo", world.ingress)).body(body).unwrap();
    let chunk = Bytes::from(vec![b'x'; 64 << 10]);
    let exchange = async {
        sender.send(chunk.clone()).await.unwrap();
        let mut response = client().request(request).await.unwrap().into_body();
        // It comes back although the request has not ended.
        let mut received = response.frame().await.unwrap().unwrap().into_data().unwrap().len();
        let sending = tokio::spawn(async move {
            for _ in 1..LARGE / chunk.len() {
                sender.send(chunk.clone()).await.unwrap();
            }
        });
        while let Some(frame) = response.frame().await {
            received += frame.unwrap().into_data().unwrap().len();
        }
        sending.await.unwrap();
        received
    };
    assert_eq!(tokio::time::timeout(PATIENCE, exchange).await.unwrap(), LARGE);

    let body = Full::new(Bytes::from(vec![b'x'; LARGE]));
    let request = Request::post(format!("http://{}/length", world.ingress)).body(body).unwrap();
    let response = client().request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), LARGE.to_string());
}

#[tokio::test]
async fn connections_to_a_backend_are_used_again() {
    let (world, server, _guard) = world_with(&[]).await;
    for _ in 0..10 {
        assert_eq!(world.http(&get("/")).await.body, "web");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn all_methods_pass() {
    let (world, _server, _guard) = world_with(&[]).await;
    for method in ["OPTIONS", "PUT", "BREW"] {
        let answer = world.http(&get("/head?a=%20b&c").replace("GET", method)).await;
        assert!(answer.body.starts_with(&format!("{method} /head?a=%20b&c ")), "{answer:?}");
    }
    let answer = world.http(&get("/").replace("GET", "HEAD")).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert!(answer.head.contains("content-length: 3"), "{}", answer.head);
    let answer = world.http(&get("/").replace("GET /", "CONNECT a:80")).await;
    assert_eq!(answer.status, 405, "the ingress leads to its own servers only");
}

/// Each says more of the requests that it wants than the next; of two that say as much, the function is
/// asked.
#[tokio::test]
async fn who_says_more_of_a_request_gets_it() {
    let world = World::start().await;
    let servers = ["host+path", "host", "path", "all"].map(Server::start);
    let servers = futures_util::future::join_all(servers).await;
    let add =
        |index: usize, host: &str, path: &str| world.node.backends().add(servers[index].backend(host, path)).unwrap();
    let ask = async |host: &str, path: &str| {
        let request = get(path).replace("example.com", host);
        let function = async {
            let (_, caller) = world.request().await;
            world.reply(caller, response(200, "function", json!({}))).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = world.http(&request) => if answer.status == 404 { "nobody".to_string() } else { answer.body },
            () = function => unreachable!(),
        }
    };
    let table: [(&str, &str, [&str; 4]); 5] = [
        // Who gets it: without functions, with one for the host, with one for all, with both.
        ("a.example", "/api/x", ["host+path", "host+path", "host+path", "host+path"]),
        ("a.example", "/", ["host", "function", "host", "function"]),
        ("b.example", "/api/x", ["path", "path", "path", "path"]),
        ("b.example", "/", ["all", "all", "function", "function"]),
        ("c.example", "/api/x", ["path", "function", "path", "function"]),
    ];
    let _guards = [add(0, "a.example", "/api"), add(1, "A.example", ""), add(2, "", "/api"), add(3, "", "")];
    let functions: [&[&[(&str, &str)]]; 4] = [
        &[],
        &[&[("host", "a.example")], &[("host", "c.example")]],
        &[&[]],
        &[&[], &[("host", "a.example")], &[("host", "c.example")]],
    ];
    for (column, functions) in functions.iter().enumerate() {
        let mut open = Vec::new();
        for configuration in *functions {
            open.push(world.open_ingress(configuration).await);
        }
        for (host, path, expected) in &table {
            assert_eq!(ask(host, path).await, expected[column], "{host}{path} with {functions:?}");
        }
        for id in open {
            world.close(id).await;
        }
    }
    // A function that does not want the request is not in the way.
    world.open_ingress(&[("method", "PUT")]).await;
    world.open_ingress(&[("wf_id", "true")]).await;
    assert_eq!(ask("b.example", "/").await, "all");
}

#[tokio::test]
async fn a_backend_that_is_removed_gets_no_more_requests() {
    let (world, server, guard) = world_with(&[]).await;
    let mut held = TcpStream::connect(world.ingress).await.unwrap();
    held.write_all(get("/held").as_bytes()).await.unwrap();
    server.has_seen(1).await;
    drop(guard);
    let answer = world.http(&get("/")).await;
    assert_eq!((answer.status, answer.body.lines().count()), (404, 1));
    server.shared.go_on.notify_one();
    let answer = Answer::read(&mut held).await;
    assert!(answer.body.contains("begin ") && answer.body.contains("end"), "a request in hand goes on: {answer:?}");
    let _guard = world.node.backends().add(server.backend("", "")).unwrap();
    assert_eq!(world.http(&get("/")).await.body, "web");
}

#[tokio::test]
async fn a_backend_that_is_down_is_a_bad_gateway() {
    let world = World::start().await;
    let _guard = world.node.backends().add(backend("down", free_address(), "", "")).unwrap();
    let post = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
    for request in [get("/"), post.into()] {
        let answer = world.http(&request).await;
        assert_eq!((answer.status, answer.body.as_str()), (502, "the service cannot be reached\n"));
    }
    assert_eq!(world.node.metric("requests_refused_total{status=\"502\"}").await, 2);
}

#[tokio::test]
async fn what_is_no_http_is_a_bad_gateway() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _guard = world.node.backends().add(backend("odd", listener.local_addr().unwrap(), "", "")).unwrap();
    for reply in [&b"hello\r\n\r\n"[..], b"", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"] {
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 16];
            stream.read_exact(&mut head).await.unwrap();
            stream.write_all(reply).await.unwrap();
        };
        let (answer, ()) = tokio::join!(async { world.http(&get("/")).await }, server);
        assert_eq!(answer.status, 502, "{reply:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_a_timeout() {
    let (world, _server, _guard) = world_with(&[("http_ingress_timeout", "100ms")]).await;
    let answer = world.http(&get("/never")).await;
    assert_eq!((answer.status, answer.body.as_str()), (504, "the service did not answer in time\n"));
}

/// The time of a backend begins when it has the request: a large body may take as long as it takes.
#[tokio::test]
async fn a_client_may_send_for_longer_than_a_backend_may_think() {
    let settings = [("http_ingress_timeout", "500ms"), ("http_ingress_read_timeout", "5s")];
    let (world, server, _guard) = world_with(&settings).await;
    let mut stream = TcpStream::connect(world.ingress).await.unwrap();
    let head = get("/length").replace("GET", "POST").replace("Connection", "Content-Length: 8\r\nConnection");
    stream.write_all(head.as_bytes()).await.unwrap();
    server.has_seen(1).await;
    let mut pauses = tokio::time::interval(std::time::Duration::from_millis(150));
    for _ in 0..8 {
        pauses.tick().await;
        stream.write_all(b"x").await.unwrap();
    }
    assert_eq!(Answer::read(&mut stream).await.body, "8");
}

#[tokio::test]
async fn a_client_that_stops_sending_is_told_so() {
    let (world, _server, _guard) = world_with(&[("http_ingress_read_timeout", "100ms")]).await;
    let answer =
        world.http("POST /length HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhel").await;
    assert_eq!((answer.status, answer.body.as_str()), (408, "the body did not arrive in time\n"));
}

#[tokio::test]
async fn a_backend_may_answer_before_it_has_the_body() {
    let (world, _server, _guard) = world_with(&[]).await;
    let mut stream = TcpStream::connect(world.ingress).await.unwrap();
    let head = get("/early").replace("GET", "POST").replace("Connection", "Content-Length: 5\r\nConnection");
    stream.write_all(format!("{head}hel").as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "too large for me").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    stream.write_all(b"lo").await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "it was told to close");
}

#[tokio::test]
async fn what_belongs_to_a_connection_does_not_pass() {
    let (world, _server, _guard) = world_with(&[]).await;
    let request = "GET /head HTTP/1.1\r\nHost: Example.com:99\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\n\
                   Keep-Alive: 1\r\nProxy-Connection: close\r\nTE: trailers\r\nUpgrade: echo\r\nCookie: a=1; b=2\r\n\
                   X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\nX-Forwarded-Host: evil\r\nX-Own: \u{e9}\r\n\r\n";
    let answer = world.http(request).await;
    for part in [
        r#""host": "Example.com:99""#,
        r#""cookie": "a=1; b=2""#,
        r#""x-forwarded-for": "10.0.0.1, 10.0.0.2, 127.0.0.1""#,
        r#""x-forwarded-host": "Example.com:99""#,
        r#""x-forwarded-proto": "http""#,
        r#""x-own": "\xc3\xa9""#,
    ] {
        assert!(answer.body.contains(part), "{part} in {}", answer.body);
    }
    for name in ["x-secret", "keep-alive", "connection", "te", "upgrade"] {
        assert!(!answer.body.contains(&format!("\"{name}\"")), "{name} in {}", answer.body);
    }
    let answer = world.http(&get("/head").replace("Connection", "X-Forwarded-Proto: https\r\nConnection")).await;
    assert!(answer.body.contains(r#""x-forwarded-proto": "https""#), "a proxy in front knows it: {}", answer.body);

    let answer = world.http(&get("/hop")).await;
    assert!(answer.head.contains("set-cookie: a=1\r\nset-cookie: b=2"), "{}", answer.head);
    for name in ["x-secret", "keep-alive:", "proxy-connection"] {
        assert!(!answer.head.contains(name), "{name} in {}", answer.head);
    }
}

/// There is one `Host` and it is the one by which the backend was chosen.
#[tokio::test]
async fn a_backend_sees_the_host_that_it_was_chosen_by() {
    let world = World::start().await;
    let server = Server::start("web").await;
    let _guard = world.node.backends().add(server.backend("a", "")).unwrap();
    let answer = world.http("GET /head HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n").await;
    assert!(answer.body.contains(r#""host": "a""#) && !answer.body.contains(r#""b""#), "{}", answer.body);
}

const UPGRADE: &str = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\
                       Sec-WebSocket-Key: k\r\n\r\n";

/// Reads what a stream has until it ends with `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let reading = async {
        while !text.ends_with(end) {
            text.push(char::from(stream.read_u8().await.unwrap()));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
    text
}

#[tokio::test]
async fn both_ends_may_switch_to_another_protocol() {
    let (world, _server, _guard) = world_with(&[("http_ingress_max_requests", "1")]).await;
    let mut stream = TcpStream::connect(world.ingress).await.unwrap();
    // The client does not even wait for the answer.
    stream.write_all(format!("{UPGRADE}hello").as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for header in ["connection: upgrade", "upgrade: echo", "sec-websocket-accept: yes"] {
        assert!(head.contains(header), "{head}");
    }
    assert_eq!(read_until(&mut stream, "hello").await, "welcome hello");
    stream.write_all(b"\0\xffagain").await.unwrap();
    assert!(read_until(&mut stream, "again").await.starts_with('\0'));
    assert_eq!(world.http(&get("/")).await.status, 503, "it counts as a request in hand");
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the end passes as well");
    wait_until("its place is free", || async { world.http(&get("/")).await.status == 200 }).await;
}

#[tokio::test]
async fn a_server_need_not_switch() {
    let (world, _server, _guard) = world_with(&[]).await;
    for (request, what) in [
        (UPGRADE.replace("/upgrade", "/"), "it does not want to"),
        (UPGRADE.replace("/upgrade", "/").replace("echo", "h2c"), "it is not asked"),
    ] {
        let answer = world.http(&request.replace("keep-alive, Upgrade", "close, Upgrade")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "web"), "{what}");
    }
    let answer = world.http(&get("/head").replace("close", "close, Upgrade\r\nUpgrade: h2c")).await;
    assert!(!answer.body.contains("h2c"), "{}", answer.body);
}

#[tokio::test]
async fn a_response_that_is_passed_on_is_a_request_in_hand() {
    let (world, server, _guard) = world_with(&[("http_ingress_max_requests", "1")]).await;
    let mut held = TcpStream::connect(world.ingress).await.unwrap();
    held.write_all(get("/held").as_bytes()).await.unwrap();
    read_until(&mut held, "begin ").await;
    let answer = world.http(&get("/")).await;
    assert_eq!(answer.status, 503);
    server.shared.go_on.notify_one();
    assert!(read_until(&mut held, "\r\n0\r\n\r\n").await.contains("end"));
    wait_until("its place is free", || async { world.http(&get("/")).await.status == 200 }).await;
}

#[tokio::test]
async fn what_is_in_hand_ends_before_the_node() {
    let (world, server, _guard) = world_with(&[]).await;
    let mut tunnel = TcpStream::connect(world.ingress).await.unwrap();
    tunnel.write_all(UPGRADE.as_bytes()).await.unwrap();
    read_until(&mut tunnel, "welcome ").await;
    let mut held = TcpStream::connect(world.ingress).await.unwrap();
    held.write_all(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut held, "begin ").await;
    let ingress = world.ingress;
    let stopping = tokio::spawn(world.node.stop_node());
    wait_until("it takes no more connections", || async { TcpStream::connect(ingress).await.is_err() }).await;
    server.shared.go_on.notify_one();
    assert!(read_until(&mut held, "\r\n0\r\n\r\n").await.contains("end"));
    assert_eq!(tunnel.read(&mut [0]).await.unwrap_or(0), 0, "what has no end is ended");
    assert_eq!(stopping.await.unwrap(), Stopped::Clean);
}
