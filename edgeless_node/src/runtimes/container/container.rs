//! One container: created by its plan, limited, watched, and removed.
//!
//! It is removed when it is dropped, whatever became of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as DockerError;
use bollard::exec::StartExecResults;
use bollard::models::{ContainerInspectResponse, ExecConfig, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions, StopContainerOptionsBuilder,
};
use edgeless_api::status::{Level, Limit, Usage};
use edgeless_api::{Error, NodeId};
use futures_util::StreamExt;
use humantime_serde::re::humantime::parse_rfc3339;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::cgroup::Cgroup;
use super::engine::{Exit, NODE};
use super::limits::{Bytes, Cpu, CpuSet, Limits, Pids, Rate, Shares};
use super::network::{Joined, short};
use super::options::Reach;
use super::plan::{COMPONENT, Plan, WORKFLOW, update};
use super::shaping::{self, Bandwidth};
use crate::log::Log;

/// Lines of a container's output that a reason shows.
const LAST_LINES: usize = 10;
/// Lines of output that are taken in a second; a container that says more waits, or loses lines.
const LINES_PER_SECOND: u32 = 500;
/// Bytes of what a check says that a reason shows.
const LONGEST_REASON: usize = 512;
/// How long a process may take to end when it is told to, seconds.
const TERM: i32 = 2;
/// How long a process that closed its connections may take to be gone.
const CLOSING: Duration = Duration::from_millis(500);
/// How long the engine may take to tell that a process is gone.
const TELLING: Duration = Duration::from_secs(5);
/// How long the end of a container's output waits for that of the container, and who follows it for the engine.
const FOLLOW: Duration = Duration::from_secs(1);
/// How often a process is looked at that no engine looks after.
const LOOK: Duration = Duration::from_millis(500);
/// How often a removal is tried before others need not wait for it.
const REMOVALS: u32 = 5;
/// How long after its deadline the engine may still make a container.
const COMING: Duration = Duration::from_secs(60);

/// A container that runs, or did.
pub(super) struct Container {
    shared: Arc<Shared>,
    plan: Plan,
    /// What the engine knows it by.
    id: String,
    process: u32,
    /// Its image names another signal than the usual one to end it by.
    has_own_signal: bool,
    /// Its address in its network.
    pub(super) address: Option<IpAddr>,
    /// Where it finds the node.
    pub(super) gateway: Option<IpAddr>,
    exit: watch::Receiver<Option<Exit>>,
    log: Log,
    cancel: CancellationToken,
    removal: Mutex<Option<Removal>>,
}

/// The numbers of a user and a group.
type Owner = (u32, u32);

/// What has to be undone.
struct Removal {
    name: String,
    socket: Option<PathBuf>,
    /// Volumes that were made for it and have nothing in them that anybody wants.
    volumes: Vec<String>,
    /// The engine was asked to make it and has not answered: it may do so later.
    may_come: bool,
    /// Its place and its turn, kept until it is gone; let go in this order, for the next in turn needs a place.
    places: Option<(OwnedSemaphorePermit, OwnedMutexGuard<()>)>,
}

/// A container that is to be gone, and may not be.
pub(super) struct Doubtful {
    /// What the engine knows it by.
    id: String,
    name: String,
    /// It may come until then, also if it is not there.
    comes_until: Option<Instant>,
    /// What is undone when it is gone, if that was made by this run of the node.
    rest: Option<(Plan, Removal)>,
}

impl Doubtful {
    fn new(id: String, plan: Plan, removal: Removal) -> Self {
        let comes_until = removal.may_come.then(|| Instant::now() + COMING);
        Self { id, name: removal.name.clone(), comes_until, rest: Some((plan, removal)) }
    }

    /// Whether it is gone for good, by what the engine answers when it is to remove it.
    fn is_gone(&self, answer: Answer, now: Instant) -> bool {
        match answer {
            Answer::Removed => true,
            Answer::Absent => self.comes_until.is_none_or(|until| now >= until),
            Answer::Failed => false,
        }
    }

