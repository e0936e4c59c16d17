//! Functions and services in containers, on the Docker engine of this machine.
//!
//! ```text
//!  Component (image, options, limits) --start--> Container --+--> Docker: create, start, remove   `engine`
//!     |                                                      +--> kernel: weights, rates          `cgroup`, `shaping`
//!     |                                                      +--> networks and their filter       `network`, `firewall`
//!     +-- function: Guest over a stream or by calls          `guest`, served by `host`
//!     +-- service:  its check, its place behind the ingress
//! ```
//! - [`limits`] and [`options`]: what workflows may ask for; pure.
//! - `plan`: what a container is to be, as data; `container`: what runs by it.
//! - `function` and `service`: the two kinds of components.
//!
//! All that the node creates is labelled. What an earlier run of the node left is taken over by the
//! component that it belongs to, if that comes back in time and has not changed, and removed otherwise.

mod cgroup;
#[expect(clippy::module_inception, reason = "one container, of those that this module is about")]
mod container;
mod engine;
mod firewall;
mod function;
mod guest;
mod host;
mod image;
pub mod limits;
#[cfg(test)]
mod live;
mod network;
pub mod options;
mod plan;
mod service;
mod shaping;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use edgeless_api::component::{CONTAINER, FunctionSpec, SERVICE};
use edgeless_api::server::{Admission, Server};
use edgeless_api::{Binary, ComponentId, Digest, Error, NodeId, Url};
use edgeless_daemon::turns::Turns;
use edgeless_daemon::{Tasks, listen};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::backends::Backends;
use crate::config::ContainerRuntime;
use crate::instance::{Program, Runtime};
use crate::starts::StartTimes;
use container::{Doubtful, Found};
use engine::{Engine, NODE};
use function::Component;
use host::Guests;
use image::Image;
use network::Networks;
use options::{Code, Kind};
use plan::{COMPONENT, PLAN};

/// How long it may take, at the end of a node, until what its containers left is removed: more than a process
/// has to end by itself.
pub const REMOVAL: Duration = Duration::from_secs(10);
/// The wait before a removal is tried again that failed; it doubles up to the longest.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The connections that a guest, or a machine, may have to the guest API at a time.
const CONNECTIONS: usize = 64;

/// What all containers of a node share.
struct Shared {
    node: NodeId,
    settings: ContainerRuntime,
    engine: Arc<Engine>,
    networks: Networks,
    guests: Arc<Guests>,
    /// Where the guest API is served.
    host_url: Url,
    host_port: u16,
    limits: edgeless_api::Limits,
    call_timeout: Duration,
    places: Arc<Semaphore>,
    backends: Backends,
    starts: StartTimes,
    /// One container of a component at a time, until all of it is gone: also when it is placed here again while
    /// its last one takes a while to end.
    turns: Turns<ComponentId>,
    /// What has to end before the node may.
    tracker: TaskTracker,
    /// The node is being stopped: nothing is started any more, and what is being started is undone.
    stopping: CancellationToken,
    /// The names of the containers of this run.
    known: Mutex<HashSet<String>>,
    /// The images of archives that came along and are in use, by digest.
    archives: Mutex<HashMap<Digest, Weak<Lease>>>,
    /// Containers of an earlier run that may be taken over.
    found: Mutex<HashMap<ComponentId, Found>>,
    /// Told when there are such.
    is_found: Notify,
    /// Containers that are to be gone, and may not be. Their names are known until they are.
    doubtful: Mutex<Vec<Doubtful>>,
    /// Told when there are such.
    is_doubtful: Notify,
}

/// What a node gives its containers.
pub struct Surroundings {
    /// The node.
    pub node: NodeId,
    /// What the operator says of containers.
    pub settings: ContainerRuntime,
    /// What messages may have.
    pub limits: edgeless_api::Limits,
    /// How long a handler may take.
    pub call_timeout: Duration,
    /// Where services stand behind the node's HTTP ingress.
    pub backends: Backends,
    /// Where it is counted what starts take.
    pub starts: StartTimes,
}

/// The containers of a node; clones are the same.
#[derive(Clone)]
pub struct Containers(Arc<Shared>);

