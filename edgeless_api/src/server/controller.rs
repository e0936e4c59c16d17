//! Workflows and the registration of domains: served by the controller.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tonic::Request;
use uuid::Uuid;

use super::{Adapter, Server, Values, Wire, WireStream, answer, empty};
use crate::component::Annotations;
use crate::dead::{DeadLetters, Letters, Resolved, Scope, Treatment};
use crate::domain::{DomainCapabilities, DomainRegistered, DomainRegistration};
use crate::error::Error;
use crate::id::{ComponentId, DomainId, WorkflowId};
use crate::node::NodeInfo;
use crate::status::{ComponentStatus, Limit, LogLine, Placement};
use crate::wire::dead::{chosen, most, scope};
use crate::wire::domain::domain_list;
use crate::wire::error::refusal;
use crate::wire::node::node_list;
use crate::wire::status::{limits_response, plan_response, status_list};
use crate::wire::{pb, required, uuid};
use crate::workflow::{Workflow, WorkflowStatus};

/// Runs workflows for users.
#[async_trait]
pub trait Workflows: Send + Sync + 'static {
    /// Starts a workflow, wholly or not at all. A repeat with the same request id returns the first
    /// result.
    async fn start(&self, workflow: Workflow, request: Option<Uuid>) -> Result<WorkflowStatus, Error>;
    /// Stops a workflow.
    async fn stop(&self, workflow: WorkflowId) -> Result<(), Error>;
    /// All workflows.
    async fn list(&self) -> Result<Vec<WorkflowId>, Error>;
    /// A workflow as it was asked for, and what became of it.
    async fn inspect(&self, workflow: WorkflowId) -> Result<(Workflow, WorkflowStatus), Error>;
    /// One domain, or all.
    async fn domains(&self, domain: Option<DomainId>) -> Result<BTreeMap<DomainId, DomainCapabilities>, Error>;
    /// Moves a workflow, or one component of it, to a domain.
    async fn migrate(
        &self,
        workflow: WorkflowId,
        domain: DomainId,
        component: Option<String>,
    ) -> Result<WorkflowStatus, Error>;
    /// Where each component would go.
    async fn plan(&self, workflow: Workflow) -> Result<Vec<Placement>, Error>;
    /// Where each component stands.
    async fn status(&self, workflow: WorkflowId) -> Result<Vec<ComponentStatus>, Error>;
    /// What one component, or all, logged and, if asked, will log.
    async fn logs(
        &self,
        workflow: WorkflowId,
        component: Option<String>,
        follow: bool,
    ) -> Result<Values<LogLine>, Error>;
    /// The nodes of one domain, or of all.
    async fn nodes(&self, domain: Option<DomainId>) -> Result<Vec<NodeInfo>, Error>;
    /// Changes limits of what a component may use, all of them or none, and tells all that it has then.
    /// Without changes it only tells. A repeat is harmless.
    async fn limits(&self, component: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error>;
    /// Dead letters, at most so many.
    async fn dead_letters(&self, _: Scope, _most: usize) -> Result<DeadLetters, Error> {
        Err(Error::unimplemented("dead letters are not kept here"))
    }
    /// Sends dead letters again, or drops them. Those that are not there any more are left out.
    async fn resolve_dead(&self, _: Scope, _: Letters, _: Treatment) -> Result<Resolved, Error> {
        Err(Error::unimplemented("dead letters are not kept here"))
    }
}

/// Takes the announcements of orchestrators.
#[async_trait]
pub trait DomainRegistry: Send + Sync + 'static {
    /// A domain is there, or still there.
    async fn update_domain(&self, domain: DomainRegistration) -> Result<DomainRegistered, Error>;
}

impl Server {
    /// Adds the services about workflows.
    #[must_use]
    pub fn workflows(mut self, service: Arc<impl Workflows>) -> Self {
        use pb::workflow_control_server::WorkflowControlServer;
        use pb::workflow_instance_server::WorkflowInstanceServer;
        let limit = self.limits.message;
        let workflows = WorkflowInstanceServer::new(self.adapter(service.clone())).max_decoding_message_size(limit);
        let control = WorkflowControlServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(workflows).add_service(control);
        self
    }

    /// Adds the registration of domains.
    #[must_use]
    pub fn domain_registry(mut self, service: Arc<impl DomainRegistry>) -> Self {
        use pb::domain_registration_server::DomainRegistrationServer;
        let limit = self.limits.message;
        let registry = DomainRegistrationServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(registry);
        self
    }
}

fn domain_or_all(id: pb::DomainId) -> Option<DomainId> {
    (!id.domain_id.is_empty()).then_some(DomainId(id.domain_id))
}

/// A refusal is an answer; whatever else went wrong is an error.
fn spawned(result: Result<WorkflowStatus, Error>, summary: &str) -> Wire<pb::SpawnWorkflowResponse> {
    answer(match result {
        Ok(status) => Ok(pb::SpawnWorkflowResponse { response_error: None, workflow_status: Some(status.into()) }),
        Err(error) if error.code.is_refusal() => {
            Ok(pb::SpawnWorkflowResponse { response_error: Some(refusal(summary, &error)), workflow_status: None })
        }
        Err(error) => Err(error),
    })
}

