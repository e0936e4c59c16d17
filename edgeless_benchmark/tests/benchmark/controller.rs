//! A controller that makes difficulties.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use edgeless_api::component::Annotations;
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::node::NodeInfo;
use edgeless_api::server::{Server, Values, Workflows};
use edgeless_api::status::{ComponentStatus, Limit, LogLine, Placement};
use edgeless_api::workflow::{Workflow, WorkflowStatus};
use edgeless_api::{ComponentId, DomainId, Error, Limits, Url, WorkflowId};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

/// Answers no start before so many wait for it, and refuses every stop.
pub struct Difficult {
    together: Barrier,
}

impl Difficult {
    /// Where it is, until the guard is dropped.
    pub async fn serve(together: usize) -> (Url, DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::of(listener.local_addr().unwrap());
        let cancel = CancellationToken::new();
        let service = Arc::new(Self { together: Barrier::new(together) });
        tokio::spawn(Server::new(Limits::default(), cancel.clone()).workflows(service).serve(listener));
        (url, cancel.drop_guard())
    }
}

fn not_asked<T>() -> Result<T, Error> {
    Err(Error::unimplemented("nobody asks for this here"))
}

#[async_trait]
impl Workflows for Difficult {
    async fn start(&self, _workflow: Workflow, _request: Option<Uuid>) -> Result<WorkflowStatus, Error> {
        self.together.wait().await;
        Ok(WorkflowStatus { workflow: WorkflowId::random(), mapping: vec![] })
    }

    async fn stop(&self, _workflow: WorkflowId) -> Result<(), Error> {
        Err(Error::rejected("it shall go on"))
    }

    async fn list(&self) -> Result<Vec<WorkflowId>, Error> {
        Ok(vec![])
    }

    async fn inspect(&self, _workflow: WorkflowId) -> Result<(Workflow, WorkflowStatus), Error> {
        not_asked()
    }

    async fn domains(&self, _domain: Option<DomainId>) -> Result<BTreeMap<DomainId, DomainCapabilities>, Error> {
        not_asked()
    }

    async fn migrate(
        &self,
        _workflow: WorkflowId,
        _domain: DomainId,
        _component: Option<String>,
    ) -> Result<WorkflowStatus, Error> {
        not_asked()
    }

    async fn plan(&self, _workflow: Workflow) -> Result<Vec<Placement>, Error> {
        not_asked()
    }

    async fn status(&self, _workflow: WorkflowId) -> Result<Vec<ComponentStatus>, Error> {
        not_asked()
    }

    async fn logs(
        &self,
        _workflow: WorkflowId,
        _component: Option<String>,
        _follow: bool,
    ) -> Result<Values<LogLine>, Error> {
        not_asked()
    }

    async fn nodes(&self, _domain: Option<DomainId>) -> Result<Vec<NodeInfo>, Error> {
        not_asked()
    }

    async fn limits(&self, _component: ComponentId, _changes: Annotations) -> Result<Vec<Limit>, Error> {
        not_asked()
    }
}
