//! What the node does for a runtime of its own kind: it replaces what breaks by itself, waits for what
//! is away, and asks for limits and use, none of which a guest in WebAssembly needs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::{Annotations, ComponentRef, FunctionSpec, Start, Target};
use edgeless_api::server::Components;
use edgeless_api::status::{ComponentStatus, Limit, State, Usage};
use edgeless_api::{Code, ComponentId, Error, InstanceId, NodeId, WorkflowId};
use edgeless_node::agent::{Agent, Options};
use edgeless_node::event::Cause;
use edgeless_node::instance::{Context, Controls, Incoming, Instance, InstanceError, Payload, Program, Runtime};
use edgeless_node::metrics::Metrics;
use edgeless_node::outputs::Outputs;
use edgeless_node::records::Records;
use edgeless_node::router::{self, Router};
use edgeless_node::state::StateStore;
use tokio::sync::{Barrier, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::support::{PATIENCE, context, function, wait_until};

/// A function that runs somewhere else, which may be away, and that may end there at any time.
struct Elsewhere {
    max_in_flight: usize,
    has_limits: bool,
    /// Why nothing can be started there.
    away: Mutex<Option<Error>>,
    starts: AtomicUsize,
    /// Who is started there.
    labels: Mutex<Vec<(ComponentId, WorkflowId)>>,
    ends: mpsc::Sender<String>,
    ended: tokio::sync::Mutex<mpsc::Receiver<String>>,
    limits: Mutex<Annotations>,
    /// It does not say what it uses.
    is_silent: AtomicBool,
    /// So many events are handled at once, or none.
    together: Barrier,
}

impl Elsewhere {
    fn new(max_in_flight: usize, has_limits: bool) -> Arc<Self> {
        let (ends, ended) = mpsc::channel(8);
        Arc::new(Self {
            max_in_flight,
            has_limits,
            away: Mutex::default(),
            starts: AtomicUsize::new(0),
            labels: Mutex::default(),
            ends,
            ended: tokio::sync::Mutex::new(ended),
            limits: Mutex::default(),
            is_silent: AtomicBool::new(false),
            together: Barrier::new(max_in_flight),
        })
    }

    fn is_away(&self, reason: Option<&str>) {
        *self.away.lock().unwrap() = reason.map(Error::unavailable);
    }

    fn in_force(&self) -> Vec<Limit> {
        let limit = |(name, asked): (&String, &String)| Limit {
            name: name.clone(),
            asked: asked.clone(),
            kernel: asked.clone(),
        };
        self.limits.lock().unwrap().iter().map(limit).collect()
    }
}

/// Each of these is the same function, as its node, its program, its instance and its controls.
struct Is(Arc<Elsewhere>);

#[async_trait]
impl Runtime for Is {
    fn kind(&self) -> &'static str {
        "ELSEWHERE"
    }

    async fn load(&self, _: FunctionSpec) -> Result<Arc<dyn Program>, Error> {
        Ok(Arc::new(Is(self.0.clone())))
    }
}

#[async_trait]
impl Program for Is {
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error> {
        self.0.starts.fetch_add(1, Ordering::SeqCst);
        self.0.labels.lock().unwrap().push((context.component, context.workflow));
        match self.0.away.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => Ok(Box::new(Is(self.0.clone()))),
        }
    }

    fn max_in_flight(&self) -> usize {
        self.0.max_in_flight
    }

    fn controls(&self) -> Option<Arc<dyn Controls>> {
        self.0.has_limits.then(|| Arc::new(Is(self.0.clone())) as Arc<dyn Controls>)
    }
}

#[async_trait]
impl Instance for Is {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        self.0.together.wait().await;
        Ok(Some(event.payload))
    }

    async fn broken(&self) -> String {
        self.0.ended.lock().await.recv().await.unwrap()
    }
}

#[async_trait]
impl Controls for Is {
    async fn set_limits(&self, changes: &Annotations) -> Result<Vec<Limit>, Error> {
        if changes.contains_key("colour") {
            return Err(Error::rejected("'colour' is not a limit"));
        }
        self.0.limits.lock().unwrap().extend(changes.clone());
        Ok(self.0.in_force())
    }

    async fn limits(&self) -> Vec<Limit> {
        self.0.in_force()
    }

    async fn usage(&self) -> Option<Usage> {
        if self.0.is_silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Some(Usage { cpu: Duration::from_secs(1), memory: 2, processes: 3, received: 4, sent: 5 })
    }
}

