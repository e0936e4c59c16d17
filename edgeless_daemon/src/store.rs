//! Records that outlive the process: tables of bytes in one file.
//!
//! ```text
//!  write(changes) -+
//!  write(changes) -+-> the writer: all that waits becomes one transaction and one flush -> each is answered
//! ```
//! What was answered is on the disk, whatever happens next. A write that fails changes nothing; the next one opens
//! the file anew, so that a disk that was full is used again once there is room.

use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use edgeless_api::error::Error;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TableError,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// What the file is: its shape, and whose.
const ABOUT: TableDefinition<&str, &[u8]> = TableDefinition::new("about");
const KIND: &str = "kind";
const SHAPE: &str = "shape";
/// The memory that may be used for what is read again and again.
const CACHE: usize = 1 << 20;
/// Writes that wait for the writer.
const WAITING: usize = 1024;
/// The most writes in one transaction.
const GROUP: usize = 256;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Whose file it is, such as `controller`.
    pub name: &'static str,
    /// Raised whenever records change their meaning.
    pub shape: u32,
}

/// A table of records, by its name.
pub type Table = &'static str;

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table)
}

/// A change of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it is.
    pub table: Table,
    /// What it is found by.
    pub key: Bytes,
    /// What it shall be; `None`: it shall not be any more.
    pub value: Option<Bytes>,
}

impl Change {
    /// A record shall be this.
    pub fn put(table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { table, key: key.into(), value: Some(value.into()) }
    }

    /// A record shall not be any more.
    pub fn remove(table: Table, key: impl Into<Bytes>) -> Self {
        Self { table, key: key.into(), value: None }
    }
}

/// Writes of which each builds on the one before: when one fails, those that follow it fail as well.
#[derive(Clone, Debug, Default)]
pub struct Chain(Arc<AtomicBool>);

impl Chain {
    /// Ends it: what follows in it fails.
    pub fn end(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_broken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

struct Request {
    changes: Vec<Change>,
    chain: Option<Chain>,
    written: oneshot::Sender<Result<(), Error>>,
}

struct File {
    path: PathBuf,
    kind: Kind,
    /// `None` after a failure, until it is opened anew.
    database: RwLock<Option<Arc<Database>>>,
}

/// An open file of records; cheap to clone. It is closed with its last clone.
#[derive(Clone)]
pub struct Store {
    file: Arc<File>,
    writer: mpsc::Sender<Request>,
    closed: CancellationToken,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.file.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a file, or makes it and the directories above it, which only this user may enter.
    ///
    /// # Errors
    /// It cannot be read or written, is in use by another process, is damaged, or is not of this kind and shape. It
    /// stays as it is.
    pub fn open(path: &Path, kind: Kind) -> Result<Self, Error> {
        let file = File { path: path.to_path_buf(), kind, database: RwLock::new(None) };
        // A path without a directory is one in the current directory.
        let directory = path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        make_directory(directory).map_err(|error| file.cannot("make the directory of", error))?;
        let is_new = !path.is_file();
        let database = file.open()?;
        if is_new {
            // A file is found after a power cut if its directory was flushed, too.
            let flushed = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
            flushed.map_err(|error| file.cannot("flush the directory of", error))?;
        }
        file.keep(Some(Arc::new(database)));
        let file = Arc::new(file);
        let (writer, requests) = mpsc::channel(WAITING);
        let (writing, closed) = (file.clone(), CancellationToken::new());
        let closing = closed.clone().drop_guard();
        std::thread::Builder::new()
            .name(format!("store-{}", kind.name))
            .spawn(move || {
                write_all(&writing, requests);
                writing.keep(None);
                drop(closing);
            })
            .map_err(|error| file.cannot("start the writer of", error))?;
        Ok(Self { file, writer, closed })
    }

    /// Makes changes, all or none. When it returns they are on the disk.
    ///
    /// # Errors
    /// They could not be written: nothing has changed.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.enqueue(changes).await?.await
    }

    /// Queues changes, all or none; what it returns waits until they are on the disk. Changes are made in the order in
    /// which they were queued.
    ///
    /// # Errors
    /// The writer has ended.
    pub async fn enqueue(
        &self,
        changes: Vec<Change>,
    ) -> Result<impl Future<Output = Result<(), Error>> + use<>, Error> {
        self.enqueue_in(None, changes).await
    }

    /// The same, for a write that shall fail if one before it in its chain has failed.
    ///
    /// # Errors
    /// The writer has ended.
    pub async fn enqueue_in(
        &self,
        chain: Option<Chain>,
        changes: Vec<Change>,
    ) -> Result<impl Future<Output = Result<(), Error>> + use<>, Error> {
        let (written, answer) = oneshot::channel();
        let closed = || Error::unavailable("shutting down");
        self.writer.send(Request { changes, chain, written }).await.map_err(|_| closed())?;
        Ok(async move { answer.await.map_err(|_| closed())? })
    }

    /// Cancelled once the file is closed: when its last clone is gone and what was queued is written.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// A record as it is now. Reads from the disk what was not used lately.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.read(table, |records| Ok(records.get(key)?.map(|value| Bytes::copy_from_slice(value.value()))))
            .map(Option::flatten)
    }

