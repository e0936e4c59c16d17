//! What operators do with nodes and components: served by orchestrators for their domain, and by the
//! controller for all.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Request;

use super::{Adapter, Server, Values, Wire, WireStream, answer};
use crate::decision::Decision;
use crate::error::Error;
use crate::id::{ComponentId, NodeId};
use crate::operations::{DrainProgress, Relocation};
use crate::status::ComponentStatus;
use crate::wire::operations::{outcome, relocation_list, why_response};
use crate::wire::status::status_list;
use crate::wire::{pb, uuid};

/// Does what operators ask for.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Lets nothing new be placed on a node, or lets it again. A repeat is harmless.
    async fn cordon(&self, node: NodeId, cordoned: bool) -> Result<(), Error>;
    /// Forgets a node that is lost: the key to which its id is bound, and whether it was cordoned.
    async fn forget(&self, _node: NodeId) -> Result<(), Error> {
        Err(Error::unimplemented("nodes are not forgotten here"))
    }
    /// Cordons a node and moves everything that runs there elsewhere, one by one; ends when no more can be moved.
    async fn drain(&self, node: NodeId) -> Result<Values<DrainProgress>, Error>;
    /// What runs on a node.
    async fn residents(&self, node: NodeId) -> Result<Vec<ComponentStatus>, Error>;
    /// What would become of the components of a node if it were lost. Changes nothing.
    async fn plan_loss(&self, node: NodeId) -> Result<Vec<Relocation>, Error>;
    /// Moves a component to a node of its domain; done when it runs there.
    async fn move_component(&self, component: ComponentId, node: NodeId) -> Result<(), Error>;
    /// Why a component is where it is, or where it would be placed now.
    async fn why(&self, _component: ComponentId) -> Result<Decision, Error> {
        Err(Error::unimplemented("placements are not explained here"))
    }
}

impl Server {
    /// Adds what operators do.
    #[must_use]
    pub fn operations(mut self, service: Arc<impl Operations>) -> Self {
        use pb::operations_server::OperationsServer;
        let limit = self.limits.message;
        let operations = OperationsServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(operations);
        self
    }
}

#[async_trait]
impl<T: Operations> pb::operations_server::Operations for Adapter<T> {
    type DrainStream = WireStream<pb::DrainProgress>;

    async fn cordon(&self, request: Request<pb::CordonRequest>) -> Wire<pb::Outcome> {
        let request = request.into_inner();
        let node = NodeId(uuid(&request.node_id, "node_id")?);
        answer(outcome(self.service.cordon(node, request.cordoned).await))
    }

    async fn forget(&self, request: Request<pb::NodeRef>) -> Wire<pb::Outcome> {
        answer(outcome(self.service.forget(request.into_inner().try_into()?).await))
    }

    async fn drain(&self, request: Request<pb::NodeRef>) -> Wire<Self::DrainStream> {
        let progress = self.service.drain(request.into_inner().try_into()?).await?;
        Ok(self.stream(progress))
    }

    async fn residents(&self, request: Request<pb::NodeRef>) -> Wire<pb::ComponentStatusList> {
        answer(self.service.residents(request.into_inner().try_into()?).await.map(status_list))
    }

    async fn plan_loss(&self, request: Request<pb::NodeRef>) -> Wire<pb::RelocationList> {
        answer(relocation_list(self.service.plan_loss(request.into_inner().try_into()?).await))
    }

    async fn r#move(&self, request: Request<pb::MoveRequest>) -> Wire<pb::Outcome> {
        let request = request.into_inner();
        let component = ComponentId(uuid(&request.component_id, "component_id")?);
        let node = NodeId(uuid(&request.node_id, "node_id")?);
        answer(outcome(self.service.move_component(component, node).await))
    }

    async fn why(&self, request: Request<pb::WhyRequest>) -> Wire<pb::WhyResponse> {
        let component = ComponentId(uuid(&request.into_inner().component_id, "component_id")?);
        answer(why_response(self.service.why(component).await))
    }
}
