//! The registration of nodes and the domain as a whole: served by the orchestrator.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Request;

use super::{Adapter, Server, Values, Wire, WireStream, answer, empty};
use crate::component::{ComponentSpec, Row};
use crate::domain::DomainState;
use crate::error::Error;
use crate::id::{ComponentId, NodeId};
use crate::journal::Saved;
use crate::node::{NodeInfo, Registered, Registration};
use crate::status::Placement;
use crate::url::Url;
use crate::wire::component::plan_items;
use crate::wire::error::refusal;
use crate::wire::node::node_list;
use crate::wire::status::plan_response;
use crate::wire::{pb, uuids};

/// Takes the announcements of nodes.
#[async_trait]
pub trait NodeRegistry: Send + Sync + 'static {
    /// A node is there, or still there, or says goodbye.
    async fn update_node(&self, node: Registration) -> Result<Registered, Error>;
    /// Events wait for components that run nowhere.
    async fn wake(&self, components: Vec<ComponentId>) -> Result<(), Error>;
    /// Where a node takes events; `None`: there is no such node.
    async fn locate(&self, node: NodeId) -> Result<Option<Url>, Error>;
    /// Functions on a node have saved. What came along is kept when it returns.
    async fn saved(&self, _node: NodeId, _states: Vec<Saved>) -> Result<(), Error> {
        Err(Error::unimplemented("copies of states are not kept here"))
    }
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
    /// Where the components run to which other domains have outputs: all of them at first, then those that change.
    async fn watch_rows(&self, controller: u64) -> Result<Values<Vec<Row>>, Error>;
}

impl Server {
    /// Adds the registration of nodes.
    #[must_use]
    pub fn node_registry(mut self, service: Arc<impl NodeRegistry>) -> Self {
        use pb::node_registration_server::NodeRegistrationServer;
        let limit = self.limits.message;
        use pb::node_requests_server::NodeRequestsServer;
        let registry = NodeRegistrationServer::new(self.adapter(service.clone())).max_decoding_message_size(limit);
        let requests = NodeRequestsServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(registry).add_service(requests);
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
                wants_report: false,
                offers_link: false,
            })),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl<T: NodeRegistry> pb::node_requests_server::NodeRequests for Adapter<T> {
    async fn wake(&self, request: Request<pb::ComponentIds>) -> Wire<()> {
        let ids = uuids(&request.into_inner().component_ids, "component_ids")?;
        empty(self.service.wake(ids.into_iter().map(ComponentId).collect()).await)
    }

    async fn locate(&self, request: Request<pb::NodeRef>) -> Wire<pb::NodeAddress> {
        let url = self.service.locate(request.into_inner().try_into()?).await;
        answer(url.map(|url| pb::NodeAddress { invocation_url: url.map(|url| url.to_string()) }))
    }

    async fn saved(&self, request: Request<pb::SavedStates>) -> Wire<()> {
        let (node, states) = request.into_inner().try_into()?;
        empty(self.service.saved(node, states).await)
    }
}

#[async_trait]
impl<T: Domain> pb::domain_control_server::DomainControl for Adapter<T> {
    type WatchStream = WireStream<pb::DomainState>;
    type WatchRowsStream = WireStream<pb::RowList>;

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

    async fn watch_rows(&self, request: Request<pb::WatchRequest>) -> Wire<Self::WatchRowsStream> {
        let rows = self.service.watch_rows(request.into_inner().controller_nonce).await?;
        Ok(self.stream(rows))
    }
}