    /// Tries to remove it; whether it is gone for good.
    pub(super) async fn remove(&self, docker: &Docker) -> bool {
        let answer = ask_removal(docker, &self.id).await;
        self.is_gone(answer, Instant::now())
    }

    /// Nobody is kept waiting for its end any longer.
    pub(super) fn let_go(&mut self) {
        if let Some((_, removal)) = &mut self.rest {
            removal.places = None;
        }
    }

    /// Removes what belonged to it; `docker`: the engine, if that is there.
    pub(super) async fn finish(self, shared: &Shared, docker: Option<&Docker>) {
        shared.known(|known| known.remove(&self.name));
        let Some((plan, removal)) = self.rest else {
            shared.remove_sockets().await;
            return;
        };
        if let Some(docker) = docker {
            for volume in &removal.volumes {
                remove_volume(docker, volume).await;
            }
        }
        if let Some(socket) = &removal.socket {
            tokio::fs::remove_dir_all(socket).await.ok();
        }
        shared.networks.leave(plan.reach(), plan.workflow).await;
    }
}

impl From<Found> for Doubtful {
    fn from(Found { id, name, .. }: Found) -> Self {
        Self { id, name, comes_until: None, rest: None }
    }
}

/// A container of an earlier run of this node that still runs.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) plan: String,
}

impl Container {
    /// Creates and starts it, or takes over one that does the same.
    ///
    /// `turn` is held until it is gone, so that its successor does not meet it. `at_socket` makes the socket
    /// of a guest that needs one, in the directory that its container sees.
    pub(super) async fn start(
        shared: &Arc<Shared>,
        plan: Plan,
        turn: OwnedMutexGuard<()>,
        log: Log,
        found: Option<Found>,
        at_socket: impl FnOnce(&Path) -> Result<(), Error> + Send,
    ) -> Result<Self, Error> {
        let (docker, place, joined) = match prepare(shared, &plan).await {
            Ok(prepared) => prepared,
            Err(error) => {
                // Still in its turn: nobody meets what was found.
                shared.give_up(found).await;
                return Err(error);
            }
        };
        let name = found.as_ref().map_or_else(|| name(shared, &plan), |found| found.name.clone());
        let socket = plan.has_socket().then(|| shared.settings.socket_directory.join(&name));
        shared.known(|known| known.insert(name.clone()));
        // From here on everything is undone when it is dropped.
        let mut container = Self {
            shared: shared.clone(),
            id: name.clone(),
            process: 0,
            has_own_signal: false,
            address: None,
            gateway: joined.as_ref().map(|joined| joined.gateway),
            exit: watch::channel(None).1,
            log,
            cancel: CancellationToken::new(),
            removal: Mutex::new(Some(Removal {
                name: name.clone(),
                socket: socket.clone(),
                volumes: Vec::new(),
                may_come: false,
                places: Some((place, turn)),
            })),
            plan,
        };
        if let Some(socket) = &socket {
            // Before the guest looks for it.
            at_socket(socket)?;
        }
        container.begin(&docker, &name, joined.as_ref(), socket.as_ref(), found).await?;
        Ok(container)
    }

