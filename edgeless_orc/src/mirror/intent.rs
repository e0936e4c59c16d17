//! What other programs ask for: to move a component, to cordon a node.
//!
//! An intent is a key whose name says what about and whose value says what. Bad ones do no harm: each is
//! told once in the log with the reason, and counted.

use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, NodeId};
use edgeless_daemon::engine::Inbox;
use tokio::sync::mpsc;

use super::metrics::Metrics;
use crate::engine::{Engine, Event};

const MIGRATE: &str = "intent:migrate:";
const CORDON: &str = "intent:cordon:";
/// The longest value, bytes.
pub(super) const LONGEST: usize = 4096;
/// How long an intent is waited for before the next one has its turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// An intent as it was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The name of its key.
    pub(super) key: String,
    /// Its value, or why there is none.
    pub(super) value: Result<String, String>,
}

/// Whether a key that stands in the list of intents may be one, and is to be read and removed.
pub(super) fn is_intent(key: &str) -> bool {
    key.starts_with(MIGRATE) || key.starts_with(CORDON)
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Intent {
    /// A component shall run on the first of these nodes that it can run on.
    Migrate(ComponentId, Vec<NodeId>),
    /// Nothing new shall be placed on a node, or it may be again.
    Cordon(NodeId, bool),
}

impl Intent {
    fn parse(found: &Found) -> Result<Self, Error> {
        let value = || found.value.as_ref().map(|value| value.trim()).map_err(Error::rejected);
        if let Some(component) = found.key.strip_prefix(MIGRATE) {
            let (component, value) = (component.parse()?, value()?);
            if value.is_empty() {
                return Err(Error::rejected("it names no node: write the ids of nodes, with commas between them"));
            }
            let nodes = value.split(',').map(|node| node.trim().parse()).collect::<Result<_, _>>()?;
            return Ok(Self::Migrate(component, nodes));
        }
        if let Some(node) = found.key.strip_prefix(CORDON) {
            let node = node.parse()?;
            return match value()? {
                "yes" => Ok(Self::Cordon(node, true)),
                "no" => Ok(Self::Cordon(node, false)),
                other => Err(Error::rejected(format!("its value is '{}': write yes or no", shown(other)))),
            };
        }
        Err(Error::rejected("there are intent:migrate:<component> and intent:cordon:<node>"))
    }
}

/// Does what intents ask for.
#[async_trait]
pub(super) trait Intents: Send + Sync + 'static {
    /// Moves a component to the first of these nodes that it can run on.
    async fn migrate(&self, component: ComponentId, nodes: Vec<NodeId>) -> Result<(), Error>;

    /// Sets whether new components may be placed on a node.
    async fn cordon(&self, node: NodeId, is_cordoned: bool) -> Result<(), Error>;
}

#[async_trait]
impl Intents for Inbox<Engine> {
    async fn migrate(&self, component: ComponentId, nodes: Vec<NodeId>) -> Result<(), Error> {
        let mut refusals: Vec<String> = Vec::new();
        for node in nodes {
            match move_to(self, component, node).await {
                Err(error) if error.code.is_refusal() => refusals.push(error.message),
                result => return result,
            }
        }
        refusals.dedup();
        Err(Error::rejected(refusals.join("; ")))
    }

    async fn cordon(&self, node: NodeId, is_cordoned: bool) -> Result<(), Error> {
        self.ask(|ticket| Event::Cordon { ticket, node, is_cordoned }).await?.map(drop)
    }
}

async fn move_to(inbox: &Inbox<Engine>, component: ComponentId, node: NodeId) -> Result<(), Error> {
    inbox.ask(|ticket| Event::Move { ticket, component, node }).await?.map(drop)
}

/// Carries out intents, one after the other.
pub(super) async fn obey(mut incoming: mpsc::Receiver<Found>, intents: impl Intents, metrics: Metrics) {
    while let Some(found) = incoming.recv().await {
        let key = shown(&found.key);
        match carry_out(&found, &intents).await {
            Ok(()) => {
                metrics.intents.inc();
                tracing::info!("intent {key} was carried out");
            }
            Err(error) => {
                metrics.intents_refused.inc();
                tracing::warn!(%error, "intent {key} is ignored");
            }
        }
    }
}

