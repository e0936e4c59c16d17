//! The decisions one by one: events in, effects out. A scripted domain stands behind the effects.

use std::time::Duration;

use edgeless_api::component::StatePolicy;
use edgeless_api::component::Target;
use edgeless_api::error::Code;
use edgeless_api::workflow::{Function, Resource};
use edgeless_api::{FunctionClass, InstanceId};
use edgeless_daemon::engine::Engine as _;

use super::*;

mod keeping;
mod losing;
mod moving;
mod simulation;
mod split;

const LIFETIME: Duration = Duration::from_secs(6);
const GRACE: Duration = Duration::from_secs(30);

struct World {
    engine: Engine,
    settings: Settings,
    now: Millis,
    tickets: u64,
    /// What was done since it was last looked at, in words.
    trace: Vec<String>,
    replies: Vec<(Ticket, Reply)>,
    /// What domains were told to stop, as they know it.
    stopped: Vec<ComponentId>,
}

/// What a domain answers to an effect; `None`: nothing, for now.
type Script<'a> = &'a mut dyn FnMut(&Effect) -> Option<Event>;

/// A domain that does what it is told.
fn obey(effect: &Effect) -> Option<Event> {
    Some(match effect {
        Effect::Plan { workflow, ask, items, peer } => {
            let place = |(name, _): &(String, ComponentSpec)| Placement {
                name: name.clone(),
                domain: peer.domain.clone(),
                node: NodeId(Uuid::nil()),
                hostname: "here".into(),
            };
            Event::Planned { workflow: *workflow, ask: *ask, result: Ok(items.iter().map(place).collect()) }
        }
        Effect::Create { part, start, .. } => {
            let id = start.context.as_ref().unwrap().component;
            Event::Created { part: *part, result: Ok(ComponentRef::Component(id)) }
        }
        Effect::Patch { part, .. } => Event::Patched { part: *part, result: Ok(()) },
        Effect::Activate { workflow, site, round, .. } => {
            Event::Activated { workflow: *workflow, site: *site, round: *round, result: Ok(()) }
        }
        Effect::Stop { part, .. } => Event::Stopped { part: *part, result: Ok(()) },
        Effect::Release { part, .. } => {
            Event::Released { part: *part, result: Ok(Some(Bytes::from_static(b"remembered"))) }
        }
        Effect::Persist { .. } => return written(effect, Ok(())),
        Effect::Nodes(_) | Effect::Probe { .. } | Effect::Follow(_) | Effect::Tell { .. } => return None,
        Effect::Reply { .. } | Effect::Forget(_) => return None,
    })
}

/// The answer of a disk, if it is asked for something.
fn written(effect: &Effect, result: Result<(), Error>) -> Option<Event> {
    match effect {
        Effect::Persist { workflow, op, .. } => Some(Event::Persisted { workflow: *workflow, op: *op, result }),
        _ => None,
    }
}

/// A domain that fails at one kind of effect.
fn fail(effect: &Effect, error: Error) -> Option<Event> {
    Some(match effect {
        Effect::Plan { workflow, ask, .. } => Event::Planned { workflow: *workflow, ask: *ask, result: Err(error) },
        Effect::Create { part, .. } => Event::Created { part: *part, result: Err(error) },
        Effect::Patch { part, .. } => Event::Patched { part: *part, result: Err(error) },
        Effect::Activate { workflow, site, round, .. } => {
            Event::Activated { workflow: *workflow, site: *site, round: *round, result: Err(error) }
        }
        Effect::Stop { part, .. } => Event::Stopped { part: *part, result: Err(error) },
        Effect::Release { part, .. } => Event::Released { part: *part, result: Err(error) },
        Effect::Nodes(peer) => Event::Nodes { domain: peer.domain.clone(), result: Err(error) },
        Effect::Persist { .. } => return written(effect, Ok(())),
        Effect::Probe { .. } | Effect::Follow(_) | Effect::Tell { .. } => return None,
        Effect::Reply { .. } | Effect::Forget(_) => return None,
    })
}

/// Empty for what the controller asks by itself, and for its records.
fn in_words(effect: &Effect) -> String {
    match effect {
        Effect::Nodes(_) | Effect::Persist { .. } => String::new(),
        Effect::Plan { peer, .. } => format!("plan at {}", peer.domain),
        Effect::Create { start, .. } => {
            let context = start.context.as_ref().unwrap();
            format!("create {}@{}", context.name, context.epoch)
        }
        Effect::Patch { part, .. } => format!("patch #{}", part.place),
        Effect::Activate { ids, .. } => format!("activate {}", ids.len()),
        Effect::Stop { part, .. } => format!("stop #{}", part.place),
        Effect::Release { part, .. } => format!("release #{}", part.place),
        Effect::Follow(peer) => format!("follow {}", peer.domain),
        Effect::Tell { peer, .. } => format!("tell {}", peer.domain),
        Effect::Probe { domain, urls } => format!("probe {domain} at {}", urls.len()),
        Effect::Reply { reply: Ok(_), .. } => "grant".into(),
        Effect::Reply { reply: Err(error), .. } => format!("refuse: {error}"),
        Effect::Forget(domain) => format!("forget {domain}"),
    }
}

