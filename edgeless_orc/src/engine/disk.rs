//! What of the engine outlives the process: an image of each thing that must not be forgotten.
//!
//! ```text
//!  event -> steps -> images that differ from the last ones -> Persist -> Persisted -> what was held goes out
//!                      \ answers, and calls that start or end something: held
//! ```
//! An answer, a start or an end leaves once everything that was decided up to then is on the disk. There is one write
//! at a time, and what changes meanwhile is one more. A write that fails is tried again after a pause; whoever waits
//! for an answer is told why, and what never ran is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::component::{ComponentSpec, StartContext};
use edgeless_api::domain_record as record;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::ComponentId;
use edgeless_api::{Binary, Digest};
use edgeless_daemon::engine::Millis;
use edgeless_daemon::store::{Change, Table};
use uuid::Uuid;

use super::component::Component;
use super::slot::{Fate, Place, Slot};
use super::{Call, Effect, Engine, Job, Op, Reply, Thing};

/// Components by their id.
pub(crate) const COMPONENTS: Table = "components";
/// Code by its digest.
pub(crate) const CODE: Table = "code";
/// What has left for other domains, by its id.
pub(crate) const LEFT: Table = "left";
/// What is gone, by its id.
pub(crate) const GONE: Table = "gone";
/// Nodes by their id.
pub(crate) const NODES: Table = "nodes";
/// Rows of components of other domains, by their id.
pub(crate) const ROWS: Table = "rows";
/// The domain itself.
pub(crate) const DOMAIN: Table = "domain";
/// The only key there.
pub(crate) const SELF: &str = "self";
/// The pauses after writes that fail.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Key = (Table, Bytes);

/// Changes, and what waits for them.
#[derive(Clone, Debug, Default)]
struct Batch {
    changes: BTreeMap<Key, Option<Bytes>>,
    held: Vec<Effect>,
}

/// What was last handed out to be written of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Image {
    /// `None`: what it was made of is not known, so that it is written once more.
    digest: Option<Digest>,
    code: Option<Digest>,
}

/// What is on the disk, and what is on its way there.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    images: BTreeMap<ComponentId, Image>,
    /// The components of which no record was ever written.
    unwritten: BTreeSet<ComponentId>,
    /// How many images name a code.
    codes: BTreeMap<Digest, usize>,
    domain: record::Domain,
    /// What may have changed since the images were made.
    components: BTreeSet<ComponentId>,
    links: BTreeSet<ComponentId>,
    /// Of which there is a record that they are gone, or one of their row.
    linked: BTreeSet<(Table, ComponentId)>,
    writing: Option<(Op, Batch)>,
    waiting: Batch,
    not_before: Millis,
    failures: u32,
}

impl Disk {
    pub(super) fn new(domain: record::Domain) -> Self {
        Self { domain, ..Self::default() }
    }

    /// There is a record of this component, which names this code.
    pub(super) fn has(&mut self, id: ComponentId, code: Option<Digest>) {
        if let Some(digest) = code {
            *self.codes.entry(digest).or_default() += 1;
        }
        self.images.insert(id, Image { digest: None, code });
    }

    fn is_behind(&self) -> bool {
        self.writing.is_some() || !self.waiting.changes.is_empty()
    }

    fn put(&mut self, table: Table, key: Bytes, value: Option<Bytes>) {
        self.waiting.changes.insert((table, key), value);
    }

    /// There is a record of what is known of this component beside what it is itself.
    pub(super) fn has_link(&mut self, table: Table, id: ComponentId) {
        self.linked.insert((table, id));
    }

    fn link(&mut self, table: Table, id: ComponentId, record: Option<Bytes>) {
        let is_there = record.is_some();
        if is_there || self.linked.contains(&(table, id)) {
            self.put(table, key(id.0), record);
        }
        if is_there {
            self.linked.insert((table, id))
        } else {
            self.linked.remove(&(table, id))
        };
    }

