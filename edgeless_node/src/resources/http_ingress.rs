//! `http-ingress`: turns HTTP requests into events.
//!
//! ```text
//!  client --> connection --> Routes --pick--> Route --new_request--> function
//!         <---------------- response ------------- reply -----------
//!                       \-> Backends --find--> Proxy -----request---> server on this node
//! ```
//! One server per node, whose resources are routes. The routes are an immutable snapshot: requests
//! share no lock. Backends stand behind the same address, and are passed requests as they are. Every request gets an answer, and whatever a client may grow has a limit: the
//! connections, the requests in hand, the size of a body and of all bodies together, the time to send
//! it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use edgeless_api::component::{Annotations, ResourceSpec};
use edgeless_api::status::Level;
use edgeless_api::{Error, WorkflowId};
use edgeless_daemon::Tasks;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Incoming as Receiving};
use hyper::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::seq::IteratorRandom;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::{self, Method};
use super::http_proxy::{self, Download, Passed, Proxy, ProxyError, Tunnel};
use super::{Class, Key, Surroundings, bad_value, check_configuration, flag, http_json};
use crate::backends::{Backends, Entry};
use crate::instance::{Cause, Context, Incoming, Instance, InstanceError, Payload, Provider};
use crate::log::Log;
use crate::metrics::{Dropped, Metrics};
use crate::outputs::{CallError, Outputs};

/// The class.
pub(super) static CLASS: Class = Class {
    class_type: "http-ingress",
    version: "2.1",
    description: "Calls a function with every HTTP request that matches the configuration, and answers with the \
                  function's response.",
    outputs: &[NEW_REQUEST],
    configurations: &[
        Key { name: "host", default: None, description: "the header Host that requests must have; any if not given" },
        Key {
            name: "methods",
            default: None,
            description: "the methods that requests may have, of GET, HEAD, POST, PUT, DELETE and PATCH, separated by \
                          commas; all if not given",
        },
        Key { name: "method", default: None, description: "another name of 'methods'" },
        Key {
            name: "wf_id",
            default: Some("false"),
            description: "if true, requests must have wf_id=<id of the workflow> in their query",
        },
        Key {
            name: "async",
            default: Some("false"),
            description: "if true, the body is cast to the function and the request answered at once",
        },
        Key {
            name: "encode_base64",
            default: Some("false"),
            description: "if true, a body that is cast is encoded as base64",
        },
    ],
    settings: &[
        Key { name: "http_ingress_provider", default: Some("http-ingress-1"), description: "the name of the provider" },
        Key {
            name: "http_ingress_url",
            default: Some("http://127.0.0.1:7035"),
            description: "the address that requests are sent to",
        },
        Key {
            name: "http_ingress_timeout",
            default: Some("30s"),
            description: "how long a function may take to answer, or a service to begin; then the client is told 504",
        },
        Key {
            name: "http_ingress_read_timeout",
            default: Some("10s"),
            description: "how long a client may take to send the head of a request, and then its body; an idle \
                          connection is kept as long",
        },
        Key {
            name: "http_ingress_max_body",
            default: Some("1MiB"),
            description: "the largest body of a request; as the payload of a call it takes up to four times as much",
        },
        Key {
            name: "http_ingress_max_requests",
            default: Some("4096"),
            description: "requests in hand at once; the next ones are told 503. There may be twice as many connections",
        },
        Key {
            name: "http_ingress_max_buffered",
            default: Some("256MiB"),
            description: "the size of all bodies in hand at once; requests beyond it are told 503",
        },
    ],
    max_in_flight: 1,
    provide: |surroundings| Box::pin(provide(surroundings)),
};

/// The one output.
const NEW_REQUEST: &str = "new_request";

/// The largest head of a request, bytes.
const MAX_HEAD: usize = 64 << 10;

/// When a client that met an overload may come back, seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// How long the other end of a connection may be silent before it is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

type Response = hyper::Response<Full<Bytes>>;

/// A response of a function or of the ingress itself, or one that is passed on.
type AnyResponse = hyper::Response<Either<Full<Bytes>, Download>>;