    async fn begin(
        &mut self,
        docker: &Docker,
        name: &str,
        joined: Option<&Joined>,
        socket: Option<&PathBuf>,
        found: Option<Found>,
    ) -> Result<(), Error> {
        let engine = &self.shared.engine;
        if let Some(found) = &found {
            self.id.clone_from(&found.id);
            self.exit = engine.watch(&self.id);
        } else {
            let volumes = self.make_volumes(docker).await?;
            let options = CreateContainerOptionsBuilder::new().name(name).build();
            let created = docker.create_container(Some(options), self.plan.body(&self.shared, joined, socket)).await;
            if !matches!(created, Ok(_) | Err(DockerError::DockerResponseServerError { .. }))
                && let Some(removal) = &mut *self.removal.lock().unwrap_or_else(PoisonError::into_inner)
            {
                removal.may_come = true;
            }
            self.id = created.map_err(|error| self.refused(error))?.id;
            self.exit = engine.watch(&self.id);
            self.own_volumes(&volumes);
            let started = docker.start_container(&self.id, None).await;
            started.map_err(|error| self.refused(error))?;
        }
        let seen = docker.inspect_container(&self.id, None::<InspectContainerOptions>).await;
        let seen = seen.map_err(|error| engine.error(error))?;
        self.see(&seen, joined);
        self.tell_ports(&seen);
        self.check_user()?;
        self.follow_log(docker.clone(), found.is_some());
        if self.process == 0 {
            // It has ended already: the watch is about to say so.
            return Err(self.failure("it ended at once").await);
        }
        let limits = &self.plan.limits;
        match found {
            Some(_) => self.update(docker, limits).await?,
            None => self.weigh(limits).await?,
        }
        self.shape(bandwidth(limits), found.is_some()).await
    }

    fn see(&mut self, seen: &ContainerInspectResponse, joined: Option<&Joined>) {
        let state = seen.state.clone().unwrap_or_default();
        self.process = state.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default();
        let signal = seen.config.as_ref().and_then(|config| config.stop_signal.as_deref()).unwrap_or_default();
        self.has_own_signal = !matches!(signal, "" | "SIGTERM" | "15");
        let networks = seen.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
        let endpoint = networks.zip(joined).and_then(|(networks, joined)| networks.get(&joined.name));
        self.address = endpoint.and_then(|endpoint| endpoint.ip_address.as_ref()?.parse().ok());
    }

