//! Functions in containers, and functions of servers that run already.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use edgeless_api::client::{Connection, Guest as Client, Options as CallOptions, Session};
use edgeless_api::component::{Annotations, CONTAINER, FunctionSpec, INIT_PAYLOAD, is_of_container};
use edgeless_api::guest::{Boot, Request};
use edgeless_api::server::{Admission, Server};
use edgeless_api::status::{Limit, Usage};
use edgeless_api::{Code as ErrorCode, Error, Url};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::UnixListener;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::DropGuard;
use uuid::Uuid;

use super::container::{Container, Found, shown};
use super::guest::{Events, Guest, IN_FLIGHT, Trouble, Way, warn};
use super::host::{AtSocket, Known, Mark};
use super::image::{self, Image};
use super::limits::Limits;
use super::options::{Code, Kind, Options, Reach};
use super::plan::{Plan, SOCKET, reach};
use super::{CONNECTIONS, Lease, Shared};
use crate::instance::{Context, Controls, Incoming, Instance, InstanceError, Payload, Program};
use crate::starts::Step;

/// How often a server is asked again that does not answer yet.
const AGAIN: Duration = Duration::from_millis(10);

/// What is known of a component before it is instantiated, and while it changes.
pub(super) struct Component {
    pub(super) shared: Arc<Shared>,
    pub(super) spec: FunctionSpec,
    pub(super) image: Image,
    pub(super) options: Options,
    kind: Kind,
    has_network: bool,
    /// Keeps an image that came along.
    _lease: Option<Arc<Lease>>,
    /// What its containers may use: changes hold for those to come.
    limits: Mutex<Limits>,
    /// They are changed one at a time.
    changing: tokio::sync::Mutex<()>,
    /// What runs at present.
    running: Mutex<Option<Arc<Container>>>,
    /// The plan of what ran last.
    planned: Mutex<Option<Plan>>,
}

impl Component {
    /// Checks what a component asks for, and sees to its image.
    pub(super) async fn load(shared: Arc<Shared>, mut spec: FunctionSpec, kind: Kind) -> Result<Self, Error> {
        let code = Code::of(&spec.class)?;
        let options = Options::of(&spec.annotations, kind, &shared.settings)?;
        let maxima = &shared.settings.maxima;
        let limits = shared.settings.defaults.clone().lowered_to(maxima).with(&spec.annotations)?.within(maxima)?;
        let mut lease = None;
        let image = match code {
            Code::Image(name) => image::named(&shared.engine, &name, shared.settings.docker_config.as_deref()).await?,
            Code::Archive => {
                let leased = shared.archived(&spec.class.binary).await?;
                let image = leased.image.clone();
                lease = Some(leased);
                image
            }
            Code::Attached(_) => return Err(Error::rejected("code: grpc: is for functions: a service is a container")),
        };
        // The image has it now.
        spec.class.binary = edgeless_api::Binary::default();
        let has_network = reach(options.reach, kind == Kind::Function && image.is_sdk) != Reach::None;
        let limits = if has_network { limits } else { limits.without_network(&spec.annotations) };
        Ok(Self {
            shared,
            spec,
            image,
            options,
            kind,
            has_network,
            _lease: lease,
            limits: Mutex::new(limits),
            changing: tokio::sync::Mutex::default(),
            running: Mutex::default(),
            planned: Mutex::default(),
        })
    }

    fn asked(&self) -> Limits {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn plan(&self, context: &Context) -> Plan {
        Plan {
            component: context.component,
            workflow: context.workflow,
            name: context.name.clone(),
            kind: self.kind,
            image: self.image.clone(),
            options: self.options.clone(),
            limits: self.asked(),
        }
    }

    /// What an earlier run of the node left of it, if that can be taken over.
    async fn found(&self, context: &Context) -> Option<Found> {
        self.shared.adopt(context.component, &self.plan(context).digest()).await
    }

    /// Serves with what an earlier run of the node left or, if that does not work, with a new container.
    pub(super) async fn adopt_or_start<'a, T>(
        &self,
        context: &Context,
        serve: impl Fn(Option<Found>) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let starting = async {
            if let Some(found) = self.found(context).await {
                match serve(Some(found)).await {
                    // Many guests refuse to be booted twice.
                    Err(error) => tracing::info!(name = context.name, %error, "a container is replaced"),
                    served => return served,
                }
            }
            serve(None).await
        };
        self.shared.unless_stopped(starting).await
    }