async fn provide(surroundings: Surroundings) -> Result<Arc<dyn Provider>, Error> {
    let Surroundings { settings, tasks, limits, call_timeout, metrics, backends } = surroundings;
    let options = Options {
        timeout: settings.duration("http_ingress_timeout")?,
        read_timeout: settings.duration("http_ingress_read_timeout")?,
        max_body: settings.size("http_ingress_max_body")?,
        max_payload: limits.payload,
    };
    let requests = settings.parse::<std::num::NonZeroU16>("http_ingress_max_requests")?.get();
    let buffered = settings.size("http_ingress_max_buffered")?;
    if buffered < options.max_body {
        return Err(Error::rejected("resources.http_ingress_max_buffered: must be at least http_ingress_max_body"));
    }
    let (listener, url) = edgeless_daemon::listen(&settings.parse("http_ingress_url")?).await?;
    tracing::info!("Creating resource '{}' at {url}", settings.text("http_ingress_provider"));
    let routes = Arc::new(Routes::default());
    let server = Server {
        routes: routes.clone(),
        backends,
        // As long as a function.
        proxy: Proxy::new(options.timeout.min(call_timeout), options.read_timeout, tasks.clone()),
        authority: format!("{}:{}", url.host(), url.port()),
        options,
        connections: Arc::new(Semaphore::new(2 * usize::from(requests))),
        requests: Arc::new(Semaphore::new(usize::from(requests))),
        buffered: Semaphore::new(kib(buffered).min(Semaphore::MAX_PERMITS)),
        metrics,
        tasks: tasks.clone(),
    };
    tasks.vital("http-ingress", Arc::new(server).serve(listener));
    Ok(Arc::new(HttpIngressProvider { routes }))
}

struct HttpIngressProvider {
    routes: Arc<Routes>,
}

#[async_trait]
impl Provider for HttpIngressProvider {
    async fn open(&self, spec: &ResourceSpec, context: Context) -> Result<Box<dyn Instance>, Error> {
        check_configuration(&CLASS, &spec.configuration)?;
        let route = Arc::new(Route {
            filter: Filter::parse(spec)?,
            delivery: Delivery::parse(&spec.configuration)?,
            outputs: context.outputs,
            log: context.log,
            in_hand: TaskTracker::new(),
        });
        self.routes.add(&route);
        Ok(Box::new(HttpIngress { route, routes: self.routes.clone(), cancel: context.cancel }))
    }
}

struct HttpIngress {
    route: Arc<Route>,
    routes: Arc<Routes>,
    cancel: CancellationToken,
}

#[async_trait]
impl Instance for HttpIngress {
    async fn handle(&self, _event: Incoming) -> Result<Option<Payload>, InstanceError> {
        Err(InstanceError::Failed("an http-ingress takes no events: it is their source".into()))
    }

    /// Takes no more requests. If it is not stopped but has moved, it ends when those in hand are answered.
    async fn stop(&self) {
        self.routes.remove(&self.route);
        self.route.in_hand.close();
        self.cancel.run_until_cancelled(self.route.in_hand.wait()).await;
    }
}

impl Drop for HttpIngress {
    fn drop(&mut self) {
        self.routes.remove(&self.route);
    }
}

/// Which requests a resource takes.
#[derive(Debug, Default)]
struct Filter {
    host: Option<String>,
    methods: Option<Vec<Method>>,
    workflow: Option<WorkflowId>,
}

impl Filter {
    fn parse(spec: &ResourceSpec) -> Result<Self, Error> {
        let configuration = &spec.configuration;
        let methods = match (configuration.get_key_value("methods"), configuration.get_key_value("method")) {
            (Some(_), Some((key, value))) => return Err(bad_value(key, value, "there is 'methods' as well: keep one")),
            (Some((key, list)), None) | (None, Some((key, list))) => Some(methods_of(key, list)?),
            (None, None) => None,
        };
        let of_workflow = flag(configuration, "wf_id")?;
        Ok(Self { host: configuration.get("host").cloned(), methods, workflow: of_workflow.then_some(spec.workflow) })
    }

