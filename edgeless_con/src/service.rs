//! What users and orchestrators ask of the controller.
//!
//! Wishes go to the engine and wait for its reply; what is merely looked up is read from the engine;
//! what only a domain knows is asked of the domain. Nothing is decided here.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use edgeless_api::component::Annotations;
use edgeless_api::dead::{DeadLetters, Letters, Resolved, Scope, Treatment};
use edgeless_api::domain::{DomainCapabilities, DomainRegistered, DomainRegistration};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId, WorkflowId};
use edgeless_api::node::NodeInfo;
use edgeless_api::server::{DomainRegistry, Values, Workflows};
use edgeless_api::status::{ComponentStatus, Limit, LogLine, Placement, State};
use edgeless_api::workflow::{Workflow, WorkflowStatus};
use edgeless_daemon::binaries::Binaries;
use edgeless_daemon::engine::{Inbox, Ticket};
use futures_util::StreamExt;
use uuid::Uuid;

use crate::dead;
use crate::engine::{Answer, ComponentView, Engine, Event, Peer, WorkflowView};
use crate::limits::Limiter;
use crate::shell::{Peers, quick};

/// The most domains that are asked at the same time.
const ASKED: usize = 16;

/// The services of a controller.
#[derive(Debug)]
pub(crate) struct Service {
    inbox: Inbox<Engine>,
    peers: Peers,
    limiter: Limiter,
    /// The code of the workflows that run.
    binaries: Binaries,
}

impl Service {
    pub(crate) fn new(inbox: Inbox<Engine>, peers: Peers, binaries: Binaries) -> Self {
        let limiter = Limiter::new(inbox.clone(), peers.clone());
        Self { inbox, peers, limiter, binaries }
    }

    async fn ask<T>(
        &self,
        event: impl FnOnce(Ticket) -> Event,
        expected: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, Error> {
        let answer = self.inbox.ask(event).await??;
        expected(answer).ok_or_else(|| Error::bug("the controller gave the answer to another question"))
    }

    async fn view(&self, workflow: WorkflowId) -> Result<WorkflowView, Error> {
        self.inbox.read(move |engine, _| engine.view(workflow)).await?
    }

    async fn statuses(&self, peer: Peer, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        quick(self.peers.link(&peer)?.components.status(&ids)).await
    }

    /// Asks each domain about those of its components that are wanted.
    async fn each<T, F: Future<Output = Result<T, Error>>>(
        &self,
        view: &WorkflowView,
        is_wanted: impl Fn(&ComponentView) -> bool,
        ask: impl Fn(Peer, Vec<Uuid>) -> F,
    ) -> BTreeMap<DomainId, Result<T, Error>> {
        let mut ids: BTreeMap<&DomainId, Vec<Uuid>> = BTreeMap::new();
        for component in view.components.iter().filter(|component| is_wanted(component)) {
            ids.entry(&component.domain).or_default().push(component.id.0);
        }
        let questions: Vec<_> =
            ids.into_iter().map(|(domain, ids)| (domain.clone(), view.peers.get(domain), ids)).collect();
        let answers = questions.into_iter().map(|(domain, peer, ids)| {
            let question = peer.map(|peer| peer.clone().map(|peer| ask(peer, ids)));
            async move {
                let answer = match question {
                    Some(Ok(question)) => question.await,
                    Some(Err(reason)) => Err(Error::unavailable(reason)),
                    None => Err(Error::bug(format!("the domain {domain} is not known"))),
                };
                (domain, answer)
            }
        });
        futures_util::future::join_all(answers).await.into_iter().collect()
    }

    async fn lines(&self, peer: Peer, ids: Vec<Uuid>, follow: bool) -> Result<Values<LogLine>, Error> {
        let lines = quick(self.peers.link(&peer)?.components.logs(&ids, follow)).await;
        lines.map_err(|error| error.context(format!("domain {}", peer.domain)))
    }

    async fn nodes_of(&self, peer: Peer) -> Result<Vec<NodeInfo>, Error> {
        let nodes = quick(self.peers.link(&peer)?.domain.nodes()).await;
        nodes.map_err(|error| error.context(format!("domain {}", peer.domain)))
    }
}

/// The status of a component of which its domain says nothing.
fn silent(component: &ComponentView, state: State, reason: &str) -> ComponentStatus {
    let reason = if component.trouble.is_empty() { reason } else { &component.trouble };
    ComponentStatus {
        component: component.id,
        name: component.name.clone(),
        state,
        instance: None,
        epoch: component.epoch,
        restarts: 0,
        reason: reason.to_string(),
        log: Vec::new(),
        handled: 0,
        dropped: 0,
        outputs: Vec::new(),
        limits: Vec::new(),
        usage: None,
        instances: Vec::new(),
    }
}

/// What domains say of the components of a workflow, in their order, with what they do not say filled in.
fn merge(
    view: &WorkflowView,
    answers: BTreeMap<DomainId, Result<Vec<ComponentStatus>, Error>>,
) -> Vec<ComponentStatus> {
    let mut known: HashMap<(DomainId, ComponentId), ComponentStatus> = HashMap::new();
    let mut others: HashMap<DomainId, (State, String)> = HashMap::new();
    for (domain, answer) in answers {
        let other = match answer {
            Ok(statuses) => {
                known.extend(statuses.into_iter().map(|status| ((domain.clone(), status.component), status)));
                (State::Waiting, format!("the domain {domain} does not run it yet"))
            }
            Err(error) if error.code == Code::Unimplemented => {
                (State::Running, format!("the domain {domain} speaks only EDGELESS 1.2: no more is known"))
            }
            Err(error) => (State::Waiting, error.message),
        };
        others.insert(domain, other);
    }
    let status = |component: &ComponentView| match known.remove(&(component.domain.clone(), component.id)) {
        Some(status) => {
            let reason = if status.reason.is_empty() { component.loss.clone() } else { status.reason };
            ComponentStatus { name: component.name.clone(), reason, ..status }
        }
        None => {
            let (state, reason) = others.get(&component.domain).map_or((State::Waiting, ""), |(s, r)| (*s, r));
            silent(component, if component.is_up { state } else { State::Waiting }, reason)
        }
    };
    view.components.iter().map(status).collect()
}

#[async_trait]
impl Workflows for Service {
    async fn start(&self, workflow: Workflow, request: Option<Uuid>) -> Result<WorkflowStatus, Error> {
        let workflow = workflow.with_binaries(|binary| self.binaries.keep(binary))?;
        let event = |ticket| Event::Start { ticket, workflow, request };
        self.ask(event, |answer| if let Answer::Started(status) = answer { Some(status) } else { None }).await
    }