    /// A name of a user means what the image says, which may be root.
    fn check_user(&self) -> Result<(), Error> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process)).unwrap_or_default();
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        match users.split_whitespace().any(|user| user == "0") && !self.shared.settings.allow_root {
            true => Err(Error::rejected(format!(
                "user: '{}' is root in the image {}, and this node runs no container as root \
                 (container_runtime.allow_root): use another user",
                self.plan.user(),
                self.plan.image.name
            ))),
            false => Ok(()),
        }
    }

    /// Says where its ports are published: the engine may have chosen.
    fn tell_ports(&self, seen: &ContainerInspectResponse) {
        let ports = seen.network_settings.as_ref().and_then(|settings| settings.ports.as_ref());
        for (port, bindings) in ports.into_iter().flatten() {
            for binding in bindings.iter().flatten() {
                let (Some(address), Some(at)) = (&binding.host_ip, &binding.host_port) else { continue };
                self.log.push(Level::Info, "edgeless", format!("port {port} is published at {address}:{at}"));
            }
        }
    }

    /// An error of the engine about what the plan asks for.
    fn refused(&self, error: DockerError) -> Error {
        let error = self.shared.engine.error(error);
        if self.plan.limits.disk.is_some() && error.message.contains("storage-opt") {
            return Error::rejected(format!(
                "disk: the storage driver of this node's Docker engine cannot limit it: leave it out ({})",
                error.message
            ));
        }
        error.context(format!("the container of the image {}", self.plan.image.name))
    }

    /// Makes the volumes that are not there yet; returns to whom each of them is to belong: a new one to who the
    /// container runs as, if that is a number.
    async fn make_volumes(&self, docker: &Docker) -> Result<Vec<(String, Owner)>, Error> {
        let user = self.plan.user();
        let (user, group) = user.split_once(':').unwrap_or((&user, &user));
        let user: Option<Owner> = user.parse().ok().zip(group.parse().ok());
        let mut owners = Vec::new();
        for volume in &self.plan.options.service.volumes {
            let name = self.plan.volume(&volume.name);
            if let Ok(known) = docker.inspect_volume(&name).await {
                let owner = std::fs::metadata(&known.mountpoint).ok().map(|found| (found.uid(), found.gid()));
                owners.extend(owner.map(|owner| (known.mountpoint, owner)));
                continue;
            }
            let request = VolumeCreateRequest {
                name: Some(name.clone()),
                labels: Some(HashMap::from([
                    (NODE.to_string(), self.shared.node.to_string()),
                    (WORKFLOW.to_string(), self.plan.workflow.to_string()),
                    (COMPONENT.to_string(), self.plan.component.to_string()),
                ])),
                ..VolumeCreateRequest::default()
            };
            let made = docker.create_volume(request).await.map_err(|error| self.refused(error))?;
            owners.extend(user.map(|owner| (made.mountpoint, owner)));
            if let Some(removal) = &mut *self.removal.lock().unwrap_or_else(PoisonError::into_inner) {
                removal.volumes.push(name);
            }
        }
        Ok(owners)
    }

    /// Sees to it that volumes belong to whom they should, once the container is created: as long as a volume
    /// is empty, the engine gives it to who owns what the image has in its place.
    fn own_volumes(&self, owners: &[(String, Owner)]) {
        for (place, (user, group)) in owners {
            if let Err(error) = std::os::unix::fs::chown(place, Some(*user), Some(*group)) {
                let line = format!("the volume at {place} does not belong to user {user}: {error}");
                self.log.push(Level::Warn, "edgeless", line);
            }
        }
    }

    /// What is in its volumes is worth something from now on.
    pub(super) fn keep_volumes(&self) {
        if let Some(removal) = &mut *self.removal.lock().unwrap_or_else(PoisonError::into_inner) {
            removal.volumes.clear();
        }
    }

    /// The limits that it was started with.
    pub(super) fn limits_at_first(&self) -> &Limits {
        &self.plan.limits
    }

    /// Changes its limits: all of them or none.
    pub(super) async fn set_limits(&self, known: &Limits, wanted: &Limits) -> Result<(), Error> {
        let docker = self.shared.engine.docker().await?;
        Plan { limits: wanted.clone(), ..self.plan.clone() }.check()?;
        let changed = match self.shape(bandwidth(wanted), true).await {
            Ok(()) => self.update(&docker, wanted).await,
            refused => refused,
        };
        if changed.is_err() {
            self.shape(bandwidth(known), true).await.ok();
        }
        changed
    }

    /// Has the engine set the limits that it knows, and the kernel the weight that is meant by it.
    async fn update(&self, docker: &Docker, wanted: &Limits) -> Result<(), Error> {
        let processors = docker.info().await.ok().and_then(|info| info.ncpu).unwrap_or(1);
        let updated = docker.update_container(&self.id, update(wanted, processors)).await;
        updated.map_err(|error| self.shared.engine.error(error).context("the limits stay as they were"))?;
        self.weigh(wanted).await
    }

    /// An engine may make another weight of the one that it is given.
    async fn weigh(&self, wanted: &Limits) -> Result<(), Error> {
        let (process, shares) = (self.process, wanted.cpu_shares.map_or(1024, |shares| shares.0));
        let weighed = tokio::task::spawn_blocking(move || {
            let set = Cgroup::of(process).and_then(|cgroup| cgroup.set_shares(shares));
            // It is what the engine made of it then; what that is, is shown.
            set.inspect_err(|error| tracing::debug!(%error, "cpu_shares stay as the engine set them")).ok();
        });
        weighed.await.map_err(Error::bug)
    }

    /// Caps what goes over its network. Where nothing is to be capped, caps are taken away that there may be.
    async fn shape(&self, bandwidth: Bandwidth, may_be_capped: bool) -> Result<(), Error> {
        let is_open = bandwidth == Bandwidth::default();
        if self.plan.reach() == Reach::None || is_open && !may_be_capped {
            return Ok(());
        }
        let process = self.process;
        let shaped = tokio::task::spawn_blocking(move || shaping::set(process, bandwidth));
        match shaped.await.map_err(Error::bug)? {
            // A node that may not cap it never did.
            Err(_) if is_open => Ok(()),
            shaped => shaped.map(|_| ()).map_err(|error| Error::rejected(format!("network_bandwidth: {error}"))),
        }
    }

    /// What was asked, beside what the kernel has.
    pub(super) async fn limits(&self, asked: &Limits) -> Vec<Limit> {
        let process = self.process;
        let seen = tokio::task::spawn_blocking(move || kernel(process)).await.ok().flatten();
        shown(asked, seen.as_ref())
    }

    /// What it uses; `None`: it does not run.
    pub(super) async fn usage(&self) -> Option<Usage> {
        if self.exit.borrow().is_some() {
            return None;
        }
        let process = self.process;
        let used = tokio::task::spawn_blocking(move || {
            let used = Cgroup::of(process).and_then(|cgroup| cgroup.usage()).ok()?;
            let (received, sent) = shaping::traffic(process).unwrap_or_default();
            Some(Usage {
                cpu: used.cpu.unwrap_or_default(),
                memory: used.memory.unwrap_or_default(),
                processes: used.pids.unwrap_or_default(),
                received,
                sent,
            })
        });
        used.await.ok().flatten()
    }

    /// Runs a command in it, which is to end with 0. What it says, if it fails, is the reason.
    pub(super) async fn run(&self, command: &[String]) -> Result<(), String> {
        let docker = self.shared.engine.docker().await.map_err(|error| error.message)?;
        let wrong = |error: DockerError| self.shared.engine.error(error).message;
        let config = ExecConfig {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.to_vec()),
            ..ExecConfig::default()
        };
        let made = docker.create_exec(&self.id, config).await.map_err(wrong)?;
        let started = docker.start_exec(&made.id, None).await.map_err(wrong)?;
        let mut said = String::new();
        if let StartExecResults::Attached { mut output, .. } = started {
            while let Some(Ok(part)) = output.next().await {
                // Read to its end, or the command waits for ever.
                if said.len() < LONGEST_REASON {
                    said.push_str(&text(&part));
                }
            }
        }
        let ended = docker.inspect_exec(&made.id).await.map_err(wrong)?;
        match ended.exit_code {
            Some(0) => Ok(()),
            code => {
                let said: String = said.trim().chars().take(LONGEST_REASON).collect();
                let code = code.map_or_else(|| "without an exit code".to_string(), |code| format!("with {code}"));
                Err(format!("'{}' ended {code}: {said}", command.join(" ")))
            }
        }
    }

    /// Resolves when it has ended, with how.
    pub(super) async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        let told = async {
            // An error means that it is watched no more: nobody waits for this any longer.
            exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone()).unwrap_or(Exit::Removed)
        };
        tokio::select! {
            exit = told => exit,
            () = self.ended_unseen() => Exit::Unseen,
        }
    }

    /// Resolves when its process is gone while there is no engine to tell.
    async fn ended_unseen(&self) {
        loop {
            self.shared.engine.is_away().await;
            if !self.has_process() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the kernel still knows its process, or nobody can say.
    fn has_process(&self) -> bool {
        self.process == 0 || Path::new("/proc").join(self.process.to_string()).exists()
    }

    /// An error with what the container said last: a start that failed.
    pub(super) async fn failure(&self, what: &str) -> Error {
        // Its end may be the cause of what was seen first: its process closes its connections before it is gone,
        // and the engine tells of it later.
        let mut ended = std::pin::pin!(self.ended());
        let mut exit = tokio::time::timeout(CLOSING, &mut ended).await.ok();
        if exit.is_none() && !self.has_process() {
            exit = tokio::time::timeout(TELLING, ended).await.ok();
        }
        let what = exit.map_or_else(|| what.to_string(), |exit| exit.to_string());
        Error::rejected(self.with_last_words(&what).await)
    }

    /// A reason with what the container said last.
    pub(super) async fn with_last_words(&self, reason: &str) -> String {
        let words = tokio::time::timeout(Duration::from_secs(2), self.last_words()).await.unwrap_or_default();
        match words.is_empty() {
            true => format!("{reason}; it said nothing"),
            false => format!("{reason}; it said last:\n{}", words.join("\n")),
        }
    }

    async fn last_words(&self) -> Vec<String> {
        let Ok(docker) = self.shared.engine.docker().await else { return Vec::new() };
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&LAST_LINES.to_string()).build();
        let mut output = Box::pin(docker.logs(&self.id, Some(options)));
        let mut lines = Vec::new();
        while let Some(Ok(part)) = output.next().await {
            lines.extend(text(&part).lines().map(shown_line));
        }
        lines.split_off(lines.len().saturating_sub(LAST_LINES))
    }

    /// Brings its output into the log of its component, as long as it runs.
    fn follow_log(&self, mut docker: Docker, only_new: bool) {
        let (log, id, cancel) = (self.log.clone(), self.id.clone(), self.cancel.clone());
        let (engine, mut exit) = (self.shared.engine.clone(), self.exit.clone());
        let mut last = only_new.then(SystemTime::now);
        self.shared.tracker.spawn(cancel.run_until_cancelled_owned(async move {
            loop {
                last = take_output(&docker, &id, last, &log).await;
                // It ended with the container, of which the engine tells soon, or because the engine is gone.
                if tokio::time::timeout(FOLLOW, exit.wait_for(Option::is_some)).await.is_ok() {
                    return;
                }
                docker = loop {
                    match engine.docker().await {
                        Ok(docker) => break docker,
                        Err(_) => tokio::time::sleep(FOLLOW).await,
                    }
                };
            }
        }));
    }

    /// Ends it: it is told to, then made to, and nothing of it is left.
    pub(super) async fn remove(&self) {
        let removal = self.removal.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(removal) = removal {
            self.cancel.cancel();
            let gently = self.has_own_signal || heeds_term(self.process);
            let undone = undo(self.shared.clone(), self.plan.clone(), self.id.clone(), removal, gently);
            // It goes on when nobody has the time to wait for it. An error means that the node ends.
            self.shared.tracker.spawn(undone).await.ok();
        }
    }

    /// Removes what outlived its containers: the component is stopped for good.
    pub(super) async fn forget(shared: &Shared, plan: &Plan) {
        if plan.options.service.volumes.is_empty() {
            return;
        }
        // A volume stays as long as a container has it, and its container may take a while to end.
        let _turn = tokio::time::timeout(super::REMOVAL, shared.turns.turn(plan.component)).await;
        let Ok(docker) = shared.engine.docker().await else { return };
        for volume in &plan.options.service.volumes {
            remove_volume(&docker, &plan.volume(&volume.name)).await;
        }
    }
}

