//! What components log, from the nodes that run them.
//!
//! Each node keeps the log of its own instances. Whoever follows a component follows it from one
//! instance to the next:
//!
//! ```text
//!  beat, end of a source -> look at the engine -> a source for each node with new instances
//!  lines of all sources --------------------------> the follower
//! ```
//! There is no task and no queue: all of it is one stream, which works while its reader waits for a
//! line, and is gone with its reader.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::ready;
use std::time::{Duration, SystemTime};

use edgeless_api::error::Error;
use edgeless_api::id::ComponentId;
use edgeless_api::server::Values;
use edgeless_api::status::{Level, LogLine};
use edgeless_daemon::engine::Inbox;
use futures_util::stream::{self, BoxStream, SelectAll};
use futures_util::{StreamExt, TryFutureExt, TryStreamExt};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use uuid::Uuid;

use crate::engine::{Engine, Peer};
use crate::service::{ASK, late};
use crate::shell::Links;

/// How soon a component is followed to its next instance, and a node is asked again that failed.
const BEAT: Duration = Duration::from_secs(1);

/// What instances logged at one node and, if asked, will log.
pub(crate) async fn of(links: &Links, peer: &Peer, instances: &[Uuid], follow: bool) -> Result<Values<LogLine>, Error> {
    let link = links.to(peer)?;
    tokio::time::timeout(ASK, link.components.logs(instances, follow)).await.unwrap_or_else(|_| Err(late(peer)))
}

/// A line that stands for those that a node does not give.
pub(crate) fn missing(peer: &Peer, error: &Error) -> LogLine {
    remark(String::new(), format!("node {} does not give its logs: {error}", peer.node))
}

/// A line of the platform's own.
fn remark(component: String, message: String) -> LogLine {
    LogLine { at: SystemTime::now(), level: Level::Warn, target: "edgeless".into(), message, component }
}

/// The lines of components, for as long as one of them is known.
pub(crate) struct Follow {
    inbox: Inbox<Engine>,
    links: Links,
    /// Those that are still known.
    components: Vec<ComponentId>,
    /// What runs them, as last seen.
    instances: BTreeMap<Uuid, Instance>,
    sources: SelectAll<BoxStream<'static, Said>>,
    /// At most one for each instance.
    remarks: VecDeque<LogLine>,
    beat: Interval,
}

/// An instance that is followed.
struct Instance {
    /// The name of its component.
    name: String,
    /// When to ask its node; `None` while its node says what it logs.
    ask_at: Option<Instant>,
    /// The time of the last line that is known, by the clock of its node.
    until: Option<SystemTime>,
    /// It was said that its node cannot be reached.
    is_remarked: bool,
}

/// Instances whose lines come from one node in one stream.
struct Source {
    peer: Peer,
    instances: Vec<Uuid>,
    until: Option<SystemTime>,
    has_spoken: bool,
}

enum Said {
    Line(LogLine),
    Ended(Source, Option<Error>),
}

impl Follow {
    /// Follows those of these components that are known.
    pub(crate) fn new(inbox: Inbox<Engine>, links: Links, components: BTreeSet<ComponentId>) -> Self {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            inbox,
            links,
            components: components.into_iter().collect(),
            instances: BTreeMap::new(),
            sources: SelectAll::new(),
            remarks: VecDeque::new(),
            beat,
        }
    }

    /// The lines, as they come.
    pub(crate) fn lines(self) -> Values<LogLine> {
        Box::pin(stream::unfold(self, Self::next))
    }

    async fn next(mut self) -> Option<(Result<LogLine, Error>, Self)> {
        loop {
            if let Some(line) = self.remarks.pop_front() {
                return Some((Ok(line), self));
            }
            if self.components.is_empty() && self.sources.is_empty() {
                return None;
            }
            tokio::select! {
                said = self.sources.next(), if !self.sources.is_empty() => match said {
                    Some(Said::Line(line)) => return Some((Ok(line), self)),
                    Some(Said::Ended(source, error)) => self.ended(source, error).await,
                    None => {}
                },
                _ = self.beat.tick() => {
                    // What was stopped had the time since the last look for its last words.
                    if self.components.is_empty() {
                        return None;
                    }
                    self.look().await;
                }
            }
        }
    }

    /// Finds what runs the components now, and asks about each instance that nobody is asked about.
    async fn look(&mut self) {
        self.beat.reset();
        let components = self.components.clone();
        // An engine that is too busy to be looked at is looked at again at the next beat.
        let Ok(views) = self.inbox.read(move |engine, _| engine.view(&components)).await else { return };
        self.components = views.iter().map(|view| view.status.component).collect();
        let now = Instant::now();
        let mut known = std::mem::take(&mut self.instances);
        let mut sources = BTreeMap::new();
        let running = views.into_iter().flat_map(|view| {
            let name = view.status.name;
            view.peers.into_iter().map(move |(peer, id)| (name.clone(), peer, id))
        });
        for (name, peer, id) in running {
            let mut instance = known.remove(&id.function).unwrap_or(Instance {
                name,
                ask_at: Some(now),
                until: None,
                is_remarked: false,
            });
            if instance.ask_at.is_some_and(|at| at <= now) {
                instance.ask_at = None;
                let until = instance.until;
                let source = sources.entry((peer.node, until));
                let source = source.or_insert_with(|| Source { peer, instances: vec![], until, has_spoken: false });
                source.instances.push(id.function);
            }
            self.instances.insert(id.function, instance);
        }
        self.sources.extend(sources.into_values().map(|source| source.said(self.links.clone())));
    }

    /// A source has ended: what it told of runs elsewhere, has stopped, or its node cannot be reached.
    async fn ended(&mut self, source: Source, error: Option<Error>) {
        for id in &source.instances {
            if let Some(instance) = self.instances.get_mut(id) {
                instance.ask_at = Some(Instant::now() + BEAT);
                instance.until = source.until;
                instance.is_remarked &= !source.has_spoken;
            }
        }
        self.look().await;
        if error.is_none() {
            return;
        }
        // Not for what already runs elsewhere.
        for id in &source.instances {
            if let Some(instance) = self.instances.get_mut(id)
                && !std::mem::replace(&mut instance.is_remarked, true)
            {
                let node = source.peer.node;
                let message = format!("node {node} cannot be reached: this log goes on when the component runs again");
                self.remarks.push_back(remark(instance.name.clone(), message));
            }
        }
    }
}

impl Source {
    /// What the node has to say that is not known yet, and how that ended.
    fn said(self, links: Links) -> BoxStream<'static, Said> {
        let (peer, instances, until) = (self.peer.clone(), self.instances.clone(), self.until);
        let lines = async move { of(&links, &peer, &instances, true).await }
            .try_flatten_stream()
            .try_skip_while(move |line| ready(Ok(Some(line.at) <= until)))
            .boxed();
        stream::unfold(Some((self, lines)), |going| async {
            let (mut source, mut lines) = going?;
            match lines.next().await {
                Some(Ok(line)) => {
                    source.until = source.until.max(Some(line.at));
                    source.has_spoken = true;
                    Some((Said::Line(line), Some((source, lines))))
                }
                Some(Err(error)) => Some((Said::Ended(source, Some(error)), None)),
                None => Some((Said::Ended(source, None), None)),
            }
        })
        .boxed()
    }
}