impl Containers {
    /// Serves the guest API and gets in touch with the engine, which need not be there yet. Its tasks end
    /// with `tasks`.
    ///
    /// # Errors
    /// The guest API cannot be served where the operator says.
    pub async fn start(surroundings: Surroundings, tasks: &Tasks) -> Result<Self, Error> {
        let Surroundings { node, mut settings, limits, call_timeout, backends, starts } = surroundings;
        // The engine mounts it, and knows nothing of where the node runs.
        settings.socket_directory = std::path::absolute(&settings.socket_directory).map_err(Error::rejected)?;
        let anywhere = || "http://0.0.0.0:0".parse::<Url>().map_err(Error::bug);
        let url = settings.guest_api_host_url.clone().map_or_else(anywhere, Ok)?;
        let (listener, host_url) =
            listen(&url).await.map_err(|error| error.context("container_runtime.guest_api_host_url"))?;
        let engine = Engine::new(node, settings.docker_socket.display().to_string());
        let shared = Arc::new(Shared {
            node,
            networks: Networks::new(engine.clone(), node, settings.subnet, host_url.port()),
            engine: engine.clone(),
            guests: Guests::new(settings.subnet),
            host_port: host_url.port(),
            host_url,
            limits,
            call_timeout,
            turns: Turns::default(),
            places: Arc::new(Semaphore::new(settings.max_containers)),
            backends,
            starts,
            tracker: TaskTracker::new(),
            stopping: CancellationToken::new(),
            known: Mutex::default(),
            archives: Mutex::default(),
            found: Mutex::default(),
            is_found: Notify::new(),
            doubtful: Mutex::default(),
            is_doubtful: Notify::new(),
            settings,
        });
        let subnet = shared.settings.subnet;
        // Where nobody said that others come, only containers and processes of this machine do.
        let is_open = shared.settings.guest_api_host_url.is_some();
        let is_own = |peer| std::net::UdpSocket::bind((peer, 0)).is_ok();
        let is_welcome = move |peer: IpAddr| is_open || subnet.contains(peer) || is_own(peer);
        let server = Server::new(limits, tasks.cancel().clone())
            .guest_host(shared.guests.clone())
            .admit(Admission::new(CONNECTIONS, is_welcome));
        tasks.vital("guest API server", server.serve(listener));
        let sweeper = shared.clone();
        let on_return = move |docker| {
            let shared = sweeper.clone();
            async move { shared.take_stock(&docker).await }
        };
        tasks.helper("Docker engine", engine.run(tasks.cancel().clone(), on_return));
        let (late, cancel) = (shared.clone(), tasks.cancel().clone());
        tasks.helper("left-over containers", async move {
            // Again and again: an engine that comes back may have more of them.
            let removing = async {
                loop {
                    late.is_found.notified().await;
                    tokio::time::sleep(late.settings.adopt_within).await;
                    late.remove_unclaimed().await;
                }
            };
            let both = async { tokio::join!(removing, late.keep_removing()) };
            cancel.run_until_cancelled(both).await;
        });
        Ok(Self(shared))
    }

    /// What runs functions and what runs services.
    pub fn runtimes(&self) -> Vec<Arc<dyn Runtime>> {
        vec![Arc::new(Functions(self.0.clone())), Arc::new(Services(self.0.clone()))]
    }

    /// Ends what is being started, and refuses what would be from now on; what runs goes on.
    pub fn end_starts(&self) {
        self.0.stopping.cancel();
    }

    /// Resolves when nothing is left of the containers, whoever still believes that one runs.
    pub async fn stop(&self) {
        self.end_starts();
        self.0.doubtful(|all| all.iter_mut().for_each(Doubtful::let_go));
        self.0.tracker.close();
        self.0.tracker.wait().await;
        let docker = self.0.engine.docker().await.ok();
        if let Some(docker) = &docker {
            self.0.remove_all(docker).await;
        }
        for doubtful in self.0.doubtful(std::mem::take) {
            doubtful.finish(&self.0, docker.as_ref()).await;
        }
        if let Some(docker) = &docker {
            self.0.networks.close(docker).await;
        }
        self.0.remove_sockets().await;
    }
}

/// The image of an archive, which goes with the last component that uses it: it has no name to be found by.
struct Lease {
    shared: Arc<Shared>,
    image: Image,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (shared, image) = (self.shared.clone(), self.image.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // After the last container that has it.
            let removal = async move {
                tokio::time::sleep(LEASE).await;
                let archives = || shared.archives.lock().unwrap_or_else(PoisonError::into_inner);
                let is_same = |lease: &Weak<Lease>| lease.upgrade().is_some_and(|lease| lease.image.id == image.id);
                let is_used_again = archives().values().any(is_same);
                if !is_used_again {
                    image::remove(&shared.engine, &image).await;
                }
            };
            runtime.spawn(removal);
        }
    }
}

/// How long the image of an archive stays when nothing uses it: a workflow that is started again needs not bring
/// it along again.
const LEASE: Duration = Duration::from_secs(60);