impl World {
    /// A controller whose configuration names `domains`.
    fn new(domains: &[&str]) -> Self {
        let orchestrators = domains.iter().map(|name| (DomainId(name.to_string()), url(name))).collect();
        let settings = Settings { orchestrators, max_workflows: 3, max_domains: 4, domain_grace: GRACE };
        let engine = Engine::new(settings.clone(), 7);
        let (trace, replies, stopped) = (Vec::new(), Vec::new(), Vec::new());
        Self { engine, settings, now: Millis(0), tickets: 0, trace, replies, stopped }
    }

    /// One domain, in reach, that offers everything.
    fn with_domain() -> Self {
        let mut world = Self::new(&["d"]);
        world.up("d", 1);
        world
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    /// Lets an event happen, and the domains answer by the script until all is quiet.
    fn on(&mut self, event: Event, script: Script<'_>) {
        let mut effects = std::collections::VecDeque::from(self.engine.on(self.now, event));
        while let Some(effect) = effects.pop_front() {
            self.trace.push(in_words(&effect));
            self.trace.retain(|step| !step.is_empty());
            if let Effect::Stop { id, .. } = &effect {
                self.stopped.push(*id);
            }
            let answer = script(&effect);
            if let Effect::Reply { ticket, reply } = effect {
                self.replies.push((ticket, reply));
            }
            if let Some(event) = answer {
                effects.extend(self.engine.on(self.now, event));
            }
        }
    }

    fn up_with(&mut self, domain: &str, nonce: u64, script: Script<'_>) {
        self.up_having(domain, nonce, everything(), script);
    }

    fn up_having(&mut self, domain: &str, nonce: u64, capabilities: DomainCapabilities, script: Script<'_>) {
        let domain = DomainId(domain.into());
        self.on(Event::DomainUp(DomainState { domain, nonce, capabilities, lifetime: LIFETIME }), script);
    }

    fn up(&mut self, domain: &str, nonce: u64) {
        self.up_with(domain, nonce, &mut obey);
    }

    fn lost(&mut self, domain: &str) {
        self.lost_for(domain, Error::unavailable("connection refused"));
    }

    fn lost_for(&mut self, domain: &str, reason: Error) {
        self.on(Event::DomainLost { domain: DomainId(domain.into()), reason }, &mut obey);
    }

    fn register(&mut self, domain: &str, port: u16, nonce: u64) -> Result<DomainRegistered, Error> {
        self.register_for(domain, port, nonce, LIFETIME)
    }

    fn register_for(
        &mut self,
        domain: &str,
        port: u16,
        nonce: u64,
        lifetime: Duration,
    ) -> Result<DomainRegistered, Error> {
        let registration = DomainRegistration {
            domain: DomainId(domain.into()),
            orchestrator_url: format!("http://127.0.0.1:{port}").parse().unwrap(),
            capabilities: everything(),
            lifetime,
            counter: 0,
            nonce,
        };
        let ticket = self.ticket();
        self.on(Event::Register { ticket, registration }, &mut obey);
        match self.reply_to(ticket)? {
            Answer::Registered(registered) => Ok(registered),
            other => panic!("{other:?}"),
        }
    }

    /// An orchestrator announces a domain that has these things.
    fn register_as(
        &mut self,
        domain: &str,
        capabilities: DomainCapabilities,
        script: Script<'_>,
    ) -> Result<DomainRegistered, Error> {
        let registration = DomainRegistration {
            domain: DomainId(domain.into()),
            orchestrator_url: url(domain),
            capabilities,
            lifetime: LIFETIME,
            counter: 0,
            nonce: 1,
        };
        let ticket = self.ticket();
        self.on(Event::Register { ticket, registration }, script);
        match self.reply_to(ticket)? {
            Answer::Registered(registered) => Ok(registered),
            other => panic!("{other:?}"),
        }
    }

    fn start(&mut self, workflow: Workflow, request: Option<Uuid>, script: Script<'_>) -> Ticket {
        let ticket = self.ticket();
        self.on(Event::Start { ticket, workflow, request }, script);
        ticket
    }

    /// Starts a workflow at domains that do what they are told.
    fn started(&mut self, workflow: Workflow) -> WorkflowStatus {
        let ticket = self.start(workflow, None, &mut obey);
        self.take_trace();
        self.status_for(ticket)
    }

    fn status_for(&mut self, ticket: Ticket) -> WorkflowStatus {
        match self.reply_to(ticket).unwrap() {
            Answer::Started(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn refusal_of(&mut self, workflow: Workflow, script: Script<'_>) -> Error {
        let ticket = self.start(workflow, None, script);
        self.reply_to(ticket).unwrap_err()
    }

    fn stop(&mut self, workflow: WorkflowId, script: Script<'_>) -> Ticket {
        let ticket = self.ticket();
        self.on(Event::Stop { ticket, workflow }, script);
        ticket
    }

    fn limit(&mut self, part: Part, changes: Annotations) -> Reply {
        let ticket = self.ticket();
        self.on(Event::Limit { ticket, part, changes }, &mut obey);
        self.reply_to(ticket)
    }

    /// Whom to ask about the first component of a workflow.
    fn peer_of(&self, workflow: WorkflowId) -> Result<Peer, String> {
        let view = self.engine.view(workflow).unwrap();
        view.peers[&view.components[0].domain].clone()
    }

    fn reply_to(&mut self, ticket: Ticket) -> Reply {
        self.try_reply_to(ticket).expect("an answer")
    }

    fn try_reply_to(&mut self, ticket: Ticket) -> Option<Reply> {
        let at = self.replies.iter().position(|(own, _)| *own == ticket)?;
        Some(self.replies.remove(at).1)
    }

    /// Lets time pass, in ticks.
    fn pass(&mut self, time: Duration, script: Script<'_>) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(250);
            self.on(Event::Tick, script);
        }
    }
}

fn url(domain: &str) -> Url {
    format!("http://{domain}.example:7011").parse().unwrap()
}

/// A domain that runs functions, or offers logs, and is told by what it lacks.
fn only_functions() -> DomainCapabilities {
    DomainCapabilities { resource_classes: BTreeSet::new(), ..everything() }
}

fn only_logs() -> DomainCapabilities {
    DomainCapabilities { runtimes: BTreeSet::new(), ..everything() }
}

fn everything() -> DomainCapabilities {
    DomainCapabilities {
        num_nodes: 1,
        runtimes: BTreeSet::from(["RUST_WASM".to_string()]),
        resource_classes: BTreeSet::from(["file-log".to_string()]),
        ..DomainCapabilities::default()
    }
}

fn function(name: &str, outputs: &[(&str, &str)], annotations: &[(&str, &str)]) -> Function {
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    Function {
        name: name.into(),
        class: FunctionClass { id: name.into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() },
        outputs: pairs(outputs),
        annotations: pairs(annotations),
    }
}

fn workflow_of(functions: Vec<Function>) -> Workflow {
    Workflow::new(functions, vec![], BTreeMap::new()).unwrap()
}

/// A function `f` that sends to a log `l`.
fn pair() -> Workflow {
    let log = Resource {
        name: "l".into(),
        class_type: "file-log".into(),
        outputs: BTreeMap::new(),
        configuration: BTreeMap::from([("filename".to_string(), "out.log".to_string())]),
    };
    Workflow::new(vec![function("f", &[("out", "l")], &[])], vec![log], BTreeMap::new()).unwrap()
}

fn is_create(effect: &Effect, name: &str) -> bool {
    matches!(effect, Effect::Create { start, .. } if start.context.as_ref().unwrap().name == name)
}

#[test]
fn a_workflow_starts_in_three_steps() {
    let mut world = World::with_domain();
    let mut outputs = BTreeMap::new();
    let ticket = world.start(pair(), None, &mut |effect| {
        if let Effect::Patch { patch, .. } = effect {
            outputs = patch.outputs.clone();
        }
        obey(effect)
    });
    assert_eq!(world.take_trace(), ["plan at d", "create f@1", "create l@1", "patch #0", "activate 2", "grant"]);
    let status = world.status_for(ticket);
    assert_eq!(status.mapping.iter().map(|own| own.name.as_str()).collect::<Vec<_>>(), ["f", "l"]);
    assert_eq!(outputs, BTreeMap::from([("out".to_string(), Target::Component(status.mapping[1].component))]));
    assert_eq!(world.engine.list(), [status.workflow]);
    assert_eq!(world.engine.inspect(status.workflow).unwrap(), (pair(), status));
}

#[test]
fn each_step_waits_for_the_whole_of_the_one_before() {
    let mut world = World::with_domain();
    let mut held = None;
    world.start(pair(), None, &mut |effect| {
        if is_create(effect, "l") {
            held = obey(effect);
            return None;
        }
        obey(effect)
    });
    assert_eq!(world.take_trace(), ["plan at d", "create f@1", "create l@1"]);
    world.on(held.unwrap(), &mut obey);
    assert_eq!(world.take_trace(), ["patch #0", "activate 2", "grant"]);
}

#[test]
fn a_refused_component_undoes_the_start_and_its_cause_is_told() {
    let mut world = World::with_domain();
    let error = world.refusal_of(pair(), &mut |effect| {
        if is_create(effect, "l") { fail(effect, Error::rejected("the file cannot be opened")) } else { obey(effect) }
    });
    let told = "refuse: component 'l': the file cannot be opened";
    assert_eq!(world.take_trace(), ["plan at d", "create f@1", "create l@1", "stop #0", told]);
    assert_eq!(error, Error::rejected("component 'l': the file cannot be opened"));
    assert!(world.engine.list().is_empty() && world.engine.runs.is_empty());
}

#[test]
fn a_refused_patch_or_activation_undoes_the_start_too() {
    for (step, cause) in [("patch #0", "component 'f': no"), ("activate 2", "the components cannot be activated: no")] {
        let mut world = World::with_domain();
        let error = world.refusal_of(pair(), &mut |effect| {
            if in_words(effect) == step { fail(effect, Error::rejected("no")) } else { obey(effect) }
        });
        assert_eq!(error, Error::rejected(cause));
        let trace = world.take_trace();
        assert!(trace.ends_with(&["stop #0".into(), "stop #1".into(), format!("refuse: {cause}")]), "{trace:?}");
        assert!(world.engine.runs.is_empty());
    }
}

#[test]
fn an_answer_that_is_an_instance_is_a_fault_of_the_domain() {
    let mut world = World::with_domain();
    let error = world.refusal_of(workflow_of(vec![function("f", &[], &[])]), &mut |effect| match effect {
        Effect::Create { part, .. } => {
            Some(Event::Created { part: *part, result: Ok(ComponentRef::Instance(InstanceId::NONE)) })
        }
        _ => obey(effect),
    });
    assert_eq!(error.code, Code::Bug);
    assert!(world.take_trace().contains(&"stop #0".to_string()), "it may be there all the same");
}

/// The answer may have been lost on its way, and our orchestrators recognise a repeat.
#[test]
fn a_start_without_an_answer_is_repeated_a_few_times() {
    let one = || workflow_of(vec![function("f", &[], &[])]);
    let mut world = World::with_domain();
    let mut silent = 2;
    let mut script = |effect: &Effect| match effect {
        Effect::Create { .. } if silent > 0 => {
            silent -= 1;
            fail(effect, Error::timeout("silent"))
        }
        _ => obey(effect),
    };
    let ticket = world.start(one(), None, &mut script);
    world.pass(Duration::from_secs(3), &mut script);
    assert_eq!(
        world.take_trace(),
        ["plan at d", "create f@1", "create f@1", "create f@1", "activate 1", "grant"],
        "the same component, the same epoch"
    );
    world.status_for(ticket);

    let mut world = World::with_domain();
    let mut script = |effect: &Effect| match effect {
        Effect::Create { .. } => fail(effect, Error::timeout("silent")),
        _ => obey(effect),
    };
    let ticket = world.start(one(), None, &mut script);
    world.pass(Duration::from_secs(5), &mut script);
    assert_eq!(world.reply_to(ticket), Err(Error::timeout("component 'f': silent")));
    let trace = world.take_trace();
    assert_eq!(trace.iter().filter(|step| *step == "create f@1").count(), 3, "{trace:?}");
    assert_eq!(trace.last().unwrap(), "refuse: component 'f': silent");
    assert!(trace.contains(&"stop #0".to_string()), "it may be there");
}

/// An orchestrator of EDGELESS 1.2 cannot be asked for a plan, names components itself, and would
/// start a second component if a start were repeated.
#[test]
fn a_domain_of_edgeless_1_2_is_served_in_its_own_way() {
    let own = ComponentId(Uuid::from_u128(42));
    let mut patched = None;
    let mut old = |effect: &Effect| match effect {
        Effect::Plan { .. } | Effect::Activate { .. } => fail(effect, Error::unimplemented("unknown service")),
        Effect::Create { part, start, .. } if start.context.as_ref().unwrap().name == "f" => {
            Some(Event::Created { part: *part, result: Ok(ComponentRef::Component(own)) })
        }
        Effect::Patch { patch, .. } => {
            patched = Some(patch.id);
            obey(effect)
        }
        _ => obey(effect),
    };
    let mut world = World::new(&[]);
    world.register("old", 1, 1).unwrap();
    world.register("old", 1, 1).unwrap();
    let ticket = world.start(pair(), None, &mut old);
    assert_eq!(world.status_for(ticket).mapping[0].component, own);
    assert_eq!(patched, Some(own.0));

    let mut world = World::new(&[]);
    world.register("old", 1, 1).unwrap();
    world.register("old", 1, 1).unwrap();
    world.take_trace();
    let mut old = |effect: &Effect| match effect {
        Effect::Plan { .. } => fail(effect, Error::unimplemented("unknown service")),
        _ if is_create(effect, "f") => fail(effect, Error::timeout("silent")),
        _ => obey(effect),
    };
    let ticket = world.start(pair(), None, &mut old);
    world.pass(Duration::from_secs(5), &mut old);
    assert_eq!(world.reply_to(ticket), Err(Error::timeout("component 'f': silent")));
    let told = "refuse: component 'f': silent";
    assert_eq!(world.take_trace(), ["plan at old", "create f@1", "create l@1", "stop #1", told]);
}

#[test]
fn the_next_domain_is_asked_when_one_refuses() {
    let mut world = World::new(&["a", "b"]);
    world.up("a", 1);
    world.up("b", 1);
    let mut asked = Vec::new();
    world.start(pair(), None, &mut |effect| {
        if let Effect::Plan { peer, .. } = effect {
            asked.push(peer.domain.0.clone());
            if asked.len() == 1 {
                return fail(effect, Error::rejected("no node for 'f'"));
            }
        }
        obey(effect)
    });
    asked.sort();
    assert_eq!(asked, ["a", "b"]);
    assert_eq!(world.take_trace().last().unwrap(), "grant");
}

/// As when the platform comes up: the same request succeeds once there is a node.
#[test]
fn a_domain_without_nodes_is_not_ready_and_the_request_is_not_remembered() {
    let mut world = World::new(&["d"]);
    let request = Some(Uuid::from_u128(1));
    world.up_having("d", 1, DomainCapabilities::default(), &mut obey);
    let ticket = world.start(pair(), request, &mut obey);
    assert_eq!(
        world.reply_to(ticket),
        Err(Error::unavailable(
            "no orchestration domain is ready: d has no node yet: start edgeless_node_d with its orchestrator_url"
        ))
    );
    world.up("d", 1);
    let ticket = world.start(pair(), request, &mut obey);
    world.status_for(ticket);
}

/// The advice for a domain that is merely away would contradict it.
#[test]
fn a_domain_that_says_what_to_do_is_given_no_further_advice() {
    let mut world = World::new(&["d"]);
    world.lost_for("d", Error::rejected("the domain works for another controller: stop that one"));
    assert_eq!(
        world.refusal_of(pair(), &mut obey),
        Error::unavailable(
            "no orchestration domain is ready: d is out of reach: the domain works for another controller: stop that one"
        )
    );
    world.lost("d");
    let error = world.refusal_of(pair(), &mut obey).message;
    assert!(error.ends_with("connection refused; start its orchestrator, or try again in a moment"), "{error}");
}

#[test]
fn a_workflow_that_no_domain_can_host_is_refused_with_the_nearest_miss() {
    let mut world = World::new(&["a", "b", "c"]);
    world.up("a", 1);
    let poor = DomainCapabilities { num_nodes: 1, ..DomainCapabilities::default() };
    world.up_having("b", 1, poor, &mut obey);
    let error = world.refusal_of(pair(), &mut |effect| fail(effect, Error::rejected("no node for 'f': 0 of 3 nodes")));
    assert_eq!(
        error,
        Error::rejected(
            "no domain can host this workflow: a: no node for 'f': 0 of 3 nodes; b lacks the runtime RUST_WASM, \
             which 'f' needs and the resource class file-log, which 'l' needs; \
             c (http://c.example:7011) has not answered yet"
        )
    );
}

#[test]
fn without_domains_the_refusal_says_what_to_do() {
    let error = World::new(&[]).refusal_of(pair(), &mut obey);
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("'orchestrators'"), "{error}");

    let mut world = World::new(&["d"]);
    world.lost("d");
    let error = world.refusal_of(pair(), &mut obey);
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("d is out of reach: connection refused"), "{error}");
}

#[test]
fn the_same_seed_makes_the_same_choices_and_the_choice_is_spread() {
    let choices = || {
        let mut world = World::new(&["a", "b"]);
        world.engine.max_workflows = 100;
        world.up("a", 1);
        world.up("b", 1);
        (0..20).map(|_| world.started(pair()).mapping[0].domain.0.clone()).collect::<Vec<_>>()
    };
    assert_eq!(choices(), choices());
    assert!(choices().contains(&"a".to_string()) && choices().contains(&"b".to_string()));
}

#[test]
fn the_state_of_a_function_is_kept_as_its_annotation_says() {
    let mut world = World::with_domain();
    let mut states = Vec::new();
    let functions = vec![function("f", &[], &[]), function("g", &[], &[("state", "transient")])];
    world.start(workflow_of(functions), None, &mut |effect| {
        if let Effect::Create { start, .. } = effect
            && let ComponentSpec::Function(spec) = &start.spec
        {
            states.push(spec.state);
        }
        obey(effect)
    });
    assert_eq!(
        states.iter().map(|state| state.policy).collect::<Vec<_>>(),
        [StatePolicy::NodeLocal, StatePolicy::Transient]
    );
    assert_ne!(states[0].id, states[1].id);

    let global = || workflow_of(vec![function("f", &[], &[("state", "global")])]);
    let error = world.refusal_of(global(), &mut obey);
    assert!(error.message.ends_with("d lacks a node with a state_url, which 'f' needs (state=global)"), "{error}");
}

#[test]
fn more_workflows_than_the_limit_are_refused() {
    let mut world = World::with_domain();
    for _ in 0..3 {
        world.started(pair());
    }
    let error = world.refusal_of(pair(), &mut obey);
    assert_eq!(error.code, Code::Exhausted);
    assert!(error.message.contains("max_workflows"), "{error}");
}

#[test]
fn a_plan_starts_nothing() {
    let mut world = World::with_domain();
    let ticket = world.ticket();
    world.on(Event::Plan { ticket, workflow: pair() }, &mut obey);
    assert_eq!(world.take_trace(), ["plan at d", "grant"]);
    let Ok(Answer::Planned(placements)) = world.reply_to(ticket) else { panic!("no plan") };
    assert_eq!(placements.iter().map(|own| own.name.as_str()).collect::<Vec<_>>(), ["f", "l"]);

    let ticket = world.ticket();
    let refuse = &mut |effect: &Effect| fail(effect, Error::rejected("no node for 'f'"));
    world.on(Event::Plan { ticket, workflow: pair() }, refuse);
    assert!(world.reply_to(ticket).unwrap_err().message.contains("d: no node for 'f'"));

    let ticket = world.ticket();
    let old = &mut |effect: &Effect| fail(effect, Error::unimplemented("unknown service"));
    world.on(Event::Plan { ticket, workflow: pair() }, old);
    let Ok(Answer::Planned(placements)) = world.reply_to(ticket) else { panic!("no plan") };
    assert!(placements.iter().all(|own| own.node == NodeId::NONE && own.domain.0 == "d"), "{placements:?}");
    assert!(world.engine.runs.is_empty() && world.engine.searches.is_empty());
}

#[test]
fn a_repeated_request_is_one_start_with_one_result() {
    let mut world = World::with_domain();
    let request = Some(Uuid::from_u128(1));
    let mut held = Vec::new();
    let first = world.start(pair(), request, &mut |effect| {
        held.extend(obey(effect));
        None
    });
    let while_planned = world.start(pair(), request, &mut obey);
    world.on(held.remove(0), &mut |effect| {
        held.extend(obey(effect));
        None
    });
    let while_started = world.start(pair(), request, &mut obey);
    for event in held {
        world.on(event, &mut obey);
    }
    let status = world.status_for(first);
    let afterwards = world.start(pair(), request, &mut obey);
    for repeat in [while_planned, while_started, afterwards] {
        assert_eq!(world.status_for(repeat), status);
    }
    assert_eq!(world.engine.list().len(), 1);

    world.stop(status.workflow, &mut obey);
    let late = world.start(pair(), request, &mut obey);
    let error = world.reply_to(late).unwrap_err();
    assert!(error.message.contains("was stopped since"), "{error}");
}

#[test]
fn a_repeated_refusal_is_the_same_refusal_unless_it_may_pass() {
    let request = Some(Uuid::from_u128(1));
    let mut world = World::with_domain();
    let refuse = &mut |effect: &Effect| fail(effect, Error::rejected("no node"));
    let first = world.start(pair(), request, refuse);
    let repeat = world.start(pair(), request, &mut obey);
    assert_eq!(world.reply_to(first), world.reply_to(repeat));

    let mut world = World::new(&["d"]);
    let first = world.start(pair(), request, &mut obey);
    assert_eq!(world.reply_to(first).unwrap_err().code, Code::Unavailable);
    world.up("d", 1);
    let repeat = world.start(pair(), request, &mut obey);
    world.status_for(repeat);
}

#[test]
fn a_restarted_domain_is_filled_again() {
    let mut world = World::with_domain();
    let status = world.started(pair());
    world.lost("d");
    world.up("d", 2);
    assert_eq!(world.take_trace(), ["create f@2", "create l@2", "patch #0", "activate 2"]);
    assert_eq!(world.engine.inspect(status.workflow).unwrap().1, status, "the same components");
}

#[test]
fn a_restarted_domain_is_given_the_limits_that_were_granted_last() {
    let mut world = World::with_domain();
    let status = world.started(pair());
    let [f, l] = [status.mapping[0].component, status.mapping[1].component];
    let before = world.engine.part(f).unwrap();
    assert_eq!(before.peer.unwrap().domain, DomainId("d".into()));
    let cpu = |value: &str| Annotations::from([("cpu".to_string(), value.to_string())]);
    for _ in 0..2 {
        assert_eq!(world.limit(before.part, cpu("2")), Ok(Answer::Limited));
    }
    assert_eq!(world.engine.inspect(status.workflow).unwrap().0.functions()[0].annotations, cpu("2"));
    world.lost("d");
    assert!(world.engine.part(f).unwrap().peer.unwrap_err().contains("out of reach"));
    let mut given = Vec::new();
    world.up_with("d", 2, &mut |effect| {
        if let Effect::Create { start, .. } = effect {
            given.push(start.spec.annotations().clone());
        }
        obey(effect)
    });
    assert_eq!(given[0], cpu("2"));

    let late = world.limit(before.part, cpu("3")).unwrap_err();
    assert_eq!(late.code, Code::Unavailable, "it was started again with the limits from before");
    let resource = world.engine.part(l).unwrap().part;
    assert_eq!(world.limit(resource, cpu("3")).unwrap_err().code, Code::Rejected);
    world.stop(status.workflow, &mut obey);
    assert_eq!(world.limit(before.part, cpu("3")).unwrap_err().code, Code::NotFound);
    assert_eq!(world.engine.part(f).unwrap_err().code, Code::NotFound);
}

#[test]
fn a_restarted_domain_that_refuses_is_asked_again_with_growing_pauses() {
    let mut world = World::with_domain();
    let status = world.started(workflow_of(vec![function("f", &[], &[])]));
    let mut refuse = |effect: &Effect| fail(effect, Error::rejected("no node for 'f'"));
    world.up_with("d", 2, &mut refuse);
    world.take_trace();
    let mut times = vec![world.now.0];
    for _ in 0..400 {
        world.up_with("d", 2, &mut refuse);
        world.pass(Duration::from_millis(250), &mut refuse);
        if world.take_trace().contains(&"create f@2".to_string()) {
            times.push(world.now.0);
        }
    }
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses[..5], [500, 1000, 2000, 4000, 8000], "{times:?}");
    assert!(pauses.iter().all(|pause| *pause <= 30_000), "{pauses:?}");
    let view = world.engine.view(status.workflow).unwrap();
    assert_eq!(view.components[0].trouble, "no node for 'f'");
    assert!(!view.components[0].is_up);
    assert_eq!(world.engine.list(), [status.workflow], "it is not given up");