    fn takes(&self, host: &str, method: Method, query: &str) -> bool {
        self.host.as_ref().is_none_or(|own| own == host)
            && self.methods.as_ref().is_none_or(|methods| methods.contains(&method))
            && self.workflow.is_none_or(|workflow| names_workflow(query, workflow))
    }
}

fn methods_of(key: &str, list: &str) -> Result<Vec<Method>, Error> {
    let unknown = |name: &str| bad_value(key, list, format!("'{name}' is none of {}", Method::names()));
    list.split(',').map(str::trim).map(|name| Method::named(name).ok_or_else(|| unknown(name))).collect()
}

fn names_workflow(query: &str, workflow: WorkflowId) -> bool {
    let values = query.split('&').filter_map(|parameter| parameter.strip_prefix("wf_id="));
    values.filter_map(|value| value.parse::<WorkflowId>().ok()).any(|named| named == workflow)
}

/// How a request reaches the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    /// As a call with the whole request.
    Call,
    /// As a cast of the body.
    Cast { base64: bool },
}

impl Delivery {
    fn parse(configuration: &Annotations) -> Result<Self, Error> {
        let base64 = flag(configuration, "encode_base64")?;
        Ok(if flag(configuration, "async")? { Self::Cast { base64 } } else { Self::Call })
    }
}

/// One resource, as requests see it.
#[derive(Debug)]
struct Route {
    filter: Filter,
    delivery: Delivery,
    outputs: Outputs,
    log: Log,
    /// Has a token for each request.
    in_hand: TaskTracker,
}

impl Route {
    fn takes(&self, host: &str, method: Method, query: &str) -> bool {
        self.filter.takes(host, method, query) && self.outputs.is_mapped(NEW_REQUEST)
    }
}

/// The routes of all resources.
#[derive(Debug, Default)]
struct Routes(ArcSwap<Vec<Arc<Route>>>);

impl Routes {
    fn add(&self, route: &Arc<Route>) {
        self.0.rcu(|routes| routes.iter().chain([route]).cloned().collect::<Vec<_>>());
    }

    fn remove(&self, route: &Arc<Route>) {
        self.0.rcu(|routes| routes.iter().filter(|other| !Arc::ptr_eq(route, other)).cloned().collect::<Vec<_>>());
    }

    /// Whether any of those that `counts` takes a request.
    fn any_takes(&self, host: &str, method: Method, query: &str, counts: impl Fn(&Filter) -> bool) -> bool {
        let routes = self.0.load();
        let mut counting = routes.iter().filter(|route| counts(&route.filter));
        counting.any(|route| route.takes(host, method, query))
    }

    /// A route that takes a request; of several a random one.
    fn pick(&self, host: &str, method: Method, query: &str) -> Option<Arc<Route>> {
        let routes = self.0.load();
        let mut taking = routes.iter().filter(|route| route.takes(host, method, query));
        match (taking.next()?, taking.next()) {
            (only, None) => Some(only.clone()),
            (first, Some(second)) => [first, second].into_iter().chain(taking).choose(&mut rand::rng()).cloned(),
        }
    }
}

#[derive(Clone, Copy)]
struct Options {
    timeout: Duration,
    read_timeout: Duration,
    max_body: usize,
    max_payload: usize,
}

/// Who is at the other end of a connection.
struct Client {
    peer: IpAddr,
    /// Where the connection leads once it no longer speaks HTTP.
    tunnel: Mutex<Option<Tunnel>>,
}

