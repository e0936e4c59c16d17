//! What operators do with nodes and components, at the controller or at an orchestrator.

use tonic::transport::Channel;

use super::Connection;
use crate::decision::Decision;
use crate::error::Error;
use crate::id::{ComponentId, NodeId};
use crate::operations::{DrainProgress, Relocation};
use crate::server::Values;
use crate::status::ComponentStatus;
use crate::wire::operations::relocations;
use crate::wire::pb;
use crate::wire::status::statuses;
use pb::operations_client::OperationsClient;

/// Asks for what operators do. Each call fails with a refusal, or with the reason why the peer cannot be
/// reached.
#[derive(Clone, Debug)]
pub struct Operations {
    connection: Connection,
    operations: OperationsClient<Channel>,
}

impl Operations {
    /// Asks over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("controller or orchestrator");
        let limit = connection.limits.message;
        let operations = OperationsClient::new(connection.channel.clone()).max_decoding_message_size(limit);
        Self { connection, operations }
    }

    fn answer<T>(&self, answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T, Error> {
        answer.map(tonic::Response::into_inner).map_err(|status| self.connection.error(status))
    }

    /// Lets nothing new be placed on a node, or lets it again.
    ///
    /// # Errors
    /// See [`Operations`].
    pub async fn cordon(&self, node: NodeId, cordoned: bool) -> Result<(), Error> {
        let request = pb::CordonRequest { node_id: node.to_string(), cordoned };
        self.answer(self.operations.clone().cordon(request).await)?.into()
    }

    /// Forgets a node that is lost: the key to which its id is bound, and whether it was cordoned.
    ///
    /// # Errors
    /// See [`Operations`].
    pub async fn forget(&self, node: NodeId) -> Result<(), Error> {
        self.answer(self.operations.clone().forget(pb::NodeRef::from(node)).await)?.into()
    }

    /// Cordons a node and moves everything that runs there elsewhere, one by one.
    ///
    /// # Errors
    /// See [`Operations`].
    pub async fn drain(&self, node: NodeId) -> Result<Values<DrainProgress>, Error> {
        let progress = self.answer(self.operations.clone().drain(pb::NodeRef::from(node)).await)?;
        Ok(self.connection.values(progress, |progress: pb::DrainProgress| Ok(progress.into())))
    }

    /// What runs on a node.
    ///
    /// # Errors
    /// See [`Operations`].
    pub async fn residents(&self, node: NodeId) -> Result<Vec<ComponentStatus>, Error> {
        statuses(self.answer(self.operations.clone().residents(pb::NodeRef::from(node)).await)?)
    }

    /// What would become of the components of a node if it were lost.
    ///
    /// # Errors
    /// See [`Operations`].
    pub async fn plan_loss(&self, node: NodeId) -> Result<Vec<Relocation>, Error> {
        relocations(self.answer(self.operations.clone().plan_loss(pb::NodeRef::from(node)).await)?)
    }

    /// Moves a component to a node of its domain.
    ///
    /// # Errors
    /// See [`Operations`].
    pub async fn move_component(&self, component: ComponentId, node: NodeId) -> Result<(), Error> {
        let request = pb::MoveRequest { component_id: component.to_string(), node_id: node.to_string() };
        self.answer(self.operations.clone().r#move(request).await)?.into()
    }

    /// Why a component is where it is, or where it would be placed now.
    ///
    /// # Errors
    /// See [`Operations`].
    pub async fn why(&self, component: ComponentId) -> Result<Decision, Error> {
        let request = pb::WhyRequest { component_id: component.to_string() };
        self.answer(self.operations.clone().why(request).await)?.try_into()
    }
}
