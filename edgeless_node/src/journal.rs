//! What runs on the node, written down so that its next process goes on with it, also while nobody else is there.
//!
//! An instance is in the journal before whoever started it is told so, and until it is stopped. Its code is kept beside,
//! by its digest, for as long as an instance needs it, if it ever came along: else the node has it compiled, or must do
//! without. What an EDGELESS 1.2 orchestrator starts is not written down, because such an orchestrator resets every node
//! that comes.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use edgeless_api::component::{Annotations, ComponentSpec, Row, Target};
use edgeless_api::journal::InstanceRecord;
use edgeless_api::{Binary, ComponentId, Digest, Error};
use edgeless_daemon::store::{Change, Table};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::records::Records;

/// What runs, by the id of the instance.
const INSTANCES: Table = "instance";
/// Its code, by its digest.
const CODE: Table = "code";
/// Where the components run that something here leads to.
const ROWS: Table = "row";
/// So many rows are kept before they are looked through for those that nobody needs any more.
const FEW_ROWS: usize = 64;

/// The journal of one node.
#[derive(Debug)]
pub struct Journal {
    records: Records,
    /// Held while a change is queued, and not until it is written: the order is right, and writes share a flush.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    instances: HashMap<Uuid, InstanceRecord>,
    codes: HashMap<Digest, Code>,
    rows: HashSet<ComponentId>,
    sweep_at: usize,
}

#[derive(Debug, Default)]
struct Code {
    users: usize,
    is_kept: bool,
}

/// What the journal of the process before says.
#[derive(Debug, Default)]
pub struct Past {
    /// What ran.
    pub instances: Vec<InstanceRecord>,
    /// Where components ran, as the node was told last.
    pub rows: Vec<Row>,
}

