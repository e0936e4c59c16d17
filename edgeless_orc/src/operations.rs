//! What operators do with nodes and components.
//!
//! A drain is a stream that works while its reader waits: each step asks the engine to move one replica
//! away from the node, and is over when that runs elsewhere, or takes so long that the others go first. Whoever goes
//! away leaves the rest where it is.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::decision::Decision;
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_api::operations::{DrainProgress, Relocation};
use edgeless_api::server::{Operations, Values};
use edgeless_api::status::ComponentStatus;
use edgeless_daemon::engine::Inbox;
use futures_util::stream;

use crate::engine::{Engine, Event, View};
use crate::service::Service;

/// How often it is tried to move what cannot be moved at present.
const TRIES: u32 = 20;
/// The pause between two of these.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a drain waits for one replica before it goes on with the next.
const PATIENCE: Duration = Duration::from_secs(60);

fn unknown(node: NodeId) -> Error {
    Error::not_found(format!("node {node} is not known in this domain"))
}

#[async_trait]
impl Operations for Service {
    async fn cordon(&self, node: NodeId, cordoned: bool) -> Result<(), Error> {
        self.done(|ticket| Event::Cordon { ticket, node, is_cordoned: cordoned }).await
    }

    async fn forget(&self, node: NodeId) -> Result<(), Error> {
        self.done(|ticket| Event::Forget(ticket, node)).await
    }

    async fn drain(&self, node: NodeId) -> Result<Values<DrainProgress>, Error> {
        // One that is gone is empty, and is left as it is.
        residents(&self.inbox, node).await?;
        self.cordon(node, true).await?;
        let left = residents(&self.inbox, node).await?;
        let progress = DrainProgress { total: u32::try_from(left.len()).unwrap_or(u32::MAX), ..Default::default() };
        let drain = Drain { inbox: self.inbox.clone(), node, left: left.into(), progress, has_begun: false };
        Ok(Box::pin(stream::unfold(drain, Drain::next)))
    }

    async fn residents(&self, node: NodeId) -> Result<Vec<ComponentStatus>, Error> {
        let views = self.inbox.read(move |engine, _| engine.residents(node)).await?.ok_or_else(|| unknown(node))?;
        Ok(self.complete(views).await)
    }

    async fn plan_loss(&self, node: NodeId) -> Result<Vec<Relocation>, Error> {
        self.inbox.read(move |engine, _| engine.plan_loss(node)).await?
    }

    async fn why(&self, component: ComponentId) -> Result<Decision, Error> {
        self.inbox.read(move |engine, now| engine.why(now, component)).await?
    }

    async fn move_component(&self, component: ComponentId, node: NodeId) -> Result<(), Error> {
        self.done(|ticket| Event::Move { ticket, component, node }).await
    }
}

/// What runs on a node, or is being started there: each replica once.
async fn residents(inbox: &Inbox<Engine>, node: NodeId) -> Result<Vec<(ComponentId, String)>, Error> {
    let views = inbox.read(move |engine, _| engine.residents(node)).await?.ok_or_else(|| unknown(node))?;
    let each = |view: View| {
        let own = view.status.instances.iter().filter(|one| one.instance.node == node).count().max(1);
        std::iter::repeat_n((view.status.component, view.status.name), own)
    };
    Ok(views.into_iter().flat_map(each).collect())
}

/// The removal of everything from a node.
struct Drain {
    inbox: Inbox<Engine>,
    node: NodeId,
    left: VecDeque<(ComponentId, String)>,
    progress: DrainProgress,
    has_begun: bool,
}

impl Drain {
    async fn next(mut self) -> Option<(Result<DrainProgress, Error>, Self)> {
        if std::mem::replace(&mut self.has_begun, true) {
            let (id, name) = self.left.pop_front()?;
            self.progress.component = name;
            match self.evict(id).await {
                Ok(()) => {
                    self.progress.moved += 1;
                    self.progress.reason = String::new();
                }
                Err(error) => self.progress.reason = error.message,
            }
        }
        Some((Ok(self.progress.clone()), self))
    }

    /// Moves one replica away, or tells why it has not moved in time. It may move later.
    async fn evict(&self, component: ComponentId) -> Result<(), Error> {
        if let Ok(moved) = tokio::time::timeout(PATIENCE, self.move_away(component)).await {
            return moved;
        }
        let late = format!("it has not moved within {} s", PATIENCE.as_secs());
        let view = self.inbox.read(move |engine, _| engine.view(&[component]).pop()).await?;
        let reason = view.map(|view| view.status.reason).unwrap_or_default();
        Err(Error::timeout(if reason.is_empty() { late } else { format!("{late}: {reason}") }))
    }

