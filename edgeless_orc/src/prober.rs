//! Asks agents which process of a node they are.
//!
//! That nothing listens at an address is told from an address that does not answer: the one says that the process is
//! gone, the other nothing.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use edgeless_api::client::{Connection, NodePresence, Options};
use edgeless_api::error::Code;
use edgeless_api::url::Url;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::doorman::reach;
use crate::engine::Found;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most agents that are asked at the same time.
const ASKED: usize = 64;

/// Asks agents; clones share how many at a time.
#[derive(Clone)]
pub(crate) struct Prober(Arc<Semaphore>);

impl Default for Prober {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ASKED)))
    }
}

impl Prober {
    /// What is found at the address of an agent.
    pub(crate) async fn ask(&self, agent: &Url) -> Found {
        let Ok(turn) = self.0.clone().acquire_owned().await else { return Found::Unknown };
        match timeout(PATIENCE, reach(agent, turn)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Found::Nothing,
            Ok(Err(_)) | Err(_) => return Found::Unknown,
        }
        let Ok(_turn) = self.0.clone().acquire_owned().await else { return Found::Unknown };
        let options = Options { deadline: PATIENCE, connect: PATIENCE, ..Options::default() };
        let Ok(connection) = Connection::lazy(agent, options) else { return Found::Unknown };
        match timeout(PATIENCE, NodePresence::new(connection).present()).await {
            Ok(Ok(presence)) => Found::Process(presence),
            // Something answers that is no node of ours.
            Ok(Err(error)) if matches!(error.code, Code::Rejected | Code::Unimplemented) => Found::Nothing,
            Ok(Err(_)) | Err(_) => Found::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use edgeless_api::node::Presence;
    use edgeless_api::server::Server;
    use edgeless_api::{Limits, NodeId};
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn listener() -> (TcpListener, Url) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::of(listener.local_addr().unwrap());
        (listener, url)
    }

    /// Only where nothing can be there any more is nothing found: a process that hangs may go on.
    #[tokio::test]
    async fn a_process_that_is_gone_is_told_from_one_that_is_silent() {
        let prober = Prober::default();
        let presence = Presence { node: NodeId::random(), nonce: 7 };
        let (node, url) = listener().await;
        tokio::spawn(Server::new(Limits::default(), CancellationToken::new()).node_presence(presence).serve(node));
        assert_eq!(prober.ask(&url).await, Found::Process(presence));

        let (silent, url) = listener().await;
        assert_eq!(prober.ask(&url).await, Found::Unknown, "it is connected to and does not answer");
        drop(silent);
        assert_eq!(prober.ask(&url).await, Found::Nothing);

        let (other, url) = listener().await;
        tokio::spawn(Server::new(Limits::default(), CancellationToken::new()).serve(other));
        assert_eq!(prober.ask(&url).await, Found::Nothing, "another server has its port");
    }
}