fn key(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn name(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

fn put(record: &InstanceRecord) -> Change {
    Change::put(INSTANCES, key(record.instance), record.encode())
}

/// The code that an instance is made of, if it is any.
fn code(spec: &ComponentSpec) -> Option<&Binary> {
    match spec {
        ComponentSpec::Function(spec) => Some(&spec.class.binary).filter(|binary| !binary.is_empty()),
        ComponentSpec::Resource(_) => None,
    }
}

impl Known {
    /// One instance less needs some code.
    fn release(&mut self, digest: Digest) -> Option<Change> {
        let code = self.codes.get_mut(&digest)?;
        code.users = code.users.saturating_sub(1);
        if code.users > 0 {
            return None;
        }
        self.codes.remove(&digest)?;
        Some(Change::remove(CODE, name(digest)))
    }
}

impl Journal {
    /// The journal among these records.
    pub fn new(records: Records) -> Self {
        Self { records, known: Mutex::default() }
    }

    /// Queues changes, and lets others queue theirs while these are written.
    async fn write(&self, known: MutexGuard<'_, Known>, changes: Vec<Change>) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let written = self.records.enqueue(changes).await?;
        drop(known);
        written.await
    }

    /// What the process before has left; called once, before anything is written.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn open(&self) -> Result<Past, Error> {
        let mut known = self.known.lock().await;
        let (mut past, mut damaged) = (Past::default(), Vec::new());
        for (key, record) in self.records.all(INSTANCES).await? {
            match InstanceRecord::decode(&record) {
                Ok(record) => past.instances.push(record),
                Err(error) => {
                    tracing::error!(%error, "an instance is not brought back");
                    damaged.push(Change::remove(INSTANCES, key));
                }
            }
        }
        for (key, record) in self.records.all(ROWS).await? {
            match Row::decode(&record) {
                Ok(row) => past.rows.push(row),
                Err(error) => {
                    tracing::error!(%error, "it is not known any more where a component runs");
                    damaged.push(Change::remove(ROWS, key));
                }
            }
        }
        known.rows = past.rows.iter().map(|row| row.component).collect();
        for record in &past.instances {
            if let Some(code) = code(&record.spec) {
                known.codes.entry(code.digest()).or_default().users += 1;
            }
            known.instances.insert(record.instance, record.clone());
        }
        for digest in self.records.keys(CODE).await? {
            let code = <[u8; 32]>::try_from(digest.as_ref()).ok().and_then(|name| known.codes.get_mut(&Digest(name)));
            match code {
                Some(code) => code.is_kept = true,
                None => damaged.push(Change::remove(CODE, digest)),
            }
        }
        self.write(known, damaged).await?;
        Ok(past)
    }

    /// The code of this name, if it is kept.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn code(&self, digest: Digest) -> Result<Option<Binary>, Error> {
        let bytes = self.records.get(CODE, &digest.0).await?;
        // What is kept is what its name says, or it is nothing.
        Ok(bytes.map(Binary::from).filter(|binary| binary.digest() == digest))
    }

    /// Writes down what was started, with its code if that came along.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn add(&self, record: InstanceRecord) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        let mut changes = vec![put(&record)];
        let mut kept = None;
        if let Some(binary) = code(&record.spec) {
            let digest = binary.digest();
            let code = known.codes.entry(digest).or_default();
            code.users += 1;
            if let Some(bytes) = binary.bytes().filter(|_| !code.is_kept) {
                changes.push(Change::put(CODE, name(digest), bytes.clone()));
                kept = Some(digest);
            }
        }
        let instance = record.instance;
        known.instances.insert(instance, record.without_code());
        let written = self.write(known, changes).await;
        if let Err(error) = written {
            // It is not there; what cannot be removed now is found to be unwanted later.
            self.remove(instance).await.ok();
            return Err(error);
        }
        if let Some(digest) = kept
            && let Some(code) = self.known.lock().await.codes.get_mut(&digest)
        {
            code.is_kept = true;
        }
        Ok(())
    }

    /// An instance does not run any more.
    ///
    /// # Errors
    /// That could not be written.
    pub async fn remove(&self, instance: Uuid) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        let Some(record) = known.instances.remove(&instance) else { return Ok(()) };
        let mut changes = vec![Change::remove(INSTANCES, key(instance))];
        changes.extend(code(&record.spec).and_then(|code| known.release(code.digest())));
        self.write(known, changes).await
    }

    /// Changes what is known of instances; of those that are not here, nothing is.
    async fn update(&self, instances: &[Uuid], change: impl Fn(&mut InstanceRecord)) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        let mut changes = Vec::new();
        for instance in instances {
            if let Some(record) = known.instances.get_mut(instance) {
                change(record);
                changes.push(put(record));
            }
        }
        self.write(known, changes).await
    }

    /// What the outputs of an instance lead to.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn set_outputs(&self, instance: Uuid, outputs: &BTreeMap<String, Target>) -> Result<(), Error> {
        self.update(&[instance], |record| record.outputs.clone_from(outputs)).await
    }

    /// These instances may emit.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn activate(&self, instances: &[Uuid]) -> Result<(), Error> {
        self.update(instances, |record| record.is_active = true).await
    }

    /// An instance has other limits.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn limit(&self, instance: Uuid, changes: &Annotations) -> Result<(), Error> {
        let merge = |record: &mut InstanceRecord| {
            record.spec.annotations_mut().extend(changes.iter().map(|(key, value)| (key.clone(), value.clone())));
        };
        self.update(&[instance], merge).await
    }

    /// Where components run; those that nobody needs any more are forgotten now and then.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn set_rows(&self, rows: &[Row], is_needed: impl Fn(ComponentId) -> bool) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        known.rows.extend(rows.iter().map(|row| row.component));
        let mut changes: Vec<Change> =
            rows.iter().map(|row| Change::put(ROWS, key(row.component.0), row.encode())).collect();
        if known.rows.len() >= known.sweep_at.max(FEW_ROWS) {
            let unneeded = known.rows.extract_if(|component| !is_needed(*component));
            changes.extend(unneeded.map(|component| Change::remove(ROWS, key(component.0))));
            known.sweep_at = 2 * known.rows.len();
        }
        self.write(known, changes).await
    }

    /// Nothing runs any more, but for these.
    ///
    /// # Errors
    /// That could not be written.
    pub async fn clear(&self, but: &[Uuid]) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        if !but.is_empty() {
            let others: Vec<_> = known.instances.keys().copied().filter(|id| !but.contains(id)).collect();
            for id in &others {
                known.instances.remove(id);
            }
            let changes = others.into_iter().map(|id| Change::remove(INSTANCES, key(id))).collect();
            // Code that nobody needs any more is removed by the next process.
            return self.write(known, changes).await;
        }
        let Known { instances, codes, rows, .. } = std::mem::take(&mut *known);
        let instances = instances.into_keys().map(|id| Change::remove(INSTANCES, key(id)));
        let codes = codes.into_keys().map(|digest| Change::remove(CODE, name(digest)));
        let rows = rows.into_iter().map(|component| Change::remove(ROWS, key(component.0)));
        let changes = instances.chain(codes).chain(rows).collect();
        self.write(known, changes).await
    }
}
