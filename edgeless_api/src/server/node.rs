//! Management and events: served by the node.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::Request;

use super::{Adapter, Server, Wire, empty};
use crate::error::Error;
use crate::event::Event;
use crate::node::PeerUpdate;
use crate::wire::pb;

/// Is managed by an orchestrator.
#[async_trait]
pub trait NodeManagement: Send + Sync + 'static {
    /// Learns of other nodes.
    async fn update_peers(&self, update: PeerUpdate) -> Result<(), Error>;
    /// Stops everything that it runs.
    async fn reset(&self) -> Result<(), Error>;
}

/// Takes events.
#[async_trait]
pub trait Invocation: Send + Sync + 'static {
    /// Returns when the event is accepted, or is dropped and counted. An event for another node is
    /// an error.
    async fn handle(&self, event: Event) -> Result<(), Error>;
    /// Takes note of an event that could not be parsed. Its sender gets the error.
    fn malformed(&self, _error: &Error) {}
}

impl Server {
    /// Adds the management of a node.
    #[must_use]
    pub fn node_management(mut self, service: Arc<impl NodeManagement>) -> Self {
        use pb::node_management_server::NodeManagementServer;
        let limit = self.limits.message;
        let management = NodeManagementServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(management);
        self
    }

    /// Adds the events of a node. Messages of twice the payload are read, so that a payload over the
    /// limit is told from a message that cannot be an event, and counted.
    #[must_use]
    pub fn invocation(mut self, service: Arc<impl Invocation>) -> Self {
        use pb::function_invocation_server::FunctionInvocationServer;
        let limit = self.limits.payload.saturating_mul(2).saturating_add(64 << 10);
        let invocation = FunctionInvocationServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(invocation);
        self
    }
}

#[async_trait]
impl<T: NodeManagement> pb::node_management_server::NodeManagement for Adapter<T> {
    async fn update_peers(&self, request: Request<pb::UpdatePeersRequest>) -> Wire<()> {
        empty(self.service.update_peers(request.into_inner().try_into()?).await)
    }

    async fn reset(&self, _: Request<()>) -> Wire<()> {
        empty(self.service.reset().await)
    }
}

#[async_trait]
impl<T: Invocation> pb::function_invocation_server::FunctionInvocation for Adapter<T> {
    async fn handle(&self, request: Request<pb::Event>) -> Wire<()> {
        let event = Event::try_from(request.into_inner()).inspect_err(|error| self.service.malformed(error))?;
        empty(self.service.handle(event).await)
    }
}
