//! What functions save with `sync`, and are given again when they restart on this node.
//!
//! One file for each component in the node's state directory, replaced as a whole. It survives a
//! restart of the function; that it survives a restart of the node as well is not promised yet.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use edgeless_api::component::{StatePolicy, StateSpec};
use edgeless_api::{Error, StateId};

/// The directory where states are kept.
#[derive(Clone, Debug)]
pub struct StateStore {
    directory: PathBuf,
}

/// The state of one component.
#[derive(Clone, Debug)]
pub struct State {
    /// `None`: nothing is kept.
    file: Option<PathBuf>,
    /// What a component that keeps nothing came with.
    moved: Option<Bytes>,
}

impl StateStore {
    /// A store in a directory that is made when it is first needed.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The state of a component.
    ///
    /// # Errors
    /// Its policy is not available.
    pub fn state(&self, spec: &StateSpec) -> Result<State, Error> {
        match spec.policy {
            StatePolicy::Transient => Ok(State::none()),
            StatePolicy::NodeLocal => Ok(State { file: Some(self.file(spec.id)), moved: None }),
            StatePolicy::Global => {
                Err(Error::unimplemented("global state is not available yet: use the annotation state=node-local"))
            }
        }
    }

    fn file(&self, id: StateId) -> PathBuf {
        self.directory.join(id.to_string())
    }
}

impl State {
    /// A state that is never kept.
    pub fn none() -> Self {
        Self { file: None, moved: None }
    }

    /// The same, of a component that saved this where it ran before: it replaces what was saved here.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn moved(self, state: Bytes) -> Result<Self, Error> {
        match &self.file {
            Some(_) => self.save(state).await.map(|()| self),
            None => Ok(Self { moved: Some(state), ..self }),
        }
    }

    /// What was saved last.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn load(&self) -> Result<Option<Bytes>, Error> {
        let Some(file) = &self.file else { return Ok(self.moved.clone()) };
        match tokio::fs::read(file).await {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::unavailable(format!("cannot read the state in {}: {error}", file.display()))),
        }
    }

    /// Replaces what was saved.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn save(&self, state: Bytes) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        replace(file, &state)
            .await
            .map_err(|error| Error::unavailable(format!("cannot save the state in {}: {error}", file.display())))
    }

    /// Forgets it.
    pub async fn forget(&self) {
        if let Some(file) = &self.file {
            match tokio::fs::remove_file(file).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(file = %file.display(), %error, "a state could not be removed");
                }
                _ => {}
            }
        }
    }
}

/// Writes beside the file and renames, so that a reader finds the old or the new, never a half.
async fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(directory) = file.parent() {
        tokio::fs::create_dir_all(directory).await?;
    }
    let beside = file.with_extension("new");
    tokio::fs::write(&beside, bytes).await?;
    tokio::fs::rename(&beside, file).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_saved_is_loaded_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let store = StateStore::new(directory.path().join("state"));
        let spec = StateSpec { id: StateId::random(), policy: StatePolicy::NodeLocal };
        let state = store.state(&spec).unwrap();
        assert_eq!(state.load().await.unwrap(), None);
        state.save(Bytes::from_static(&[1, 0xff])).await.unwrap();
        assert_eq!(store.state(&spec).unwrap().load().await.unwrap().unwrap(), &[1, 0xff][..]);
        state.forget().await;
        assert_eq!(state.load().await.unwrap(), None);
    }
}
