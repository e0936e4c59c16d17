//! Management and events: served by the node.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use tonic::{Request, Streaming};

use super::{Adapter, LINK_WINDOW, Server, Values, Wire, WireStream, empty};
use crate::error::Error;
use crate::event::Event;
use crate::node::PeerUpdate;
use crate::peer::Frame;
use crate::url::Url;
use crate::wire::event::SENDER;
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
    /// The same, where the sender says where the node of the event's source takes events.
    async fn handle_from(&self, event: Event, _sender: Option<Url>) -> Result<(), Error> {
        self.handle(event).await
    }
    /// Takes note of an event that could not be parsed. Its sender gets the error.
    fn malformed(&self, _error: &Error) {}
}

/// Takes links of other nodes.
#[async_trait]
pub trait PeerStream: Send + Sync + 'static {
    /// Takes a link with the frames that come in, and returns those that go out. An error ends a
    /// link in either direction.
    async fn link(&self, frames: Values<Frame>) -> Result<Values<Frame>, Error>;
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

    /// Adds the events of a node.
    #[must_use]
    pub fn invocation(mut self, service: Arc<impl Invocation>) -> Self {
        use pb::function_invocation_server::FunctionInvocationServer;
        let limit = self.limits.frame();
        let invocation = FunctionInvocationServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(invocation);
        self
    }

    /// Adds the links of a node, and windows wide enough for them.
    #[must_use]
    pub fn peer_stream(mut self, service: Arc<impl PeerStream>) -> Self {
        use pb::peer_stream_server::PeerStreamServer;
        let limit = self.limits.frame();
        let stream = PeerStreamServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(stream);
        self.window = Some(LINK_WINDOW);
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
        // What is no address is as good as none.
        let sender = request.metadata().get(SENDER).and_then(|url| url.to_str().ok()?.parse().ok());
        let event = Event::try_from(request.into_inner()).inspect_err(|error| self.service.malformed(error))?;
        empty(self.service.handle_from(event, sender).await)
    }
}

#[async_trait]
impl<T: PeerStream> pb::peer_stream_server::PeerStream for Adapter<T> {
    type LinkStream = WireStream<pb::PeerFrame>;

    async fn link(&self, request: Request<Streaming<pb::PeerFrame>>) -> Wire<Self::LinkStream> {
        let frames = request.into_inner().map(|frame| frame.map_err(Error::from)?.try_into());
        let frames = self.service.link(Box::pin(frames)).await?;
        Ok(self.stream(frames))
    }
}
