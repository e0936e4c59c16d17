//! A runtime that tells when events are handled; all else is that of nodes.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use edgeless_api::component::FunctionSpec;
use edgeless_api::{Error, Limits, NodeId};
use edgeless_node::instance::{Context, Incoming, Instance, InstanceError, Payload, Program, Runtime};
use edgeless_node::runtimes::wasm::{self, Wasm};
use edgeless_node::starts::StartTimes;

use crate::node::Size;

/// Is told of each event. Both are in the way of what is measured: they must be quick.
pub(crate) trait Watcher: Send + Sync + 'static {
    /// A handler begins.
    fn begins(&self) {}
    /// A handler has ended.
    fn ended(&self) {}
}

/// The runtime of a node of this size, watched.
pub(crate) fn watched(size: &Size, watcher: Arc<dyn Watcher>) -> Result<Arc<dyn Runtime>> {
    let limits = wasm::Limits {
        instances: u32::try_from(size.instances)?,
        memory: size.memory_mib << 20,
        time: size.cpu_limit,
        payload: Limits::default().payload,
    };
    let wasm = Wasm::new(limits, None, StartTimes::new(NodeId::NONE))?;
    Ok(Arc::new(WatchedRuntime { wasm, watcher }))
}

struct WatchedRuntime {
    wasm: Wasm,
    watcher: Arc<dyn Watcher>,
}

#[async_trait]
impl Runtime for WatchedRuntime {
    fn kind(&self) -> &'static str {
        self.wasm.kind()
    }

    async fn load(&self, spec: FunctionSpec) -> Result<Arc<dyn Program>, Error> {
        Ok(Arc::new(WatchedProgram { program: self.wasm.load(spec).await?, watcher: self.watcher.clone() }))
    }
}

struct WatchedProgram {
    program: Arc<dyn Program>,
    watcher: Arc<dyn Watcher>,
}

#[async_trait]
impl Program for WatchedProgram {
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error> {
        let instance = self.program.instantiate(context).await?;
        Ok(Box::new(WatchedInstance { instance, watcher: self.watcher.clone() }))
    }
}

struct WatchedInstance {
    instance: Box<dyn Instance>,
    watcher: Arc<dyn Watcher>,
}

#[async_trait]
impl Instance for WatchedInstance {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        self.watcher.begins();
        let handled = self.instance.handle(event).await;
        self.watcher.ended();
        handled
    }

    async fn stop(&self) {
        self.instance.stop().await;
    }
}