/// A node that has one function, which is such a one.
struct Hosting {
    agent: Arc<Agent>,
    router: Arc<Router>,
    id: InstanceId,
    component: ComponentId,
    workflow: WorkflowId,
    cancel: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Hosting {
    async fn start(elsewhere: &Arc<Elsewhere>) -> Self {
        let node = NodeId::random();
        let options = router::Options {
            emit_wait: PATIENCE,
            move_wait: PATIENCE,
            call_timeout: PATIENCE,
            max_payload: 1 << 20,
            queued: 1 << 20,
            peer_lost_after: PATIENCE,
        };
        let router = Router::new(node, options, Arc::new(Metrics::new(node, 10)));
        let options =
            Options { components: 1, mailbox: 8, log_lines: 100, grace: Duration::from_secs(1), delivery_tries: 3 };
        let (directory, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let records = Records::open(directory.path(), node).await.unwrap();
        let runtimes: Vec<Arc<dyn Runtime>> = vec![Arc::new(Is(elsewhere.clone()))];
        let agent = Agent::new(
            router.clone(),
            runtimes,
            vec![],
            StateStore::new(records.clone(), None),
            records,
            options,
            cancel.clone(),
        );
        let mut spec = function(b"code", &[]);
        if let edgeless_api::ComponentSpec::Function(function) = &mut spec {
            function.class.function_type = "ELSEWHERE".into();
        }
        let (workflow, context) = (spec.workflow(), context("far"));
        let component = context.component;
        let ComponentRef::Instance(id) = agent.start(Start { spec, context: Some(context) }).await.unwrap() else {
            panic!("a node starts instances")
        };
        Self { agent, router, id, component, workflow, cancel, _directory: directory }
    }

    async fn status(&self) -> ComponentStatus {
        self.agent.status(vec![self.id.function]).await.unwrap().remove(0)
    }

    async fn until(&self, state: State, restarts: u64) {
        wait_until(&format!("it is {state} after {restarts} restarts"), async || {
            let status = self.status().await;
            (status.state, status.restarts) == (state, restarts)
        })
        .await;
    }

    /// Sends so many calls at the same time.
    async fn call(&self, count: usize) {
        let outputs = Outputs::new(InstanceId::random(self.router.node()), self.router.clone(), self.cancel.clone());
        outputs.activate();
        outputs.set(BTreeMap::from([("out".to_string(), Target::Instance(self.id))]));
        let calls = (0..count).map(|_| outputs.call("out", Bytes::from_static(b"hello"), Cause::default()));
        for reply in futures_util::future::join_all(calls).await {
            assert_eq!(reply.unwrap(), Some(Bytes::from_static(b"hello")));
        }
    }
}

impl Drop for Hosting {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Whether one event is handled at a time or several, and whether it has handled one before or none.
#[tokio::test]
async fn what_breaks_by_itself_is_replaced_with_its_reason() {
    for max_in_flight in [1, 4] {
        let elsewhere = Elsewhere::new(max_in_flight, false);
        let hosting = Hosting::start(&elsewhere).await;
        for restarts in 1..=2 {
            elsewhere.ends.send("it was killed: out of memory".into()).await.unwrap();
            hosting.until(State::Running, restarts).await;
            assert_eq!(hosting.status().await.reason, "it was killed: out of memory");
            hosting.call(max_in_flight).await;
        }
        let log = hosting.status().await.log;
        assert_eq!(log[0].message, "the instance broke: it was killed: out of memory");
        assert_eq!(*elsewhere.labels.lock().unwrap(), [(hosting.component, hosting.workflow); 3]);
    }
}

/// One start in vain less than makes a component fail would do, if it were its own fault.
#[tokio::test]
async fn what_a_replacement_needs_is_waited_for_and_told_once() {
    let elsewhere = Elsewhere::new(1, false);
    let hosting = Hosting::start(&elsewhere).await;
    elsewhere.is_away(Some("docker is away"));
    elsewhere.ends.send("gone".into()).await.unwrap();
    let starts = |count: usize| {
        let elsewhere = elsewhere.clone();
        wait_until("it is tried again", move || {
            let enough = elsewhere.starts.load(Ordering::SeqCst) >= count;
            async move { enough }
        })
    };
    starts(5).await;
    let status = hosting.status().await;
    assert_eq!((status.state, status.reason.as_str()), (State::Restarting, "docker is away"));
    elsewhere.is_away(Some("docker starts"));
    starts(6).await;
    hosting.until(State::Restarting, 0).await;
    elsewhere.is_away(None);
    hosting.until(State::Running, 1).await;
    hosting.call(1).await;
    let status = hosting.status().await;
    assert_eq!(status.reason, "gone", "what it broke of");
    let told: Vec<_> = status.log.iter().map(|line| line.message.as_str()).collect();
    let expected = [
        "the instance broke: gone",
        "it cannot be started again yet: docker is away",
        "it cannot be started again yet: docker starts",
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn limits_are_changed_while_it_runs_and_are_in_its_status() {
    let elsewhere = Elsewhere::new(1, true);
    let hosting = Hosting::start(&elsewhere).await;
    let limit = |asked: &str| Limit { name: "cpu".into(), asked: asked.into(), kernel: asked.into() };
    let cpu = |value: &str| Annotations::from([("cpu".to_string(), value.to_string())]);
    let (agent, id) = (&hosting.agent, hosting.id.function);
    for _ in 0..2 {
        assert_eq!(agent.limits(id, cpu("1")).await, Ok(vec![limit("1")]));
    }
    assert_eq!(agent.limits(id, Annotations::new()).await, Ok(vec![limit("1")]));
    let colour = Annotations::from([("colour".to_string(), "red".to_string())]);
    assert_eq!(agent.limits(id, colour).await, Err(Error::rejected("'colour' is not a limit")));
    assert_eq!(agent.limits(Uuid::nil(), cpu("1")).await.unwrap_err().code, Code::NotFound);
    let status = hosting.status().await;
    let usage = Usage { cpu: Duration::from_secs(1), memory: 2, processes: 3, received: 4, sent: 5 };
    assert_eq!((status.limits, status.usage), (vec![limit("1")], Some(usage)));

    elsewhere.is_silent.store(true, Ordering::SeqCst);
    let status = hosting.status().await;
    assert_eq!((status.limits, status.usage), (vec![limit("1")], None), "what is not known in time is left out");
}

#[tokio::test]
async fn what_has_no_limits_is_named() {
    let hosting = Hosting::start(&Elsewhere::new(1, false)).await;
    let refusal = Error::rejected("'far' is a ELSEWHERE function: only containers have limits that can be changed");
    assert_eq!(hosting.agent.limits(hosting.id.function, Annotations::new()).await, Err(refusal));
    let status = hosting.status().await;
    assert_eq!((status.limits, status.usage), (vec![], None));
}
