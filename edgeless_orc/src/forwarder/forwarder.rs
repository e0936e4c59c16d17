//! The forwarder: takes an event, finds out whom it is for and who shall seem to have sent it, and sends it
//! on.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use edgeless_api::component::{Patch, Row};
use edgeless_api::error::Error;
use edgeless_api::event::{Event, Kind, Reply};
use edgeless_api::id::{InstanceId, NodeId};
use edgeless_api::server::Invocation;
use edgeless_api::url::Url;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lanes::{Identity, Lanes, Outgoing, Report, Way};
use super::pick::pick;
use super::readdress;
use super::rows::Rows;
use super::table::{Meaning, Table};
use crate::metrics::{Forwarded, Metrics};

/// How long an event waits for its target to run somewhere, and a call for its reply if it does not say.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an event waits for its target if that is on its way to another place.
const MOVING: Duration = Duration::from_secs(30);
/// How long a call without a time of its own is remembered.
const CALL: Duration = Duration::from_secs(60);
/// How soon it is seen that a target runs again.
const AGAIN: Duration = Duration::from_millis(100);
/// How soon a caller learns that the node that has its call is lost.
const LOST: Duration = Duration::from_secs(1);
/// Instances behind each other that are all at this forwarder.
const HOPS: usize = 2;

/// Who else may know where a node takes events.
#[async_trait]
pub(crate) trait Locate: Send + Sync + 'static {
    /// Where it does, if that is known.
    async fn locate(&self, node: NodeId) -> Option<Url>;
}

/// Sends events on.
pub(crate) struct Forwarder {
    me: Identity,
    table: Mutex<Table>,
    rows: Arc<dyn Rows>,
    elsewhere: Option<Arc<dyn Locate>>,
    lanes: Lanes,
    metrics: Arc<Metrics>,
    this: Weak<Self>,
}

/// Where an event goes.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) target: InstanceId,
    way: Way,
}

