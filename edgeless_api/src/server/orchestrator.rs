//! The registration of nodes and the domain as a whole: served by the orchestrator.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Request;

use super::{Adapter, Server, Values, Wire, WireStream, answer};
use crate::component::ComponentSpec;
use crate::domain::DomainState;
use crate::error::Error;
use crate::node::{NodeInfo, Registered, Registration};
use crate::status::Placement;
use crate::wire::component::plan_items;
use crate::wire::error::refusal;
use crate::wire::node::node_list;
use crate::wire::pb;
use crate::wire::status::plan_response;

/// Takes the announcements of nodes.
#[async_trait]
pub trait NodeRegistry: Send + Sync + 'static {
    /// A node is there, or still there, or says goodbye.
    async fn update_node(&self, node: Registration) -> Result<Registered, Error>;
}

/// Shows the domain to a controller.
#[async_trait]
pub trait Domain: Send + Sync + 'static {
    /// The domain as it is now, again whenever it changes, and at every keep-alive. It starts afresh
    /// for a controller, named by the nonce of its process, that is not the one it had before.
    async fn watch(&self, controller: u64) -> Result<Values<DomainState>, Error>;
    /// Where each of these components would go.
    async fn plan(&self, items: Vec<(String, ComponentSpec)>) -> Result<Vec<Placement>, Error>;
    /// The nodes.
    async fn nodes(&self) -> Result<Vec<NodeInfo>, Error>;
}

impl Server {
    /// Adds the registration of nodes.
    #[must_use]
    pub fn node_registry(mut self, service: Arc<impl NodeRegistry>) -> Self {
        use pb::node_registration_server::NodeRegistrationServer;
        let limit = self.limits.message;
        let registry = NodeRegistrationServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(registry);
        self
    }

    /// Adds what a controller follows.
    #[must_use]
    pub fn domain(mut self, service: Arc<impl Domain>) -> Self {
        use pb::domain_control_server::DomainControlServer;
        let limit = self.limits.message;
        let domain = DomainControlServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(domain);
        self
    }
}

#[async_trait]
impl<T: NodeRegistry> pb::node_registration_server::NodeRegistration for Adapter<T> {
    async fn update_node(&self, request: Request<pb::UpdateNodeRequest>) -> Wire<pb::UpdateNodeResponse> {
        // What cannot be parsed is INVALID_ARGUMENT by the protocol, what is refused an answer.
        match self.service.update_node(request.into_inner().try_into()?).await {
            Ok(registered) => Ok(tonic::Response::new(registered.into())),
            Err(error) if error.code.is_refusal() => Ok(tonic::Response::new(pb::UpdateNodeResponse {
                response_error: Some(refusal("invalid node configuration", &error)),
                keep_alive_ms: 0,
            })),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl<T: Domain> pb::domain_control_server::DomainControl for Adapter<T> {
    type WatchStream = WireStream<pb::DomainState>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Wire<Self::WatchStream> {
        let states = self.service.watch(request.into_inner().controller_nonce).await?;
        Ok(self.stream(states))
    }

    async fn plan(&self, request: Request<pb::PlanRequest>) -> Wire<pb::PlanResponse> {
        let plan = match plan_items(request.into_inner().items) {
            Ok(items) => self.service.plan(items).await,
            Err(error) => Err(error),
        };
        answer(plan_response(plan))
    }

    async fn nodes(&self, _: Request<()>) -> Wire<pb::NodeList> {
        answer(self.service.nodes().await.map(node_list))
    }
}