    /// All records of a table, by their keys in order.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn all(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        let all = self.read(table, |records| {
            records.iter()?.map(|record| record.map(|(key, value)| (copy(key.value()), copy(value.value())))).collect()
        })?;
        Ok(all.unwrap_or_default())
    }

    /// The keys of all records of a table, in order.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn keys(&self, table: Table) -> Result<Vec<Bytes>, Error> {
        let all = self.read(table, |records| {
            records.iter()?.map(|record| record.map(|(key, _)| Bytes::copy_from_slice(key.value()))).collect()
        })?;
        Ok(all.unwrap_or_default())
    }

    /// The keys of a table that begin with these bytes, in order.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn keys_from(&self, table: Table, prefix: &[u8]) -> Result<Vec<Bytes>, Error> {
        let all = self.read(table, |records| {
            let mut keys = Vec::new();
            for record in records.range(prefix..)? {
                let (key, _) = record?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                keys.push(Bytes::copy_from_slice(key.value()));
            }
            Ok(keys)
        })?;
        Ok(all.unwrap_or_default())
    }

    /// `None`: there is no such table yet.
    fn read<T>(
        &self,
        table: Table,
        look: impl FnOnce(redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, StorageError>,
    ) -> Result<Option<T>, Error> {
        let read = |database: &Database| -> Result<Option<T>, redb::Error> {
            match database.begin_read()?.open_table(definition(table)) {
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                records => Ok(Some(look(records?)?)),
            }
        };
        let database = self.file.database().ok_or_else(|| self.file.cannot("read", "the last write has failed"))?;
        // With it the last user may go, so that it is closed in there.
        self.file.unpanicked("read", move || read(&database).map_err(|error| self.file.cannot("read", error)))
    }
}