    for _ in 0..160 {
        world.up("d", 2);
        world.pass(Duration::from_millis(250), &mut obey);
    }
    assert_eq!(world.take_trace(), ["create f@2", "activate 1"]);
    assert!(world.engine.view(status.workflow).unwrap().components[0].is_up);
}

#[test]
fn a_domain_out_of_reach_moves_nothing() {
    let mut world = World::new(&["d", "other"]);
    world.up("d", 1);
    let status = world.started(pair());
    for _ in 0..20 {
        world.up("other", 1);
        world.pass(Duration::from_secs(1), &mut obey);
    }
    assert!(world.peer_of(status.workflow).is_err(), "it has been silent for longer than allowed");
    assert_eq!(world.engine.list(), [status.workflow]);
    world.up("d", 1);
    assert!(world.peer_of(status.workflow).is_ok());
    assert_eq!(world.take_trace(), Vec::<String>::new());
}

#[test]
fn a_start_ends_when_its_domain_is_lost() {
    let mut world = World::with_domain();
    let mut held = None;
    let ticket = world.start(pair(), None, &mut |effect| {
        if is_create(effect, "l") {
            held = obey(effect);
            return None;
        }
        obey(effect)
    });
    world.lost("d");
    assert_eq!(world.try_reply_to(ticket), None, "one call is under way");
    world.on(held.unwrap(), &mut obey);
    let error = world.reply_to(ticket).unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("connection refused"), "{error}");
    world.take_trace();
    world.up("d", 1);
    assert_eq!(world.take_trace(), ["stop #0", "stop #1"], "nothing is left behind");
    assert!(world.engine.runs.is_empty());
}