    async fn stop(&self, workflow: WorkflowId) -> Result<(), Error> {
        let event = |ticket| Event::Stop { ticket, workflow };
        self.ask(event, |answer| (answer == Answer::Stopped).then_some(())).await
    }

    async fn list(&self) -> Result<Vec<WorkflowId>, Error> {
        self.inbox.read(|engine, _| engine.list()).await
    }

    async fn inspect(&self, workflow: WorkflowId) -> Result<(Workflow, WorkflowStatus), Error> {
        self.inbox.read(move |engine, _| engine.inspect(workflow)).await?
    }

    async fn domains(&self, domain: Option<DomainId>) -> Result<BTreeMap<DomainId, DomainCapabilities>, Error> {
        self.inbox.read(move |engine, _| engine.domains(domain.as_ref())).await
    }

    async fn migrate(
        &self,
        workflow: WorkflowId,
        domain: DomainId,
        component: Option<String>,
    ) -> Result<WorkflowStatus, Error> {
        let event = |ticket| Event::Migrate { ticket, workflow, domain, component };
        self.ask(event, |answer| if let Answer::Migrated(status) = answer { Some(status) } else { None }).await
    }

    async fn plan(&self, workflow: Workflow) -> Result<Vec<Placement>, Error> {
        let event = |ticket| Event::Plan { ticket, workflow };
        self.ask(event, |answer| if let Answer::Planned(placements) = answer { Some(placements) } else { None }).await
    }

    async fn status(&self, workflow: WorkflowId) -> Result<Vec<ComponentStatus>, Error> {
        let view = self.view(workflow).await?;
        let answers = self.each(&view, |_| true, |peer, ids| self.statuses(peer, ids)).await;
        Ok(merge(&view, answers))
    }

