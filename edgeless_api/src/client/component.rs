//! Starting and stopping components, at an orchestrator or at a node.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::Connection;
use crate::component::{Annotations, ComponentKind, ComponentRef, ComponentSpec, Patch, Row, Start};
use crate::dead::{DeadLetters, Letters, Resolved, Treatment};
use crate::error::Error;
use crate::server::Values;
use crate::status::{ComponentStatus, Limit, LogLine};
use crate::wire::component::{function_request, resource_request, row_list, started};
use crate::wire::dead::{asked, choice};
use crate::wire::pb;
use crate::wire::status::{limits, statuses};
use pb::component_control_client::ComponentControlClient;
use pb::function_instance_client::FunctionInstanceClient;
use pb::resource_configuration_client::ResourceConfigurationClient;
use tonic::transport::Channel;

/// Calls the services about components.
#[derive(Clone, Debug)]
pub struct Components {
    connection: Connection,
    functions: FunctionInstanceClient<Channel>,
    resources: ResourceConfigurationClient<Channel>,
    control: ComponentControlClient<Channel>,
}

impl Components {
    /// Calls them over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("orchestrator or node");
        let channel = || connection.channel.clone();
        let limit = connection.limits.message;
        Self {
            functions: FunctionInstanceClient::new(channel()).max_decoding_message_size(limit),
            resources: ResourceConfigurationClient::new(channel()).max_decoding_message_size(limit),
            control: ComponentControlClient::new(channel()).max_decoding_message_size(limit),
            connection,
        }
    }

    /// Starts a component.
    ///
    /// # Errors
    /// It is refused, or the peer cannot be reached.
    pub async fn start(&self, start: Start) -> Result<ComponentRef, Error> {
        let response = match start.spec {
            ComponentSpec::Function(spec) => self.functions.clone().start(function_request(spec, start.context)).await,
            ComponentSpec::Resource(spec) => self.resources.clone().start(resource_request(spec, start.context)).await,
        };
        started(response.map_err(|status| self.connection.error(status))?.into_inner())
    }

    /// Stops a component.
    ///
    /// # Errors
    /// The peer refuses the id or cannot be reached.
    pub async fn stop(&self, kind: ComponentKind, id: ComponentRef) -> Result<(), Error> {
        let stopped = match kind {
            ComponentKind::Function => self.functions.clone().stop(pb::InstanceIdVariant::from(id)).await,
            ComponentKind::Resource => self.resources.clone().stop(pb::InstanceIdVariant::from(id)).await,
        };
        stopped.map(|_| ()).map_err(|status| self.connection.error(status))
    }

    /// Replaces the outputs of a component.
    ///
    /// # Errors
    /// The peer does not know it or cannot be reached.
    pub async fn patch(&self, kind: ComponentKind, patch: Patch) -> Result<(), Error> {
        let patched = match kind {
            ComponentKind::Function => self.functions.clone().patch(pb::PatchRequest::from(patch)).await,
            ComponentKind::Resource => self.resources.clone().patch(pb::PatchRequest::from(patch)).await,
        };
        patched.map(|_| ()).map_err(|status| self.connection.error(status))
    }

    /// Lets started components emit.
    ///
    /// # Errors
    /// The peer does not know one of them, speaks only EDGELESS 1.2 or cannot be reached.
    pub async fn activate(&self, ids: &[Uuid]) -> Result<(), Error> {
        let activated = self.control.clone().activate(component_ids(ids)).await;
        activated.map(|_| ()).map_err(|status| self.connection.error(status))
    }

    /// Where components stand.
    ///
    /// # Errors
    /// The peer speaks only EDGELESS 1.2 or cannot be reached.
    pub async fn status(&self, ids: &[Uuid]) -> Result<Vec<ComponentStatus>, Error> {
        let list = self.control.clone().status(component_ids(ids)).await;
        statuses(list.map_err(|status| self.connection.error(status))?.into_inner())
    }

    /// What components logged and, if asked, will log.
    ///
    /// # Errors
    /// The peer speaks only EDGELESS 1.2 or cannot be reached.
    pub async fn logs(&self, ids: &[Uuid], follow: bool) -> Result<Values<LogLine>, Error> {
        let request = pb::LogsRequest { component_ids: component_ids(ids).component_ids, follow };
        let lines = self.control.clone().logs(request).await.map_err(|status| self.connection.error(status))?;
        Ok(self.connection.values(lines.into_inner(), |line: pb::LogLine| Ok(line.into())))
    }

    /// Changes limits of what a component may use, and tells all that it has then. Without changes it
    /// only tells.
    ///
    /// # Errors
    /// The peer refuses a change, does not know the component, speaks only EDGELESS 1.2 or cannot be
    /// reached.
    pub async fn limits(&self, id: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let request = pb::LimitsRequest { component_id: id.to_string(), changes };
        let answer = self.control.clone().limits(request).await;
        limits(answer.map_err(|status| self.connection.error(status))?.into_inner())
    }

    /// Ends an instance that has moved, and tells the state that it saved last.
    ///
    /// # Errors
    /// The node does not know it, speaks only EDGELESS 1.2 or cannot be reached.
    pub async fn release(&self, instance: Uuid, grace: Duration) -> Result<Option<Bytes>, Error> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let request = pb::ReleaseRequest { instance_id: instance.to_string(), grace_ms };
        let released = self.control.clone().release(request).await;
        Ok(released.map_err(|status| self.connection.error(status))?.into_inner().state)
    }

    /// Tells a node where components run now.
    ///
    /// # Errors
    /// The node speaks only EDGELESS 1.2 or cannot be reached.
    pub async fn set_rows(&self, rows: Vec<Row>) -> Result<(), Error> {
        let set = self.control.clone().set_rows(row_list(rows)).await;
        set.map(|_| ()).map_err(|status| self.connection.error(status))
    }

    /// The dead letters of components, at most so many.
    ///
    /// # Errors
    /// The peer keeps none or cannot be reached.
    pub async fn dead_letters(&self, ids: &[Uuid], most: usize) -> Result<DeadLetters, Error> {
        let component_ids = component_ids(ids).component_ids;
        let request = pb::DeadLettersRequest { component_ids, most: asked(most) };
        let list = self.control.clone().dead_letters(request).await;
        list.map_err(|status| self.connection.error(status))?.into_inner().try_into()
    }

    /// Sends dead letters of components again, or drops them.
    ///
    /// # Errors
    /// The peer keeps none or cannot be reached.
    pub async fn resolve_dead(&self, ids: &[Uuid], letters: Letters, treatment: Treatment) -> Result<Resolved, Error> {
        let component_ids = component_ids(ids).component_ids;
        let request = pb::ResolveDeadLettersRequest { component_ids, choice: Some(choice(letters, treatment)) };
        let resolved = self.control.clone().resolve_dead_letters(request).await;
        Ok(resolved.map_err(|status| self.connection.error(status))?.into_inner().into())
    }
}

fn component_ids(ids: &[Uuid]) -> pb::ComponentIds {
    pb::ComponentIds { component_ids: ids.iter().map(Uuid::to_string).collect() }
}
