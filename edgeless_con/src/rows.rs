//! Follows where domains run the components to which others have outputs.
//!
//! Each domain that has such components is followed by a task of its own, which dials its orchestrator again and
//! again, and passes on what it says. Nothing is decided here: what a domain said last holds while it is away.

use std::collections::HashMap;
use std::time::Duration;

use edgeless_api::client::Domain;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::DomainId;
use edgeless_daemon::engine::Inbox;
use futures_util::StreamExt;
use tokio::task::JoinHandle;

use crate::engine::{Engine, Event};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The tasks, by domain. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Followers {
    inbox: Inbox<Engine>,
    /// The nonce of this process.
    controller: u64,
    tasks: HashMap<DomainId, Task>,
}

#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Followers {
    pub(crate) fn new(inbox: Inbox<Engine>, controller: u64) -> Self {
        Self { inbox, controller, tasks: HashMap::new() }
    }

    /// Follows a domain by way of `client`, and no longer as before.
    pub(crate) fn follow(&mut self, domain: DomainId, client: Domain) {
        let task = tokio::spawn(follow(domain.clone(), client, self.controller, self.inbox.clone()));
        self.tasks.insert(domain, Task(task));
    }

    pub(crate) fn forget(&mut self, domain: &DomainId) {
        self.tasks.remove(domain);
    }
}

async fn follow(domain: DomainId, client: Domain, controller: u64, inbox: Inbox<Engine>) {
    let mut pause = FIRST_PAUSE;
    let mut is_said = false;
    loop {
        let error = session(&domain, &client, controller, &inbox, &mut pause).await;
        if error.code == Code::Unimplemented && !std::mem::replace(&mut is_said, true) {
            tracing::error!(%domain, reason = %error, "events of other domains do not reach this one: update its orchestrator");
        }
        tracing::debug!(%domain, reason = %error, "the rows of the domain are not followed at present");
        // Controllers that were started together must not dial together for ever.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Passes on rows until there are no more. Why there are none.
async fn session(
    domain: &DomainId,
    client: &Domain,
    controller: u64,
    inbox: &Inbox<Engine>,
    pause: &mut Duration,
) -> Error {
    let mut lists = match client.watch_rows(controller).await {
        Ok(lists) => lists,
        Err(error) => return error,
    };
    while let Some(list) = lists.next().await {
        let told = match list {
            Ok(rows) => inbox.tell(Event::Rows { domain: domain.clone(), rows }).await,
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            return error;
        }
        *pause = FIRST_PAUSE;
    }
    Error::unavailable("its orchestrator has stopped")
}
