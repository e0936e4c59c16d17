//! The link of a node to its orchestrator; and at a node, which process it is.

use futures_util::{StreamExt, stream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

use super::Connection;
use crate::error::Error;
use crate::node::{Hello, Presence};
use crate::wire::pb;
use pb::node_link_client::NodeLinkClient;
use pb::node_presence_client::NodePresenceClient;

/// Opens links to an orchestrator.
#[derive(Clone, Debug)]
pub struct NodeLink {
    connection: Connection,
    links: NodeLinkClient<Channel>,
}

/// A link that is open. It ends when this is dropped.
#[derive(Debug)]
pub struct OpenLink {
    frames: tonic::Streaming<pb::LinkFrame>,
    /// Ends what is sent: a stream is open as long as one of its directions is.
    _end: DropGuard,
}

impl NodeLink {
    /// Opens them over `connection`, which should be one [`for_link`](Connection::for_link).
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("orchestrator");
        Self { links: NodeLinkClient::new(connection.channel.clone()), connection }
    }

    /// Opens a link, and returns once the orchestrator has taken it.
    ///
    /// # Errors
    /// It does not take it or cannot be reached.
    pub async fn open(&self, hello: Hello) -> Result<OpenLink, Error> {
        let end = CancellationToken::new();
        let silence = stream::pending().take_until(end.clone().cancelled_owned());
        let frames = stream::once(async move { hello.into() }).chain(silence);
        let end = end.drop_guard();
        let link = self.links.clone().hold(frames).await.map_err(|status| self.connection.error(status))?;
        Ok(OpenLink { frames: link.into_inner(), _end: end })
    }
}

impl OpenLink {
    /// Returns when the link has ended.
    pub async fn ended(&mut self) {
        while let Some(Ok(_)) = self.frames.next().await {}
    }
}

/// Asks an agent which process it is.
#[derive(Clone, Debug)]
pub struct NodePresence {
    connection: Connection,
    presence: NodePresenceClient<Channel>,
}

impl NodePresence {
    /// Asks over `connection`.
    pub fn new(connection: Connection) -> Self {
        let connection = connection.to("node");
        Self { presence: NodePresenceClient::new(connection.channel.clone()), connection }
    }

    /// The process that answers.
    ///
    /// # Errors
    /// Nothing answers, or not a node of ours.
    pub async fn present(&self) -> Result<Presence, Error> {
        let present = self.presence.clone().present(()).await;
        present.map_err(|status| self.connection.error(status))?.into_inner().try_into()
    }
}