    /// Starts a container, or takes over the one that was found.
    pub(super) async fn start(
        self: &Arc<Self>,
        context: &Context,
        found: Option<Found>,
        at_socket: impl Fn(&Path) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<Arc<Container>, Error> {
        let (component, context) = (self.clone(), context.clone());
        // Who waits for it may give up, but what was asked of the engine happens nevertheless: only what is
        // seen to its end can be undone.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.shared.tracker.spawn(async move {
            let started = component.start_at(&context, found, &at_socket).await;
            // What nobody waits for is dropped here, where it is waited for that all is undone.
            drop(sender.send(started));
        });
        receiver.await.map_err(Error::bug)?
    }

    async fn start_at(
        &self,
        context: &Context,
        found: Option<Found>,
        at_socket: &(impl Fn(&Path) -> Result<(), Error> + Send + Sync),
    ) -> Result<Arc<Container>, Error> {
        let turn = self.turn(context).await?;
        let mut plan = self.plan(context);
        *self.planned.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan.clone());
        let started = Container::start(&self.shared, plan.clone(), turn, context.log.clone(), found, at_socket).await;
        let container = match started {
            // Somebody has removed the image since.
            Err(error) if error.code == ErrorCode::NotFound => {
                plan.image =
                    image::named(&self.shared.engine, &plan.image.name, self.shared.settings.docker_config.as_deref())
                        .await?;
                let turn = self.turn(context).await?;
                Container::start(&self.shared, plan, turn, context.log.clone(), None, at_socket).await?
            }
            started => started?,
        };
        Ok(Arc::new(container))
    }

    /// The container serves: changes are its own from now on, and so are those since it was planned.
    pub(super) async fn began(&self, container: &Arc<Container>) -> Result<(), Error> {
        let _turn = self.changing.lock().await;
        let asked = self.asked();
        if asked != *container.limits_at_first() {
            container.set_limits(container.limits_at_first(), &asked).await?;
        }
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(container.clone());
        Ok(())
    }

    async fn turn(&self, context: &Context) -> Result<OwnedMutexGuard<()>, Error> {
        let turn = async { Ok(self.shared.turns.turn(context.component).await) };
        self.shared.unless_stopped(turn).await
    }

    /// The container runs no more: nobody else holds it then.
    pub(super) fn ended(&self, container: &Arc<Container>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|known| Arc::ptr_eq(known, container)) {
            *running = None;
        }
    }

    fn running(&self) -> Option<Arc<Container>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Controls for Component {
    async fn set_limits(&self, changes: &Annotations) -> Result<Vec<Limit>, Error> {
        let _turn = self.changing.lock().await;
        let known = self.asked();
        let wanted = known.changed(changes)?.within(&self.shared.settings.maxima)?;
        let wanted = if self.has_network { wanted } else { wanted.without_network(changes) };
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(plan) = planned {
            // What the next container could not have is refused also while none runs.
            Plan { limits: wanted.clone(), ..plan }.check()?;
        }
        let running = self.running();
        if let Some(container) = &running {
            container.set_limits(&known, &wanted).await?;
        }
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        Ok(self.limits().await)
    }

    async fn limits(&self) -> Vec<Limit> {
        let asked = self.asked();
        match self.running() {
            Some(container) => container.limits(&asked).await,
            None => shown(&asked, None),
        }
    }

    async fn usage(&self) -> Option<Usage> {
        self.running()?.usage().await
    }

    fn trouble(&self) -> Option<String> {
        self.shared.engine.trouble()
    }

    async fn forget(&self) {
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(plan) = planned {
            Container::forget(&self.shared, &plan).await;
        }
    }
}

/// A function in a container of its own.
pub(super) struct Contained(pub(super) Arc<Component>);

#[async_trait]
impl Program for Contained {
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error> {
        let serve = |found| self.serve(&context, found).boxed();
        Ok(Box::new(self.0.adopt_or_start(&context, serve).await?))
    }

    fn max_in_flight(&self) -> usize {
        in_flight(self.0.image.is_sdk)
    }

    fn controls(&self) -> Option<Arc<dyn Controls>> {
        Some(self.0.clone())
    }
}

