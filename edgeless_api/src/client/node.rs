//! Management and events, at a node.

use futures_util::{Stream, StreamExt};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::Connection;
use crate::error::Error;
use crate::event::Event;
use crate::node::PeerUpdate;
use crate::peer::Frame;
use crate::server::Values;
use crate::url::Url;
use crate::wire::event::SENDER;
use crate::wire::pb;
use pb::function_invocation_client::FunctionInvocationClient;
use pb::node_management_client::NodeManagementClient;
use pb::peer_stream_client::PeerStreamClient;

/// Manages a node.
#[derive(Clone, Debug)]
pub struct NodeManagement {
    connection: Connection,
    management: NodeManagementClient<Channel>,
}

impl NodeManagement {
    /// Manages it over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("node");
        Self { management: NodeManagementClient::new(connection.channel.clone()), connection }
    }

    /// Tells it of other nodes.
    ///
    /// # Errors
    /// It refuses or cannot be reached.
    pub async fn update_peers(&self, update: PeerUpdate) -> Result<(), Error> {
        let updated = self.management.clone().update_peers(pb::UpdatePeersRequest::from(update)).await;
        updated.map(|_| ()).map_err(|status| self.connection.error(status))
    }

    /// Stops everything that it runs.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn reset(&self) -> Result<(), Error> {
        self.management.clone().reset(()).await.map(|_| ()).map_err(|status| self.connection.error(status))
    }
}

/// Sends events to a node.
#[derive(Clone, Debug)]
pub struct Invocation {
    connection: Connection,
    invocation: FunctionInvocationClient<Channel>,
    sender: Option<MetadataValue<Ascii>>,
}

impl Invocation {
    /// Sends them over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("node");
        Self { invocation: FunctionInvocationClient::new(connection.channel.clone()), connection, sender: None }
    }

    /// Tells with each event that the node of its source takes events at `url`: a peer that knows no links has
    /// no other way to learn where replies go.
    #[must_use]
    pub fn of_node_at(self, url: &Url) -> Self {
        Self { sender: url.to_string().parse().ok(), ..self }
    }

    /// Returns when the event is accepted there.
    ///
    /// # Errors
    /// The node refuses it or cannot be reached.
    pub async fn handle(&self, event: Event) -> Result<(), Error> {
        let mut request = Request::new(pb::Event::from(event));
        if let Some(sender) = &self.sender {
            request.metadata_mut().insert(SENDER, sender.clone());
        }
        let handled = self.invocation.clone().handle(request).await;
        handled.map(|_| ()).map_err(|status| self.connection.error(status))
    }
}

/// Opens links to a node.
#[derive(Clone, Debug)]
pub struct PeerStream {
    connection: Connection,
    stream: PeerStreamClient<Channel>,
}

impl PeerStream {
    /// Opens them over `connection`, which should be one [`for_link`](Connection::for_link).
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("node");
        let limit = connection.limits.frame();
        let stream = PeerStreamClient::new(connection.channel.clone()).max_decoding_message_size(limit);
        Self { connection, stream }
    }

    /// Opens a link that carries `frames` there, and returns those that come back.
    ///
    /// # Errors
    /// The node refuses it, speaks only EDGELESS 1.2 (`Unimplemented`), or cannot be reached.
    pub async fn link(&self, frames: impl Stream<Item = Frame> + Send + 'static) -> Result<Values<Frame>, Error> {
        let link = self.stream.clone().link(frames.map(pb::PeerFrame::from)).await;
        let frames = link.map_err(|status| self.connection.error(status))?.into_inner();
        Ok(self.connection.values(frames, |frame: pb::PeerFrame| frame.try_into()))
    }
}