/// What a container needs before there is anything to undo.
async fn prepare(shared: &Shared, plan: &Plan) -> Result<(Docker, OwnedSemaphorePermit, Option<Joined>), Error> {
    // Refused before anything is done.
    plan.check()?;
    let docker = shared.engine.docker().await?;
    let place = shared.places.clone().try_acquire_owned().map_err(|_| {
        let limit = shared.settings.max_containers;
        Error::exhausted(format!("the node runs {limit} containers, the limit is container_runtime.max_containers"))
    })?;
    let joined = shared.networks.join(plan.reach(), plan.workflow).await?;
    Ok((docker, place, joined))
}

/// Takes what a container said after a time, and what it says until the stream of it ends, as fast as that is of
/// use; returns when the last of it was said.
async fn take_output(docker: &Docker, id: &str, after: Option<SystemTime>, log: &Log) -> Option<SystemTime> {
    let seconds = after.and_then(|after| after.duration_since(UNIX_EPOCH).ok()).unwrap_or_default().as_secs();
    let since = i32::try_from(seconds).unwrap_or_default();
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(true).timestamps(true).since(since);
    let mut output = Box::pin(docker.logs(id, Some(options.build())));
    let (mut began, mut taken, mut last) = (Instant::now(), 0, after);
    while let Some(Ok(part)) = output.next().await {
        let text = text(&part);
        let (at, said) = stamped(&text);
        // The engine knows whole seconds only.
        if at.is_some() && at <= after {
            continue;
        }
        last = at.or(last);
        for line in said.lines() {
            log.push(Level::Info, target(&part), line);
            taken += 1;
        }
        if taken < LINES_PER_SECOND {
            continue;
        }
        let spent = began.elapsed();
        if spent < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_secs(1) - spent).await;
        }
        (began, taken) = (Instant::now(), 0);
    }
    last
}