impl Forwarder {
    /// A forwarder that knows nobody yet, for so many instances; `cancel` ends its ways to nodes.
    pub(crate) fn new(
        me: Identity,
        limit: usize,
        rows: Arc<dyn Rows>,
        elsewhere: Option<Arc<dyn Locate>>,
        metrics: Arc<Metrics>,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            table: Mutex::new(Table::new(me.node, limit)),
            rows,
            elsewhere,
            lanes: Lanes::new(me.clone(), cancel),
            me,
            metrics,
            this: this.clone(),
        })
    }

    /// The node that it is to others.
    pub(crate) fn node(&self) -> NodeId {
        self.me.node
    }

    /// Where it takes events.
    pub(crate) fn url(&self) -> &Url {
        &self.me.url
    }

    /// Looks into the table or changes it.
    pub(crate) fn table<R>(&self, act: impl FnOnce(&mut Table, Instant) -> R) -> R {
        act(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }

    /// Rows of the domain as others shall see them.
    pub(crate) fn outgoing(&self, rows: Vec<Row>) -> Vec<Row> {
        let outgoing = |table: &mut Table, now| {
            rows.into_iter().map(|row| readdress::outgoing(table, now, &self.me.url, row)).collect()
        };
        self.table(outgoing)
    }

    /// Rows of components elsewhere as the domain shall see them.
    pub(crate) fn inward(&self, rows: Vec<Row>) -> Vec<Row> {
        let url = &self.me.url;
        self.table(|table, now| rows.into_iter().map(|row| readdress::incoming(table, now, url, row)).collect())
    }

    /// A patch of somebody else as the domain shall see it.
    pub(crate) fn incoming(&self, patch: Patch) -> Patch {
        self.table(|table, now| readdress::patch(table, now, &self.me.url, patch))
    }

    /// Looks after the calls that nodes of the domain have in hand, until it is dropped. The time of those that
    /// others have runs out, unless somebody says that their node is lost.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOST).await;
            let callees = self.table(|table, now| {
                table.expire(now);
                table.callees()
            });
            for node in callees {
                if matches!(self.rows.contact(node).await, Ok(None)) {
                    self.fail_calls(node).await;
                }
            }
        }
    }

    /// A node of others is gone.
    pub(crate) async fn lose_node(&self, node: NodeId) {
        self.table(|table, _| table.tell_address(node, None));
        self.fail_calls(node).await;
    }

    async fn fail_calls(&self, node: NodeId) {
        for (caller, stream, call) in self.table(|table, _| table.take_calls_of(node)) {
            self.fail_call(caller, stream, call.called).await;
        }
    }

    async fn fail_call(&self, caller: Uuid, stream: u64, called: Uuid) {
        let Some(Meaning::Source(source)) = self.table(|table, now| table.meaning(now, caller)) else { return };
        self.metrics.count_forwarded(Forwarded::Unreachable);
        let reply = Kind::Reply { reply: Reply::Error, stream };
        let called = InstanceId { node: self.me.node, function: called };
        let created = SystemTime::UNIX_EPOCH;
        self.answer(Event {
            source: called,
            target: source,
            kind: reply,
            created,
            trace: Default::default(),
            id: None,
        })
        .await;
    }

    /// Sends an event on whose target and source are already those of the other side.
    async fn dispatch(&self, way: &Way, outgoing: Outgoing) {
        let Some(this) = self.this.upgrade() else { return };
        let report: Arc<dyn Report> = this;
        if let Err((outgoing, outcome)) = self.lanes.send(way, &report, outgoing).await {
            report.ended(outgoing, outcome);
        }
    }

    /// Tells a caller that its call is lost.
    async fn answer(&self, reply: Event) {
        match self.way(reply.target.node, None).await {
            Some(way) => self.dispatch(&way, Outgoing { event: reply, failed: None }).await,
            None => self.metrics.count_forwarded(Forwarded::NoAddress),
        }
    }

    /// How to reach a node: one of the domain, or one that its row, its orchestrator or itself says where it is.
    async fn way(&self, node: NodeId, row: Option<&Row>) -> Option<Way> {
        if let Ok(Some(contact)) = self.rows.contact(node).await {
            return Some(contact.into());
        }
        let in_row = row.and_then(|row| row.addresses.get(&node).cloned());
        let known = in_row.or_else(|| self.table(|table, _| table.address(node).cloned()));
        if let Some(events) = known {
            return Some(Way { events, agent: None });
        }
        let events = self.elsewhere.as_ref()?.locate(node).await?;
        self.table(|table, _| table.hear_address(node, events.clone()));
        Some(Way { events, agent: None })
    }

    /// Whom an event is for. Waits a while for a component that runs nowhere, and longer for one that is on its
    /// way to another place.
    pub(super) async fn place(&self, event: &Event) -> Result<Place, Forwarded> {
        let began = tokio::time::Instant::now();
        let mut since = began;
        loop {
            let (row, target) = self.instance(event).await?;
            if let Some(target) = target {
                let way = self.way(target.node, row.as_ref()).await.ok_or(Forwarded::NoAddress)?;
                return Ok(Place { target, way });
            }
            let now = tokio::time::Instant::now();
            let mut until = since + PATIENCE;
            if row.is_some_and(|row| row.moving) {
                // What is not on its way any more gets its time from then on.
                (since, until) = (now, began + MOVING);
            }
            if let Kind::Call { remaining: Some(remaining), .. } = &event.kind {
                until = until.min(began + *remaining);
            }
            if now >= until {
                return Err(Forwarded::NoInstance);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The instance that an event is for, if there is one at present, and the row that names it.
    async fn instance(&self, event: &Event) -> Result<(Option<Row>, Option<InstanceId>), Forwarded> {
        let mut alias = event.target.function;
        for _ in 0..HOPS {
            let meaning = self.table(|table, now| table.meaning(now, alias)).ok_or(Forwarded::UnknownAlias)?;
            let row = match meaning {
                Meaning::Source(instance) => return Ok((None, Some(instance))),
                Meaning::Own(component) => match self.rows.row(component).await {
                    Ok(Some(row)) => row,
                    Ok(None) => return Err(Forwarded::UnknownAlias),
                    // It is busy: the event waits as for a component that runs nowhere.
                    Err(_) => return Ok((None, None)),
                },
                Meaning::Foreign(component) => match self.table(|table, _| table.row(component).cloned()) {
                    Some(row) => row,
                    None => return Ok((None, None)),
                },
            };
            let turn = self.table(|table, _| table.turn(alias));
            match pick(&row, event, turn) {
                // A component elsewhere may turn out to be one of the domain.
                Some(target) if target.node == self.me.node => alias = target.function,
                target => return Ok((Some(row), target)),
            }
        }
        Err(Forwarded::Loop)
    }

    /// An event is lost; its caller learns it.
    async fn lose(&self, event: Event, outcome: Forwarded) {
        self.metrics.count_forwarded(outcome);
        tracing::debug!(target = %event.target, source = %event.source, ?outcome, "an event is dropped");
        if let Some(failed) = failed(&event) {
            self.answer(failed).await;
        }
    }

    async fn forward(&self, event: Event) {
        let began = Instant::now();
        let place = match self.place(&event).await {
            Ok(place) => place,
            Err(outcome) => return self.lose(event, outcome).await,
        };
        let kind = match event.kind.clone() {
            Kind::Call { payload, stream, remaining } => {
                let remaining = remaining.map(|remaining| remaining.saturating_sub(began.elapsed()));
                Kind::Call { payload, stream, remaining }
            }
            kind => kind,
        };
        let source = self.disguise(&event, &place);
        let failed = failed(&event);
        let event = Event { source, target: place.target, kind, ..event };
        self.dispatch(&place.way, Outgoing { event, failed }).await;
    }

    /// The source of an event as the other side shall see it, and for a call the way back of its reply.
    fn disguise(&self, event: &Event, place: &Place) -> InstanceId {
        if event.source == InstanceId::NONE {
            return InstanceId::NONE;
        }
        self.table(|table, now| {
            let alias = table.source(now, event.source);
            if let Kind::Call { stream, remaining, .. } = event.kind {
                let until = now + remaining.unwrap_or(CALL).min(CALL * 10);
                let is_own = place.way.agent.is_some();
                table.expect((alias, stream), event.target.function, place.target, is_own, until);
            }
            InstanceId { node: self.me.node, function: alias }
        })
    }

    /// A reply goes to who called, and comes from what was called.
    async fn forward_reply(&self, event: Event, stream: u64) {
        let caller = event.target.function;
        let call = self.table(|table, _| table.call(caller, stream));
        let Some(call) = call else { return self.lose(event, Forwarded::UnknownCall).await };
        if call.callee != event.source && !self.may_answer(call.called, event.source).await {
            return self.lose(event, Forwarded::Forged).await;
        }
        let meaning = self.table(|table, now| {
            table.take_call(caller, stream);
            table.meaning(now, caller)
        });
        let Some(Meaning::Source(target)) = meaning else {
            return self.lose(event, Forwarded::UnknownAlias).await;
        };
        let Some(way) = self.way(target.node, None).await else {
            return self.lose(event, Forwarded::NoAddress).await;
        };
        let source = InstanceId { node: self.me.node, function: call.called };
        self.dispatch(&way, Outgoing { event: Event { source, target, ..event }, failed: None }).await;
    }

    /// Whether an instance may answer a call to an alias, though another one was chosen: a component may
    /// have moved with the call in hand.
    async fn may_answer(&self, called: Uuid, callee: InstanceId) -> bool {
        let row = match self.table(|table, now| table.meaning(now, called)) {
            Some(Meaning::Own(component)) => self.rows.row(component).await.ok().flatten(),
            Some(Meaning::Foreign(component)) => self.table(|table, _| table.row(component).cloned()),
            Some(Meaning::Source(_)) | None => None,
        };
        row.is_some_and(|row| row.instances.contains(&callee))
    }
}

/// What the caller of an event gets when that is lost. `None`: it is no call.
fn failed(event: &Event) -> Option<Event> {
    match event.kind {
        Kind::Call { stream, .. } if event.source != InstanceId::NONE => Some(Event {
            source: event.target,
            target: event.source,
            kind: Kind::Reply { reply: Reply::Error, stream },
            created: SystemTime::UNIX_EPOCH,
            trace: event.trace,
            id: None,
        }),
        _ => None,
    }
}

impl Report for Forwarder {
    fn ended(&self, outgoing: Outgoing, outcome: Forwarded) {
        self.metrics.count_forwarded(outcome);
        let (Some(failed), Some(this)) = (outgoing.failed, self.this.upgrade()) else { return };
        if outcome != Forwarded::HandedOver {
            if let Kind::Reply { stream, .. } = failed.kind {
                let is_open = self.table(|table, _| table.take_call(outgoing.event.source.function, stream));
                // Its reply was quicker than the news that it was handed over.
                if is_open.is_none() {
                    return;
                }
            }
            tokio::spawn(async move { this.answer(failed).await });
        }
    }
}

#[async_trait]
impl Invocation for Forwarder {
    async fn handle(&self, event: Event) -> Result<(), Error> {
        self.handle_from(event, None).await
    }

    async fn handle_from(&self, event: Event, sender: Option<Url>) -> Result<(), Error> {
        if event.target.node != self.me.node {
            self.metrics.count_forwarded(Forwarded::Misaddressed);
            return Err(Error::rejected(format!(
                "this is {:?}, the event is for {:?}",
                self.me.node, event.target.node
            )));
        }
        if event.source.node == self.me.node {
            // What was sent on does not come back.
            self.metrics.count_forwarded(Forwarded::Loop);
            return Ok(());
        }
        if let Some(sender) = sender.filter(|_| event.source != InstanceId::NONE) {
            self.table(|table, _| table.hear_address(event.source.node, sender));
        }
        match event.kind {
            Kind::Reply { stream, .. } => self.forward_reply(event, stream).await,
            Kind::Cast(_) | Kind::Call { .. } => self.forward(event).await,
        }
        Ok(())
    }

    fn malformed(&self, error: &Error) {
        tracing::debug!(%error, "an event cannot be understood");
        self.metrics.count_forwarded(Forwarded::Malformed);
    }
}
