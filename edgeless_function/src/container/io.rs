//! The I/O thread: how a guest finds its node, and how the two speak.
//!
//! Where there is a socket of the node, the guest dials it, again and again; all goes over that stream,
//! and a node that was restarted boots the function anew. Where there is none, the guest serves
//! `GuestAPIFunction` on a port and waits for Boot, which says where the node is; a node that understands
//! `GuestLink` gets a stream then too, any other one a unary call for each thing that the function asks.
//!
//! Requests reach the handlers in the order in which they arrive. Nothing here waits for a handler but
//! the answer of a unary request.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Response, Status, Streaming};

use super::link::{Answer, Outgoing, Session, lock};
use super::node::{from_wire, to_wire};
use super::pb::guest_api_function_server::{GuestApiFunction, GuestApiFunctionServer};
use super::pb::guest_api_host_client::GuestApiHostClient;
use super::pb::guest_link_client::GuestLinkClient;
use super::pb::{self, guest_message, host_message};
use super::{AnswerTo, End, Guest, Outcome, Request, Task, Work, from_wire_id, say, wire_id};
use crate::InstanceId;

/// The name of the thread.
pub(super) const THREAD: &str = "edgeless-io";

const SOCKET: &str = "/run/edgeless/host.sock";
const PORT: u16 = 7101;

/// What the guest shows its node, and what it says about itself.
const TOKEN: &str = "edgeless-token";
const SDK: &str = "edgeless-sdk";
const SDK_VERSION: &str = "2";

/// The largest message: a node of ours sends none that is larger.
const MESSAGE: usize = 64 << 20;
/// The bytes that may be on their way.
const WINDOW: u32 = 4 << 20;

/// How long to wait before the node is dialled again.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const CONNECT: Duration = Duration::from_secs(2);

/// How often a node that is reached over the network has to show that it is there, and how long it may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long the process may take to say its last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Starts the thread, which ends the process when its time has come.
pub(super) fn start(guest: &'static Guest, requests: mpsc::Sender<Work>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let started = runtime.and_then(|runtime| {
        let run = move || std::process::exit(runtime.block_on(run(guest, requests)));
        std::thread::Builder::new().name(THREAD.to_owned()).spawn(run)
    });
    if let Err(error) = started {
        say(&format!("cannot start the I/O thread: {error}"));
        std::process::exit(1);
    }
}

/// Speaks with the node until the process is to end; gives its exit code.
async fn run(guest: &'static Guest, requests: mpsc::Sender<Work>) -> i32 {
    let socket = env::var_os("EDGELESS_HOST_SOCKET").map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    let served = watch::Sender::new(false);
    let speak = async {
        if socket.exists() { dial(&socket, &requests, &served).await } else { serve(guest, requests, &served).await }
    };
    tokio::select! {
        code = told_to_end(guest, served.subscribe()) => code,
        () = signalled() => 0,
        failed = speak => {
            say(&failed);
            1
        }
    }
}

