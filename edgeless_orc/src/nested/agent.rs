//! Takes the commands of the parent: what it starts here becomes a component of the domain.
//!
//! The parent knows what it started by instances of the node that the domain is; their ids are aliases at
//! the forwarder, a new one for each start, so that what is late about an older start meets nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, Patch, Row, Start, StartContext, Target,
};
use edgeless_api::dead::{DeadLetter, DeadLetters, Letters, Resolved, Treatment};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId, InstanceId};
use edgeless_api::node::{InstanceLoad, PeerUpdate};
use edgeless_api::server::{Components, NodeManagement, Values};
use edgeless_api::status::{ComponentStatus, Limit, LogLine};
use edgeless_daemon::turns::Turns;
use uuid::Uuid;

use super::aggregate::{component_of, within};
use crate::engine::Event;
use crate::forwarder::{Forwarder, readdress};
use crate::service::Service;

/// Stops and releases that are remembered: a start that was on its way meanwhile comes too late.
const STOPPED: usize = 1024;
/// When what a parent of EDGELESS 1.x started emits even without a patch.
const UNTOLD: Duration = Duration::from_secs(1);
/// How long a reset waits until everything is gone.
const GONE: Duration = Duration::from_secs(5);
/// How soon that is seen.
const LOOK: Duration = Duration::from_millis(20);

/// A replica of a component of the parent.
type Key = (ComponentId, u32);
/// What outputs lead to.
type Outputs = BTreeMap<String, Target>;

/// Something that the parent started.
#[derive(Clone, Debug)]
struct Started {
    epoch: u64,
    kind: ComponentKind,
    /// What the parent knows it by.
    alias: Uuid,
    /// What it is here.
    own: ComponentId,
    reports_load: bool,
    /// A parent of EDGELESS 1.x does not say when it shall emit: its first patch does, or a second.
    is_untold: bool,
    /// As the parent said it last.
    outputs: Option<Outputs>,
}

#[derive(Debug)]
struct Book {
    /// Drawn with each reset.
    generation: u64,
    started: BTreeMap<Key, Started>,
    keys: BTreeMap<Uuid, Key>,
    stopped: VecDeque<(Key, u64)>,
    /// What the parent has released, by alias: it may not have heard the state.
    left: VecDeque<(Uuid, ComponentId)>,
}

impl Book {
    fn new() -> Self {
        Self {
            generation: rand::random(),
            started: BTreeMap::new(),
            keys: BTreeMap::new(),
            stopped: VecDeque::new(),
            left: VecDeque::new(),
        }
    }

    fn by_alias(&self, alias: Uuid) -> Option<(Key, &Started)> {
        let key = self.keys.get(&alias)?;
        Some((*key, self.started.get(key)?))
    }

    /// What a start of the parent is here; with the alias, if it was started before.
    fn judge(&self, key: Key, epoch: u64, name: &str) -> Result<(ComponentId, Option<Uuid>), Error> {
        match self.started.get(&key) {
            Some(known) if known.epoch == epoch => return Ok((known.own, Some(known.alias))),
            Some(known) if known.epoch > epoch => {
                return Err(Error::rejected(format!(
                    "'{name}' was placed here again meanwhile: epoch {epoch} is older than {}",
                    known.epoch
                )));
            }
            Some(known) => return Ok((known.own, None)),
            None => {}
        }
        let stopped = self.stopped.iter().rev().find(|(stopped, _)| *stopped == key);
        if let Some((_, stopped)) = stopped.filter(|(_, stopped)| *stopped >= epoch) {
            return Err(Error::rejected(format!(
                "'{name}' was stopped here meanwhile, in epoch {stopped}: place it in a newer one"
            )));
        }
        Ok((component_of(key.0, key.1, self.generation), None))
    }

    /// Takes note of a start, and tells the alias of the one that it replaces.
    fn enter(&mut self, key: Key, started: Started) -> Option<Uuid> {
        self.keys.insert(started.alias, key);
        let replaced = self.started.insert(key, started)?;
        self.keys.remove(&replaced.alias);
        Some(replaced.alias)
    }

    fn forget(&mut self, alias: Uuid) {
        let Some(key) = self.keys.remove(&alias) else { return };
        let Some(started) = self.started.remove(&key) else { return };
        if self.stopped.len() >= STOPPED {
            self.stopped.pop_front();
        }
        self.stopped.push_back((key, started.epoch));
    }

    /// Takes note of a release.
    fn leave(&mut self, alias: Uuid) {
        let Some(own) = self.by_alias(alias).map(|(_, started)| started.own) else { return };
        self.forget(alias);
        if self.left.len() >= STOPPED {
            self.left.pop_front();
        }
        self.left.push_back((alias, own));
    }

