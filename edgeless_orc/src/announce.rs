//! Tells a controller of the domain, again and again, and at once when it changes.
//!
//! For controllers that learn of domains from their orchestrators; those that list this
//! orchestrator in their configuration follow it by themselves.

use std::time::Duration;

use edgeless_api::client::{Connection, DomainRegistry, Options};
use edgeless_api::domain::{DomainCapabilities, DomainRegistration};
use edgeless_api::error::Error;
use edgeless_api::id::DomainId;
use edgeless_api::url::Url;
use edgeless_daemon::engine::Inbox;
use tokio::sync::watch;

use crate::engine::{Engine, Event};

/// What is announced, and to whom.
pub(crate) struct Announcement {
    pub(crate) controller: Url,
    pub(crate) interval: Duration,
    pub(crate) domain: DomainId,
    pub(crate) orchestrator_url: Url,
}

impl Announcement {
    /// Announces the domain until the daemon stops.
    pub(crate) async fn repeat(self, mut capabilities: watch::Receiver<DomainCapabilities>, inbox: Inbox<Engine>) {
        let options = Options { deadline: self.interval.max(Duration::from_secs(2)), ..Options::default() };
        let registry = match Connection::lazy(&self.controller, options) {
            Ok(connection) => DomainRegistry::new(connection),
            Err(error) => {
                tracing::error!(controller = %self.controller, %error, "the domain cannot be announced");
                return;
            }
        };
        // Not from the same as the process before: a controller may take what is counted alike for the same.
        let mut counter = rand::random::<u32>().into();
        let mut is_known = None;
        loop {
            let announced = capabilities.borrow_and_update().clone();
            let result = self.once(&registry, announced, counter, &inbox).await;
            self.note(&result, &mut is_known);
            match tokio::time::timeout(self.interval, capabilities.changed()).await {
                Ok(Ok(())) => counter += 1,
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        }
    }

    async fn once(
        &self,
        registry: &DomainRegistry,
        capabilities: DomainCapabilities,
        counter: u64,
        inbox: &Inbox<Engine>,
    ) -> Result<(), Error> {
        // The same nonce that followers are sent: a controller may learn of the domain in both ways, and would take two
        // for a process that starts again and again. A reset that the controller asks for leaves it as it is: the
        // controller knows that nothing runs, and would take a new one for the next process and ask again.
        let nonce = inbox.read(|engine, _| engine.nonce()).await?;
        let registration = DomainRegistration {
            domain: self.domain.clone(),
            orchestrator_url: self.orchestrator_url.clone(),
            capabilities,
            lifetime: self.interval.saturating_mul(2),
            counter,
            nonce,
        };
        if registry.update_domain(registration).await?.reset {
            tracing::warn!(controller = %self.controller, "the controller asks to stop all components");
            inbox.ask(Event::StopAll).await??;
        }
        Ok(())
    }

    /// Says once that the controller cannot be told, and once that it can again.
    fn note(&self, result: &Result<(), Error>, is_known: &mut Option<bool>) {
        let before = is_known.replace(result.is_ok());
        match result {
            Ok(()) if before != Some(true) => {
                tracing::info!(controller = %self.controller, domain = %self.domain, "the controller knows this domain");
            }
            Err(error) if before != Some(false) => {
                tracing::warn!(controller = %self.controller, %error, "cannot announce the domain, will retry");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
