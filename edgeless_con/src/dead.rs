//! Asks the domains of workflows for their dead letters, and has them sent again or dropped.
//!
//! All domains are asked at once. One that cannot be asked is named in the answer: what the others say is worth more than
//! an error about it. One that speaks only EDGELESS 1.2 has no dead letters.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use edgeless_api::dead::{DeadLetter, DeadLetters, Letters, Resolved, Scope, Treatment};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId, WorkflowId};
use edgeless_daemon::engine::Inbox;
use futures_util::StreamExt;
use uuid::Uuid;

use crate::engine::{Engine, Peer};
use crate::shell::{Peers, quick};

/// The most domains that are asked at the same time.
const ASKED: usize = 16;
/// The time that a domain has to send dead letters again, or to drop them: a little more than it gives its nodes.
const RESOLVE: Duration = Duration::from_secs(10);

/// Whom to ask about which components.
#[derive(Debug, Default)]
struct Places {
    domains: BTreeMap<DomainId, (Result<Peer, String>, Vec<Uuid>)>,
    workflows: HashMap<ComponentId, WorkflowId>,
}

impl Places {
    async fn of(scope: Scope, inbox: &Inbox<Engine>) -> Result<Self, Error> {
        inbox.read(move |engine, _| Self::known(engine, &scope)).await?
    }

    fn known(engine: &Engine, scope: &Scope) -> Result<Self, Error> {
        let workflows = scope.workflow.map_or_else(|| engine.list(), |workflow| vec![workflow]);
        let mut places = Self::default();
        for workflow in workflows {
            let view = engine.view(workflow)?;
            let is_meant = |name: &str| scope.component.as_ref().is_none_or(|meant| meant == name);
            if scope.workflow.is_some() && !view.components.iter().any(|one| is_meant(&one.name)) {
                let names: Vec<_> = view.components.iter().map(|component| component.name.as_str()).collect();
                let asked: String = scope.component.as_deref().unwrap_or_default().chars().take(80).collect();
                let names = names.join(", ");
                return Err(Error::not_found(format!(
                    "there is no component '{asked}' in {workflow}; there are: {names}"
                )));
            }
            for component in view.components.iter().filter(|component| is_meant(&component.name)) {
                let unknown = || Err(format!("the domain {} is not known", component.domain));
                let peer = || view.peers.get(&component.domain).cloned().unwrap_or_else(unknown);
                let place = places.domains.entry(component.domain.clone()).or_insert_with(|| (peer(), Vec::new()));
                place.1.push(component.id.0);
                places.workflows.insert(component.id, workflow);
            }
        }
        Ok(places)
    }

    /// Asks each domain, or says what is wrong with it.
    async fn ask<T: Default, F: Future<Output = Result<T, Error>>>(
        self,
        ask: impl Fn(Peer, Vec<Uuid>) -> F,
        trouble: impl Fn(String) -> T,
    ) -> Vec<T> {
        let (ask, trouble) = (&ask, &trouble);
        let answers = self.domains.into_iter().map(|(domain, (peer, ids))| async move {
            let answer = match peer {
                Ok(peer) => ask(peer, ids).await,
                Err(reason) => Err(Error::unavailable(reason)),
            };
            match answer {
                Ok(answer) => answer,
                Err(error) if error.code == Code::Unimplemented => T::default(),
                Err(error) => trouble(format!("domain {domain}: {error}")),
            }
        });
        futures_util::stream::iter(answers).buffered(ASKED).collect().await
    }
}

/// The newest dead letters, at most so many.
pub(crate) async fn letters(
    scope: Scope,
    most: usize,
    inbox: &Inbox<Engine>,
    peers: &Peers,
) -> Result<DeadLetters, Error> {
    let mut places = Places::of(scope, inbox).await?;
    let workflows = std::mem::take(&mut places.workflows);
    let ask =
        |peer: Peer, ids: Vec<Uuid>| async move { quick(peers.link(&peer)?.components.dead_letters(&ids, most)).await };
    let all = DeadLetters::together(places.ask(ask, DeadLetters::trouble).await, most);
    let known = |letter: DeadLetter| DeadLetter { workflow: workflows.get(&letter.component).copied(), ..letter };
    Ok(DeadLetters { letters: all.letters.into_iter().map(known).collect(), ..all })
}

/// Has dead letters sent again, or dropped.
pub(crate) async fn resolve(
    scope: Scope,
    letters: Letters,
    treatment: Treatment,
    inbox: &Inbox<Engine>,
    peers: &Peers,
) -> Result<Resolved, Error> {
    let places = Places::of(scope, inbox).await?;
    let ask = |peer: Peer, ids: Vec<Uuid>| {
        let letters = letters.clone();
        async move {
            let link = peers.link(&peer)?;
            let late = || Error::timeout(format!("no answer within {} s", RESOLVE.as_secs()));
            let resolving = link.components.resolve_dead(&ids, letters, treatment);
            tokio::time::timeout(RESOLVE, resolving).await.unwrap_or_else(|_| Err(late()))
        }
    };
    Ok(Resolved::together(places.ask(ask, Resolved::trouble).await))
}
