//! The node's own store: what it goes on with when its process has ended.
//!
//! One file in the state directory, which other nodes may use as well: its name has the id of the node. It is closed
//! before the node has quite ended: what a component that is still about tries to write by then is refused, and the
//! next process can open the file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgeless_api::{Code, Error, NodeId};
pub use edgeless_daemon::store::Chain;
use edgeless_daemon::store::{Change, Kind, Store, Table};

const KIND: Kind = Kind { name: "node", shape: 1 };
/// How long the process before may take to let go of the file.
const PATIENCE: Duration = Duration::from_secs(2);

/// The file of a node in its state directory.
pub fn file(directory: &Path, node: NodeId) -> PathBuf {
    directory.join(format!("node-{node}.redb"))
}

/// The records of one node; clones are the same.
#[derive(Clone, Debug)]
pub struct Records {
    directory: Arc<Path>,
    /// `None` once it is closed.
    store: Arc<RwLock<Option<Store>>>,
}

impl Records {
    /// Opens the store of a node in a directory. Makes both if they are not there.
    ///
    /// # Errors
    /// The file is damaged, of another kind or of a later version, in use, or cannot be written. It stays as it is.
    pub async fn open(directory: &Path, node: NodeId) -> Result<Self, Error> {
        let file = file(directory, node);
        let began = Instant::now();
        loop {
            match Store::open(&file, KIND) {
                Ok(store) => {
                    return Ok(Self { directory: directory.into(), store: Arc::new(RwLock::new(Some(store))) });
                }
                Err(error) if error.code == Code::Unavailable && began.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the file is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn store(&self) -> Result<Store, Error> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner).clone();
        store.ok_or_else(|| Error::unavailable("the node is shutting down"))
    }

    /// Lets go of the file. Nothing can be read or written any more.
    pub fn close(&self) {
        self.store.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Makes changes, all or none. When it returns they are on the disk.
    ///
    /// # Errors
    /// They could not be written: nothing has changed.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.store()?.write(changes).await
    }

    /// Queues changes, all or none; what it returns waits until they are on the disk. Changes are made in the order
    /// in which they were queued.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn enqueue(
        &self,
        changes: Vec<Change>,
    ) -> Result<impl Future<Output = Result<(), Error>> + use<>, Error> {
        self.store()?.enqueue(changes).await
    }

    /// The same, for changes that shall not be made if some before them in their chain could not be.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn enqueue_in(
        &self,
        chain: Option<Chain>,
        changes: Vec<Change>,
    ) -> Result<impl Future<Output = Result<(), Error>> + use<>, Error> {
        self.store()?.enqueue_in(chain, changes).await
    }

    /// A record as it is now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let key = Bytes::copy_from_slice(key);
        self.read(move |store| store.get(table, &key)).await
    }

    /// All records of a table, by their keys in order.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn all(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, Error> {
        self.read(move |store| store.all(table)).await
    }

    /// The keys of all records of a table, in order.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn keys(&self, table: Table) -> Result<Vec<Bytes>, Error> {
        self.read(move |store| store.keys(table)).await
    }

    /// The keys of a table that begin with these bytes, in order.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn keys_from(&self, table: Table, prefix: Bytes) -> Result<Vec<Bytes>, Error> {
        self.read(move |store| store.keys_from(table, &prefix)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        look: impl Fn(&Store) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.store()?;
        let (first, again) = (look.clone(), store.clone());
        // It may have to wait for the disk.
        let found = tokio::task::spawn_blocking(move || first(&store)).await.map_err(Error::bug)?;
        if found.is_ok() {
            return found;
        }
        // After a write that failed the file is closed until the next one, which may change nothing.
        again.write(Vec::new()).await?;
        tokio::task::spawn_blocking(move || look(&again)).await.map_err(Error::bug)?
    }
}
