//! The agent: starts, wires and stops components for the orchestrator.
//!
//! A start is repeatable: the same component, replica and epoch give the same instance, an older epoch is
//! refused, a newer one replaces the older instance. So is a release: for a while, a repeat gets the same
//! state. What runs is written down, and the next process of the node [goes on with it](Agent::revive).

mod dead;
mod revival;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, FunctionSpec, Patch, ResourceSpec, Row, Start,
    StartContext, StatePolicy, without_limits,
};
use edgeless_api::dead::{DeadLetters, Letters, Resolved, Treatment};
use edgeless_api::delivery::Deliveries;
use edgeless_api::journal::{Belongings, InstanceRecord};
use edgeless_api::node::{InstanceLoad, PeerUpdate, Running};
use edgeless_api::server::{Components, NodeManagement, Values};
use edgeless_api::status::{ComponentStatus, Limit, LogLine};
use edgeless_api::{Code, ComponentId, Error, InstanceId};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tokio::sync::{Notify, OnceCell};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::delivery::past::Past;
use crate::delivery::{self, Custody};
use crate::host::{Component, Factory, Hosted, host};
use crate::instance::{Context, Provider, Runtime};
use crate::journal::Journal;
use crate::log::Log;
use crate::outputs::Outputs;
use crate::records::Records;
use crate::resources::Class;
use crate::router::Router;
use crate::state::{State, StateStore};

/// How long a component waits for its first outputs when nobody says that it is wired: what an
/// EDGELESS 1.2 orchestrator does not know it should say.
const UNTOLD_ACTIVATION: Duration = Duration::from_secs(1);

/// How long components have to say what they may use and what they do use. Less than what the one who
/// asks waits for the status as a whole.
const MEASURE: Duration = Duration::from_secs(1);

/// A provider that the node offers.
pub struct Offer {
    /// Its name.
    pub id: String,
    /// Its class.
    pub class: &'static Class,
    /// What opens its resources.
    pub provider: Arc<dyn Provider>,
}

/// How much a component may take, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Components on the node.
    pub components: usize,
    /// Events that wait for one component.
    pub mailbox: usize,
    /// Lines of log that are kept of each.
    pub log_lines: usize,
    /// How long a stopped component's handler may go on.
    pub grace: Duration,
    /// How often a target may refuse an event that is delivered at least once.
    pub delivery_tries: u32,
}

/// The agent of one node.
pub struct Agent {
    router: Arc<Router>,
    runtimes: Vec<Arc<dyn Runtime>>,
    offers: Vec<Offer>,
    states: StateStore,
    journal: Journal,
    records: Records,
    options: Options,
    cancel: CancellationToken,
    /// Told when events pile up for an instance whose load is reported.
    pressed: Arc<Notify>,
    table: Mutex<Table>,
    /// A start or a stop goes on to its end, also when who asked for it is gone.
    me: Weak<Self>,
}

type Slot = Arc<OnceCell<Arc<Hosted>>>;

/// What a start is known by: a component may have several instances on the node.
type Key = (ComponentId, u32);

/// What an instance that was released had saved, once it has ended.
type Saved = Arc<OnceCell<Option<Bytes>>>;

/// What runs, or is being started.
#[derive(Default)]
struct Table {
    placed: HashMap<Key, (u64, Slot)>,
    running: HashMap<Uuid, Arc<Hosted>>,
    /// What was stopped last, oldest first: a start that was on its way meanwhile comes too late.
    stopped: VecDeque<(Key, u64)>,
    /// What is being released, or was, oldest first.
    released: VecDeque<Release>,
    /// What goes on since the process before, until the orchestrator was asked about it.
    revived: Vec<(ComponentKind, Uuid)>,
    /// What was stopped with the node, and had sent what was not handled.
    unhandled: Vec<Uuid>,
    /// What those had that were replaced, until their place is taken.
    left: HashMap<Key, Bytes>,
}

/// A release, for whoever asks for it again.
struct Release {
    instance: Uuid,
    since: Instant,
    saved: Saved,
}

impl Release {
    fn size(&self) -> usize {
        self.saved.get().and_then(Option::as_ref).map_or(0, Bytes::len)
    }
}