impl Client {
    fn set_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct Server {
    routes: Arc<Routes>,
    backends: Backends,
    proxy: Proxy,
    /// What stands for the header Host where there is none.
    authority: String,
    options: Options,
    connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    /// One permit for each KiB.
    buffered: Semaphore,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

impl Server {
    async fn serve(self: Arc<Self>, listener: TcpListener) -> Result<(), Infallible> {
        let cancel = self.tasks.cancel().clone();
        cancel.run_until_cancelled(self.accept(listener)).await;
        Ok(())
    }

    /// Never ends. Without a free slot the system makes connections wait.
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok(slot) = self.connections.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let server = self.clone();
                    self.tasks.helper("http-ingress connection", async move {
                        server.connection(stream, peer.ip()).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "http-ingress cannot accept a connection");
                    // Most likely there are too many open files: the next attempt would fail as well.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves a connection until its client has enough of it. Once the daemon stops, it finishes what
    /// is in hand.
    async fn connection(&self, stream: TcpStream, peer: IpAddr) {
        // Only makes answers faster.
        drop(stream.set_nodelay(true));
        if !self.backends.is_empty() {
            // Responses of backends and tunnels may be silent for hours: a client that was unplugged would
            // hold its place for ever. That is all that is lost if it cannot be set.
            let alive = socket2::TcpKeepalive::new().with_time(KEEP_ALIVE);
            drop(socket2::SockRef::from(&stream).set_tcp_keepalive(&alive));
        }
        let client = Client { peer, tunnel: Mutex::default() };
        let service = service_fn(|request| async { Ok::<_, Infallible>(self.answer(request, &client).await) });
        let mut connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.read_timeout)
            .max_header_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        // Looked at when it is woken, not whenever the connection is: it has a lock that all share.
        let mut stopping = FuturesUnordered::from_iter([self.tasks.cancel().cancelled()]);
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            _ = stopping.next() => {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        match ended {
            Ok(()) => {
                if let Some(tunnel) = client.take_tunnel() {
                    let parts = connection.into_parts();
                    // It has no end of its own that could be waited for.
                    let carried = tunnel.carry(parts.io.into_inner(), parts.read_buf);
                    self.tasks.cancel().run_until_cancelled(carried).await;
                }
            }
            Err(error) if error.is_timeout() => {
                let parts = connection.into_parts();
                // A client that has sent nothing is merely idle.
                if !parts.read_buf.is_empty() {
                    let late = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                    drop(parts.io.into_inner().write_all(late).await);
                }
            }
            Err(_) => {}
        }
    }

    async fn answer(&self, request: Request<Receiving>, client: &Client) -> AnyResponse {
        let (head, mut body) = request.into_parts();
        if let Some(backend) = self.backend_for(&head) {
            // In a box, or it would be as large a part of the requests that are for functions.
            return Box::pin(self.pass(&backend, head, body, client)).await;
        }
        let response = match self.respond(&head, &mut body).await {
            Ok(response) => response,
            Err(refusal) => self.refuse(refusal, &head, body),
        };
        response.map(Either::Left)
    }

    fn refuse(&self, refusal: Refusal, head: &Parts, body: Receiving) -> Response {
        // A client that asked whether it may send the body has not sent it.
        if !head.headers.contains_key(EXPECT) && refusal.status != StatusCode::REQUEST_TIMEOUT {
            http_proxy::discard(&self.tasks, self.options.read_timeout, body);
        }
        self.refusal(refusal)
    }

    fn refusal(&self, refusal: Refusal) -> Response {
        self.metrics.refuse_request(refusal.status.as_u16());
        refusal.into_response()
    }

    /// The backend that a request is for.
    ///
    /// Who names more of a request goes first: the host counts before the path, and of two that name as
    /// much it is the function, which may ask for a method or its workflow as well. So a server that takes
    /// everything takes nothing from the functions that were there before it.
    fn backend_for(&self, head: &Parts) -> Option<Arc<Entry>> {
        if self.backends.is_empty() || head.method == hyper::Method::CONNECT {
            return None;
        }
        let host = self.host_of(head).ok()?;
        let backend = self.backends.find(host, head.uri.path())?;
        let goes_first = |function: &Filter| match (backend.has_host(), backend.has_path()) {
            (true, true) => false,
            (true, false) | (false, true) => function.host.is_some(),
            (false, false) => true,
        };
        let query = head.uri.query().unwrap_or_default();
        let function = Method::named(head.method.as_str())
            .is_some_and(|method| self.routes.any_takes(host, method, query, goes_first));
        (!function).then_some(backend)
    }

    async fn pass(&self, backend: &Entry, head: Parts, body: Receiving, client: &Client) -> AnyResponse {
        let checked = HeaderValue::from_str(self.host_of(&head).unwrap_or_default());
        let host = checked.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the header Host is not text"));
        let in_hand = self.requests.clone().try_acquire_owned().map_err(|_| Refusal::too_many());
        let (host, in_hand) = match (host, in_hand) {
            (Ok(host), Ok(in_hand)) => (host, in_hand),
            (Err(refusal), _) | (_, Err(refusal)) => return self.refuse(refusal, &head, body).map(Either::Left),
        };
        match self.proxy.pass(backend, head, host, body, client.peer, in_hand).await {
            Ok(Passed::Answered(response)) => response.map(Either::Right),
            Ok(Passed::Switched(response, tunnel)) => {
                client.set_tunnel(tunnel);
                response.map(|()| Either::Left(Full::default()))
            }
            Err(error) => self.refusal(Refusal::from(error)).map(Either::Left),
        }
    }

    async fn respond(&self, head: &Parts, body: &mut Receiving) -> Result<Response, Refusal> {
        let _in_hand = self.requests.try_acquire().map_err(|_| Refusal::too_many())?;
        let method = method_of(&head.method)?;
        let host = self.host_of(head)?;
        let route = self.routes.pick(host, method, head.uri.query().unwrap_or_default());
        let route = route.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "no workflow takes this request"))?;
        let _taken = route.in_hand.token();
        let (body, _room) = self.receive(body).await?;
        match route.delivery {
            Delivery::Call => {
                let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
                let payload = http_json::request(host, &head.headers, &body, method, path);
                drop(body);
                self.call(&route, payload, method).await
            }
            Delivery::Cast { base64: true } => self.cast(&route, BASE64.encode(body).into()).await,
            Delivery::Cast { base64: false } => self.cast(&route, body.into()).await,
        }
    }

    fn host_of<'a>(&'a self, head: &'a Parts) -> Result<&'a str, Refusal> {
        let not_text = |_| Refusal::new(StatusCode::BAD_REQUEST, "the header Host is not text");
        match head.headers.get(HOST) {
            Some(host) => host.to_str().map_err(not_text),
            None => Ok(head.uri.authority().map_or(&self.authority, |authority| authority.as_str())),
        }
    }

    /// Receives a body, and holds its share of the memory for all bodies.
    async fn receive(&self, body: &mut Receiving) -> Result<(Vec<u8>, SemaphorePermit<'_>), Refusal> {
        if body.is_end_stream() {
            return Ok((Vec::new(), self.room(0)?));
        }
        match tokio::time::timeout(self.options.read_timeout, self.receive_all(body)).await {
            Ok(received) => received,
            Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
        }
    }

    async fn receive_all(&self, body: &mut Receiving) -> Result<(Vec<u8>, SemaphorePermit<'_>), Refusal> {
        let mut bytes = Vec::new();
        let mut room = self.room(0)?;
        self.check_body(usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX))?;
        while let Some(frame) = body.frame().await {
            let broken = |error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"));
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            self.check_body(bytes.len().saturating_add(data.len()))?;
            bytes.extend_from_slice(&data);
            room.merge(self.room(kib(bytes.len()).saturating_sub(room.num_permits()))?);
        }
        Ok((bytes, room))
    }