/// One at a time, unless the guest can keep them in order.
fn in_flight(has_stream: bool) -> usize {
    if has_stream { IN_FLIGHT } else { 1 }
}

/// Initialises a guest that is booted.
async fn init(serving: &Serving, spec: &FunctionSpec, context: &Context) -> Result<(), Error> {
    let payload = spec.annotations.get(INIT_PAYLOAD).cloned().unwrap_or_default();
    let state = context.state.load().await?.unwrap_or_default();
    let asked = serving.until_its_end(serving.events.ask(Request::Init { payload, state })).await?;
    match asked {
        Ok(()) => Ok(()),
        Err(Trouble::Refused(reason)) => Err(serving.failure(&format!("its initialisation failed: {reason}")).await),
        Err(Trouble::Lost(reason)) => Err(serving.failure(&format!("its initialisation failed: {reason}")).await),
        Err(Trouble::Late) => Err(serving.failure("its initialisation did not end in time").await),
    }
}

impl Contained {
    /// Starts it, or takes over the container that was found, and initialises it.
    async fn serve(&self, context: &Context, found: Option<Found>) -> Result<Serving, Error> {
        let component = &self.0;
        let class = component.spec.class.id.clone();
        let began = Instant::now();
        let (guest, end) = Guest::new(context.clone());
        let plan = component.plan(context);
        let serving = match plan.has_socket() {
            true => self.at_socket(&guest, end, context, found).await?,
            false => self.over_network(&guest, end, context, &plan, found).await?,
        };
        component.shared.starts.observe_one(context.id, &class, Step::Instantiate, began.elapsed());
        let began = Instant::now();
        init(&serving, &component.spec, context).await?;
        component.shared.starts.observe_one(context.id, &class, Step::Init, began.elapsed());
        Ok(serving)
    }

    /// The guest comes to a socket of its own.
    async fn at_socket(
        &self,
        guest: &Arc<Guest>,
        end: DropGuard,
        context: &Context,
        found: Option<Found>,
    ) -> Result<Serving, Error> {
        let shared = &self.0.shared;
        let (limits, guest_there) = (shared.limits, guest.clone());
        let serve = move |directory: &Path| {
            let listener = listen(directory).map_err(|error| {
                Error::rejected(format!(
                    "cannot listen in {}: {error}: set container_runtime.socket_directory to one that this node may write",
                    directory.display()
                ))
            })?;
            let server = Server::new(limits, guest_there.end())
                .guest_host(Arc::new(AtSocket(guest_there.clone())))
                .admit(Admission::new(CONNECTIONS, |_| true));
            tokio::spawn(server.serve_unix(listener));
            Ok(())
        };
        let container = self.0.start(context, found, serve).await?;
        let serving = Serving::new(events(shared, guest, Way::Stream), end).with_container(&self.0, container).await?;
        let attached = tokio::time::timeout(shared.settings.start_timeout, guest.attached());
        match serving.until_its_end(attached).await? {
            Ok(()) => {}
            Err(_) => return Err(serving.failure("it did not come to its node's socket in time").await),
        }
        let boot = Request::Boot(Boot { host: String::new(), id: context.id, token: String::new() });
        let booted = serving.until_its_end(serving.events.ask(boot)).await?;
        match booted {
            Ok(()) => Ok(serving),
            Err(Trouble::Refused(reason) | Trouble::Lost(reason)) => {
                Err(serving.failure(&format!("it refused to boot: {reason}")).await)
            }
            Err(Trouble::Late) => Err(serving.failure("it did not boot in time").await),
        }
    }

    /// The guest serves at a port of its container.
    async fn over_network(
        &self,
        guest: &Arc<Guest>,
        end: DropGuard,
        context: &Context,
        plan: &Plan,
        found: Option<Found>,
    ) -> Result<Serving, Error> {
        let shared = &self.0.shared;
        let container = self.0.start(context, found, |_| Ok(())).await?;
        let reached = container.address.zip(plan.port()).zip(container.gateway);
        let Some(((address, port), gateway)) = reached else {
            return Err(Error::rejected("the engine gave the container no address"));
        };
        let url = Url::of(SocketAddr::new(address, port));
        let host = shared.host_for_containers(gateway)?;
        let token = Uuid::new_v4().simple().to_string();
        let marks = vec![Mark::Token(token.clone()), Mark::Address(address)];
        let connection = Connection::to_guest(&url, call_options(shared))?;
        let serving = Serving::new(unary(shared, guest, connection), end).with_container(&self.0, container).await?;
        let serving = serving.known(shared.guests.add(guest.clone(), marks));
        boot(serving, shared, &url, Boot { host: host.to_string(), id: context.id, token })
            .await
            .map(|(serving, _)| serving)
    }
}

