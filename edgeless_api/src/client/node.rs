//! Management and events, at a node.

use tonic::transport::Channel;

use super::Connection;
use crate::error::Error;
use crate::event::Event;
use crate::node::PeerUpdate;
use crate::wire::pb;
use pb::function_invocation_client::FunctionInvocationClient;
use pb::node_management_client::NodeManagementClient;

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
}

impl Invocation {
    /// Sends them over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("node");
        Self { invocation: FunctionInvocationClient::new(connection.channel.clone()), connection }
    }

    /// Returns when the event is accepted there.
    ///
    /// # Errors
    /// The node refuses it or cannot be reached.
    pub async fn handle(&self, event: Event) -> Result<(), Error> {
        let handled = self.invocation.clone().handle(pb::Event::from(event)).await;
        handled.map(|_| ()).map_err(|status| self.connection.error(status))
    }
}
