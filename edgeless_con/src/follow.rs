//! Follows the domains of the configuration, each in a task of its own.
//!
//! Dials the orchestrator, passes on every state that it sends, and says when that ends; then dials
//! again, with growing pauses, until the controller stops. Whether a domain is in reach is decided by
//! the engine, which also logs it.

use std::time::Duration;

use edgeless_api::client::{Connection, Domain};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::DomainId;
use edgeless_daemon::engine::Inbox;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Event};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The time that an orchestrator has to send its first state.
const FIRST_STATE: Duration = Duration::from_secs(5);

/// Follows one domain until cancelled; `controller` is the nonce of this process.
pub(crate) async fn follow(
    id: DomainId,
    connection: Connection,
    controller: u64,
    inbox: Inbox<Engine>,
    cancel: CancellationToken,
) {
    let domain = Domain::new(connection);
    let mut follower = Follower { domain, id, controller, inbox, is_misnamed: false, pause: FIRST_PAUSE };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = follower.run() => {}
    }
}

struct Follower {
    id: DomainId,
    domain: Domain,
    /// The nonce of this process.
    controller: u64,
    inbox: Inbox<Engine>,
    /// It was said that the orchestrator serves another domain.
    is_misnamed: bool,
    pause: Duration,
}

impl Follower {
    /// Ends when nobody listens any more.
    async fn run(&mut self) {
        loop {
            let Err(error) = self.session().await;
            let reason = match error.code {
                Code::Unimplemented => Error::unimplemented(
                    "what answers is no orchestrator, or one of EDGELESS 1.2, which cannot be followed: let it announce \
                     itself to 'domain_register_url' of the controller",
                ),
                _ => error,
            };
            if self.inbox.tell(Event::DomainLost { domain: self.id.clone(), reason }).await.is_err() {
                return;
            }
            // Controllers that were started together must not dial together for ever.
            tokio::time::sleep(self.pause.mul_f64(rand::random_range(0.5..1.0))).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Passes on states until there are no more.
    async fn session(&mut self) -> Result<std::convert::Infallible, Error> {
        let silent = |patience: Duration| Error::timeout(format!("it has been silent for {patience:?}"));
        let first = tokio::time::timeout(FIRST_STATE, self.domain.watch(self.controller)).await;
        let mut states = first.map_err(|_| silent(FIRST_STATE))??;
        let mut patience = FIRST_STATE;
        loop {
            let next = tokio::time::timeout(patience, states.next()).await.map_err(|_| silent(patience))?;
            let state = next.ok_or_else(|| Error::unavailable("its orchestrator has stopped"))??;
            patience = state.lifetime;
            self.pause = FIRST_PAUSE;
            if state.domain == self.id {
                self.is_misnamed = false;
                self.inbox.tell(Event::DomainUp(state)).await?;
            } else {
                self.misnamed(&state.domain).await?;
            }
        }
    }

    async fn misnamed(&mut self, actual: &DomainId) -> Result<(), Error> {
        if std::mem::replace(&mut self.is_misnamed, true) {
            return Ok(());
        }
        let reason = Error::rejected(format!(
            "its orchestrator serves the domain '{actual}': correct 'orchestrators' of the controller"
        ));
        tracing::error!(domain = %self.id, %reason, "domain ignored");
        self.inbox.tell(Event::DomainLost { domain: self.id.clone(), reason }).await
    }
}