/// What is kept may be nobody else's business.
fn make_directory(directory: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Makes what waits durable, together, until nobody can ask for more.
fn write_all(file: &File, mut requests: mpsc::Receiver<Request>) {
    let mut group = Vec::new();
    while requests.blocking_recv_many(&mut group, GROUP) > 0 {
        let is_broken = |request: &Request| request.chain.as_ref().is_some_and(Chain::is_broken);
        for request in group.extract_if(.., |request| is_broken(request)) {
            request.written.send(Err(file.cannot("write", "a write that this one builds on has failed"))).ok();
        }
        let result = file.write(group.iter().flat_map(|request| &request.changes));
        for request in group.drain(..) {
            if let (Err(_), Some(chain)) = (&result, request.chain) {
                chain.end();
            }
            // Whoever asked may have given up.
            request.written.send(result.clone()).ok();
        }
    }
}

impl File {
    fn open(&self) -> Result<Database, Error> {
        self.unpanicked("open", || self.open_unless_damaged())
    }

    /// Works on the file. The library panics at some damages where others are an error to it.
    fn unpanicked<T>(&self, attempt: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<String>().map(String::as_str);
            let why = why.or(panic.downcast_ref::<&str>().copied()).unwrap_or("its pages contradict each other");
            Err(self.cannot(attempt, format_args!("it is damaged: {why}")))
        })
    }

    fn open_unless_damaged(&self) -> Result<Database, Error> {
        let database = Builder::new().set_cache_size(CACHE).create(&self.path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => self.cannot("open", "another process uses it"),
            DatabaseError::UpgradeRequired(_) => {
                self.cannot("open", "it was written by an earlier version that this one does not know")
            }
            DatabaseError::Storage(StorageError::Corrupted(why)) => self.damaged(why),
            DatabaseError::Storage(StorageError::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                self.damaged(error)
            }
            error => self.cannot("open", error),
        })?;
        self.check(&database)?;
        Ok(database)
    }

    /// Whether the file is what it should be; a new one becomes so.
    fn check(&self, database: &Database) -> Result<(), Error> {
        let said = self.about(database).map_err(|error| self.cannot("read", error))?;
        let path = self.path.display();
        match said {
            None => self.introduce(database).map_err(|error| self.cannot("write", error)),
            Some((kind, _)) if kind != self.kind.name => {
                Err(Error::rejected(format!("{path} is the store of a {kind}, not of a {}", self.kind.name)))
            }
            Some((_, shape)) if shape > self.kind.shape => Err(Error::rejected(format!(
                "{path} was written by a later version (shape {shape}, this one knows {}): install that version again",
                self.kind.shape
            ))),
            // There is one shape so far, and nothing to be migrated from.
            Some(_) => Ok(()),
        }
    }

    fn about(&self, database: &Database) -> Result<Option<(String, u32)>, redb::Error> {
        let about = match database.begin_read()?.open_table(ABOUT) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            about => about?,
        };
        let kind = about.get(KIND)?.map(|kind| String::from_utf8_lossy(kind.value()).into_owned());
        let shape = about.get(SHAPE)?.and_then(|shape| Some(u32::from_le_bytes(shape.value().try_into().ok()?)));
        Ok(kind.zip(shape))
    }

    fn introduce(&self, database: &Database) -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        {
            let mut about = transaction.open_table(ABOUT)?;
            about.insert(KIND, self.kind.name.as_bytes())?;
            about.insert(SHAPE, self.kind.shape.to_le_bytes().as_slice())?;
        }
        Ok(transaction.commit()?)
    }

    fn write<'c>(&self, changes: impl Iterator<Item = &'c Change>) -> Result<(), Error> {
        let database = match self.database() {
            Some(database) => database,
            None => Arc::new(self.open()?),
        };
        self.keep(Some(database.clone()));
        let committed =
            self.unpanicked("write", move || commit(&database, changes).map_err(|error| self.cannot("write", error)));
        // After a failure a database takes nothing more: it is closed until the next write.
        if committed.is_err() {
            self.keep(None);
        }
        committed
    }

    fn database(&self) -> Option<Arc<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, database: Option<Arc<Database>>) {
        let before = std::mem::replace(&mut *self.database.write().unwrap_or_else(PoisonError::into_inner), database);
        // To close it writes to it, and that may meet a damage: of no consequence now.
        let closed = self.unpanicked("close", || {
            drop(before);
            Ok(())
        });
        closed.ok();
    }

    fn cannot(&self, attempt: &str, error: impl fmt::Display) -> Error {
        Error::unavailable(format!("cannot {attempt} {}: {error}", self.path.display()))
    }

    fn damaged(&self, why: impl fmt::Display) -> Error {
        let path = self.path.display();
        Error::rejected(format!(
            "{path} is damaged ({why}) and was left as it is: restore a backup, or move the file away to begin with nothing"
        ))
    }
}

type Records<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