/// How long a node that stops waits for what was sent and must arrive.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// Stops that are remembered.
const STOPPED: usize = 1024;
/// Releases that are remembered: so many, so long, and so many bytes of saved states.
const RELEASED: usize = 1024;
const RELEASED_FOR: Duration = Duration::from_secs(60);
const RELEASED_BYTES: usize = 64 << 20;

impl Table {
    /// The place for what an instance had saved, and whether somebody asked for its release before.
    fn release(&mut self, instance: Uuid) -> (Saved, bool) {
        if let Some(known) = self.released.iter().find(|release| release.instance == instance) {
            return (known.saved.clone(), true);
        }
        let mut bytes: usize = self.released.iter().map(Release::size).sum();
        let mut count = self.released.len();
        self.released.retain(|release| {
            let is_over = count >= RELEASED || bytes > RELEASED_BYTES || release.since.elapsed() >= RELEASED_FOR;
            // One that is under way is waited for.
            if !is_over || !release.saved.initialized() {
                return true;
            }
            bytes -= release.size();
            count -= 1;
            false
        });
        let saved = Saved::default();
        self.released.push_back(Release { instance, since: Instant::now(), saved: saved.clone() });
        (saved, false)
    }
}

impl Agent {
    /// An agent that runs nothing yet, and writes among these records; `cancel` ends what it will run.
    pub fn new(
        router: Arc<Router>,
        runtimes: Vec<Arc<dyn Runtime>>,
        offers: Vec<Offer>,
        states: StateStore,
        records: Records,
        options: Options,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            router,
            runtimes,
            offers,
            states,
            journal: Journal::new(records.clone()),
            records,
            options,
            cancel,
            pressed: Arc::default(),
            table: Mutex::default(),
            me: me.clone(),
        })
    }

    /// Runs something to its end, also when nobody waits for it any more.
    async fn to_its_end<R: Send + 'static, F>(&self, act: impl FnOnce(Arc<Self>) -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<R, Error>> + Send + 'static,
    {
        let me = self.me.upgrade().ok_or_else(|| Error::unavailable("the node is gone"))?;
        tokio::spawn(act(me)).await.map_err(Error::bug)?
    }

    fn table<R>(&self, act: impl FnOnce(&mut Table) -> R) -> R {
        act(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many components run.
    pub fn count(&self) -> usize {
        self.table(|table| table.running.len())
    }

    /// What the instances have to do whose starts asked for it to be reported.
    pub fn loads(&self) -> Vec<InstanceLoad> {
        self.table(|table| table.running.values().filter_map(|hosted| hosted.load()).collect())
    }

    /// All that runs, as it was asked for.
    pub fn report(&self) -> Vec<Running> {
        let running = |hosted: &Arc<Hosted>| {
            let component = hosted.component();
            Running {
                component: component.component,
                replica: component.replica,
                epoch: component.epoch,
                instance: component.id.function,
                kind: component.kind,
                is_active: component.outputs.is_activated(),
            }
        };
        self.table(|table| table.running.values().map(running).collect())
    }

    /// Told when events pile up for one of these instances.
    pub fn pressed(&self) -> &Arc<Notify> {
        &self.pressed
    }

    /// Stops everything that runs.
    pub async fn stop_all(&self, is_reset: bool) {
        let all = self.table(|table| {
            table.placed.clear();
            // Who resets the node begins to count epochs anew.
            table.stopped.clear();
            table.released.clear();
            table.revived.clear();
            std::mem::take(&mut table.running)
        });
        join_all(all.values().map(|hosted| hosted.stop())).await;
        join_all(all.values().map(|hosted| hosted.component().outputs.drained(LAST_EVENTS))).await;
        let is_unhandled = |hosted: &&Arc<Hosted>| hosted.component().outputs.has_unhandled();
        let unhandled = all.values().filter(is_unhandled).map(|hosted| hosted.component().id.function).collect();
        self.table(|table| table.unhandled = unhandled);
        join_all(all.values().map(|hosted| hosted.component().outputs.close(is_reset))).await;
        self.router.clear_rows();
    }

    fn find(&self, instance: Uuid) -> Option<Arc<Hosted>> {
        self.table(|table| table.running.get(&instance).cloned())
    }

    fn find_all(&self, instances: &[Uuid]) -> Vec<Arc<Hosted>> {
        self.table(|table| instances.iter().filter_map(|id| table.running.get(id).cloned()).collect())
    }

    /// The place for a start, and the instance that it replaces.
    fn place(&self, context: &StartContext) -> Result<(Slot, Option<Arc<Hosted>>), Error> {
        let key = (context.component, context.replica);
        self.table(|table| {
            let known = table.placed.get(&key).cloned();
            match known {
                Some((epoch, slot)) if epoch == context.epoch => return Ok((slot, None)),
                Some((epoch, _)) if epoch > context.epoch => {
                    return Err(Error::rejected(format!(
                        "'{}' was placed here again meanwhile: epoch {} is older than {epoch}",
                        context.name, context.epoch
                    )));
                }
                _ => {}
            }
            let stopped = table.stopped.iter().rev().find(|(stopped, _)| *stopped == key);
            if let Some((_, epoch)) = stopped.filter(|(_, epoch)| *epoch >= context.epoch) {
                return Err(Error::rejected(format!(
                    "'{}' was stopped here meanwhile, in epoch {epoch}: place it in a newer one",
                    context.name
                )));
            }
            let replaced = known.and_then(|(_, slot)| slot.get().cloned());
            if let Some(replaced) = &replaced {
                table.running.remove(&replaced.component().id.function);
            } else if table.placed.len() >= self.options.components {
                return Err(Error::exhausted(format!(
                    "the node runs {} components, the limit is limits.components",
                    table.placed.len()
                )));
            }
            let slot = Slot::default();
            table.placed.insert(key, (context.epoch, slot.clone()));
            Ok((slot, replaced))
        })
    }

    /// Forgets a start that failed, unless another took its place.
    fn vacate(&self, key: Key, slot: &Slot) {
        self.table(|table| {
            if table.placed.get(&key).is_some_and(|(_, known)| Arc::ptr_eq(known, slot)) {
                table.placed.remove(&key);
            }
        });
    }

    async fn create(&self, spec: ComponentSpec, context: &StartContext, is_untold: bool) -> Result<Arc<Hosted>, Error> {
        let id = InstanceId::random(self.router.node());
        let (past, state) = match context.state.clone() {
            Some(belongings) => Past::of(Belongings::decode(belongings)?),
            None => (Past::default(), None),
        };
        let context = &StartContext { state, ..context.clone() };
        let changes = past.changes(id.function.as_bytes());
        let is_kept = !changes.is_empty();
        if is_kept {
            self.records.write(changes).await?;
        }
        let record = (!is_untold).then(|| record(&spec, context, id));
        let made = self.make(id, spec, context, past, is_untold).await;
        if made.is_err() && is_kept {
            delivery::past::forget(&self.records, id.function.as_bytes()).await?;
        }
        let hosted = made?;
        if let Some(record) = record
            && let Err(error) = self.journal.add(record).await
        {
            hosted.stop().await;
            return Err(error.context("cannot write down what was started"));
        }
        Ok(hosted)
    }

    async fn make(
        &self,
        id: InstanceId,
        spec: ComponentSpec,
        context: &StartContext,
        past: Past,
        is_untold: bool,
    ) -> Result<Arc<Hosted>, Error> {
        let (component, factory) = self.prepare(id, spec, context, past, is_untold).await?;
        Ok(Arc::new(host(component, factory, self.router.clone(), self.options.grace).await?))
    }

    /// What hosting it takes.
    async fn prepare(
        &self,
        id: InstanceId,
        spec: ComponentSpec,
        context: &StartContext,
        past: Past,
        is_untold: bool,
    ) -> Result<(Component, Factory), Error> {
        let deliveries = Deliveries::parse(spec.annotations()).map_err(Error::rejected)?;
        let cancel = self.cancel.child_token();
        let samples = self.router.metrics().samples().clone();
        let log = Log::new(&context.name, self.options.log_lines).with_samples(id.function, samples);
        let outputs = Outputs::new(id, self.router.clone(), cancel.clone());
        outputs.keep(Custody::new(
            id,
            self.records.clone(),
            deliveries,
            self.options.delivery_tries,
            past,
            outputs.ledger(),
        ));
        let base = Context {
            id,
            component: context.component,
            workflow: spec.workflow(),
            name: context.name.clone(),
            outputs,
            state: State::none(),
            log,
            cancel,
        };
        let (component, factory) = match spec {
            ComponentSpec::Function(spec) => self.function(spec, context, base, is_untold).await?,
            ComponentSpec::Resource(spec) => self.resource(spec, context, base)?,
        };
        Ok((Component { is_untold, ..component }, factory))
    }

    async fn function(
        &self,
        spec: FunctionSpec,
        context: &StartContext,
        mut base: Context,
        is_untold: bool,
    ) -> Result<(Component, Factory), Error> {
        let kind = spec.class.function_type.clone();
        let runtime = self.runtimes.iter().find(|runtime| runtime.kind() == kind).ok_or_else(|| {
            let known: Vec<_> = self.runtimes.iter().map(|runtime| runtime.kind()).collect();
            Error::rejected(format!("this node does not run {kind}; it runs: {}", known.join(", ")))
        })?;
        // An EDGELESS 1.2 orchestrator counts no epochs.
        base.state = self.states.state(&spec.state, base.component, (!is_untold).then_some(context.epoch)).await?;
        if let Some(moved) = &context.state {
            // Whatever is stored here is older: the component has run elsewhere since.
            base.state = base.state.moved(moved.clone()).await?;
        }
        let program = runtime.load(spec).await?;
        let component = Component {
            controls: program.controls(),
            ..self.component(context, &base, ComponentKind::Function, &kind, program.max_in_flight(), None)
        };
        let factory: Factory = Box::new(move |token| {
            let (program, context) = (program.clone(), incarnation(&base, token));
            Box::pin(async move { program.instantiate(context).await })
        });
        Ok((component, factory))
    }

    fn resource(
        &self,
        spec: ResourceSpec,
        context: &StartContext,
        base: Context,
    ) -> Result<(Component, Factory), Error> {
        let of_class = |offer: &&Offer| offer.class.class_type == spec.class_type;
        let wanted = |offer: &&Offer| context.provider.is_empty() || offer.id == context.provider;
        let offer = self.offers.iter().find(|offer| of_class(offer) && wanted(offer)).ok_or_else(|| {
            let known: Vec<_> = self.offers.iter().map(|offer| offer.class.class_type).collect();
            Error::rejected(format!("this node does not offer {}; it offers: {}", spec.class_type, known.join(", ")))
        })?;
        let class = offer.class;
        let limit = Some(self.router.options().call_timeout);
        let component =
            self.component(context, &base, ComponentKind::Resource, class.class_type, class.max_in_flight, limit);
        let (provider, spec) = (offer.provider.clone(), Arc::new(spec));
        let factory: Factory = Box::new(move |token| {
            let (provider, spec, context) = (provider.clone(), spec.clone(), incarnation(&base, token));
            Box::pin(async move { provider.open(&spec, context).await })
        });
        Ok((component, factory))
    }

    fn component(
        &self,
        context: &StartContext,
        base: &Context,
        kind: ComponentKind,
        metrics_type: &str,
        max_in_flight: usize,
        handler_limit: Option<Duration>,
    ) -> Component {
        Component {
            id: base.id,
            component: context.component,
            replica: context.replica,
            epoch: context.epoch,
            name: context.name.clone(),
            kind,
            max_in_flight,
            handler_limit,
            mailbox: self.options.mailbox,
            outputs: base.outputs.clone(),
            log: base.log.clone(),
            state: base.state.clone(),
            controls: None,
            metrics_type: metrics_type.to_string(),
            queued: self.router.options().queued,
            is_untold: false,
            pressed: context.reports_load.then(|| self.pressed.clone()),
            cancel: base.cancel.clone(),
            node: self.cancel.clone(),
        }
    }

    /// Removes an instance from the table, so that nobody finds it any more.
    fn take(&self, kind: ComponentKind, instance: Uuid) -> Result<Option<Arc<Hosted>>, Error> {
        self.table(|table| {
            let Some(hosted) = table.running.get(&instance) else { return Ok(None) };
            let component = hosted.component();
            if component.kind != kind {
                return Err(Error::rejected(format!("{instance} is a {}, not a {kind}", component.kind)));
            }
            let (key, epoch) = ((component.component, component.replica), component.epoch);
            if table.placed.get(&key).is_some_and(|(placed, _)| *placed == epoch) {
                table.placed.remove(&key);
            }
            if table.stopped.len() >= STOPPED {
                table.stopped.pop_front();
            }
            table.stopped.push_back((key, epoch));
            Ok(table.running.remove(&instance))
        })
    }
}

/// What the journal says of something that was just started.
fn record(spec: &ComponentSpec, context: &StartContext, id: InstanceId) -> InstanceRecord {
    // What it came with was saved by then, and is replaced by what it saves itself.
    let is_saved = matches!(spec, ComponentSpec::Function(spec) if spec.state.policy != StatePolicy::Transient);
    let state = context.state.clone().filter(|_| !is_saved);
    InstanceRecord {
        spec: spec.clone(),
        context: StartContext { state, ..context.clone() },
        instance: id.function,
        outputs: BTreeMap::new(),
        is_active: false,
    }
}

/// Says if the state of a component could not be removed.
async fn forgotten(hosted: &Hosted, removal: impl Future<Output = Result<(), Error>>) {
    if let Err(error) = removal.await {
        tracing::warn!(name = %hosted.component().name, %error, "a state could not be removed");
    }
}

/// The same context for one incarnation of the instance.
fn incarnation(base: &Context, token: CancellationToken) -> Context {
    Context { outputs: base.outputs.until(token.clone()), cancel: token, ..base.clone() }
}

impl Agent {
    async fn start_now(self: Arc<Self>, start: Start) -> Result<ComponentRef, Error> {
        let is_untold = start.context.is_none();
        let kind = start.spec.kind();
        let context = start.context.unwrap_or_else(|| {
            let name = match &start.spec {
                ComponentSpec::Function(spec) => &spec.class.id,
                ComponentSpec::Resource(spec) => &spec.class_type,
            };
            StartContext::new(ComponentId::random(), 0, name)
        });
        let (slot, replaced) = self.place(&context)?;
        // Whoever repeats the request while it is under way waits for the same result.
        let created = slot.get_or_try_init(|| async {
            let mut context = context.clone();
            let key = (context.component, context.replica);
            if let Some(replaced) = &replaced {
                replaced.stop().await;
                let belongings = replaced.component().outputs.pack(None).await;
                self.table(|table| {
                    if table.left.len() < STOPPED {
                        table.left.extend(belongings.map(|belongings| (key, belongings)));
                    }
                });
            }
            // Unless it comes from elsewhere, the new one goes on where the old one ends, once it can be made.
            context.state = context.state.or_else(|| self.table(|table| table.left.get(&key).cloned()));
            let created = self.create(start.spec, &context, is_untold).await;
            if created.is_ok() {
                self.table(|table| table.left.remove(&key));
            }
            if let Some(replaced) = replaced.as_ref().filter(|_| created.is_ok()) {
                self.strike(replaced).await;
                self.forget_events(replaced);
            }
            created
        });
        let hosted = match created.await {
            Ok(hosted) => hosted.clone(),
            Err(error) => {
                self.vacate((context.component, context.replica), &slot);
                // Whoever starts it sends the code along next.
                if error.code != Code::NeedsCode {
                    tracing::warn!(name = %context.name, %error, "a component could not be started");
                }
                return Err(error);
            }
        };
        let id = hosted.component().id;
        let kept = self.table(|table| {
            let key = (context.component, context.replica);
            let current = table.placed.get(&key).is_some_and(|(_, known)| Arc::ptr_eq(known, &slot));
            if current {
                table.running.insert(id.function, hosted.clone());
            }
            current
        });
        if !kept {
            hosted.stop().await;
            self.strike(&hosted).await;
            self.forget_events(&hosted);
            return Err(Error::unavailable(format!("'{}' was stopped while it was being started", context.name)));
        }
        tracing::info!(name = %context.name, instance = %id.function, "{kind} created and initialised");
        if is_untold {
            tokio::spawn(async move {
                let component = hosted.component();
                if component.cancel.run_until_cancelled(tokio::time::sleep(UNTOLD_ACTIVATION)).await.is_some() {
                    component.outputs.activate();
                }
            });
        }
        Ok(ComponentRef::Instance(id))
    }

    async fn limits_now(self: Arc<Self>, id: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let hosted = self.find(id).ok_or_else(|| Error::not_found(format!("no instance {id} runs here")))?;
        let component = hosted.component();
        let Some(controls) = &component.controls else {
            return Err(without_limits(&component.name, component.kind, &component.metrics_type));
        };
        if changes.is_empty() {
            return Ok(controls.limits().await);
        }
        let limits = controls.set_limits(&changes).await?;
        self.journal.limit(id, &changes).await?;
        tracing::info!(name = %component.name, instance = %id, ?changes, "limits changed");
        Ok(limits)
    }

    /// The next process does not go on with it.
    async fn strike(&self, hosted: &Hosted) {
        let component = hosted.component();
        if let Err(error) = self.journal.remove(component.id.function).await {
            tracing::warn!(name = %component.name, %error, "it could not be written down that a component was stopped");
        }
    }

    /// Removes what is kept of a component that is stopped.
    async fn forget(&self, hosted: &Hosted) {
        self.forget_events(hosted);
        tokio::join!(self.strike(hosted), forgotten(hosted, self.states.forget(&hosted.component().state)));
    }

    /// Removes what is kept of its events, once they are handled: that may take a while.
    fn forget_events(&self, hosted: &Hosted) {
        let (outputs, node) = (hosted.component().outputs.clone(), self.cancel.clone());
        self.router.spawn(async move {
            node.run_until_cancelled(outputs.forget_events()).await;
        });
    }

    /// Removes what is kept here of a component that has moved.
    async fn hand_over(&self, hosted: &Hosted) {
        self.forget_events(hosted);
        tokio::join!(self.strike(hosted), forgotten(hosted, self.states.hand_over(&hosted.component().state)));
    }

    async fn release_now(self: Arc<Self>, id: Uuid, grace: Duration) -> Result<Option<Bytes>, Error> {
        let (saved, hosted) = self.table(|table| {
            let hosted = table.running.get(&id).cloned();
            let is_known = hosted.is_some() || table.released.iter().any(|release| release.instance == id);
            (is_known.then(|| table.release(id).0), hosted)
        });
        let saved = saved.ok_or_else(|| Error::not_found(format!("no instance {id} runs here")))?;
        let release = async || {
            // What was stopped meanwhile has no state any more.
            let Some(hosted) = hosted else { return Ok::<_, Error>(None) };
            hosted.release(grace).await;
            let component = hosted.component();
            let state = component.state.load().await?;
            // Where one without a state runs next it runs already, and takes nothing along: this one sends the rest.
            let state = if component.state.is_anywhere() { component.outputs.pack(state).await } else { state };
            // It is found until here, so that its outputs can be changed.
            self.take(component.kind, id)?;
            self.hand_over(&hosted).await;
            if let Some(controls) = &component.controls {
                controls.forget().await;
            }
            tracing::info!(name = %component.name, instance = %id, "{} released", component.kind);
            Ok(state)
        };
        let released = saved.get_or_try_init(release).await.cloned();
        if released.is_err() {
            // It may be asked for again, and begins anew then.
            self.table(|table| table.released.retain(|release| release.instance != id));
        }
        released
    }

    async fn stop_now(self: Arc<Self>, kind: ComponentKind, id: InstanceId) -> Result<(), Error> {
        if let Some(hosted) = self.take(kind, id.function)? {
            hosted.stop().await;
            self.forget(&hosted).await;
            if let Some(controls) = &hosted.component().controls {
                controls.forget().await;
            }
            tracing::info!(name = %hosted.component().name, instance = %id.function, "{kind} stopped");
        }
        Ok(())
    }
}

#[async_trait]
impl Components for Agent {
    async fn start(&self, start: Start) -> Result<ComponentRef, Error> {
        self.to_its_end(|me| me.start_now(start)).await
    }

    async fn stop(&self, kind: ComponentKind, id: ComponentRef) -> Result<(), Error> {
        let ComponentRef::Instance(id) = id else {
            return Err(Error::rejected("a node stops instances, not components: send an instance_id"));
        };
        if id.node != self.router.node() {
            return Err(Error::rejected(format!("this is {:?}, the instance is on {:?}", self.router.node(), id.node)));
        }
        self.to_its_end(|me| me.stop_now(kind, id)).await
    }

    async fn patch(&self, kind: ComponentKind, patch: Patch) -> Result<(), Error> {
        let hosted = self.find(patch.id).filter(|hosted| hosted.component().kind == kind);
        let hosted = hosted.ok_or_else(|| Error::not_found(format!("no {kind} {} runs here", patch.id)))?;
        let outputs: Vec<_> = patch.outputs.keys().cloned().collect();
        hosted.set_outputs(patch.outputs.clone());
        tracing::debug!(name = %hosted.component().name, ?outputs, "outputs set");
        if hosted.component().is_untold {
            hosted.component().outputs.activate();
        }
        self.journal.set_outputs(patch.id, &patch.outputs).await
    }

    async fn activate(&self, ids: Vec<Uuid>) -> Result<(), Error> {
        let found = self.find_all(&ids);
        for hosted in &found {
            hosted.component().outputs.activate();
        }
        let active: Vec<Uuid> = found.iter().map(|hosted| hosted.component().id.function).collect();
        self.journal.activate(&active).await?;
        match ids.len() - found.len() {
            0 => Ok(()),
            missing => Err(Error::not_found(format!("{missing} of {} instances do not run here", ids.len()))),
        }
    }

    async fn status(&self, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        let deadline = tokio::time::Instant::now() + MEASURE;
        Ok(join_all(self.find_all(&ids).iter().map(|hosted| hosted.status_in_full(deadline))).await)
    }

    async fn limits(&self, id: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error> {
        self.to_its_end(move |me| me.limits_now(id, changes)).await
    }

    async fn release(&self, instance: Uuid, grace: Duration) -> Result<Option<Bytes>, Error> {
        self.to_its_end(move |me| me.release_now(instance, grace)).await
    }

    async fn dead_letters(&self, ids: Vec<Uuid>, most: usize) -> Result<DeadLetters, Error> {
        dead::letters(&self.find_all(&ids), most).await
    }

    async fn resolve_dead(&self, ids: Vec<Uuid>, letters: Letters, treatment: Treatment) -> Result<Resolved, Error> {
        let found = self.find_all(&ids);
        self.to_its_end(move |_| async move { Ok(dead::resolve(&found, letters, treatment).await) }).await
    }

    async fn set_rows(&self, mut rows: Vec<Row>) -> Result<(), Error> {
        rows.retain(|row| self.router.update_row(row.clone()));
        self.journal.set_rows(&rows, |component| self.router.is_needed(component)).await
    }

    async fn logs(&self, ids: Vec<Uuid>, follow: bool) -> Result<Values<LogLine>, Error> {
        let mut kept = Vec::new();
        let mut live = Vec::new();
        for hosted in self.find_all(&ids) {
            let (lines, receiver) = hosted.component().log.follow();
            kept.extend(lines);
            // A follower that is too slow misses lines.
            let lines = BroadcastStream::new(receiver).filter_map(|line| async move { line.ok().map(Ok) });
            // Also what its stop handler says.
            live.push(lines.take_until(hosted.ended()).boxed());
        }
        kept.sort_by_key(|line| line.at);
        let kept = stream::iter(kept.into_iter().map(Ok));
        if follow { Ok(Box::pin(kept.chain(stream::select_all(live)))) } else { Ok(Box::pin(kept)) }
    }
}

#[async_trait]
impl NodeManagement for Agent {
    async fn update_peers(&self, update: PeerUpdate) -> Result<(), Error> {
        match update {
            PeerUpdate::Add(node, url) => self.router.add_peer(node, &url)?,
            PeerUpdate::Remove(node) => self.router.remove_peer(node),
            PeerUpdate::Clear => self.router.clear_peers(),
        }
        Ok(())
    }

    async fn reset(&self) -> Result<(), Error> {
        if self.count() > 0 {
            tracing::info!("reset by the orchestrator: stopping everything that runs here");
        }
        self.stop_all(true).await;
        self.journal.clear(&[]).await?;
        delivery::past::forget_all(&self.records).await?;
        self.states.forget_all().await
    }
}

/// What the node offers, as it announces it.
pub fn provider_specs(offers: &[Offer]) -> Vec<edgeless_api::node::ProviderSpec> {
    let spec = |offer: &Offer| edgeless_api::node::ProviderSpec {
        id: offer.id.clone(),
        class_type: offer.class.class_type.to_string(),
        outputs: offer.class.outputs.iter().map(ToString::to_string).collect(),
    };
    offers.iter().map(spec).collect()
}