    fn check_body(&self, size: usize) -> Result<(), Refusal> {
        match size > self.options.max_body {
            true => Err(Refusal::too_large("the body", self.options.max_body)),
            false => Ok(()),
        }
    }

    fn room(&self, kib: usize) -> Result<SemaphorePermit<'_>, Refusal> {
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        self.buffered.try_acquire_many(kib).map_err(|_| Refusal::overload("too many large bodies at once"))
    }

    async fn call(&self, route: &Route, payload: Payload, method: Method) -> Result<Response, Refusal> {
        self.check_payload(&payload)?;
        let cause = Cause { deadline: Instant::now().checked_add(self.options.timeout), ..Cause::default() };
        let reply = route.outputs.call(NEW_REQUEST, payload, cause).await?.unwrap_or_default();
        response_of(&reply, method).map_err(|reason| {
            route.log.push(
                Level::Warn,
                CLASS.class_type,
                format!("the reply to a request is no HTTP response: {reason}"),
            );
            Refusal::new(StatusCode::BAD_GATEWAY, "the function did not reply with an HTTP response")
        })
    }

    async fn cast(&self, route: &Route, payload: Payload) -> Result<Response, Refusal> {
        self.check_payload(&payload)?;
        route.outputs.cast(NEW_REQUEST, payload, Cause::default()).await.map_err(CallError::from)?;
        Ok(text(StatusCode::OK, "OK"))
    }

    fn check_payload(&self, payload: &Payload) -> Result<(), Refusal> {
        match payload.len() > self.options.max_payload {
            true => Err(Refusal::too_large("the request as an event", self.options.max_payload)),
            false => Ok(()),
        }
    }
}

fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}

fn method_of(method: &hyper::Method) -> Result<Method, Refusal> {
    Method::named(method.as_str()).ok_or_else(|| {
        let known = [hyper::Method::OPTIONS, hyper::Method::TRACE, hyper::Method::CONNECT].contains(method);
        let status = if known { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_IMPLEMENTED };
        Refusal::new(status, format!("functions can be asked with {} only", Method::names()))
    })
}

/// The response that a function replied with.
fn response_of(reply: &[u8], method: Method) -> Result<Response, String> {
    let reply = http_json::read_response(reply).map_err(|error| error.to_string())?;
    let status = StatusCode::from_u16(reply.status).ok().filter(|status| !status.is_informational());
    let status = status.ok_or_else(|| format!("there is no status {}", reply.status))?;
    let mut headers = http::to_send(&reply.headers)?;
    let mut body = reply.body.unwrap_or_default();
    if method == Method::Head {
        // The length is that of the body that a GET would have brought: a function says either.
        let said = reply.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str()));
        let said = said.and_then(|(_, length)| length.parse::<u64>().ok());
        let length = said.filter(|_| body.is_empty()).map_or_else(|| body.len().to_string(), |said| said.to_string());
        headers.insert(CONTENT_LENGTH, HeaderValue::try_from(length).map_err(|error| error.to_string())?);
        body.clear();
    } else if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        body.clear();
    }
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Why a request is not answered by a function.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    reason: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }

    fn too_many() -> Self {
        Self::overload("too many requests at once")
    }

    fn overload(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    fn too_large(what: &str, limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("{what} is larger than {limit} bytes"))
    }

    fn into_response(self) -> Response {
        let mut response = text(self.status, format!("{}\n", self.reason));
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
            }
            StatusCode::REQUEST_TIMEOUT => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.extend(HeaderValue::try_from(Method::names()).map(|names| (ALLOW, names)));
            }
            _ => {}
        }
        response
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        let status = match &error {
            CallError::Unmapped(_) | CallError::Unreachable(Dropped::Unmapped) => StatusCode::NOT_FOUND,
            CallError::Timeout => StatusCode::GATEWAY_TIMEOUT,
            CallError::Overloaded | CallError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            // It is being moved or started again.
            CallError::Unreachable(Dropped::NoInstance | Dropped::Stopping | Dropped::NotKept) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            CallError::Unreachable(Dropped::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            CallError::Failed | CallError::Unreachable(_) => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, error.to_string())
    }
}