#[test]
fn results_from_before_a_restart_do_not_count() {
    let mut world = World::with_domain();
    let mut held = Vec::new();
    let ticket = world.start(pair(), None, &mut |effect| match effect {
        Effect::Create { .. } => {
            held.extend(obey(effect));
            None
        }
        _ => obey(effect),
    });
    world.up("d", 2);
    world.take_trace();
    for event in held {
        world.on(event, &mut obey);
    }
    assert_eq!(world.take_trace(), ["create f@2", "create l@2", "patch #0", "activate 2", "grant"]);
    world.status_for(ticket);
}

#[test]
fn a_stop_ends_every_component() {
    let mut world = World::with_domain();
    let status = world.started(pair());
    let ticket = world.stop(status.workflow, &mut obey);
    assert_eq!(world.take_trace(), ["stop #0", "stop #1", "grant"]);
    assert_eq!(world.reply_to(ticket), Ok(Answer::Stopped));
    assert!(world.engine.list().is_empty() && world.engine.runs.is_empty());

    let again = world.stop(status.workflow, &mut obey);
    let error = world.reply_to(again).unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    assert!(error.message.contains("workflow list"), "{error}");
    assert_eq!(world.engine.inspect(status.workflow).unwrap_err(), error);
}

#[test]
fn a_stop_at_a_domain_out_of_reach_is_granted_at_once_and_done_later() {
    let mut world = World::with_domain();
    let status = world.started(pair());
    world.lost("d");
    let ticket = world.stop(status.workflow, &mut obey);
    assert_eq!(world.reply_to(ticket), Ok(Answer::Stopped));
    assert!(world.engine.list().is_empty());
    world.take_trace();
    world.up("d", 1);
    assert_eq!(world.take_trace(), ["stop #0", "stop #1"]);
    assert!(world.engine.runs.is_empty());
}