#[async_trait]
impl<T: Workflows> pb::workflow_instance_server::WorkflowInstance for Adapter<T> {
    async fn start(&self, request: Request<pb::SpawnWorkflowRequest>) -> Wire<pb::SpawnWorkflowResponse> {
        let mut message = request.into_inner();
        let id = std::mem::take(&mut message.request_id);
        let request = if id.is_empty() { Ok(None) } else { uuid(&id, "request_id").map(Some) };
        match (Workflow::try_from(message), request) {
            (Ok(workflow), Ok(request)) => spawned(self.service.start(workflow, request).await, "Request rejected"),
            (Err(error), _) | (_, Err(error)) => spawned(Err(error), "Invalid request"),
        }
    }

    async fn stop(&self, request: Request<pb::WorkflowId>) -> Wire<()> {
        empty(self.service.stop(request.into_inner().try_into()?).await)
    }

    async fn list(&self, _: Request<()>) -> Wire<pb::WorkflowIdList> {
        let list = self.service.list().await;
        answer(list.map(|ids| pb::WorkflowIdList { identifiers: ids.iter().map(WorkflowId::to_string).collect() }))
    }

    async fn inspect(&self, request: Request<pb::WorkflowId>) -> Wire<pb::WorkflowInstanceInfo> {
        let info = self.service.inspect(request.into_inner().try_into()?).await;
        answer(info.map(|(workflow, status)| pb::WorkflowInstanceInfo {
            request: Some(workflow.into()),
            status: Some(status.into()),
        }))
    }

    async fn domains(&self, request: Request<pb::DomainId>) -> Wire<pb::DomainCapabilitiesList> {
        answer(self.service.domains(domain_or_all(request.into_inner())).await.map(domain_list))
    }

    async fn migrate(&self, request: Request<pb::MigrateWorkflowRequest>) -> Wire<pb::SpawnWorkflowResponse> {
        let request = request.into_inner();
        let workflow = required(request.workflow_id, "workflow_id")?.try_into()?;
        let domain = DomainId(required(request.domain_id, "domain_id")?.domain_id);
        let component = (!request.component.is_empty()).then_some(request.component);
        spawned(self.service.migrate(workflow, domain, component).await, "Request rejected")
    }
}

#[async_trait]
impl<T: Workflows> pb::workflow_control_server::WorkflowControl for Adapter<T> {
    type LogsStream = WireStream<pb::LogLine>;

    async fn plan(&self, request: Request<pb::SpawnWorkflowRequest>) -> Wire<pb::PlanResponse> {
        let plan = match Workflow::try_from(request.into_inner()) {
            Ok(workflow) => self.service.plan(workflow).await,
            Err(error) => Err(error),
        };
        answer(plan_response(plan))
    }

    async fn status(&self, request: Request<pb::WorkflowId>) -> Wire<pb::ComponentStatusList> {
        answer(self.service.status(request.into_inner().try_into()?).await.map(status_list))
    }

    async fn logs(&self, request: Request<pb::WorkflowLogsRequest>) -> Wire<Self::LogsStream> {
        let request = request.into_inner();
        let workflow = required(request.workflow_id, "workflow_id")?.try_into()?;
        let component = (!request.component.is_empty()).then_some(request.component);
        let lines = self.service.logs(workflow, component, request.follow).await?;
        Ok(self.stream(lines))
    }

    async fn nodes(&self, request: Request<pb::DomainId>) -> Wire<pb::NodeList> {
        answer(self.service.nodes(domain_or_all(request.into_inner())).await.map(node_list))
    }

    async fn limits(&self, request: Request<pb::LimitsRequest>) -> Wire<pb::LimitsResponse> {
        let request = request.into_inner();
        let component = ComponentId(uuid(&request.component_id, "component_id")?);
        answer(limits_response(self.service.limits(component, request.changes).await))
    }

    async fn dead_letters(&self, request: Request<pb::WorkflowDeadLettersRequest>) -> Wire<pb::DeadLetterList> {
        let request = request.into_inner();
        let scope = scope(request.scope)?;
        answer(self.service.dead_letters(scope, most(request.most)).await.map(Into::into))
    }

    async fn resolve_dead_letters(
        &self,
        request: Request<pb::ResolveWorkflowDeadLettersRequest>,
    ) -> Wire<pb::ResolvedDeadLetters> {
        let request = request.into_inner();
        let (letters, treatment) = chosen(request.choice)?;
        answer(self.service.resolve_dead(scope(request.scope)?, letters, treatment).await.map(Into::into))
    }
}

#[async_trait]
impl<T: DomainRegistry> pb::domain_registration_server::DomainRegistration for Adapter<T> {
    async fn update_domain(&self, request: Request<pb::UpdateDomainRequest>) -> Wire<pb::UpdateDomainResponse> {
        let result = match DomainRegistration::try_from(request.into_inner()) {
            Ok(domain) => self.service.update_domain(domain).await,
            Err(error) => Err(error),
        };
        answer(match result {
            Ok(registered) => Ok(registered.into()),
            Err(error) if error.code.is_refusal() => Ok(pb::UpdateDomainResponse {
                response_error: Some(refusal("Invalid domain registration", &error)),
                reset: false,
            }),
            Err(error) => Err(error),
        })
    }
}