fn commit<'c>(database: &Database, changes: impl Iterator<Item = &'c Change>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        // Opened once each, which costs more than a change. They are few.
        let mut tables: Vec<(Table, Records<'_>)> = Vec::new();
        for Change { table, key, value } in changes {
            let at = match tables.iter().position(|(known, _)| known == table) {
                Some(at) => at,
                None => {
                    tables.push((*table, transaction.open_table(definition(table))?));
                    tables.len() - 1
                }
            };
            let Some((_, records)) = tables.get_mut(at) else { continue };
            match value {
                Some(value) => records.insert(key.as_ref(), value.as_ref())?,
                None => records.remove(key.as_ref())?,
            };
        }
    }
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { name: "test", shape: 3 };

    fn path(directory: &tempfile::TempDir) -> PathBuf {
        directory.path().join("deep").join("test.redb")
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_the_file_was_closed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&path(&directory), KIND).unwrap();
        assert_eq!(store.get("a", b"1").unwrap(), None, "there is no table yet");
        let changes = vec![Change::put("a", "1", "one"), Change::put("b", "1", "eins"), Change::put("a", "0", "zero")];
        store.write(changes).await.unwrap();
        store.write(vec![Change::remove("a", "1"), Change::put("a", "2", "two")]).await.unwrap();
        let other = Store::open(&path(&directory), KIND).unwrap_err();
        assert!(other.message.contains("another process uses it"), "{other}");
        let closed = store.closed();
        assert!(!closed.is_cancelled());
        drop(store);
        closed.cancelled().await;
        let store = Store::open(&path(&directory), KIND).unwrap();
        assert_eq!(store.all("a").unwrap(), [("0".into(), "zero".into()), ("2".into(), "two".into())]);
        assert_eq!(store.keys("a").unwrap(), ["0", "2"]);
        assert_eq!(store.get("b", b"1").unwrap(), Some("eins".into()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_writes_at_once_are_all_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&path(&directory), KIND).unwrap();
        let mut writes = tokio::task::JoinSet::new();
        for number in 0..500_u32 {
            let store = store.clone();
            writes.spawn(async move {
                let key = number.to_be_bytes().to_vec();
                store.write(vec![Change::put("n", key.clone(), key)]).await
            });
        }
        while let Some(written) = writes.join_next().await {
            written.unwrap().unwrap();
        }
        let all = store.all("n").unwrap();
        assert!(all.len() == 500 && all.iter().all(|(key, value)| key == value) && all.is_sorted());
    }

    #[tokio::test]
    async fn a_file_that_is_not_what_it_should_be_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&path(&directory), Kind { name: "test", shape: 4 }).unwrap();
        store.write(vec![Change::put("a", "1", "one")]).await.unwrap();
        let closed = store.closed();
        drop(store);
        closed.cancelled().await;
        let refusal = |kind| Store::open(&path(&directory), kind).unwrap_err().message;
        let later = refusal(KIND);
        assert!(later.contains("written by a later version (shape 4, this one knows 3)"), "{later}");
        let stranger = refusal(Kind { name: "node", shape: 4 });
        assert!(stranger.contains("is the store of a test, not of a node"), "{stranger}");
        let garbage = b"this was never a store of records".repeat(100);
        std::fs::write(path(&directory), &garbage).unwrap();
        let damaged = refusal(KIND);
        assert!(damaged.contains("is damaged") && damaged.contains("move the file away"), "{damaged}");
        assert_eq!(std::fs::read(path(&directory)).unwrap(), garbage);
    }

    /// The library panics at some of them.
    #[tokio::test]
    async fn a_page_that_never_reached_the_disk_is_no_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(&directory);
        let store = Store::open(&path, KIND).unwrap();
        for number in 0..20_u8 {
            store.write(vec![Change::put("a", vec![number], vec![number; 300])]).await.unwrap();
        }
        let closed = store.closed();
        drop(store);
        closed.cancelled().await;
        let whole = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for page in 0..whole.len() / 4096 {
            let mut torn = whole.clone();
            let lost = &mut torn[page * 4096..(page + 1) * 4096];
            if lost.iter().all(|byte| *byte == 0) {
                continue;
            }
            lost.fill(0);
            std::fs::write(&path, &torn).unwrap();
            let store = match Store::open(&path, KIND) {
                Ok(store) => store,
                Err(error) => {
                    assert!(error.message.contains("test.redb"), "{error}");
                    refused += 1;
                    continue;
                }
            };
            let outcomes = [store.all("a").map(drop), store.write(vec![Change::put("a", "new", "new")]).await];
            for error in outcomes.into_iter().filter_map(Result::err) {
                assert_eq!(error.code, edgeless_api::Code::Unavailable, "{error}");
                assert!(error.message.contains("test.redb"), "{error}");
                refused += 1;
            }
            let closed = store.closed();
            drop(store);
            closed.cancelled().await;
        }
        assert!(refused > 0);
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("deep"), "a file").unwrap();
        let error = Store::open(&path(&directory), KIND).unwrap_err();
        assert!(error.message.contains("cannot make the directory of") && error.message.contains("deep"), "{error}");
    }
}