fn call_options(shared: &Shared) -> CallOptions {
    CallOptions { deadline: shared.call_timeout, limits: shared.limits, ..CallOptions::default() }
}

fn unary(shared: &Shared, guest: &Arc<Guest>, connection: Connection) -> Events {
    events(shared, guest, Way::Unary(Box::new(Client::new(connection))))
}

fn events(shared: &Shared, guest: &Arc<Guest>, way: Way) -> Events {
    Events { guest: guest.clone(), way, limit: shared.call_timeout, silent: Mutex::default() }
}

/// Boots a guest by a call, as soon as it answers; whether it knows tokens.
async fn boot(mut serving: Serving, shared: &Shared, url: &Url, boot: Boot) -> Result<(Serving, bool), Error> {
    let Way::Unary(client) = &serving.events.way else { return Err(Error::bug("a stream is not booted by a call")) };
    let until = Instant::now() + shared.settings.start_timeout;
    // A server that runs already is there or is not.
    let comes_up = serving.container.is_some();
    let booting = async {
        loop {
            match client.boot(boot.clone()).await {
                Err(error) if error.code == ErrorCode::Unavailable && comes_up && Instant::now() < until => {
                    tokio::time::sleep(AGAIN).await;
                }
                booted => return booted,
            }
        }
    };
    let booted = tokio::time::timeout_at(until.into(), booting);
    let booted = serving.until_its_end(booted).await?;
    let knows_tokens = match booted {
        Ok(Ok(knows_tokens)) => knows_tokens,
        Ok(Err(error)) if error.code == ErrorCode::Unavailable => {
            return Err(serving.absence(&format!("nothing answers at {url}: {error}")).await);
        }
        Ok(Err(error)) => return Err(serving.failure(&format!("it refused to boot: {error}")).await),
        Err(_) => return Err(serving.absence(&format!("nothing answers at {url}")).await),
    };
    if serving.events.guest.is_attached() {
        serving.events.way = Way::Stream;
    }
    Ok((serving, knows_tokens))
}

fn listen(directory: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    if let Some(all) = directory.parent() {
        // Nobody else comes by; the container has the directory below mounted.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(all)?;
    }
    std::fs::create_dir_all(directory)?;
    set(directory, 0o755)?;
    let path = directory.join(SOCKET);
    // Of a run of the node that was killed.
    std::fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path)?;
    // Who the container runs as is not who the node does.
    set(&path, 0o666)?;
    Ok(listener)
}

/// A function that serves, and all that belongs to it.
pub(super) struct Serving {
    events: Events,
    known: Option<Known>,
    /// The end of the guest's connection.
    _end: DropGuard,
    container: Option<(Arc<Component>, Arc<Container>)>,
    /// Of a server that is no container: it is booted as long as this lasts.
    session: Option<Session>,
}

impl Serving {
    fn new(events: Events, end: DropGuard) -> Self {
        Self { events, known: None, _end: end, container: None, session: None }
    }

    async fn with_container(mut self, component: &Arc<Component>, container: Arc<Container>) -> Result<Self, Error> {
        component.began(&container).await?;
        self.container = Some((component.clone(), container));
        Ok(self)
    }

    fn known(mut self, known: Known) -> Self {
        self.known = Some(known);
        self
    }

    /// What a future brings, unless the container ends before.
    async fn until_its_end<T>(&self, future: impl Future<Output = T>) -> Result<T, Error> {
        let Some((_, container)) = &self.container else { return Ok(future.await) };
        tokio::select! {
            biased;
            value = future => Ok(value),
            exit = container.ended() => Err(Error::rejected(container.with_last_words(&exit.to_string()).await)),
        }
    }