/// When a line of output was said, and what it says.
fn stamped(line: &str) -> (Option<SystemTime>, &str) {
    let split = line.split_once(' ');
    let stamp = split.and_then(|(stamp, said)| Some((parse_rfc3339(stamp).ok()?, said)));
    stamp.map_or((None, line), |(at, said)| (Some(at), said))
}

/// Another service of the workflow may still have it.
async fn remove_volume(docker: &Docker, name: &str) {
    if let Err(error) = docker.remove_volume(name, None::<RemoveVolumeOptions>).await {
        tracing::debug!(volume = name, %error, "a volume stays for now");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removal = self.removal.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(removal) = removal {
            self.cancel.cancel();
            let undone = undo(self.shared.clone(), self.plan.clone(), self.id.clone(), removal, false);
            self.shared.tracker.spawn(undone);
        }
    }
}

/// Whether it makes a difference to a process to be asked to end. The first process of a container is not ended
/// by a signal that it does nothing about: who waited for that would wait in vain.
fn heeds_term(process: u32) -> bool {
    const SIGTERM: u64 = 1 << 14;
    let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/status")) else { return true };
    let signals = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(u64::MAX)
    };
    // What is blocked may be read in another way.
    (signals("SigCgt") | signals("SigBlk")) & SIGTERM != 0
}