    async fn logs(
        &self,
        workflow: WorkflowId,
        component: Option<String>,
        follow: bool,
    ) -> Result<Values<LogLine>, Error> {
        let view = self.view(workflow).await?;
        let is_asked = |own: &ComponentView| component.as_ref().is_none_or(|name| own.name == *name);
        if !view.components.iter().any(is_asked) {
            let names: Vec<_> = view.components.iter().map(|component| component.name.as_str()).collect();
            let asked: String = component.as_deref().unwrap_or_default().chars().take(80).collect();
            let names = names.join(", ");
            return Err(Error::not_found(format!("there is no component '{asked}' in {workflow}; there are: {names}")));
        }
        let answers = self.each(&view, is_asked, |peer, ids| self.lines(peer, ids, follow)).await;
        let (mut streams, mut failed) = (Vec::new(), None);
        for (domain, answer) in answers {
            match answer {
                Ok(lines) => streams.push(lines),
                Err(error) => {
                    tracing::debug!(%workflow, %domain, reason = %error, "no lines of a domain");
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            // The lines of the other domains are worth more than an error about this one.
            Some(error) if streams.is_empty() => Err(error),
            _ => Ok(Box::pin(futures_util::stream::select_all(streams))),
        }
    }

    async fn nodes(&self, domain: Option<DomainId>) -> Result<Vec<NodeInfo>, Error> {
        let is_one = domain.is_some();
        let peers = self.inbox.read(move |engine, _| engine.peers(domain.as_ref())).await??;
        let answers = futures_util::stream::iter(peers).map(|peer| self.nodes_of(peer)).buffered(ASKED);
        let answers: Vec<_> = answers.collect().await;
        let mut nodes = Vec::new();
        for answer in answers {
            match answer {
                Ok(more) => nodes.extend(more),
                Err(error) if is_one => return Err(error),
                // The nodes of the other domains are worth more than an error about this one.
                Err(error) => tracing::warn!(reason = %error, "the nodes of a domain are not known"),
            }
        }
        Ok(nodes)
    }

    async fn limits(&self, component: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error> {
        self.limiter.limits(component, changes).await
    }

    async fn dead_letters(&self, scope: Scope, most: usize) -> Result<DeadLetters, Error> {
        dead::letters(scope, most, &self.inbox, &self.peers).await
    }

    async fn resolve_dead(&self, scope: Scope, letters: Letters, treatment: Treatment) -> Result<Resolved, Error> {
        dead::resolve(scope, letters, treatment, &self.inbox, &self.peers).await
    }
}

#[async_trait]
impl DomainRegistry for Service {
    async fn update_domain(&self, registration: DomainRegistration) -> Result<DomainRegistered, Error> {
        let event = |ticket| Event::Register { ticket, registration };
        self.ask(event, |answer| if let Answer::Registered(registered) = answer { Some(registered) } else { None })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> WorkflowView {
        let component = |name: &str, is_up, trouble: &str| ComponentView {
            name: name.into(),
            domain: DomainId("d".into()),
            id: ComponentId::random(),
            epoch: 1,
            is_up,
            trouble: trouble.into(),
            loss: String::new(),
        };
        let components = vec![component("a", true, ""), component("b", true, ""), component("c", false, "no node")];
        let peers = BTreeMap::from([(DomainId("d".into()), Err("away".into()))]);
        WorkflowView { peers, components }
    }

    fn answer(answer: Result<Vec<ComponentStatus>, Error>) -> BTreeMap<DomainId, Result<Vec<ComponentStatus>, Error>> {
        BTreeMap::from([(DomainId("d".into()), answer)])
    }

    #[test]
    fn what_a_domain_does_not_report_is_filled_in_where_it_belongs() {
        let view = view();
        let reported = ComponentStatus { name: "?".into(), ..silent(&view.components[1], State::Failed, "trap") };
        let merged = merge(&view, answer(Ok(vec![reported])));
        let told: Vec<_> = merged.iter().map(|s| (s.name.as_str(), s.state, s.reason.as_str())).collect();
        assert_eq!(
            told,
            [
                ("a", State::Waiting, "the domain d does not run it yet"),
                ("b", State::Failed, "trap"),
                ("c", State::Waiting, "no node"),
            ]
        );
    }

    #[test]
    fn a_lost_state_is_the_reason_if_there_is_no_other() {
        let mut view = view();
        view.components[0].loss = "state lost: gone".into();
        for (said, shown) in [("", "state lost: gone"), ("trap", "trap")] {
            let reported = silent(&view.components[0], State::Running, said);
            assert_eq!(merge(&view, answer(Ok(vec![reported])))[0].reason, shown);
        }
    }

    #[test]
    fn a_domain_that_cannot_be_asked_is_the_reason() {
        let away = merge(&view(), answer(Err(Error::unavailable("cannot reach it"))));
        assert_eq!((away[0].state, away[0].reason.as_str()), (State::Waiting, "cannot reach it"));
        let old = merge(&view(), answer(Err(Error::unimplemented("what?"))));
        assert_eq!((old[0].state, old[2].state), (State::Running, State::Waiting));
        assert!(old[0].reason.contains("EDGELESS 1.2"));
    }
}