impl From<ProxyError> for Refusal {
    fn from(error: ProxyError) -> Self {
        let status = match error {
            ProxyError::Unreachable | ProxyError::NoResponse => StatusCode::BAD_GATEWAY,
            ProxyError::Late => StatusCode::GATEWAY_TIMEOUT,
            ProxyError::BodyBroken => StatusCode::BAD_REQUEST,
            ProxyError::BodyLate => StatusCode::REQUEST_TIMEOUT,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(pairs: &[(&str, &str)]) -> ResourceSpec {
        let configuration = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        ResourceSpec { class_type: CLASS.class_type.into(), configuration, workflow: WorkflowId::random() }
    }

    fn takes(pairs: &[(&str, &str)], host: &str, method: Method) -> bool {
        Filter::parse(&spec(pairs)).unwrap().takes(host, method, "")
    }

    #[test]
    fn a_request_must_match_all_that_is_configured() {
        assert!(takes(&[], "any", Method::Patch));
        assert!(takes(&[("host", "a:80")], "a:80", Method::Get));
        assert!(!takes(&[("host", "a:80")], "a", Method::Get), "the port is a part of the host");
        for key in ["method", "methods"] {
            assert!(takes(&[(key, "GET, POST")], "a", Method::Post));
            assert!(!takes(&[(key, "GET, POST")], "a", Method::Put));
        }
        assert!(!takes(&[("host", "a"), ("method", "GET")], "b", Method::Get));
    }

    #[test]
    fn the_workflow_is_found_anywhere_in_the_query() {
        let spec = spec(&[("wf_id", "true")]);
        let filter = Filter::parse(&spec).unwrap();
        let own = spec.workflow;
        for query in [format!("wf_id={own}"), format!("a=b&wf_id={own}&c")] {
            assert!(filter.takes("", Method::Get, &query), "{query}");
        }
        for query in
            [String::new(), format!("xwf_id={own}"), format!("wf_id={}", WorkflowId::random()), "wf_id=".into()]
        {
            assert!(!filter.takes("", Method::Get, &query), "{query}");
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused_with_its_key() {
        for (pairs, key) in [
            (&[("method", "GET,FETCH")][..], "method"),
            (&[("methods", "")], "methods"),
            (&[("methods", "GET"), ("method", "GET")], "method"),
            (&[("wf_id", "yes")], "wf_id"),
        ] {
            let error = Filter::parse(&spec(pairs)).unwrap_err().to_string();
            assert!(error.contains(&format!("'{key}'")), "{error}");
        }
        assert!(Delivery::parse(&spec(&[("async", "1")]).configuration).is_err());
    }

    #[test]
    fn a_body_is_cast_only_where_that_is_asked_for() {
        let delivery = |pairs| Delivery::parse(&spec(pairs).configuration).unwrap();
        assert_eq!(delivery(&[("encode_base64", "true")]), Delivery::Call);
        assert_eq!(delivery(&[("async", "true")]), Delivery::Cast { base64: false });
        assert_eq!(delivery(&[("async", "true"), ("encode_base64", "true")]), Delivery::Cast { base64: true });
    }

    #[test]
    fn nonsense_is_no_response() {
        for reply in [
            "",
            "hello",
            r#"{"status":200}"#,
            r#"{"status":99,"body":null,"headers":{}}"#,
            r#"{"status":101,"body":null,"headers":{}}"#,
            r#"{"status":1000,"body":null,"headers":{}}"#,
            r#"{"status":200,"body":[256],"headers":{}}"#,
            r#"{"status":200,"body":null,"headers":{"a b":"c"}}"#,
            r#"{"status":200,"body":null,"headers":{"a":"b\r\nc: d"}}"#,
        ] {
            assert!(response_of(reply.as_bytes(), Method::Get).is_err(), "{reply}");
        }
    }

    #[test]
    fn the_answer_to_head_has_the_length_and_not_the_body() {
        let length = |reply: &str| {
            let response = response_of(reply.as_bytes(), Method::Head).unwrap();
            assert!(response.body().is_end_stream());
            response.headers()[CONTENT_LENGTH].to_str().unwrap().to_string()
        };
        assert_eq!(length(r#"{"status":200,"body":[1,2],"headers":{"Content-Length":"9"}}"#), "2");
        assert_eq!(length(r#"{"status":200,"body":null,"headers":{"Content-Length":"9"}}"#), "9");
        assert_eq!(length(r#"{"status":200,"body":null,"headers":{"Content-Length":"x"}}"#), "0");
    }

    #[test]
    fn what_a_client_sees_follows_from_what_went_wrong() {
        for (error, status) in [
            (CallError::Unmapped("new_request".into()), 404),
            (CallError::Failed, 502),
            (CallError::Unreachable(Dropped::UnknownTarget), 502),
            (CallError::from(Dropped::MailboxFull), 503),
            (CallError::Stopping, 503),
            (CallError::Timeout, 504),
        ] {
            let response = Refusal::from(error.clone()).into_response();
            assert_eq!(response.status(), status, "{error}");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), status == 503, "{error}");
        }
    }
}