    /// Takes note of what a component is now; `None`: it is gone.
    fn update(&mut self, id: ComponentId, now: Option<(record::Component, Option<Binary>)>) {
        let before = self.images.get(&id).copied();
        let (bytes, code) = now.map(|(record, code)| (record.encode(), code)).unzip();
        let code: Option<Binary> = code.flatten();
        let digest = bytes.as_ref().map(|bytes| Digest::of(bytes));
        if before.is_some() == bytes.is_some() && before.and_then(|image| image.digest) == digest {
            return;
        }
        let image = bytes.as_ref().map(|_| Image { digest, code: code.as_ref().map(Binary::digest) });
        // Before the other is given up: it may be the same.
        if let Some(code) = code {
            let users = self.codes.entry(code.digest()).or_default();
            *users += 1;
            if let (1, Some(bytes)) = (*users, code.bytes().cloned()) {
                self.put(CODE, digest_key(code.digest()), Some(bytes));
            }
        }
        if let Some(digest) = before.and_then(|image| image.code) {
            let users = self.codes.entry(digest).or_default();
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.codes.remove(&digest);
                self.put(CODE, digest_key(digest), None);
            }
        }
        self.put(COMPONENTS, key(id.0), bytes);
        if before.is_none() {
            self.unwritten.insert(id);
        }
        match image {
            Some(image) => drop(self.images.insert(id, image)),
            None => drop(self.images.remove(&id)),
        }
    }

    /// The components of which there are changes.
    fn changed(batch: &Batch) -> impl Iterator<Item = ComponentId> {
        let of_components = batch.changes.keys().filter(|(table, _)| *table == COMPONENTS);
        of_components.filter_map(|(_, key)| Uuid::from_slice(key).ok().map(ComponentId))
    }
}

