//! Workflows and the registration of domains, at the controller.

use std::collections::BTreeMap;

use tonic::transport::Channel;
use uuid::Uuid;

use super::Connection;
use crate::component::Annotations;
use crate::dead::{DeadLetters, Letters, Resolved, Scope, Treatment};
use crate::domain::{DomainCapabilities, DomainRegistered, DomainRegistration};
use crate::error::Error;
use crate::id::{ComponentId, DomainId, WorkflowId};
use crate::node::NodeInfo;
use crate::server::Values;
use crate::status::{ComponentStatus, Limit, LogLine, Placement};
use crate::wire::dead::{asked, choice};
use crate::wire::domain::domains;
use crate::wire::node::node_infos;
use crate::wire::status::{limits, placements, statuses};
use crate::wire::{pb, required};
use crate::workflow::{Workflow, WorkflowStatus};
use pb::domain_registration_client::DomainRegistrationClient;
use pb::workflow_control_client::WorkflowControlClient;
use pb::workflow_instance_client::WorkflowInstanceClient;

/// Calls the services about workflows. Each call fails with the controller's refusal, or with the
/// reason why it cannot be reached.
#[derive(Clone, Debug)]
pub struct Workflows {
    connection: Connection,
    workflows: WorkflowInstanceClient<Channel>,
    control: WorkflowControlClient<Channel>,
}

impl Workflows {
    /// Calls them over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("controller");
        let limit = connection.limits.message;
        let workflows = WorkflowInstanceClient::new(connection.channel.clone()).max_decoding_message_size(limit);
        let control = WorkflowControlClient::new(connection.channel.clone()).max_decoding_message_size(limit);
        Self { connection, workflows, control }
    }

    fn answer<T>(&self, answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T, Error> {
        answer.map(tonic::Response::into_inner).map_err(|status| self.connection.error(status))
    }

    /// Starts a workflow; a repeat with the same request id returns the first result.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn start(&self, workflow: Workflow, request: Option<Uuid>) -> Result<WorkflowStatus, Error> {
        let request_id = request.map(|id| id.to_string()).unwrap_or_default();
        let request = pb::SpawnWorkflowRequest { request_id, ..workflow.into() };
        spawned(self.answer(self.workflows.clone().start(request).await)?)
    }

    /// Stops a workflow.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn stop(&self, workflow: WorkflowId) -> Result<(), Error> {
        self.answer(self.workflows.clone().stop(pb::WorkflowId::from(workflow)).await)
    }

    /// All workflows.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn list(&self) -> Result<Vec<WorkflowId>, Error> {
        let list = self.answer(self.workflows.clone().list(()).await)?;
        list.identifiers.iter().map(|id| Ok(id.parse()?)).collect()
    }

    /// A workflow as it was asked for, and what became of it.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn inspect(&self, workflow: WorkflowId) -> Result<(Workflow, WorkflowStatus), Error> {
        let info = self.answer(self.workflows.clone().inspect(pb::WorkflowId::from(workflow)).await)?;
        Ok((required(info.request, "request")?.try_into()?, required(info.status, "status")?.try_into()?))
    }

    /// One domain, or all.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn domains(&self, domain: Option<DomainId>) -> Result<BTreeMap<DomainId, DomainCapabilities>, Error> {
        domains(self.answer(self.workflows.clone().domains(domain_id(domain)).await)?)
    }

    /// Moves a workflow, or one component of it, to a domain.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn migrate(
        &self,
        workflow: WorkflowId,
        domain: DomainId,
        component: Option<String>,
    ) -> Result<WorkflowStatus, Error> {
        let request = pb::MigrateWorkflowRequest {
            workflow_id: Some(workflow.into()),
            domain_id: Some(domain_id(Some(domain))),
            component: component.unwrap_or_default(),
        };
        spawned(self.answer(self.workflows.clone().migrate(request).await)?)
    }

    /// Where each component would go. Starts nothing.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn plan(&self, workflow: Workflow) -> Result<Vec<Placement>, Error> {
        placements(self.answer(self.control.clone().plan(pb::SpawnWorkflowRequest::from(workflow)).await)?)
    }

    /// Where each component stands.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn status(&self, workflow: WorkflowId) -> Result<Vec<ComponentStatus>, Error> {
        statuses(self.answer(self.control.clone().status(pb::WorkflowId::from(workflow)).await)?)
    }

    /// What one component, or all, logged and, if asked, will log.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn logs(
        &self,
        workflow: WorkflowId,
        component: Option<String>,
        follow: bool,
    ) -> Result<Values<LogLine>, Error> {
        let component = component.unwrap_or_default();
        let request = pb::WorkflowLogsRequest { workflow_id: Some(workflow.into()), component, follow };
        let lines = self.answer(self.control.clone().logs(request).await)?;
        Ok(self.connection.values(lines, |line: pb::LogLine| Ok(line.into())))
    }

    /// The nodes of one domain, or of all.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn nodes(&self, domain: Option<DomainId>) -> Result<Vec<NodeInfo>, Error> {
        node_infos(self.answer(self.control.clone().nodes(domain_id(domain)).await)?)
    }

    /// Changes limits of what a component may use, and tells all that it has then. Without changes it
    /// only tells.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn limits(&self, component: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let request = pb::LimitsRequest { component_id: component.to_string(), changes };
        limits(self.answer(self.control.clone().limits(request).await)?)
    }

    /// Dead letters, at most so many.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn dead_letters(&self, scope: Scope, most: usize) -> Result<DeadLetters, Error> {
        let request = pb::WorkflowDeadLettersRequest { scope: Some(scope.into()), most: asked(most) };
        self.answer(self.control.clone().dead_letters(request).await)?.try_into()
    }

    /// Sends dead letters again, or drops them.
    ///
    /// # Errors
    /// See [`Workflows`].
    pub async fn resolve_dead(&self, scope: Scope, letters: Letters, treatment: Treatment) -> Result<Resolved, Error> {
        let (scope, choice) = (Some(scope.into()), Some(choice(letters, treatment)));
        let request = pb::ResolveWorkflowDeadLettersRequest { scope, choice };
        Ok(self.answer(self.control.clone().resolve_dead_letters(request).await)?.into())
    }
}

fn domain_id(domain: Option<DomainId>) -> pb::DomainId {
    pb::DomainId { domain_id: domain.map(|domain| domain.0).unwrap_or_default() }
}

fn spawned(response: pb::SpawnWorkflowResponse) -> Result<WorkflowStatus, Error> {
    match (response.workflow_status, response.response_error) {
        (Some(status), _) => status.try_into(),
        (None, Some(error)) => Err(error.into()),
        (None, None) => Err(Error::bug("the controller answered with neither a workflow nor an error")),
    }
}

/// Announces a domain to a controller.
#[derive(Clone, Debug)]
pub struct DomainRegistry {
    connection: Connection,
    registry: DomainRegistrationClient<Channel>,
}

impl DomainRegistry {
    /// Announces it over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("controller");
        Self { registry: DomainRegistrationClient::new(connection.channel.clone()), connection }
    }

    /// The domain is there, or still there.
    ///
    /// # Errors
    /// The controller refuses it or cannot be reached.
    pub async fn update_domain(&self, domain: DomainRegistration) -> Result<DomainRegistered, Error> {
        let response = self.registry.clone().update_domain(pb::UpdateDomainRequest::from(domain)).await;
        response.map_err(|status| self.connection.error(status))?.into_inner().try_into()
    }
}