async fn undo(shared: Arc<Shared>, plan: Plan, id: String, removal: Removal, gently: bool) {
    shared.engine.forget(&id);
    let mut doubtful = Doubtful::new(id, plan, removal);
    for attempt in 0..REMOVALS {
        let Ok(docker) = shared.engine.docker().await else {
            // Nothing is started meanwhile that could meet it, and who wants to is to hear why not.
            doubtful.let_go();
            break;
        };
        if gently && attempt == 0 {
            let options = StopContainerOptionsBuilder::new().t(TERM).build();
            // One that is not there, or stopped already, is no error.
            docker.stop_container(&doubtful.id, Some(options)).await.ok();
        }
        if doubtful.remove(&docker).await {
            doubtful.finish(&shared, Some(&docker)).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    shared.doubt(doubtful);
}

/// What the engine answers when it is to remove a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Removed,
    Absent,
    Failed,
}

async fn ask_removal(docker: &Docker, id: &str) -> Answer {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match docker.remove_container(id, Some(options)).await {
        Ok(()) => Answer::Removed,
        Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Answer::Absent,
        Err(error) => {
            tracing::debug!(container = id, %error, "a container could not be removed");
            Answer::Failed
        }
    }
}

/// Removes a container with its anonymous volumes; whether it is gone.
pub(super) async fn remove(docker: &Docker, id: &str) -> bool {
    ask_removal(docker, id).await != Answer::Failed
}

/// A line of a container's output in a message: not longer than is of use there, and without what a terminal
/// would take for a command.
fn shown_line(line: &str) -> String {
    const LONGEST: usize = 300;
    let plain = |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    line.chars().take(LONGEST).map(plain).collect()
}

/// A name that says what it is for, and that nothing else has.
fn name(shared: &Shared, plan: &Plan) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
    let component: String = plan.name.chars().take(32).map(plain).collect();
    let unique: u32 = rand::random();
    format!("{}{component}-{unique:08x}", prefix(shared.node))
}