    /// What was released by this alias, and was not started again since.
    fn left(&self, alias: Uuid) -> Option<ComponentId> {
        let (_, own) = self.left.iter().rev().find(|(left, _)| *left == alias)?;
        self.started.values().all(|started| started.own != *own).then_some(*own)
    }

    /// The component of the domain that a row of the parent means, if it means one and nothing else.
    fn own(&self, instances: &[InstanceId], me: edgeless_api::NodeId) -> Option<ComponentId> {
        match instances {
            [only] if only.node == me => self.by_alias(only.function).map(|(_, started)| started.own),
            _ => None,
        }
    }

    /// Those whose outputs lead elsewhere by newer rows, and their outputs then.
    fn moved(&self, rows: &[Row]) -> Vec<(Started, Outputs)> {
        let moved = |started: &Started| {
            let before = started.outputs.as_ref()?;
            let target = |target: &Target| match target {
                Target::Row(known) => {
                    let newer = |row: &&Row| row.component == known.component && row.epoch >= known.epoch;
                    Target::Row(rows.iter().find(newer).unwrap_or(known).clone())
                }
                other => other.clone(),
            };
            let after: Outputs = before.iter().map(|(channel, to)| (channel.clone(), target(to))).collect();
            (after != *before).then(|| (started.clone(), after))
        };
        self.started.values().filter_map(moved).collect()
    }

    /// What a start was told last about its outputs.
    fn set_outputs(&mut self, alias: Uuid, outputs: Outputs) {
        let key = self.keys.get(&alias);
        if let Some(started) = key.and_then(|key| self.started.get_mut(key)) {
            started.outputs = Some(outputs);
        }
    }
}

/// The node that the domain is to its parent.
pub(crate) struct Agent {
    service: Arc<Service>,
    forwarder: Arc<Forwarder>,
    domain: DomainId,
    book: Mutex<Book>,
    turns: Turns<Key>,
    /// A start goes on to its end, also when the parent does not wait for it any more.
    this: Weak<Self>,
}

