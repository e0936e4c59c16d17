//! Starting and stopping components: served by orchestrators and by nodes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tonic::Request;
use uuid::Uuid;

use super::{Adapter, Server, Values, Wire, WireStream, answer, empty};
use crate::component::{Annotations, ComponentKind, ComponentRef, Patch, Row, Start};
use crate::dead::{DeadLetters, Letters, Resolved, Treatment};
use crate::error::Error;
use crate::status::{ComponentStatus, Limit, LogLine};
use crate::wire::component::rows;
use crate::wire::dead::{chosen, most};
use crate::wire::status::{limits_response, status_list};
use crate::wire::{error::refusal, pb, uuid, uuids};

/// Runs components for whoever is above.
///
/// An orchestrator speaks of components, a node of instances; both refuse the other's ids.
#[async_trait]
pub trait Components: Send + Sync + 'static {
    /// Starts a component. A repeat of a start with a context returns the first result.
    async fn start(&self, start: Start) -> Result<ComponentRef, Error>;
    /// Stops a component. One that is gone is no error.
    async fn stop(&self, kind: ComponentKind, id: ComponentRef) -> Result<(), Error>;
    /// Replaces the outputs of a component.
    async fn patch(&self, kind: ComponentKind, patch: Patch) -> Result<(), Error>;
    /// Lets started components emit: the last of three steps.
    async fn activate(&self, ids: Vec<Uuid>) -> Result<(), Error>;
    /// Where components stand; ids that are not known are left out.
    async fn status(&self, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error>;
    /// What components logged and, if asked, will log.
    async fn logs(&self, ids: Vec<Uuid>, follow: bool) -> Result<Values<LogLine>, Error>;
    /// Changes limits of what a component may use, all of them or none, and tells all that it has then.
    /// Without changes it only tells. A repeat is harmless.
    async fn limits(&self, id: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error>;
    /// Ends an instance that has moved, once what is queued for it is handled or `grace` is over, and tells the
    /// state that it saved last. Events that still come for it go where the row of its component leads.
    async fn release(&self, _instance: Uuid, _grace: Duration) -> Result<Option<Bytes>, Error> {
        Err(Error::unimplemented("only nodes release instances"))
    }
    /// Where components run now. An older epoch changes nothing.
    async fn set_rows(&self, _rows: Vec<Row>) -> Result<(), Error> {
        Err(Error::unimplemented("only nodes route by rows"))
    }
    /// The dead letters of components, at most so many; ids that are not known are left out.
    async fn dead_letters(&self, _ids: Vec<Uuid>, _most: usize) -> Result<DeadLetters, Error> {
        Err(Error::unimplemented("dead letters are not kept here"))
    }
    /// Sends dead letters of components again, or drops them. Those that are not there any more are left out.
    async fn resolve_dead(&self, _ids: Vec<Uuid>, _: Letters, _: Treatment) -> Result<Resolved, Error> {
        Err(Error::unimplemented("dead letters are not kept here"))
    }
}

impl Server {
    /// Adds the services about components.
    #[must_use]
    pub fn components(mut self, service: Arc<impl Components>) -> Self {
        use pb::component_control_server::ComponentControlServer;
        use pb::function_instance_server::FunctionInstanceServer;
        use pb::resource_configuration_server::ResourceConfigurationServer;
        let limit = self.limits.message;
        let functions = FunctionInstanceServer::new(self.adapter(service.clone())).max_decoding_message_size(limit);
        let resources =
            ResourceConfigurationServer::new(self.adapter(service.clone())).max_decoding_message_size(limit);
        let control = ComponentControlServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(functions).add_service(resources).add_service(control);
        self
    }
}

/// A refused start is an answer; whatever else went wrong is an error.
fn started(result: Result<ComponentRef, Error>, summary: &str) -> Wire<pb::StartComponentResponse> {
    answer(match result {
        Ok(id) => Ok(pb::StartComponentResponse { response_error: None, instance_id: Some(id.into()) }),
        Err(error) if error.code.is_refusal() => {
            Ok(pb::StartComponentResponse { response_error: Some(refusal(summary, &error)), instance_id: None })
        }
        Err(error) => Err(error),
    })
}

#[async_trait]
impl<T: Components> pb::function_instance_server::FunctionInstance for Adapter<T> {
    async fn start(&self, request: Request<pb::SpawnFunctionRequest>) -> Wire<pb::StartComponentResponse> {
        match Start::try_from(request.into_inner()) {
            Ok(start) => started(self.service.start(start).await, "Function instance creation request rejected"),
            Err(error) => started(Err(error), "Invalid function instance creation request"),
        }
    }

    async fn stop(&self, request: Request<pb::InstanceIdVariant>) -> Wire<()> {
        empty(self.service.stop(ComponentKind::Function, request.into_inner().try_into()?).await)
    }

    async fn patch(&self, request: Request<pb::PatchRequest>) -> Wire<()> {
        empty(self.service.patch(ComponentKind::Function, request.into_inner().try_into()?).await)
    }
}

#[async_trait]
impl<T: Components> pb::resource_configuration_server::ResourceConfiguration for Adapter<T> {
    async fn start(&self, request: Request<pb::ResourceInstanceSpecification>) -> Wire<pb::StartComponentResponse> {
        match Start::try_from(request.into_inner()) {
            Ok(start) => started(self.service.start(start).await, "Resource creation rejected"),
            Err(error) => started(Err(error), "Invalid resource specification"),
        }
    }

    async fn stop(&self, request: Request<pb::InstanceIdVariant>) -> Wire<()> {
        empty(self.service.stop(ComponentKind::Resource, request.into_inner().try_into()?).await)
    }

    async fn patch(&self, request: Request<pb::PatchRequest>) -> Wire<()> {
        empty(self.service.patch(ComponentKind::Resource, request.into_inner().try_into()?).await)
    }
}

#[async_trait]
impl<T: Components> pb::component_control_server::ComponentControl for Adapter<T> {
    type LogsStream = WireStream<pb::LogLine>;

    async fn activate(&self, request: Request<pb::ComponentIds>) -> Wire<()> {
        let ids = uuids(&request.into_inner().component_ids, "component_ids")?;
        empty(self.service.activate(ids).await)
    }

    async fn status(&self, request: Request<pb::ComponentIds>) -> Wire<pb::ComponentStatusList> {
        let ids = uuids(&request.into_inner().component_ids, "component_ids")?;
        answer(self.service.status(ids).await.map(status_list))
    }

    async fn logs(&self, request: Request<pb::LogsRequest>) -> Wire<Self::LogsStream> {
        let request = request.into_inner();
        let ids = uuids(&request.component_ids, "component_ids")?;
        let lines = self.service.logs(ids, request.follow).await?;
        Ok(self.stream(lines))
    }

    async fn limits(&self, request: Request<pb::LimitsRequest>) -> Wire<pb::LimitsResponse> {
        let request = request.into_inner();
        let id = uuid(&request.component_id, "component_id")?;
        answer(limits_response(self.service.limits(id, request.changes).await))
    }

    async fn release(&self, request: Request<pb::ReleaseRequest>) -> Wire<pb::ReleaseResponse> {
        let request = request.into_inner();
        let instance = uuid(&request.instance_id, "instance_id")?;
        let state = self.service.release(instance, Duration::from_millis(request.grace_ms)).await;
        answer(state.map(|state| pb::ReleaseResponse { state }))
    }

    async fn set_rows(&self, request: Request<pb::RowList>) -> Wire<()> {
        empty(self.service.set_rows(rows(request.into_inner())?).await)
    }

    async fn dead_letters(&self, request: Request<pb::DeadLettersRequest>) -> Wire<pb::DeadLetterList> {
        let request = request.into_inner();
        let ids = uuids(&request.component_ids, "component_ids")?;
        answer(self.service.dead_letters(ids, most(request.most)).await.map(Into::into))
    }

    async fn resolve_dead_letters(
        &self,
        request: Request<pb::ResolveDeadLettersRequest>,
    ) -> Wire<pb::ResolvedDeadLetters> {
        let request = request.into_inner();
        let ids = uuids(&request.component_ids, "component_ids")?;
        let (letters, treatment) = chosen(request.choice)?;
        answer(self.service.resolve_dead(ids, letters, treatment).await.map(Into::into))
    }
}