/// How the names of all containers of a node begin.
pub(super) fn prefix(node: NodeId) -> String {
    format!("edgeless-{}-", short(&node.to_string()))
}

fn text(part: &LogOutput) -> String {
    String::from_utf8_lossy(part.as_ref()).into_owned()
}

fn target(part: &LogOutput) -> &'static str {
    match part {
        LogOutput::StdErr { .. } => "stderr",
        LogOutput::StdOut { .. } | LogOutput::StdIn { .. } | LogOutput::Console { .. } => "stdout",
    }
}

fn bandwidth(limits: &Limits) -> Bandwidth {
    Bandwidth {
        up: limits.network_bandwidth_up.map(|rate| rate.0),
        down: limits.network_bandwidth_down.map(|rate| rate.0),
    }
}

/// What the kernel has, as limits.
fn kernel(process: u32) -> Option<Limits> {
    let kernel = Cgroup::of(process).and_then(|cgroup| cgroup.kernel()).ok()?;
    let rates = shaping::get(process).unwrap_or_default();
    Some(Limits {
        cpu: kernel.cpu.map(Cpu::cores),
        cpu_shares: kernel.cpu_shares.map(Shares),
        cpuset: kernel.cpuset.map(CpuSet),
        memory: kernel.memory.map(Bytes),
        pids: kernel.pids.map(Pids),
        disk: None,
        network_bandwidth_up: rates.up.map(Rate),
        network_bandwidth_down: rates.down.map(Rate),
    })
}

/// Each limit that is asked for, beside what the kernel has.
pub(super) fn shown(asked: &Limits, kernel: Option<&Limits>) -> Vec<Limit> {
    let none = || "none".to_string();
    let kernel = kernel.map(Limits::values);
    let found = |name: &str| {
        let value = kernel.as_ref().and_then(|values| values.iter().find(|(known, _)| *known == name));
        match value {
            // The engine keeps to it by means of the file system.
            _ if name == "disk" => String::new(),
            Some((_, value)) => value.clone().unwrap_or_else(none),
            None => String::new(),
        }
    };
    let limit = |(name, value): (&str, Option<String>)| Limit {
        name: name.to_string(),
        asked: value.unwrap_or_else(none),
        kernel: found(name),
    };
    // What is written nowhere but at the engine is shown when it was asked for.
    asked.values().into_iter().filter(|(name, value)| *name != "disk" || value.is_some()).map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_time_is_no_part_of_what_a_container_says() {
        let at = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        assert_eq!(stamped("2023-11-14T22:13:20.123456789Z two words"), (Some(at), "two words"));
        assert_eq!(stamped("2023-11-14T22:13:20.123456789Z \n"), (Some(at), "\n"));
        assert_eq!(stamped("two words"), (None, "two words"));
    }

    /// An engine that is late with a creation has made nothing yet when it is asked to remove it.
    #[test]
    fn a_container_that_may_still_come_is_not_gone_because_it_is_not_there() {
        let now = Instant::now();
        let found = Found { id: "id".into(), name: "name".into(), plan: String::new() };
        let mut doubtful = Doubtful::from(found);
        assert!(doubtful.is_gone(Answer::Absent, now), "it was there");
        assert!(!doubtful.is_gone(Answer::Failed, now));
        doubtful.comes_until = Some(now + COMING);
        assert!(!doubtful.is_gone(Answer::Absent, now));
        assert!(doubtful.is_gone(Answer::Removed, now));
        assert!(doubtful.is_gone(Answer::Absent, now + COMING));
    }
}