async fn carry_out(found: &Found, intents: &impl Intents) -> Result<(), Error> {
    let carry_out = async {
        match Intent::parse(found)? {
            Intent::Migrate(component, nodes) => intents.migrate(component, nodes).await,
            Intent::Cordon(node, is_cordoned) => intents.cordon(node, is_cordoned).await,
        }
    };
    let late = || Error::timeout(format!("it is not carried out after {} seconds", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, carry_out).await.unwrap_or_else(|_| Err(late()))
}

/// As much of a text as fits into a line of the log.
fn shown(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use uuid::Uuid;

    use super::*;

    const COMPONENT: &str = "00000000-0000-0000-0000-000000000001";
    const NODE: &str = "00000000-0000-0000-0000-000000000002";
    const OTHER: &str = "00000000-0000-0000-0000-000000000003";

    fn found(key: String, value: &str) -> Found {
        Found { key, value: Ok(value.into()) }
    }

    fn node(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    #[test]
    fn what_the_tools_write_is_understood() {
        let intent = Intent::parse(&found(format!("{MIGRATE}{COMPONENT}"), &format!("{NODE}, {OTHER}")));
        let component = ComponentId(Uuid::from_u128(1));
        assert_eq!(intent, Ok(Intent::Migrate(component, vec![node(2), node(3)])));
        assert_eq!(Intent::parse(&found(format!("{CORDON}{NODE}"), "yes")), Ok(Intent::Cordon(node(2), true)));
        assert_eq!(Intent::parse(&found(format!("{CORDON}{NODE}"), "no")), Ok(Intent::Cordon(node(2), false)));
    }

    #[test]
    fn what_is_wrong_with_an_intent_is_said() {
        for (key, value, part) in [
            (format!("{MIGRATE}x"), NODE, "'x' is not a component id"),
            (format!("{MIGRATE}{COMPONENT}"), "", "names no node"),
            (format!("{MIGRATE}{COMPONENT}"), "a,b", "'a' is not a node id"),
            (format!("{CORDON}{NODE}"), "maybe", "write yes or no"),
            (CORDON.to_string(), "yes", "'' is not a node id"),
            ("intent:sing:1".into(), "la", "there are intent:migrate:"),
        ] {
            let error = Intent::parse(&found(key, value)).unwrap_err();
            assert!(error.message.contains(part), "{error}");
        }
        let unread = Found { key: format!("{CORDON}{NODE}"), value: Err("it has no value".into()) };
        assert_eq!(Intent::parse(&unread).unwrap_err().message, "it has no value");
    }

    /// Notes what it is asked for, and knows no cordon.
    #[derive(Clone, Default)]
    struct Obedient(Arc<Mutex<Vec<(ComponentId, usize)>>>);

    #[async_trait]
    impl Intents for Obedient {
        async fn migrate(&self, component: ComponentId, nodes: Vec<NodeId>) -> Result<(), Error> {
            self.0.lock().unwrap().push((component, nodes.len()));
            Ok(())
        }

        async fn cordon(&self, node: NodeId, _: bool) -> Result<(), Error> {
            Err(Error::not_found(format!("there is no node {node}")))
        }
    }

    #[tokio::test]
    async fn a_bad_intent_is_counted_and_the_next_one_has_its_turn() {
        let (sender, incoming) = mpsc::channel(8);
        let (obedient, metrics) = (Obedient::default(), Metrics::default());
        for (key, value) in
            [("nonsense".into(), ""), (format!("{CORDON}{NODE}"), "yes"), (format!("{MIGRATE}{COMPONENT}"), NODE)]
        {
            sender.send(found(key, value)).await.unwrap();
        }
        drop(sender);
        obey(incoming, obedient.clone(), metrics.clone()).await;
        assert_eq!(*obedient.0.lock().unwrap(), [(ComponentId(Uuid::from_u128(1)), 1)]);
        assert_eq!((metrics.intents.get(), metrics.intents_refused.get()), (1, 2));
    }
}