#[test]
fn a_restarted_domain_has_nothing_left_to_stop() {
    let mut world = World::with_domain();
    let status = world.started(pair());
    world.up("d", 1);
    world.lost("d");
    world.stop(status.workflow, &mut obey);
    world.take_trace();
    world.up("d", 2);
    assert_eq!(world.take_trace(), Vec::<String>::new());
    assert!(world.engine.runs.is_empty());
}

/// The process that has started it may be the new one, which had not given a sign of life yet.
#[test]
fn what_a_restarted_domain_may_have_started_after_all_is_stopped_there() {
    let mut world = World::with_domain();
    let status = world.started(pair());
    world.lost("d");
    world.stop(status.workflow, &mut obey);
    world.take_trace();
    world.up("d", 2);
    assert_eq!(world.take_trace(), ["stop #0", "stop #1"]);
    assert!(world.engine.runs.is_empty());
}

#[test]
fn a_stop_that_takes_long_is_granted_in_seconds_and_goes_on() {
    let mut world = World::with_domain();
    let status = world.started(pair());
    let mut held = Vec::new();
    let mut hang = |effect: &Effect| {
        let written = written(effect, Ok(()));
        if written.is_none() {
            held.extend(obey(effect));
        }
        written
    };
    let ticket = world.stop(status.workflow, &mut hang);
    world.pass(Duration::from_secs(4), &mut hang);
    assert_eq!(world.try_reply_to(ticket), None);
    world.up_with("d", 1, &mut hang);
    world.pass(Duration::from_secs(2), &mut hang);
    assert_eq!(world.reply_to(ticket), Ok(Answer::Stopped));
    for event in held {
        world.on(event, &mut obey);
    }
    assert!(world.engine.runs.is_empty());
}