/// The node, or somebody at a terminal, wants the process gone. The first of a container is not ended by
/// a signal that it does not handle.
async fn signalled() {
    let wait = async |kind| match signal(kind) {
        Ok(mut signal) => signal.recv().await.unwrap_or_default(),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}

/// The function is stopped, or has panicked. What it said last has to reach the node.
async fn told_to_end(guest: &Guest, mut served: watch::Receiver<bool>) -> i32 {
    let mut end = guest.end.subscribe();
    let code = match end.wait_for(|end| *end != End::NotYet).await.map(|end| *end) {
        Ok(End::Soon(code) | End::Now(code)) => code,
        Ok(End::NotYet) | Err(_) => 1,
    };
    let last_words = async {
        end.wait_for(|end| matches!(end, End::Now(_))).await.map(drop).unwrap_or_default();
        if let Some(session) = guest.session() {
            session.finish().await;
        }
        served.wait_for(|served| *served).await.map(drop).unwrap_or_default();
    };
    // Whoever does not listen must not keep the process alive.
    tokio::time::timeout(LAST_WORDS, last_words).await.unwrap_or_default();
    code
}

/// Attaches to the node behind a socket, for ever.
async fn dial(socket: &Path, requests: &mpsc::Sender<Work>, served: &watch::Sender<bool>) -> String {
    served.send_replace(true);
    let Some(path) = socket.to_str() else { return format!("{} is not text", socket.display()) };
    let endpoint = match Endpoint::from_shared(format!("unix:{path}")) {
        Ok(endpoint) => tuned(endpoint),
        Err(error) => return format!("cannot dial {path}: {}", chain(&error)),
    };
    let mut pause = PAUSE;
    let mut is_said = false;
    loop {
        match attach(&endpoint, None).await {
            Ok((session, incoming)) => {
                if read(&session, incoming, requests).await {
                    (pause, is_said) = (PAUSE, false);
                }
            }
            Err(status) if !is_said => {
                say(&format!("cannot attach to the node at {path}: {}; trying again", status.message()));
                is_said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
}

type Token = MetadataValue<Ascii>;

/// Opens the stream.
async fn attach(
    endpoint: &Endpoint,
    token: Option<&Token>,
) -> Result<(Arc<Session>, Streaming<pb::HostMessage>), Status> {
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(chain(&error)))?;
    let mut link = GuestLinkClient::new(channel).max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE);
    let session = Arc::new(Session::new());
    let mut request = tonic::Request::new(Outgoing(session.clone()));
    show(request.metadata_mut(), token);
    request.metadata_mut().insert(SDK, MetadataValue::from_static(SDK_VERSION));
    let incoming = link.attach(request).await?.into_inner();
    Ok((session, incoming))
}

fn show(metadata: &mut MetadataMap, token: Option<&Token>) {
    if let Some(token) = token {
        metadata.insert(TOKEN, token.clone());
    }
}

/// Reads the stream to its end, after which the function has no node; says whether anything came over it.
async fn read(session: &Arc<Session>, mut incoming: Streaming<pb::HostMessage>, requests: &mpsc::Sender<Work>) -> bool {
    let mut has_read = false;
    // How it ended makes no difference.
    while let Ok(Some(message)) = incoming.message().await {
        has_read = true;
        if let Err(why) = deliver(session, message, requests) {
            say(&format!("the stream from the node is given up: {why}"));
            break;
        }
    }
    session.lose();
    drop(requests.send(Work { session: session.clone(), task: Task::Forget }).await);
    has_read
}

fn deliver(session: &Arc<Session>, message: pb::HostMessage, requests: &mpsc::Sender<Work>) -> Result<(), String> {
    use host_message::Message::{Boot, Call, Cast, Init, Refused, Reply, Stop, Synced};
    let id = message.id;
    let answered = |answer| {
        session.answer(id, answer);
        Ok(())
    };
    let request = match message.message {
        Some(Reply(reply)) => return answered(Answer::Reply(from_wire(reply))),
        Some(Synced(())) => return answered(Answer::Synced),
        Some(Refused(reason)) => return answered(Answer::Refused(reason)),
        Some(Boot(boot)) => {
            let instance = from_wire_id(boot.instance_id.as_ref()).ok_or("the boot has no instance id")?;
            Request::Boot(instance)
        }
        Some(Init(init)) => Request::Init { payload: init.init_payload, state: init.serialized_state },
        Some(Cast(event)) => Request::Cast { source: source(&event), message: event.msg },
        Some(Call(event)) => Request::Call { source: source(&event), message: event.msg },
        Some(Stop(())) => Request::Stop,
        // A newer node may say more.
        None => return Ok(()),
    };
    let task = Task::Handle(request, AnswerTo::Stream(id));
    // Waiting for room here could be for ever: the handler may wait for an answer that is behind this.
    requests
        .try_send(Work { session: session.clone(), task })
        .map_err(|_| format!("more than {} requests are under way", super::REQUESTS))
}

fn source(event: &pb::InputEventData) -> InstanceId {
    let nobody = InstanceId { node: crate::Uuid::from_bytes([0; 16]), function: crate::Uuid::from_bytes([0; 16]) };
    from_wire_id(event.src.as_ref()).unwrap_or(nobody)
}

/// Serves the guest's side of the API of EDGELESS 1.x.
async fn serve(guest: &Guest, requests: mpsc::Sender<Work>, served: &watch::Sender<bool>) -> String {
    let port = match env::var("EDGELESS_PORT").map(|port| port.parse::<u16>()) {
        Ok(Ok(port)) => port,
        Ok(Err(_)) => return "EDGELESS_PORT is not the number of a port".to_owned(),
        Err(_) => PORT,
    };
    let listener = match TcpListener::bind(("0.0.0.0", port)).await {
        Ok(listener) => listener,
        Err(error) => return format!("cannot listen on 0.0.0.0:{port}: {error}"),
    };
    if let Ok(address) = listener.local_addr() {
        say(&format!("serving a function on {address}"));
    }
    let mut end = guest.end.subscribe();
    let function = Function { requests, session: Mutex::default(), end: end.clone() };
    let function = GuestApiFunctionServer::new(function).max_decoding_message_size(MESSAGE);
    let ended = async move { end.wait_for(|end| matches!(end, End::Now(_))).await.map(drop).unwrap_or_default() };
    let result = Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .add_service(function.max_encoding_message_size(MESSAGE))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), ended)
        .await;
    if let Err(error) = result {
        return format!("cannot serve on 0.0.0.0:{port}: {}", chain(&error));
    }
    served.send_replace(true);
    std::future::pending().await
}