impl Agent {
    pub(crate) fn new(service: Arc<Service>, forwarder: Arc<Forwarder>, domain: DomainId) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            service,
            forwarder,
            domain,
            book: Mutex::new(Book::new()),
            turns: Turns::default(),
            this: this.clone(),
        })
    }

    fn book<R>(&self, act: impl FnOnce(&mut Book) -> R) -> R {
        act(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the parent started, by what it knows it by.
    fn started(&self, alias: Uuid) -> Result<(Key, Started), Error> {
        self.book(|book| book.by_alias(alias).map(|(key, started)| (key, started.clone())))
            .ok_or_else(|| Error::not_found(format!("{alias} does not run in domain '{}'", self.domain)))
    }

    fn all_started(&self, aliases: &[Uuid]) -> Vec<(Key, Started)> {
        aliases.iter().filter_map(|alias| self.started(*alias).ok()).collect()
    }

    fn instance(&self, alias: Uuid) -> InstanceId {
        InstanceId { node: self.forwarder.node(), function: alias }
    }

    async fn start_now(self: Arc<Self>, start: Start) -> Result<ComponentRef, Error> {
        let kind = start.spec.kind();
        let is_untold = start.context.is_none();
        let context = start.context.unwrap_or_else(|| {
            let name = match &start.spec {
                ComponentSpec::Function(function) => &function.class.id,
                ComponentSpec::Resource(resource) => &resource.class_type,
            };
            StartContext::new(ComponentId::random(), 0, name)
        });
        let key = (context.component, context.replica);
        let _turn = self.turns.turn(key).await;
        let (own, known) = self.book(|book| book.judge(key, context.epoch, &context.name))?;
        if let Some(alias) = known {
            return Ok(ComponentRef::Instance(self.instance(alias)));
        }
        let (epoch, reports_load) = (context.epoch, context.reports_load);
        let context =
            StartContext { component: own, provider: String::new(), replica: 0, reports_load: false, ..context };
        let spec = within(&self.domain, start.spec);
        let generation = self.book(|book| book.generation);
        self.service.begin(Start { spec, context: Some(context) }).await?;
        let alias = self.forwarder.table(|table, now| table.start(now, own));
        let instance = self.instance(alias);
        let started = Started { epoch, kind, alias, own, reports_load, is_untold, outputs: None };
        let replaced = self.book(|book| (book.generation == generation).then(|| book.enter(key, started)));
        match replaced {
            Some(replaced) => {
                if let Some(replaced) = replaced {
                    self.forwarder.table(|table, _| table.remove(replaced));
                }
                if is_untold {
                    tokio::spawn(async move {
                        tokio::time::sleep(UNTOLD).await;
                        self.service.open(vec![own]).await.ok();
                    });
                }
                Ok(ComponentRef::Instance(instance))
            }
            None => {
                self.forwarder.table(|table, _| table.remove(alias));
                self.service.halt(kind, own).await?;
                Err(Error::unavailable("everything was stopped meanwhile: try again"))
            }
        }
    }

    /// Outputs of the parent as the domain shall see them.
    fn translated(&self, outputs: &Outputs) -> Result<Outputs, Error> {
        let me = self.forwarder.node();
        let target = |(channel, target): (&String, &Target)| {
            let row = match target {
                Target::Row(row) => row.clone(),
                Target::Instance(instance) => Row::new(ComponentId(instance.function), 0, vec![*instance]),
                Target::Component(_) => {
                    return Err(Error::rejected(format!(
                        "output '{channel}' leads to a component: a node takes rows and instances"
                    )));
                }
            };
            let row = self.forwarder.table(|table, _| table.newest(row));
            let target = match self.book(|book| book.own(&row.instances, me)) {
                Some(own) => Target::Component(own),
                None => {
                    let url = self.forwarder.url().clone();
                    Target::Row(self.forwarder.table(|table, now| readdress::incoming(table, now, &url, row)))
                }
            };
            Ok((channel.clone(), target))
        };
        outputs.iter().map(target).collect()
    }

    async fn wire(&self, started: &Started, outputs: &Outputs) -> Result<(), Error> {
        let outputs = self.translated(outputs)?;
        self.service.wire(started.kind, Patch::new(started.own.0, outputs)).await
    }

    /// What those have to do whose starts asked for it.
    pub(crate) async fn loads(&self) -> Result<Vec<InstanceLoad>, Error> {
        let reporting: BTreeMap<ComponentId, Uuid> = self.book(|book| {
            book.started.values().filter(|one| one.reports_load).map(|one| (one.own, one.alias)).collect()
        });
        if reporting.is_empty() {
            return Ok(Vec::new());
        }
        let statuses = self.service.status(reporting.keys().map(|own| own.0).collect()).await?;
        let load = |status: ComponentStatus| {
            let queued: u64 = status.instances.iter().map(|one| one.queued).sum();
            let instance = *reporting.get(&status.component)?;
            let queued = u32::try_from(queued).unwrap_or(u32::MAX);
            Some(InstanceLoad { instance, queued, handled: status.handled })
        };
        Ok(statuses.into_iter().filter_map(load).collect())
    }

    /// Stops everything that the parent started, and waits a while until it is gone.
    pub(crate) async fn stop_all(&self) -> Result<(), Error> {
        let before = self.book(|book| std::mem::replace(book, Book::new()));
        self.forwarder.table(|table, _| table.clear());
        self.service.done(Event::StopAll).await?;
        let owns: Vec<Uuid> = before.started.values().map(|started| started.own.0).collect();
        let gone = async {
            while self.service.is_any_left(&owns).await {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(GONE, gone).await.is_err() {
            tracing::warn!("the parent wants everything stopped, and not everything has stopped yet");
        }
        Ok(())
    }
}

#[async_trait]
impl Components for Agent {
    async fn start(&self, start: Start) -> Result<ComponentRef, Error> {
        let this = self.this.upgrade().ok_or_else(|| Error::unavailable("shutting down"))?;
        tokio::spawn(this.start_now(start)).await.map_err(Error::bug)?
    }

    async fn stop(&self, kind: ComponentKind, id: ComponentRef) -> Result<(), Error> {
        let alias = match id {
            ComponentRef::Instance(instance) if instance.node == self.forwarder.node() => instance.function,
            ComponentRef::Instance(instance) => {
                return Err(Error::rejected(format!(
                    "this is {:?}, {instance} is of another node",
                    self.forwarder.node()
                )));
            }
            ComponentRef::Component(id) => {
                return Err(Error::rejected(format!("{id} is a component: a node knows instances")));
            }
        };
        let Ok((_, started)) = self.started(alias) else { return Ok(()) };
        self.service.halt(kind, started.own).await?;
        self.book(|book| book.forget(alias));
        self.forwarder.table(|table, _| table.remove(alias));
        Ok(())
    }

    async fn patch(&self, kind: ComponentKind, patch: Patch) -> Result<(), Error> {
        let (_, started) = self.started(patch.id)?;
        if started.kind != kind {
            return Err(Error::rejected(format!("{} is a {}, not a {kind}", patch.id, started.kind)));
        }
        self.wire(&started, &patch.outputs).await?;
        self.book(|book| book.set_outputs(patch.id, patch.outputs));
        if started.is_untold {
            self.service.open(vec![started.own]).await?;
        }
        Ok(())
    }

    async fn activate(&self, ids: Vec<Uuid>) -> Result<(), Error> {
        let owns: Result<Vec<_>, Error> = ids.iter().map(|alias| Ok(self.started(*alias)?.1.own)).collect();
        self.service.open(owns?).await
    }

    async fn status(&self, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        let started: BTreeMap<_, _> =
            self.all_started(&ids).into_iter().map(|(key, started)| (started.own, (key, started))).collect();
        let statuses = self.service.status(started.keys().map(|own| own.0).collect()).await?;
        let translated = |status: ComponentStatus| {
            let ((component, _), started) = started.get(&status.component)?;
            let instance = Some(self.instance(started.alias));
            Some(ComponentStatus { component: *component, epoch: started.epoch, instance, instances: vec![], ..status })
        };
        Ok(statuses.into_iter().filter_map(translated).collect())
    }

    async fn logs(&self, ids: Vec<Uuid>, follow: bool) -> Result<Values<LogLine>, Error> {
        let owns = self.all_started(&ids).into_iter().map(|(_, started)| started.own.0).collect();
        self.service.logs(owns, follow).await
    }

    async fn limits(&self, id: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let (_, started) = self.started(id)?;
        self.service.limits(started.own.0, changes).await
    }

    async fn dead_letters(&self, ids: Vec<Uuid>, most: usize) -> Result<DeadLetters, Error> {
        let started: BTreeMap<_, _> =
            self.all_started(&ids).into_iter().map(|((component, _), started)| (started.own, component)).collect();
        let list = self.service.dead_letters(started.keys().map(|own| own.0).collect(), most).await?;
        let translated = |letter: DeadLetter| {
            let component = *started.get(&letter.component)?;
            Some(DeadLetter { component, ..letter })
        };
        Ok(DeadLetters { letters: list.letters.into_iter().filter_map(translated).collect(), ..list })
    }

    async fn resolve_dead(&self, ids: Vec<Uuid>, letters: Letters, treatment: Treatment) -> Result<Resolved, Error> {
        let owns = self.all_started(&ids).into_iter().map(|(_, started)| started.own.0).collect();
        self.service.resolve_dead(owns, letters, treatment).await
    }

    async fn release(&self, instance: Uuid, grace: Duration) -> Result<Option<Bytes>, Error> {
        let (key, started) = match (self.started(instance), self.book(|book| book.left(instance))) {
            (Ok(found), _) => found,
            (Err(_), Some(own)) => return self.service.hand_over(own, grace).await,
            (Err(unknown), None) => return Err(unknown),
        };
        // What still comes goes where the component runs now, as far as the parent said.
        self.forwarder.table(|table, now| table.lead_away(now, instance, key.0));
        let released = self.service.hand_over(started.own, grace).await;
        match &released {
            Err(error) if error.code != Code::NotFound => {
                self.forwarder.table(|table, now| table.restart(now, instance, started.own));
            }
            Ok(_) | Err(_) => self.book(|book| book.leave(instance)),
        }
        released
    }

    async fn set_rows(&self, rows: Vec<Row>) -> Result<(), Error> {
        let is_here = |book: &Book, row: &Row| book.started.keys().any(|(component, _)| *component == row.component);
        for row in &rows {
            if self.book(|book| is_here(book, row)) || self.forwarder.table(|table, _| table.knows(row.component)) {
                self.forwarder.table(|table, _| table.set_row(row.clone()));
            }
        }
        for (started, outputs) in self.book(|book| book.moved(&rows)) {
            self.wire(&started, &outputs).await?;
            self.book(|book| book.set_outputs(started.alias, outputs));
        }
        Ok(())
    }
}

#[async_trait]
impl NodeManagement for Agent {
    async fn update_peers(&self, update: PeerUpdate) -> Result<(), Error> {
        match update {
            PeerUpdate::Add(node, url) => self.forwarder.table(|table, _| table.tell_address(node, Some(url))),
            PeerUpdate::Remove(node) => self.forwarder.lose_node(node).await,
            PeerUpdate::Clear => self.forwarder.table(|table, _| table.clear_addresses()),
        }
        Ok(())
    }

    async fn reset(&self) -> Result<(), Error> {
        self.forwarder.table(|table, _| table.clear_addresses());
        self.stop_all().await
    }
}