#[test]
fn a_stop_is_repeated_until_it_is_answered() {
    for (error, attempts) in [(Error::unavailable("gone"), 6), (Error::bug("oops"), 5), (Error::not_found("who?"), 1)] {
        let mut world = World::with_domain();
        let status = world.started(workflow_of(vec![function("f", &[], &[])]));
        let mut failures = 0;
        let mut script = |effect: &Effect| match effect {
            Effect::Stop { .. } if failures < 5 => {
                failures += 1;
                fail(effect, error.clone())
            }
            _ => obey(effect),
        };
        world.stop(status.workflow, &mut script);
        for _ in 0..40 {
            world.up("d", 1);
            world.pass(Duration::from_secs(1), &mut script);
        }
        let stops = world.take_trace().iter().filter(|step| *step == "stop #0").count();
        assert_eq!(stops, attempts, "{error}");
        assert!(world.engine.runs.is_empty());
    }
}

#[test]
fn a_stop_waits_for_a_component_that_is_just_being_created() {
    let mut world = World::with_domain();
    let status = world.started(workflow_of(vec![function("f", &[], &[])]));
    let mut held = None;
    world.up_with("d", 2, &mut |effect| {
        if is_create(effect, "f") {
            held = obey(effect);
            return None;
        }
        obey(effect)
    });
    let ticket = world.stop(status.workflow, &mut obey);
    assert_eq!(world.try_reply_to(ticket), None);
    world.take_trace();
    world.on(held.unwrap(), &mut obey);
    assert_eq!(world.take_trace(), ["stop #0", "grant"]);
}