/// What the node calls.
struct Function {
    requests: mpsc::Sender<Work>,
    /// Of the last boot.
    session: Mutex<Option<Arc<Session>>>,
    end: watch::Receiver<End>,
}

impl Function {
    /// Opens the way back to the node.
    async fn connect(&self, boot: &pb::BootData, instance: InstanceId) -> Result<Arc<Session>, Status> {
        let url = &boot.guest_api_host_endpoint;
        let bad = |reason: String| Status::invalid_argument(format!("guest_api_host_endpoint: '{url}' {reason}"));
        let endpoint =
            Endpoint::from_shared(url.clone()).map_err(|error| bad(format!("is not an address: {}", chain(&error))))?;
        if endpoint.uri().scheme_str() != Some("http") {
            return Err(bad("is not served: a guest speaks http only".to_owned()));
        }
        // Of a node on another machine nobody says that it is gone.
        let endpoint = tuned(endpoint).http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
        let token = match boot.token.as_str() {
            "" => None,
            token => Some(token.parse::<Token>().map_err(|_| Status::invalid_argument("token: it is not ASCII text"))?),
        };
        if token.is_some() {
            match attach(&endpoint, token.as_ref()).await {
                Ok((session, incoming)) => {
                    let (reader, requests) = (session.clone(), self.requests.clone());
                    tokio::spawn(async move { read(&reader, incoming, &requests).await });
                    return Ok(session);
                }
                Err(status) if status.code() == Code::Unimplemented => {}
                Err(status) => return Err(status),
            }
        }
        let session = Arc::new(Session::new());
        let host = GuestApiHostClient::new(endpoint.connect_lazy())
            .max_decoding_message_size(MESSAGE)
            .max_encoding_message_size(MESSAGE);
        let host = Host { host, originator: wire_id(instance), token };
        tokio::spawn(host.carry(session.clone()));
        Ok(session)
    }

    async fn handle(&self, request: Request) -> Result<Outcome, Status> {
        let session = lock(&self.session).clone();
        let session = session.ok_or_else(|| Status::failed_precondition("the function is not booted"))?;
        self.handle_in(session, request).await
    }

    async fn handle_in(&self, session: Arc<Session>, request: Request) -> Result<Outcome, Status> {
        let ending = || Status::unavailable("the function has ended");
        let (answer, answered) = oneshot::channel();
        let task = Task::Handle(request, AnswerTo::Unary(answer));
        self.requests.send(Work { session, task }).await.map_err(|_| ending())?;
        let mut end = self.end.clone();
        tokio::select! {
            biased;
            answer = answered => answer.map_err(|_| ending())?,
            _ = end.wait_for(|end| matches!(end, End::Now(_))) => Err(ending()),
        }
    }
}

#[tonic::async_trait]
impl GuestApiFunction for Function {
    async fn boot(&self, request: tonic::Request<pb::BootData>) -> Result<Response<()>, Status> {
        let boot = request.into_inner();
        let instance = from_wire_id(boot.instance_id.as_ref())
            .ok_or_else(|| Status::invalid_argument("instance_id: two UUIDs are needed"))?;
        let session = self.connect(&boot, instance).await?;
        let replaced = lock(&self.session).replace(session.clone());
        if let Some(replaced) = replaced {
            replaced.lose();
        }
        self.handle_in(session, Request::Boot(instance)).await?;
        let mut response = Response::new(());
        response.metadata_mut().insert(SDK, MetadataValue::from_static(SDK_VERSION));
        Ok(response)
    }

    async fn init(&self, request: tonic::Request<pb::FunctionInstanceInit>) -> Result<Response<()>, Status> {
        let init = request.into_inner();
        self.handle(Request::Init { payload: init.init_payload, state: init.serialized_state }).await?;
        Ok(Response::new(()))
    }