    /// Moves one replica away. What is being started or moved already is waited for.
    async fn move_away(&self, component: ComponentId) -> Result<(), Error> {
        let node = self.node;
        let mut tries = 0;
        loop {
            let evicted = self.inbox.ask(|ticket| Event::Evict { ticket, component, node }).await?;
            tries += 1;
            match evicted {
                Ok(_) => return Ok(()),
                Err(error) if error.code == Code::Unavailable && tries < TRIES => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use edgeless_api::component::{ComponentRef, ComponentSpec, StartContext, StatePolicy};
    use edgeless_api::id::{DomainId, InstanceId};
    use edgeless_daemon::engine::{Driver, Replies, Running, Shell, Ticket};
    use futures_util::StreamExt;
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    use super::*;
    use crate::engine::tests::{function, node};
    use crate::engine::{Answer, Call, Effect, Outcome, Settings, Wanted};
    use crate::placement::Strategy;

    /// Nodes that do what they are told, except for the first release, which never ends.
    struct Nodes {
        replies: Replies<Answer>,
        hangs: bool,
    }

    impl Shell<Engine> for Nodes {
        fn run(&mut self, effect: Effect) -> Option<Running<Engine>> {
            let (op, peer, call) = match effect {
                Effect::Call(op, peer, call) => (op, peer, call),
                Effect::Reply(ticket, answer) => {
                    self.replies.answer(ticket, answer);
                    return None;
                }
                _ => return None,
            };
            let instance = InstanceId { node: peer.node, function: Uuid::new_v4() };
            let outcome = match call {
                Call::Create(_) => Outcome::Started(ComponentRef::Instance(instance)),
                Call::Release { .. } if std::mem::take(&mut self.hangs) => {
                    return Some(Box::pin(std::future::pending()));
                }
                Call::Release { .. } => Outcome::Released(None),
                _ => Outcome::Done,
            };
            Some(Box::pin(async move { Event::Done(op, Ok(outcome)) }))
        }
    }

    fn with_state() -> ComponentSpec {
        let mut spec = function(&[]);
        if let ComponentSpec::Function(function) = &mut spec {
            function.state.policy = StatePolicy::NodeLocal;
        }
        spec
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_move_does_not_keep_a_drain_from_the_others() {
        let driver = Driver::new(Engine::new(Settings {
            domain: DomainId("d".into()),
            keep_alive: Duration::from_secs(3600),
            state_grace: Duration::from_secs(30),
            strategy: Strategy::round_robin(),
            seed: 1,
            max_nodes: 2,
            max_components: 4,
        }));
        let (inbox, replies) = (driver.inbox(), driver.replies());
        let cancel = CancellationToken::new();
        let _guard = cancel.clone().drop_guard();
        tokio::spawn(driver.run(Nodes { replies, hangs: true }, Duration::from_millis(100), cancel));
        let ask = async |event: Box<dyn FnOnce(Ticket) -> Event>| inbox.ask(event).await.unwrap().unwrap();
        let [from, to] = [0xa, 0xb].map(|n| node(NodeId(Uuid::from_u128(n))));
        let (id, other) = (from.node, to.clone());
        ask(Box::new(|ticket| Event::Register(ticket, Box::new(from)))).await;
        for n in 1..=3 {
            let context = StartContext::new(ComponentId(Uuid::from_u128(n)), 1, format!("f{n}"));
            let wanted = Box::new(Wanted { spec: with_state(), context, is_held: true });
            ask(Box::new(|ticket| Event::Start(ticket, wanted))).await;
        }
        ask(Box::new(|ticket| Event::Register(ticket, Box::new(other)))).await;
        let ready = async || inbox.read(|engine, _| engine.nodes().len()).await.unwrap();
        assert_eq!(ready().await, 2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        ask(Box::new(move |ticket| Event::Cordon { ticket, node: id, is_cordoned: true })).await;

        let left = residents(&inbox, id).await.unwrap();
        let progress = DrainProgress { total: 3, ..DrainProgress::default() };
        let drain = Drain { inbox: inbox.clone(), node: id, left: left.into(), progress, has_begun: true };
        let steps: Vec<DrainProgress> = stream::unfold(drain, Drain::next).map(Result::unwrap).collect().await;
        let told: Vec<_> =
            steps.iter().map(|step| (step.component.as_str(), step.moved, step.reason.as_str())).collect();
        assert_eq!(told, [("f1", 0, "it has not moved within 60 s"), ("f2", 1, ""), ("f3", 2, "")]);
        let left = residents(&inbox, id).await.unwrap();
        assert_eq!(left.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["f1"]);
    }
}
