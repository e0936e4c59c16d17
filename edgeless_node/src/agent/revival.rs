//! How a process of the node goes on with what the one before ran.
//!
//! ```text
//!  journal -> each is hosted under its old id, its events wait -> all are wired -> those that might emit do
//!                                                                    the first instance of each is made meanwhile
//! ```
//! Nobody is asked: orchestrator and controller may be away. Once the orchestrator is there it asks what runs, and has
//! stopped what it does not want. One that does not ask cannot hear of it, and nothing goes on.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use edgeless_api::component::{ComponentKind, ComponentSpec};
use edgeless_api::journal::InstanceRecord;
use edgeless_api::{Code, Error, InstanceId};
use futures_util::future::join_all;
use tokio::sync::OnceCell;

use super::Agent;
use crate::delivery::{self, past::Past};
use crate::host::{Component, Factory, Hosted, host_again};

/// How long the code of something may take to be loaded before the node does without it.
const PATIENCE: Duration = Duration::from_secs(5);

impl Agent {
    /// Goes on with what the process before ran; called once, before anything is started. What cannot be hosted is given
    /// up, and said.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn revive(&self) -> Result<(), Error> {
        let mut past = self.journal.open().await?;
        // Of two instances of a replica the older one was being replaced.
        past.instances.sort_by_key(|record| Reverse(record.context.epoch));
        let mut keys = HashSet::new();
        let (newest, older): (Vec<_>, Vec<_>) = past
            .instances
            .into_iter()
            .partition(|record| keys.insert((record.context.component, record.context.replica)));
        for record in older {
            self.journal.remove(record.instance).await?;
        }
        let mut events = delivery::past::read(&self.records).await?;
        let with_events = |record: InstanceRecord| {
            let past = events.remove(record.instance.as_bytes()).unwrap_or_default();
            self.revive_one(record, past)
        };
        let reviving: Vec<_> = newest.into_iter().map(with_events).collect();
        let revived: Vec<_> = join_all(reviving).await;
        for key in events.keys() {
            // Nobody is left who could send them.
            delivery::past::forget(&self.records, key).await?;
        }
        let revived: Vec<_> = revived.into_iter().flatten().collect();
        for (hosted, record) in &revived {
            hosted.set_outputs(record.outputs.clone());
        }
        for row in past.rows {
            self.router.update_row(row);
        }
        for (hosted, record) in &revived {
            if record.is_active {
                hosted.component().outputs.activate();
            }
        }
        if !revived.is_empty() {
            tracing::info!(count = revived.len(), "the components that ran here before go on");
        }
        Ok(())
    }

    async fn revive_one(&self, record: InstanceRecord, past: Past) -> Option<(Arc<Hosted>, InstanceRecord)> {
        let prepared = tokio::time::timeout(PATIENCE, self.prepare_again(&record, past)).await;
        let prepared = prepared.unwrap_or_else(|_| Err(Error::unavailable("it could not be loaded in time")));
        let name = &record.context.name;
        let (component, factory) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                tracing::warn!(%name, %error, "a component that ran here before does not go on");
                if let Err(error) = self.journal.remove(record.instance).await {
                    tracing::warn!(%name, %error, "that could not be written down");
                }
                return None;
            }
        };
        let hosted = Arc::new(host_again(component, factory, self.router.clone(), self.options.grace));
        let slot = Arc::new(OnceCell::new_with(Some(hosted.clone())));
        self.table(|table| {
            let key = (record.context.component, record.context.replica);
            table.placed.insert(key, (record.context.epoch, slot));
            table.running.insert(record.instance, hosted.clone());
            table.revived.push((record.spec.kind(), record.instance));
        });
        Some((hosted, record))
    }

    async fn prepare_again(&self, record: &InstanceRecord, past: Past) -> Result<(Component, Factory), Error> {
        let id = InstanceId { node: self.router.node(), function: record.instance };
        match self.prepare(id, record.spec.clone(), &record.context, past.clone(), false).await {
            Err(error) if error.code == Code::NeedsCode => {
                let mut spec = record.spec.clone();
                let ComponentSpec::Function(function) = &mut spec else { return Err(error) };
                function.class.binary = self.journal.code(function.class.binary.digest()).await?.ok_or(error)?;
                self.prepare(id, spec, &record.context, past, false).await
            }
            prepared => prepared,
        }
    }

    /// Stops what goes on since the process before: whoever the node belongs to cannot hear of it.
    pub async fn end_revived(&self) {
        let revived = self.table(|table| std::mem::take(&mut table.revived));
        if revived.is_empty() {
            return;
        }
        tracing::info!(
            count = revived.len(),
            "the orchestrator does not ask what runs here: what ran before is stopped"
        );
        let stop = async |(kind, instance): (ComponentKind, uuid::Uuid)| {
            let id = InstanceId { node: self.router.node(), function: instance };
            if let Err(error) = self.to_its_end(move |me| me.stop_now(kind, id)).await {
                tracing::warn!(%instance, %error, "what ran before could not be stopped");
            }
        };
        join_all(revived.into_iter().map(stop)).await;
    }

    /// The next process goes on with nothing: all that ran here is given to others.
    pub async fn forget_running(&self) {
        // But for those whose events are not handled yet: it sends them, and is told then to stop.
        let unhandled = self.table(|table| std::mem::take(&mut table.unhandled));
        if let Err(error) = self.journal.clear(&unhandled).await {
            tracing::warn!(%error, "it could not be written down that nothing runs any more");
        }
    }
}