    async fn cast(&self, request: tonic::Request<pb::InputEventData>) -> Result<Response<()>, Status> {
        let event = request.into_inner();
        self.handle(Request::Cast { source: source(&event), message: event.msg }).await?;
        Ok(Response::new(()))
    }

    async fn call(&self, request: tonic::Request<pb::InputEventData>) -> Result<Response<pb::CallReturn>, Status> {
        let event = request.into_inner();
        match self.handle(Request::Call { source: source(&event), message: event.msg }).await? {
            Outcome::Returned(reply) => Ok(Response::new(to_wire(reply))),
            Outcome::Done => Err(Status::internal("the function gave no answer")),
        }
    }

    async fn stop(&self, _request: tonic::Request<()>) -> Result<Response<()>, Status> {
        self.handle(Request::Stop).await?;
        Ok(Response::new(()))
    }
}

/// A node that knows unary calls only.
struct Host {
    host: GuestApiHostClient<Channel>,
    originator: pb::InstanceId,
    token: Option<Token>,
}

impl Host {
    /// Asks of the node what the function puts into its outbox, one thing after the other.
    async fn carry(mut self, session: Arc<Session>) {
        let mut outgoing = Outgoing(session.clone());
        while let Some(message) = outgoing.next().await {
            let Some(what) = message.message else { continue };
            if let Err(status) = self.ask(&session, message.request, what).await {
                say(&format!("the node did not take what the function sent: {}", status.message()));
            }
        }
        session.lose();
    }

    async fn ask(&mut self, session: &Arc<Session>, number: u64, what: guest_message::Message) -> Result<(), Status> {
        use guest_message::Message::{
            Call, CallRaw, Cast, CastRaw, DelayedCast, Done, Failed, Log, Returned, Sync as Save,
        };
        let originator = Some(self.originator.clone());
        match what {
            Cast(pb::GuestOutput { alias, msg }) => {
                let request = self.request(pb::OutputEventData { originator, alias, msg });
                self.host.cast(request).await.map(drop)
            }
            CastRaw(pb::GuestOutputRaw { dst, msg }) => {
                let request = self.request(pb::OutputEventDataRaw { originator, dst, msg });
                self.host.cast_raw(request).await.map(drop)
            }
            DelayedCast(pb::GuestDelayed { alias, msg, delay }) => {
                let root = pb::EventSerializedMetadata { trace_id: vec![0; 16].into(), span_id: vec![0; 8].into() };
                let request =
                    self.request(pb::DelayedEventData { originator, alias, msg, delay, metadata: Some(root) });
                self.host.delayed_cast(request).await.map(drop)
            }
            Log(pb::GuestLog { level, target, msg }) => {
                let request = self.request(pb::TelemetryLogEvent { originator, log_level: level, target, msg });
                self.host.telemetry_log(request).await.map(drop)
            }
            Save(serialized_state) => {
                let request = self.request(pb::SyncData { originator, serialized_state });
                let synced = self.host.sync(request).await;
                session.answer(number, Answer::Synced);
                synced.map(drop)
            }
            // The answer may take its time: others that the function has started may go on meanwhile.
            Call(pb::GuestOutput { alias, msg }) => {
                let request = self.request(pb::OutputEventData { originator, alias, msg });
                let (mut host, session) = (self.host.clone(), session.clone());
                tokio::spawn(async move { session.answer(number, replied(host.call(request).await)) });
                Ok(())
            }
            CallRaw(pb::GuestOutputRaw { dst, msg }) => {
                let request = self.request(pb::OutputEventDataRaw { originator, dst, msg });
                let (mut host, session) = (self.host.clone(), session.clone());
                tokio::spawn(async move { session.answer(number, replied(host.call_raw(request).await)) });
                Ok(())
            }
            // Over a stream only.
            Done(()) | Returned(_) | Failed(_) => Ok(()),
        }
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        show(request.metadata_mut(), self.token.as_ref());
        request
    }
}

/// A call that the node refuses is a mistake of the function, any other failure one that it is told of.
fn replied(reply: Result<Response<pb::CallReturn>, Status>) -> Answer {
    use Code::{FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated};
    match reply {
        Ok(reply) => Answer::Reply(from_wire(reply.into_inner())),
        Err(status) => match status.code() {
            FailedPrecondition | InvalidArgument | NotFound | PermissionDenied | Unauthenticated => {
                Answer::Refused(status.message().to_owned())
            }
            _ => Answer::Reply(crate::CallRet::Err),
        },
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