#[test]
fn a_workflow_that_is_stopped_while_it_starts_is_refused_to_who_started_it() {
    let mut world = World::with_domain();
    let mut held = None;
    let starter = world.start(workflow_of(vec![function("f", &[], &[])]), None, &mut |effect| {
        if is_create(effect, "f") {
            held = obey(effect);
            return None;
        }
        obey(effect)
    });
    let id = *world.engine.runs.keys().next().unwrap();
    assert!(world.engine.list().is_empty(), "it does not run yet");
    let stopper = world.stop(id, &mut obey);
    world.on(held.unwrap(), &mut obey);
    assert!(world.reply_to(starter).unwrap_err().message.contains("was stopped while"));
    assert_eq!(world.reply_to(stopper), Ok(Answer::Stopped));
}

/// What is given to a domain before it has reset would be lost.
#[test]
fn a_domain_that_announces_itself_is_reset_before_it_is_used() {
    let mut world = World::new(&[]);
    assert!(world.register("d", 1, 1).unwrap().reset);
    let error = world.refusal_of(pair(), &mut obey);
    assert!(error.message.contains("d has just announced itself"), "{error}");
    assert!(!world.register("d", 1, 1).unwrap().reset);
    let status = world.started(pair());

    assert!(world.register("d", 1, 2).unwrap().reset, "a new process");
    assert_eq!(world.take_trace(), ["grant"], "nothing is created before the reset");
    assert!(!world.register("d", 1, 2).unwrap().reset);
    assert_eq!(world.take_trace(), ["grant", "create f@2", "create l@2", "patch #0", "activate 2"]);
    assert_eq!(world.engine.list(), [status.workflow]);
}

