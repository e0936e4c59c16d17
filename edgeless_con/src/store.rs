//! The file that keeps workflows: a record of each, the code that records name, and who this controller is.
//!
//! Code is kept once, however many records name it: it is written with the first one and removed with the last. What
//! is said here of "the last" is right because writes reach the file in the order in which they are decided upon.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use edgeless_api::binary::{Binary, Digest};
use edgeless_api::error::Error;
use edgeless_api::id::WorkflowId;
use edgeless_api::record;
use edgeless_daemon::store::{Change, Kind, Store, Table};
use tokio_util::sync::CancellationToken;

const KIND: Kind = Kind { name: "controller", shape: 1 };
/// By the ids of the workflows.
const WORKFLOWS: Table = "workflows";
/// By digest.
const CODE: Table = "code";
const CONTROLLER: Table = "controller";
const NONCE: &str = "nonce";

/// The open file; clones are handles to the same.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    store: Store,
    code: Arc<Mutex<Code>>,
    /// Held while a write is decided upon and handed over, so that none overtakes another.
    order: Arc<tokio::sync::Mutex<()>>,
}

/// What was found in the file.
#[derive(Debug)]
pub(crate) struct Found {
    /// The workflows, with their code.
    pub(crate) workflows: Vec<record::Workflow>,
    /// By which orchestrators recognise this controller; `None`: the file is new.
    nonce: Option<u64>,
}

/// Which code is in the file, and why.
#[derive(Debug, Default)]
struct Code {
    /// What each record names.
    named: HashMap<WorkflowId, Vec<Digest>>,
    /// How many records name each code.
    uses: HashMap<Digest, Use>,
}

#[derive(Debug, Default)]
struct Use {
    count: usize,
    /// It is in the file, and stays there as long as it is named.
    is_there: bool,
}

impl Code {
    /// A record names this code from now on, and no other. What is to be written, and what nobody names any more.
    fn name(&mut self, workflow: WorkflowId, digests: Vec<Digest>) -> (Vec<Digest>, Vec<Digest>) {
        for digest in &digests {
            self.uses.entry(*digest).or_default().count += 1;
        }
        let missing = |digest: &Digest| self.uses.get(digest).is_none_or(|own| !own.is_there);
        let missing = digests.iter().copied().filter(missing).collect();
        let before = match digests.is_empty() {
            true => self.named.remove(&workflow),
            false => self.named.insert(workflow, digests),
        };
        let mut unused = Vec::new();
        for digest in before.unwrap_or_default() {
            let Some(own) = self.uses.get_mut(&digest) else { continue };
            own.count -= 1;
            if own.count == 0 {
                self.uses.remove(&digest);
                unused.push(digest);
            }
        }
        (missing, unused)
    }

    fn named_by(&self, workflow: WorkflowId) -> Vec<Digest> {
        self.named.get(&workflow).cloned().unwrap_or_default()
    }

    fn is_there(&mut self, digests: &[Digest]) {
        for digest in digests {
            if let Some(own) = self.uses.get_mut(digest) {
                own.is_there = true;
            }
        }
    }
}

fn key(workflow: WorkflowId) -> Bytes {
    Bytes::copy_from_slice(workflow.0.as_bytes())
}

