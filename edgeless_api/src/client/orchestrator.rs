//! The registration of nodes and the domain as a whole, at an orchestrator.

use tonic::transport::Channel;

use super::Connection;
use crate::component::{ComponentSpec, Row};
use crate::domain::DomainState;
use crate::error::Error;
use crate::id::{ComponentId, NodeId};
use crate::journal::Saved;
use crate::node::{NodeInfo, Registered, Registration};
use crate::server::Values;
use crate::status::Placement;
use crate::url::Url;
use crate::wire::component::{plan_request, rows};
use crate::wire::node::node_infos;
use crate::wire::{pb, status::placements};
use pb::domain_control_client::DomainControlClient;
use pb::node_registration_client::NodeRegistrationClient;
use pb::node_requests_client::NodeRequestsClient;

/// Announces a node to an orchestrator.
#[derive(Clone, Debug)]
pub struct NodeRegistry {
    connection: Connection,
    registry: NodeRegistrationClient<Channel>,
    requests: NodeRequestsClient<Channel>,
}

impl NodeRegistry {
    /// Announces it over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("orchestrator");
        Self {
            registry: NodeRegistrationClient::new(connection.channel.clone()),
            requests: NodeRequestsClient::new(connection.channel.clone()),
            connection,
        }
    }

    /// The node is there, or still there, or says goodbye.
    ///
    /// # Errors
    /// The orchestrator refuses it or cannot be reached.
    pub async fn update_node(&self, node: Registration) -> Result<Registered, Error> {
        let response = self.registry.clone().update_node(pb::UpdateNodeRequest::from(node)).await;
        response.map_err(|status| self.connection.error(status))?.into_inner().try_into()
    }

    /// Events wait for components that run nowhere.
    ///
    /// # Errors
    /// The orchestrator speaks only EDGELESS 1.2 or cannot be reached.
    pub async fn wake(&self, components: &[ComponentId]) -> Result<(), Error> {
        let ids = pb::ComponentIds { component_ids: components.iter().map(ComponentId::to_string).collect() };
        self.requests.clone().wake(ids).await.map(|_| ()).map_err(|status| self.connection.error(status))
    }

    /// Where a node takes events; `None`: there is no such node.
    ///
    /// # Errors
    /// The orchestrator speaks only EDGELESS 1.2 or cannot be reached.
    pub async fn locate(&self, node: NodeId) -> Result<Option<Url>, Error> {
        let address = self.requests.clone().locate(pb::NodeRef::from(node)).await;
        let address = address.map_err(|status| self.connection.error(status))?.into_inner();
        Ok(address.invocation_url.map(|url| url.parse()).transpose()?)
    }

    /// Functions on a node have saved. What came along is kept when it returns.
    ///
    /// # Errors
    /// One was placed again meanwhile; the orchestrator cannot keep it, keeps nothing, or cannot be reached.
    pub async fn saved(&self, node: NodeId, states: Vec<Saved>) -> Result<(), Error> {
        let states = crate::wire::journal::saved_states(node, states);
        self.requests.clone().saved(states).await.map(|_| ()).map_err(|status| self.connection.error(status))
    }
}

/// Follows a domain.
#[derive(Clone, Debug)]
pub struct Domain {
    connection: Connection,
    domain: DomainControlClient<Channel>,
}

impl Domain {
    /// Follows it over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("orchestrator");
        let limit = connection.limits.message;
        let domain = DomainControlClient::new(connection.channel.clone()).max_decoding_message_size(limit);
        Self { connection, domain }
    }

    /// The domain as it is now, again whenever it changes, and at every keep-alive. `controller` is
    /// the nonce of this process: the domain starts afresh for one that it did not have before.
    ///
    /// # Errors
    /// The domain has another controller, or the orchestrator speaks only EDGELESS 1.2 or cannot be
    /// reached.
    pub async fn watch(&self, controller: u64) -> Result<Values<DomainState>, Error> {
        let states = self
            .domain
            .clone()
            .watch(pb::WatchRequest { controller_nonce: controller })
            .await
            .map_err(|status| self.connection.error(status))?;
        Ok(self.connection.values(states.into_inner(), |state: pb::DomainState| state.try_into()))
    }

    /// Where each of these components would go. Starts nothing.
    ///
    /// # Errors
    /// One of them cannot be placed; or the orchestrator cannot be asked.
    pub async fn plan(&self, items: Vec<(String, ComponentSpec)>) -> Result<Vec<Placement>, Error> {
        let response = self.domain.clone().plan(plan_request(items)).await;
        placements(response.map_err(|status| self.connection.error(status))?.into_inner())
    }

    /// The nodes of the domain.
    ///
    /// # Errors
    /// The orchestrator speaks only EDGELESS 1.2 or cannot be reached.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        let list = self.domain.clone().nodes(()).await.map_err(|status| self.connection.error(status))?;
        node_infos(list.into_inner())
    }

    /// Where the components run to which other domains have outputs: all of them at first, then those that
    /// change.
    ///
    /// # Errors
    /// The domain has another controller, or the orchestrator speaks only EDGELESS 1.2 or cannot be
    /// reached.
    pub async fn watch_rows(&self, controller: u64) -> Result<Values<Vec<Row>>, Error> {
        let request = pb::WatchRequest { controller_nonce: controller };
        let lists = self.domain.clone().watch_rows(request).await.map_err(|status| self.connection.error(status))?;
        Ok(self.connection.values(lists.into_inner(), rows))
    }
}