    /// An error, with what is known of its cause.
    async fn failure(&self, what: &str) -> Error {
        match &self.container {
            Some((_, container)) => container.failure(what).await,
            None => Error::rejected(what),
        }
    }

    /// An error: nobody answers. A server may come back; what a container does is its own fault.
    async fn absence(&self, what: &str) -> Error {
        match &self.container {
            Some((_, container)) => container.failure(what).await,
            None => Error::unavailable(what),
        }
    }

    /// A reason, with the end of the container if that is the cause.
    async fn explained(&self, reason: String) -> String {
        match &self.container {
            Some((_, container)) => container.failure(&reason).await.message,
            None => reason,
        }
    }
}

#[async_trait]
impl Instance for Serving {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        match self.events.handle(event).await {
            Err(InstanceError::Broken(reason)) => Err(InstanceError::Broken(self.explained(reason).await)),
            handled => handled,
        }
    }

    async fn broken(&self) -> String {
        let ended = async {
            match &self.container {
                Some((_, container)) => {
                    let exit = container.ended().await;
                    container.with_last_words(&exit.to_string()).await
                }
                None => std::future::pending().await,
            }
        };
        let gone = async {
            match &self.session {
                Some(session) => session.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reason = ended => reason,
            () = gone => "its server closed the connection".to_string(),
            reason = self.events.guest.lost() => self.explained(reason).await,
        }
    }

    async fn stop(&self) {
        if let Err(Trouble::Refused(reason) | Trouble::Lost(reason)) = self.events.ask(Request::Stop).await {
            warn(&self.events.guest.context, &format!("its stop handler failed: {reason}"));
        }
        if let Some((component, container)) = &self.container {
            container.remove().await;
            component.ended(container);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // The last hold on the container but its own: what is left of it is removed.
        if let Some((component, container)) = self.container.take() {
            component.ended(&container);
        }
    }
}

/// A function of a server that runs already.
pub(super) struct Attached {
    pub(super) shared: Arc<Shared>,
    pub(super) spec: FunctionSpec,
    pub(super) url: Url,
}

impl Attached {
    pub(super) fn load(shared: Arc<Shared>, spec: FunctionSpec, url: Url) -> Result<Self, Error> {
        if let Some(key) = spec.annotations.keys().find(|key| is_of_container(CONTAINER, key)) {
            return Err(Error::rejected(format!(
                "{key}: {url} is a server that runs already, which this node cannot limit: leave it out"
            )));
        }
        let settings = &shared.settings;
        let address = url.bind_addr().ok().map(|addr| addr.ip());
        if address.is_some_and(|address| settings.subnet.contains(address)) {
            return Err(Error::rejected(format!(
                "code: {url} is a container of this node, which may be somebody else's"
            )));
        }
        let is_here = address.is_some_and(|address| address.is_loopback()) || url.host() == "localhost";
        if !is_here && settings.guest_api_host_url.is_none() {
            return Err(Error::rejected(format!(
                "code: the server at {url} could not find this node: \
                 set container_runtime.guest_api_host_url to an address that it reaches"
            )));
        }
        Ok(Self { shared, spec, url })
    }
}

#[async_trait]
impl Program for Attached {
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error> {
        let Self { shared, spec, url } = self;
        let (guest, end) = Guest::new(context.clone());
        let token = Uuid::new_v4().simple().to_string();
        let mut marks = vec![Mark::Token(token.clone())];
        if shared.settings.allow_untokened {
            marks.push(Mark::Word(context.id.function));
        }
        let (connection, session) = Connection::to_server_of_guest(url, call_options(shared))?;
        let serving = Serving::new(unary(shared, &guest, connection), end).known(shared.guests.add(guest, marks));
        let host = shared.host_for_servers();
        let (mut serving, knows_tokens) =
            boot(serving, shared, url, Boot { host: host.to_string(), id: context.id, token }).await?;
        // One that is started again knows nothing of the Boot, and is not to be given events as if it did.
        session.begin();
        serving.session = Some(session);
        if !knows_tokens && !shared.settings.allow_untokened {
            return Err(Error::rejected(format!(
                "the server at {url} knows no tokens, so that others could speak as it does: \
                 set container_runtime.allow_untokened if only trusted processes can reach this node"
            )));
        }
        init(&serving, spec, &context).await?;
        Ok(Box::new(serving))
    }
}
