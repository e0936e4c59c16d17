//! What a function and a resource have in common: both are an [`Instance`].
//!
//! An instance has an id, handles events and emits on named outputs. It has no loop, no map and no
//! metrics of its own: the host loop (`host`) calls it, and all that it may touch is its
//! [`Context`].

use std::sync::Arc;

use async_trait::async_trait;
use edgeless_api::component::{FunctionSpec, ResourceSpec};
use edgeless_api::{Error, InstanceId};
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

    /// Ends. Called once, when no event is being handled.
    async fn stop(&self) {}
}

/// All that an instance may touch.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who it is.
    pub id: InstanceId,
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