#[test]
fn a_domain_that_is_silent_is_out_of_reach_and_forgotten_when_nothing_runs_there() {
    let mut world = World::new(&[]);
    world.register("d", 1, 1).unwrap();
    world.register("d", 1, 1).unwrap();
    let status = world.started(pair());
    world.pass(LIFETIME * 2, &mut obey);
    assert_eq!(world.engine.summary(), Summary { domains: 1, workflows: 1, started: 1, ..Summary::default() });
    assert!(world.engine.domains(None).is_empty());

    assert!(!world.register("d", 1, 1).unwrap().reset, "it still runs what it ran");
    world.stop(status.workflow, &mut obey);
    world.take_trace();
    world.pass(LIFETIME * 2, &mut obey);
    assert_eq!(world.take_trace(), ["forget d"]);
    assert_eq!(world.engine.summary().domains, 0);
}

#[test]
fn registrations_that_make_no_sense_are_refused() {
    let mut world = World::new(&[]);
    let error = world.register(&"x".repeat(300), 1, 1).unwrap_err();
    assert!(error.message.contains("300 bytes"), "{error}");
    let error = world.register_for("d", 1, 1, Duration::ZERO).unwrap_err();
    assert!(error.message.contains("clocks"), "{error}");
    let error = world.register("d", 0, 1).unwrap_err();
    assert_eq!(error, Error::rejected("the orchestrator_url 'http://127.0.0.1:0' of domain 'd' has no port to dial"));

    world.register("d", 1, 1).unwrap();
    let error = world.register("d", 2, 2).unwrap_err();
    assert!(error.message.contains("is served by the orchestrator at http://127.0.0.1:1"), "{error}");
    assert!(world.register("d", 1, 2).unwrap().reset, "the same address: it has restarted");

    for name in ["e", "f", "g"] {
        world.register(name, 9, 1).unwrap();
    }
    assert_eq!(world.register("h", 9, 1).unwrap_err().code, Code::Exhausted);
}

/// Both ways of knowing a domain may be in use at once.
#[test]
fn a_followed_domain_that_also_announces_itself_is_not_reset() {
    let mut world = World::with_domain();
    let status = world.started(pair());
    assert!(!world.register("d", 1, 1).unwrap().reset);
    world.lost("d");
    assert!(world.peer_of(status.workflow).is_ok(), "its announcement holds");
    assert_eq!(world.peer_of(status.workflow).unwrap().url, url("d"), "as configured");
}

#[test]
fn domains_are_looked_up_by_name() {
    let mut world = World::new(&["a", "b"]);
    world.up("a", 1);
    let (a, b, c) = (DomainId("a".into()), DomainId("b".into()), DomainId("c".into()));
    assert_eq!(world.engine.domains(None), BTreeMap::from([(a.clone(), everything())]));
    assert!(world.engine.domains(Some(&c)).is_empty());
    assert_eq!(world.engine.peers(None).unwrap(), [Peer { domain: a.clone(), url: url("a") }]);
    assert_eq!(world.engine.peers(Some(&a)).unwrap().len(), 1);
    assert_eq!(world.engine.peers(Some(&b)).unwrap_err().code, Code::Unavailable);
    let error = world.engine.peers(Some(&c)).unwrap_err();
    assert_eq!(error, Error::not_found("there is no domain 'c'; there are: a, b"));
}