impl Shared {
    fn known<R>(&self, act: impl FnOnce(&mut HashSet<String>) -> R) -> R {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn found<R>(&self, act: impl FnOnce(&mut HashMap<ComponentId, Found>) -> R) -> R {
        act(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn doubtful<R>(&self, act: impl FnOnce(&mut Vec<Doubtful>) -> R) -> R {
        act(&mut self.doubtful.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of a container whose removal is not certain: it is tried again until it is.
    fn doubt(&self, mut container: Doubtful) {
        if self.stopping.is_cancelled() {
            container.let_go();
        }
        self.doubtful(|all| all.push(container));
        self.is_doubtful.notify_one();
    }

    /// Tries again to remove what may still be there.
    async fn retry_removals(&self, docker: &Docker) {
        for container in self.doubtful(std::mem::take) {
            match container.remove(docker).await {
                true => container.finish(self, Some(docker)).await,
                false => self.doubt(container),
            }
        }
    }

    /// Removes what could not be removed at once, as soon as that is possible.
    async fn keep_removing(&self) {
        loop {
            self.is_doubtful.notified().await;
            let mut wait = RETRY;
            while self.doubtful(|all| !all.is_empty()) {
                tokio::time::sleep(wait).await;
                wait = LONGEST_RETRY.min(wait * 2);
                match self.engine.docker().await {
                    Ok(docker) => self.retry_removals(&docker).await,
                    // Nothing is started meanwhile that could meet it.
                    Err(_) => self.doubtful(|all| all.iter_mut().for_each(Doubtful::let_go)),
                }
            }
        }
    }

    /// The image of an archive, which comes along once for all that use it at the same time.
    async fn archived(self: &Arc<Self>, binary: &Binary) -> Result<Arc<Lease>, Error> {
        let archives = || self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = binary.digest();
        let known = archives().get(&digest).and_then(Weak::upgrade);
        if let Some(lease) = known
            && self.engine.docker().await?.inspect_image(&lease.image.id).await.is_ok()
        {
            return Ok(lease);
        }
        let bytes = binary.bytes().ok_or_else(|| Error::needs_code(digest))?;
        let image = image::archived(&self.engine, bytes.clone()).await?;
        let lease = Arc::new(Lease { shared: self.clone(), image });
        let mut archives = archives();
        archives.retain(|_, lease| lease.strong_count() > 0);
        archives.insert(digest, Arc::downgrade(&lease));
        Ok(lease)
    }

    /// Where a container finds the guest API that finds the node at this gateway.
    fn host_for_containers(&self, gateway: IpAddr) -> Result<Url, Error> {
        let own = || Url::of(SocketAddr::new(gateway, self.host_port));
        match &self.settings.guest_api_host_url {
            None => Ok(own()),
            Some(url) => match url.bind_addr() {
                Ok(addr) if addr.ip().is_unspecified() => Ok(own()),
                Ok(addr) if addr.ip().is_loopback() => Err(Error::rejected(format!(
                    "container_runtime.guest_api_host_url: no container reaches {url}: leave it empty, or use an address \
                     of this machine that is not loopback"
                ))),
                // As it was bound: the port may have been 0.
                _ => Ok(self.host_url.clone()),
            },
        }
    }

    /// Where a server finds the guest API that is no container of ours.
    fn host_for_servers(&self) -> Url {
        match self.host_url.bind_addr() {
            Ok(addr) if addr.ip().is_unspecified() => Url::of(SocketAddr::new([127, 0, 0, 1].into(), addr.port())),
            _ => self.host_url.clone(),
        }
    }

    /// What a start brings, unless the node is stopped before: then it is undone, which the end of the node waits
    /// for.
    async fn unless_stopped<T>(&self, starting: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        // Dropped after what was started.
        let _awaited = self.tracker.token();
        let started = self.stopping.run_until_cancelled(starting).await;
        started.unwrap_or_else(|| Err(Error::unavailable("the node is being stopped")))
    }

    /// All containers of this node that the engine has, the newest first.
    async fn list(&self, docker: &Docker) -> Vec<ContainerSummary> {
        let filters = HashMap::from([("label", vec![format!("{NODE}={}", self.node)])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let listed = docker.list_containers(Some(options)).await;
        listed
            .inspect_err(|error| tracing::warn!(%error, "the containers of this node cannot be listed"))
            .unwrap_or_default()
    }

    /// Removes whatever there is of this node: what nobody took over, and what was left for any other cause.
    async fn remove_all(&self, docker: &Docker) {
        self.found(std::mem::take);
        for id in self.list(docker).await.into_iter().filter_map(|summary| summary.id) {
            container::remove(docker, &id).await;
        }
        self.known(HashSet::clear);
    }

    /// Sorts what the engine has of ours: what this run made, what may be taken over, and what is removed.
    async fn take_stock(&self, docker: &Docker) {
        self.retry_removals(docker).await;
        for summary in self.list(docker).await {
            let name = summary.names.into_iter().flatten().next().unwrap_or_default();
            let name = name.trim_start_matches('/').to_string();
            let id = summary.id.unwrap_or_default();
            if self.known(|known| known.contains(&name)) {
                continue;
            }
            let labels = summary.labels.unwrap_or_default();
            let component = labels.get(COMPONENT).and_then(|text| Uuid::parse_str(text).ok()).map(ComponentId);
            let is_running = summary.state.is_some_and(|state| state.to_string() == "running");
            let found =
                Found { id: id.clone(), name: name.clone(), plan: labels.get(PLAN).cloned().unwrap_or_default() };
            let Some(component) = component.filter(|_| is_running) else {
                container::remove(docker, &id).await;
                continue;
            };
            // The newest is listed first; one may have been taken over since they were listed.
            let first = self.found(|all| {
                let is_known = self.known(|known| known.contains(&name));
                (!is_known).then(|| all.entry(component).or_insert(found).id.clone())
            });
            let Some(first) = first else { continue };
            if first == id {
                tracing::info!(container = name, "a container of an earlier run waits to be taken over");
            } else {
                // A component has one: the node was killed before the other was gone.
                container::remove(docker, &id).await;
            }
        }
        if !self.found(|found| found.is_empty()) {
            self.is_found.notify_one();
        }
        self.remove_sockets().await;
        self.networks.sweep(docker).await;
    }

    /// Removes the directories of sockets that no container of this node has any more.
    async fn remove_sockets(&self) {
        let of_node = container::prefix(self.node);
        let Ok(mut entries) = tokio::fs::read_dir(&self.settings.socket_directory).await else { return };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_needed = || {
                // In this order: one that is taken over is known before it is no longer among the found.
                self.found(|found| found.values().any(|found| found.name == name))
                    || self.known(|known| known.contains(&name))
            };
            if name.starts_with(&of_node) && !is_needed() {
                tokio::fs::remove_dir_all(entry.path()).await.ok();
            }
        }
    }

    /// The container of an earlier run that does what this plan says; one that does not is removed.
    async fn adopt(&self, component: ComponentId, plan: &str) -> Option<Found> {
        // Known once the engine has come.
        let docker = self.engine.docker().await.ok()?;
        let found = self.found(|all| {
            let found = all.remove(&component)?;
            // At once, or who tidies up meanwhile takes it for left over.
            self.known(|known| known.insert(found.name.clone()));
            Some(found)
        })?;
        if found.plan == plan {
            tracing::info!(container = found.name, "a container of an earlier run is taken over");
            return Some(found);
        }
        self.discard(&docker, found).await;
        None
    }

    /// Removes one that was to be taken over, and is not.
    async fn discard(&self, docker: &Docker, found: Found) {
        let container = Doubtful::from(found);
        match container.remove(docker).await {
            true => container.finish(self, Some(docker)).await,
            false => self.doubt(container),
        }
        self.networks.sweep(docker).await;
    }

    /// Removes what was to be taken over by a start that failed before it could.
    async fn give_up(&self, found: Option<Found>) {
        let Some(found) = found else { return };
        match self.engine.docker().await {
            Ok(docker) => self.discard(&docker, found).await,
            // It is found again when the engine is back.
            Err(_) => {
                self.known(|known| known.remove(&found.name));
            }
        }
    }

    async fn remove_unclaimed(&self) {
        let unclaimed = self.found(std::mem::take);
        if unclaimed.is_empty() {
            return;
        }
        if let Ok(docker) = self.engine.docker().await {
            // One that was being taken over while stock was taken is not left over.
            let is_left = |found: &Found| !self.known(|known| known.contains(&found.name));
            for found in unclaimed.into_values().filter(is_left) {
                tracing::info!(container = found.name, "a container of an earlier run is removed: nobody took it over");
                container::remove(&docker, &found.id).await;
            }
            self.remove_sockets().await;
            self.networks.sweep(&docker).await;
        }
    }
}

/// Runs functions in containers.
struct Functions(Arc<Shared>);

#[async_trait]
impl Runtime for Functions {
    fn kind(&self) -> &'static str {
        CONTAINER
    }

    async fn load(&self, spec: FunctionSpec) -> Result<Arc<dyn Program>, Error> {
        if let Code::Attached(url) = Code::of(&spec.class)? {
            return Ok(Arc::new(function::Attached::load(self.0.clone(), spec, url)?));
        }
        let component = Component::load(self.0.clone(), spec, Kind::Function).await?;
        Ok(Arc::new(function::Contained(Arc::new(component))))
    }
}

/// Runs services.
struct Services(Arc<Shared>);

#[async_trait]
impl Runtime for Services {
    fn kind(&self) -> &'static str {
        SERVICE
    }

    async fn load(&self, spec: FunctionSpec) -> Result<Arc<dyn Program>, Error> {
        let component = Component::load(self.0.clone(), spec, Kind::Service).await?;
        Ok(Arc::new(service::Contained(Arc::new(component))))
    }
}