fn digest_key(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

/// The code that a workflow is made of, each once.
fn code_of(workflow: &record::Workflow) -> Vec<Digest> {
    let functions = workflow.asked.as_ref().map(|asked| asked.functions()).unwrap_or_default();
    let binaries = functions.iter().map(|function| &function.class.binary).filter(|binary| !binary.is_empty());
    let digests: std::collections::BTreeSet<Digest> = binaries.map(Binary::digest).collect();
    digests.into_iter().collect()
}

impl Records {
    /// Opens the file, or makes it, and reads what is in it.
    ///
    /// # Errors
    /// It cannot be read or written, is in use, or is not what it should be.
    pub(crate) fn open(path: &Path) -> Result<(Self, Found), Error> {
        let store = Store::open(path, KIND)?;
        let damaged = |what: String, why: &dyn std::fmt::Display| {
            let path = path.display();
            Error::rejected(format!(
                "{path} is damaged ({what}: {why}): restore a backup, or move the file away to begin with nothing"
            ))
        };
        let kept: BTreeMap<Bytes, Binary> =
            store.all(CODE)?.into_iter().map(|(digest, code)| (digest, code.into())).collect();
        let mut code = Code::default();
        let mut workflows = Vec::new();
        for (_, record) in store.all(WORKFLOWS)? {
            let mut workflow =
                record::Workflow::decode(record).map_err(|error| damaged("a workflow".into(), &error))?;
            let (id, digests) = (workflow.id, code_of(&workflow));
            let found = |binary: Binary| match kept.get(digest_key(&binary.digest()).as_ref()) {
                Some(found) if found.digest() == binary.digest() => Ok(found.clone()),
                _ if binary.is_empty() => Ok(binary),
                _ => Err(damaged(format!("the workflow {id}"), &format!("its code {} is missing", binary.digest()))),
            };
            workflow.asked = workflow.asked.map(|asked| asked.with_binaries(found)).transpose()?;
            code.name(id, digests.clone());
            code.is_there(&digests);
            workflows.push(workflow);
        }
        let nonce = store.get(CONTROLLER, NONCE.as_bytes())?;
        let nonce = nonce.and_then(|nonce| Some(u64::from_le_bytes(nonce.as_ref().try_into().ok()?)));
        let records = Self { store, code: Arc::new(Mutex::new(code)), order: Arc::default() };
        Ok((records, Found { workflows, nonce }))
    }

    /// By which orchestrators recognise this controller; a new file is given `new`.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) async fn nonce(&self, found: &Found, new: u64) -> Result<u64, Error> {
        if let Some(nonce) = found.nonce {
            return Ok(nonce);
        }
        self.store.write(vec![Change::put(CONTROLLER, NONCE, new.to_le_bytes().to_vec())]).await?;
        Ok(new)
    }

    /// Writes the record of a workflow, with its code, or removes it. One write of each workflow at a time.
    ///
    /// # Errors
    /// Nothing was written.
    pub(crate) async fn persist(
        &self,
        workflow: WorkflowId,
        record: Option<Bytes>,
        code: Vec<Binary>,
    ) -> Result<(), Error> {
        let order = self.order.lock().await;
        let binaries: BTreeMap<Digest, Binary> = code.into_iter().map(|binary| (binary.digest(), binary)).collect();
        let (before, (missing, unused)) = self.with(|code| {
            let before = code.named_by(workflow);
            (before, code.name(workflow, binaries.keys().copied().collect()))
        });
        let mut changes: Vec<Change> = Vec::with_capacity(1 + missing.len() + unused.len());
        for digest in &missing {
            let bytes = binaries.get(digest).and_then(Binary::bytes).cloned();
            changes.extend(bytes.map(|bytes| Change::put(CODE, digest_key(digest), bytes)));
        }
        changes.extend(unused.iter().map(|digest| Change::remove(CODE, digest_key(digest))));
        changes.push(Change { table: WORKFLOWS, key: key(workflow), value: record });
        let queued = self.store.enqueue(changes).await;
        drop(order);
        let written = match queued {
            Ok(written) => written.await,
            Err(error) => Err(error),
        };
        self.with(|code| match &written {
            Ok(()) => code.is_there(&missing),
            // What the record named before it names still.
            Err(_) => drop(code.name(workflow, before)),
        });
        written
    }

    fn with<R>(&self, act: impl FnOnce(&mut Code) -> R) -> R {
        act(&mut self.code.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves once the file is closed, which the last handle does.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.store.closed()
    }
}

#[cfg(test)]
mod tests {
    use edgeless_api::FunctionClass;
    use edgeless_api::id::DomainId;
    use edgeless_api::workflow::{self, Function};

    use super::*;

    fn asked(code: &[&'static [u8]]) -> workflow::Workflow {
        let function = |(index, code): (usize, &&'static [u8])| Function {
            name: format!("f{index}"),
            class: FunctionClass {
                id: "f".into(),
                function_type: "RUST_WASM".into(),
                binary: Bytes::from_static(code).into(),
                ..FunctionClass::default()
            },
            outputs: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
        workflow::Workflow::new(code.iter().enumerate().map(function).collect(), vec![], BTreeMap::new()).unwrap()
    }

    fn record(code: &[&'static [u8]]) -> record::Workflow {
        record::Workflow {
            id: WorkflowId::random(),
            asked: Some(asked(code)),
            request: None,
            phase: record::Phase::Running,
            domains: vec![record::Domain {
                id: DomainId("d".into()),
                nonce: 1,
                native: true,
                url: "http://127.0.0.1:7011".parse().unwrap(),
            }],
            components: Vec::new(),
            leftovers: Vec::new(),
        }
    }

    async fn put(records: &Records, record: &record::Workflow) {
        let code = record.asked.iter().flat_map(|asked| asked.functions());
        let code = code.map(|function| function.class.binary.clone()).collect();
        records.persist(record.id, Some(record.encode()), code).await.unwrap();
    }

    fn code(records: &Records) -> Vec<Bytes> {
        let mut code: Vec<Bytes> = records.store.all(CODE).unwrap().into_iter().map(|(_, code)| code).collect();
        code.sort();
        code
    }

    #[tokio::test]
    async fn workflows_are_found_with_their_code_and_the_controller_by_its_nonce() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.redb");
        let (records, found) = Records::open(&path).unwrap();
        assert!(found.workflows.is_empty());
        assert_eq!(records.nonce(&found, 7).await, Ok(7));
        let record = record(&[b"one", b"", b"two"]);
        put(&records, &record).await;
        let closed = records.closed();
        drop(records);
        closed.cancelled().await;
        let (records, found) = Records::open(&path).unwrap();
        assert_eq!(records.nonce(&found, 8).await, Ok(7));
        assert_eq!(found.workflows, [record]);
    }

    #[tokio::test]
    async fn code_is_kept_once_and_as_long_as_a_record_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.redb");
        let (records, _) = Records::open(&path).unwrap();
        let (both, one) = (record(&[b"one", b"two", b"one"]), record(&[b"one"]));
        put(&records, &both).await;
        put(&records, &one).await;
        put(&records, &both).await;
        assert_eq!(code(&records), ["one", "two"]);
        // One that is being stopped names no code any more.
        let stopping = record::Workflow { asked: None, ..both.clone() };
        put(&records, &stopping).await;
        assert_eq!(code(&records), ["one"]);
        records.persist(both.id, None, vec![]).await.unwrap();

        // And the same of what was found in the file.
        let closed = records.closed();
        drop(records);
        closed.cancelled().await;
        let (records, found) = Records::open(&path).unwrap();
        assert_eq!(found.workflows.len(), 1);
        let another = record(&[b"one"]);
        put(&records, &another).await;
        records.persist(one.id, None, vec![]).await.unwrap();
        assert_eq!(code(&records), ["one"]);
        records.persist(another.id, None, vec![]).await.unwrap();
        assert_eq!(code(&records), [] as [&str; 0]);
        put(&records, &one).await;
        assert_eq!(code(&records), ["one"], "it is written again");
    }

    /// What came with a write that failed is not there, whoever else relies on it.
    #[test]
    fn code_counts_as_written_only_when_it_is() {
        let mut code = Code::default();
        let (a, b) = (WorkflowId::random(), WorkflowId::random());
        let digest = Digest::of(b"one");
        assert_eq!(code.name(a, vec![digest]), (vec![digest], vec![]));
        assert_eq!(code.name(b, vec![digest]), (vec![digest], vec![]), "the other write may fail yet");
        code.name(a, vec![]);
        code.is_there(&[digest]);
        assert_eq!(code.name(a, vec![digest]), (vec![], vec![]));
        code.name(a, vec![]);
        assert_eq!(code.name(b, vec![]), (vec![], vec![digest]));
        assert_eq!(code.name(a, vec![digest]), (vec![digest], vec![]), "removed, or about to be");
        assert_eq!(code.named_by(b), vec![]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.redb");
        let (records, _) = Records::open(&path).unwrap();
        let record = record(&[b"one"]);
        put(&records, &record).await;
        let digest = digest_key(&Digest::of(b"one"));
        records.store.write(vec![Change::remove(CODE, digest)]).await.unwrap();
        let closed = records.closed();
        drop(records);
        closed.cancelled().await;
        let error = Records::open(&path).err().unwrap();
        assert!(error.message.contains(&record.id.to_string()) && error.message.contains("is missing"), "{error}");
        assert!(error.message.contains("restore a backup"), "{error}");
    }
}