pub(crate) fn key(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(crate) fn digest_key(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

/// Whether an effect makes something true that must not be forgotten. What nodes are told when they announce
/// themselves is true as long as the process lives.
fn must_wait(effect: &Effect) -> bool {
    match effect {
        Effect::Reply(_, Ok(Reply::Registered(_) | Reply::ToBeChecked(_))) => false,
        Effect::Reply(..) => true,
        Effect::Call(_, _, call) => matches!(call, Call::Create(_) | Call::Stop(..) | Call::Release { .. }),
        _ => false,
    }
}

impl Engine {
    /// Something about this may have to be kept.
    pub(super) fn touch(&mut self, thing: Thing) {
        if let (Some(disk), Thing::Component(id) | Thing::Slot(id, _)) = (&mut self.disk, thing) {
            disk.components.insert(id);
        }
    }

    /// What is known of a component that is gone, or in another domain, is something else.
    pub(super) fn touch_link(&mut self, id: ComponentId) {
        if let Some(disk) = &mut self.disk {
            disk.links.insert(id);
        }
    }

    /// What is to be kept of a component that is gone.
    fn memory_of(&self, id: ComponentId) -> Option<record::Gone> {
        let link = self.links.get(&id).filter(|_| !self.components.contains_key(&id))?;
        let gone = record::Gone { epoch: link.last_epoch, row_epoch: link.last_row };
        (gone != record::Gone::default()).then_some(gone)
    }

    /// Has everything kept that has changed, and holds back what must not be seen before that.
    pub(super) fn keep(&mut self) {
        let (left, nodes) = (self.left.changes(), self.registry.changes());
        let Some(mut disk) = self.disk.take() else { return };
        for id in std::mem::take(&mut disk.components) {
            if disk.images.contains_key(&id) != self.components.contains_key(&id) {
                disk.links.insert(id);
            }
            disk.update(id, self.components.get(&id).map(|own| image(id, own, self.exported.contains(&id))));
        }
        for id in left {
            disk.put(LEFT, key(id.0), self.left.record(id).map(record::Left::encode));
        }
        for id in nodes {
            disk.put(NODES, key(id.0), self.registry.record(id).map(|node| node.encode()));
        }
        for id in std::mem::take(&mut disk.links) {
            disk.link(ROWS, id, self.foreign.get(&id).map(|row| record::Foreign(row.clone()).encode()));
            disk.link(GONE, id, self.memory_of(id).map(|gone| gone.encode()));
        }
        if disk.domain != self.domain {
            disk.domain = self.domain;
            disk.put(DOMAIN, Bytes::from_static(SELF.as_bytes()), Some(self.domain.encode()));
        }
        if disk.is_behind() {
            let (held, rest): (Vec<Effect>, _) = std::mem::take(&mut self.effects).into_iter().partition(must_wait);
            self.effects = rest;
            match &mut disk.writing {
                Some((_, batch)) if disk.waiting.changes.is_empty() => batch.held.extend(held),
                _ => disk.waiting.held.extend(held),
            }
        }
        self.disk = Some(disk);
        self.write();
        self.effects.append(&mut self.released);
    }

    /// Begins to write what waits, unless a write is under way or has just failed.
    fn write(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        if disk.writing.is_some() || self.now < disk.not_before || disk.waiting.changes.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut disk.waiting);
        let change =
            |((table, key), value): (&Key, &Option<Bytes>)| Change { table, key: key.clone(), value: value.clone() };
        let changes = batch.changes.iter().map(change).collect();
        self.last_op += 1;
        let op = Op(self.last_op);
        disk.writing = Some((op, batch));
        self.effects.push(Effect::Persist(op, changes));
    }

    pub(super) fn persisted(&mut self, op: Op, result: Result<(), Error>) {
        let Some(disk) = &mut self.disk else { return };
        let Some((_, batch)) = disk.writing.take_if(|(writing, _)| *writing == op) else { return };
        match result {
            Ok(()) => {
                disk.failures = 0;
                for id in Disk::changed(&batch) {
                    disk.unwritten.remove(&id);
                }
                self.released.extend(batch.held);
            }
            Err(error) => self.not_persisted(batch, error.context("the domain cannot keep what it was asked for")),
        }
    }

    /// What was to be written still is, together with what came since; nobody waits for that.
    fn not_persisted(&mut self, failed: Batch, error: Error) {
        let Some(disk) = &mut self.disk else { return };
        let pause = FIRST_PAUSE.saturating_mul(1 << disk.failures.min(16)).min(LONGEST_PAUSE);
        disk.failures = disk.failures.saturating_add(1);
        disk.not_before = self.now + pause;
        let mut all = failed;
        let newer = std::mem::take(&mut disk.waiting);
        all.changes.extend(newer.changes);
        all.held.extend(newer.held);
        let changed: BTreeSet<ComponentId> = Disk::changed(&all).collect();
        let is_unborn = |id: &ComponentId| {
            let is_unwritten = disk.unwritten.contains(id);
            is_unwritten && self.components.get(id).is_some_and(|own| !own.is_born && !own.is_leaving)
        };
        let unborn: BTreeSet<ComponentId> = changed.iter().copied().filter(is_unborn).collect();
        let (mut kept, mut undone) = (Vec::new(), Vec::new());
        for effect in std::mem::take(&mut all.held) {
            match effect {
                // A refusal as well: what is refused may be on the disk from before.
                Effect::Reply(ticket, _) => self.released.push(Effect::Reply(ticket, Err(error.clone()))),
                Effect::Call(op, _, Call::Create(_)) if self.is_start_of(op, &unborn) => undone.push(op),
                other => kept.push(other),
            }
        }
        all.held = kept;
        if let Some(disk) = &mut self.disk {
            disk.waiting = all;
        }
        // It is certain that it is not there.
        let refusal = Error { code: Code::Exhausted, ..error.clone() };
        let before = std::mem::take(&mut self.effects);
        for id in unborn {
            self.refuse(id, refusal.clone());
        }
        for op in undone {
            self.done(op, Err(refusal.clone()));
        }
        for id in changed {
            self.excuse(id, &error);
        }
        // Nothing is promised by what these say.
        let (replies, rest): (Vec<_>, Vec<_>) =
            std::mem::replace(&mut self.effects, before).into_iter().partition(|own| matches!(own, Effect::Reply(..)));
        self.effects.extend(rest);
        self.released.extend(replies);
    }

    /// Tells whoever waits for something of a component that it cannot be said when.
    fn excuse(&mut self, id: ComponentId, error: &Error) {
        let Some(component) = self.components.get_mut(&id) else { return };
        let mut movers = Vec::new();
        for (_, slot) in component.slots.iter_mut() {
            movers.append(&mut slot.movers);
        }
        for (ask, ticket) in std::mem::take(&mut component.asks) {
            self.answer_one(ask, ticket, Err(error.clone()));
        }
        for ticket in movers {
            self.reply(ticket, Err(error.clone()));
        }
    }

    fn is_start_of(&self, op: Op, any: &BTreeSet<ComponentId>) -> bool {
        matches!(self.jobs.get(&op), Some(Job::Create(id, ..)) if any.contains(id))
    }
}

/// What must be known of a component after a restart, and its code.
fn image(id: ComponentId, component: &Component, is_exported: bool) -> (record::Component, Option<Binary>) {
    let mut spec = component.spec.clone();
    let code = match &mut spec {
        ComponentSpec::Function(function) if !function.class.binary.is_empty() => {
            let named = function.class.binary.without_bytes();
            Some(std::mem::replace(&mut function.class.binary, named))
        }
        ComponentSpec::Function(_) | ComponentSpec::Resource(_) => None,
    };
    let leaving = component.leaving.as_ref();
    let state = leaving.and_then(|leaving| leaving.state.clone()).or_else(|| component.state.clone());
    let context = StartContext { state, ..StartContext::new(id, component.wanted_epoch, component.name.clone()) };
    let loss = leaving.map_or(component.loss.as_ref(), |leaving| leaving.loss.as_ref());
    let record = record::Component {
        spec,
        context,
        is_held: component.is_held,
        is_wanted_active: component.is_wanted_active,
        is_exported,
        is_leaving: component.is_leaving,
        leaving_grace: leaving.map(|leaving| leaving.grace),
        is_born: component.is_born,
        epoch: component.epoch,
        first_epoch: component.first_epoch,
        row_epoch: component.row_epoch,
        wanted: component.wanted,
        outputs: component.outputs.clone(),
        replicas: component.slots.iter().map(|(replica, slot)| replica_image(*replica, slot)).collect(),
        loss: loss.map(|loss| loss.message.clone()),
        saved: component.saved.clone(),
    };
    (record, code)
}

fn replica_image(replica: u32, slot: &Slot) -> record::Replica {
    let instance = slot.instance().map(|instance| instance.id.function);
    record::Replica {
        replica,
        replaces: slot.replaces,
        fate: match slot.fate {
            Fate::Stay => record::Fate::Stay,
            Fate::Move => record::Fate::Move,
            Fate::Go => record::Fate::Go,
        },
        epoch: slot.epoch,
        outdated: slot.outdated,
        place: slot.home().map(|home| (home.node, instance)),
        provider: match &slot.place {
            Place::Trying(attempt) => attempt.provider.clone(),
            Place::Nowhere | Place::On(_) => String::new(),
        },
        saved: slot.saved.clone(),
    }
}

#[cfg(test)]
impl Engine {
    /// What is written, and about to be, is what there is.
    pub(super) fn check_images(&self) {
        let Some(disk) = &self.disk else { return };
        assert_eq!(disk.images.len(), self.components.len());
        for (id, component) in &self.components {
            let (record, code) = image(*id, component, self.exported.contains(id));
            let now = Image { digest: Some(Digest::of(&record.encode())), code: code.map(|code| code.digest()) };
            assert_eq!(disk.images.get(id), Some(&now), "{id} has changed unnoticed");
        }
    }

    /// Whether everything is on the disk.
    pub(super) fn is_written(&self) -> bool {
        self.disk.as_ref().is_none_or(|disk| !disk.is_behind())
    }
}
