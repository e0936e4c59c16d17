//! What a function and a resource have in common: both are an [`Instance`].
//!
//! An instance has an id, handles events and emits on named outputs. It has no loop, no map and no
//! metrics of its own: the host loop (`host`) calls it, and all that it may touch is its
//! [`Context`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::{Annotations, FunctionSpec, ResourceSpec};
use edgeless_api::status::{Limit, Usage};
use edgeless_api::{ComponentId, Error, InstanceId, WorkflowId};
use tokio_util::sync::CancellationToken;

pub use crate::event::{Cause, EventKind, Incoming, Payload};
use crate::log::Log;
use crate::outputs::Outputs;
use crate::state::State;

/// An event was not handled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceError {
    /// This event could not be handled; the instance goes on.
    #[error("{0}")]
    Failed(String),
    /// The instance is broken and must be replaced. The text may have several lines: a backtrace.
    #[error("{0}")]
    Broken(String),
}

/// Something that handles events.
#[async_trait]
pub trait Instance: Send + Sync {
    /// Handles one event. What is returned for a call is its reply, `None` an empty one; what is
    /// returned for a cast is ignored. Functions are given one event at a time, resources up to the
    /// `max_in_flight` of their class.
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError>;

    /// Resolves when it broke by itself, not in a handler, with the reason. Asked for once, and watched
    /// while the instance waits for events.
    async fn broken(&self) -> String {
        std::future::pending().await
    }

    /// Ends. Called once, when no event is being handled.
    async fn stop(&self) {}
}

/// All that an instance may touch.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who it is.
    pub id: InstanceId,
    /// The component that it is an instance of.
    pub component: ComponentId,
    /// The workflow that its component belongs to.
    pub workflow: WorkflowId,
    /// Its component's name in the workflow.
    pub name: String,
    /// Where it emits. Sources emit here too, and are held back until the workflow is wired.
    pub outputs: Outputs,
    /// What it saves and is given again when it restarts.
    pub state: State,
    /// Where it logs.
    pub log: Log,
    /// Tells it, and whatever it spawned, to end.
    pub cancel: CancellationToken,
}

impl Context {
    /// Replaces what was saved. When it returns that is on the disk; in a handler that counts at its end, it is then.
    ///
    /// # Errors
    /// It cannot be written, or the component has a newer instance, or none any more.
    pub async fn save(&self, state: Bytes) -> Result<(), Error> {
        let staged = match self.outputs.custody().filter(|_| self.state.is_here()) {
            Some(custody) => custody.stage_state(state),
            None => Some(state),
        };
        match staged {
            Some(state) => self.state.save(state).await,
            None => Ok(()),
        }
    }
}

/// Runs functions of one type: a file in `runtimes/`.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// The function type that it runs.
    fn kind(&self) -> &'static str;

    /// Makes a function ready to be instantiated, once, however often it is then.
    ///
    /// # Errors
    /// The code is bad, with the reason.
    async fn load(&self, spec: FunctionSpec) -> Result<Arc<dyn Program>, Error>;
}

/// A function that is loaded.
#[async_trait]
pub trait Program: Send + Sync {
    /// Makes an instance that is initialised and ready for its first event.
    ///
    /// # Errors
    /// Its initialisation fails, with the reason, or there is no room for it.
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error>;

    /// How many events an instance handles at once.
    fn max_in_flight(&self) -> usize {
        1
    }

    /// What can be asked of it beside its events; `None`: nothing.
    fn controls(&self) -> Option<Arc<dyn Controls>> {
        None
    }
}

/// What can be asked of a function beside its events, where its runtime sets limits.
#[async_trait]
pub trait Controls: Send + Sync {
    /// Changes limits while it runs, and for its replacements; returns all limits as the kernel has
    /// them then. A repeat is harmless.
    ///
    /// # Errors
    /// One of the limits is unknown or cannot have that value; then none is changed.
    async fn set_limits(&self, changes: &Annotations) -> Result<Vec<Limit>, Error>;

    /// Its limits.
    async fn limits(&self) -> Vec<Limit>;

    /// What it uses; `None`: it does not run.
    async fn usage(&self) -> Option<Usage>;

    /// What it needs and is away although it runs; `None`: nothing.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Removes what outlives its instances: the component is stopped for good.
    async fn forget(&self) {}
}

/// Opens resources of one class: a file in `resources/`.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Opens a resource. A configuration that cannot work is refused here.
    ///
    /// # Errors
    /// The configuration is wrong, or what the resource stands for cannot be reached.
    async fn open(&self, spec: &ResourceSpec, context: Context) -> Result<Box<dyn Instance>, Error>;
}
