//! The link to the orchestrator: open for as long as both processes are there, so that the end of either is noticed by
//! the other at once, and not at the next announcement.
//!
//! It is opened by an announcement that was accepted, and its end makes the node announce itself again, which opens the
//! next: an orchestrator that was only cut off, or started again, hears both at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edgeless_api::client::{Connection, NodeLink, OpenLink, Options};
use edgeless_api::node::Hello;
use edgeless_api::{Error, Url};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long it may take to open one.
const DEADLINE: Duration = Duration::from_secs(5);
/// The pause between the end of a link and the announcement that opens the next, give or take a third: many nodes may
/// have lost theirs at once.
const PAUSE: Duration = Duration::from_millis(50);
/// The same after a link that was short: something ends them.
const LONG_PAUSE: Duration = Duration::from_millis(700);
const SHORT: Duration = Duration::from_secs(5);

/// Keeps one link.
pub struct Link {
    links: NodeLink,
    hello: Hello,
    is_there: Arc<AtomicBool>,
    lost: Arc<Notify>,
    cancel: CancellationToken,
}

impl Link {
    /// To the orchestrator at `url`, until it is cancelled.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(url: &Url, hello: Hello, cancel: CancellationToken) -> Result<Self, Error> {
        let links = NodeLink::new(Connection::for_link(url, Options::default())?);
        Ok(Self { links, hello, is_there: Arc::default(), lost: Arc::default(), cancel })
    }

    /// Opens a link unless there is one. One that cannot be opened is tried again when this is called again.
    pub fn keep(&self) {
        if self.is_there.swap(true, Ordering::AcqRel) {
            return;
        }
        let (links, hello) = (self.links.clone(), self.hello);
        let (is_there, lost, cancel) = (self.is_there.clone(), self.lost.clone(), self.cancel.clone());
        tokio::spawn(async move {
            let opened = open(&links, hello);
            match cancel.run_until_cancelled(opened).await {
                None => return,
                Some(Err(error)) => {
                    tracing::debug!(%error, "no link to the orchestrator");
                    is_there.store(false, Ordering::Release);
                    return;
                }
                Some(Ok(link)) => {
                    if cancel.run_until_cancelled(last(link)).await.is_none() {
                        return;
                    }
                }
            }
            tracing::info!("the link to the orchestrator has ended: registering again");
            is_there.store(false, Ordering::Release);
            lost.notify_one();
        });
    }

    /// Returns when a link has ended.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }
}

async fn open(links: &NodeLink, hello: Hello) -> Result<OpenLink, Error> {
    let late = || Error::timeout("the orchestrator does not answer");
    tokio::time::timeout(DEADLINE, links.open(hello)).await.unwrap_or_else(|_| Err(late()))
}

/// Returns a moment after the end of a link.
async fn last(mut link: OpenLink) {
    let opened_at = Instant::now();
    link.ended().await;
    let pause = if opened_at.elapsed() < SHORT { LONG_PAUSE } else { PAUSE };
    tokio::time::sleep(pause.mul_f64(rand::random_range(0.7..1.3))).await;
}
