//! The link of a node, at its orchestrator; and at the node, which process it is.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use tonic::{Request, Status, Streaming};

use super::{Adapter, Server, Wire, WireStream};
use crate::error::Error;
use crate::node::{Hello, Presence};
use crate::wire::pb;

/// Whatever is to happen when a link ends happens when this is dropped.
pub type Held = Box<dyn Send>;

/// Takes the links of nodes.
#[async_trait]
pub trait NodeLink: Send + Sync + 'static {
    /// Takes the link of a node; what it returns is dropped when the link ends.
    async fn hold(&self, hello: Hello) -> Result<Held, Error>;
}

impl Server {
    /// Adds the links of nodes.
    #[must_use]
    pub fn node_link(mut self, service: Arc<impl NodeLink>) -> Self {
        use pb::node_link_server::NodeLinkServer;
        let limit = self.limits.message;
        let links = NodeLinkServer::new(self.adapter(service)).max_decoding_message_size(limit);
        self.routes = self.routes.add_service(links);
        self
    }

    /// Adds which process of a node this is.
    #[must_use]
    pub fn node_presence(mut self, presence: Presence) -> Self {
        use pb::node_presence_server::NodePresenceServer;
        self.routes = self.routes.add_service(NodePresenceServer::new(presence));
        self
    }
}

#[async_trait]
impl<T: NodeLink> pb::node_link_server::NodeLink for Adapter<T> {
    type HoldStream = WireStream<pb::LinkFrame>;

    async fn hold(&self, request: Request<Streaming<pb::LinkFrame>>) -> Wire<Self::HoldStream> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.ok_or_else(|| Error::rejected("the link ended before it began"))?;
        let held = self.service.hold(first.try_into()?).await?;
        // Nothing is sent: the stream ends with that of the node, or is dropped with its connection.
        let end = async move {
            let _held = held;
            while let Some(Ok(_)) = frames.next().await {}
        };
        let silence = futures_util::stream::once(end).filter_map(|()| std::future::ready(None::<Result<_, Status>>));
        Ok(tonic::Response::new(Box::pin(silence.take_until(self.cancel.clone().cancelled_owned()))))
    }
}

#[async_trait]
impl pb::node_presence_server::NodePresence for Presence {
    async fn present(&self, _: Request<()>) -> Wire<pb::NodePresent> {
        Ok(tonic::Response::new((*self).into()))
    }
}
