//! The engine against nodes that are played by hand: every decision, every refusal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edgeless_api::component::{
    Annotations, CONTAINER, FunctionClass, FunctionSpec, ResourceSpec, Row, StateSpec, Target,
};
use edgeless_api::domain_record as record;
use edgeless_api::error::Code;
use edgeless_api::id::{StateId, WorkflowId};
use edgeless_api::node::{Capabilities, Health, Performance, ProviderSpec};
use edgeless_api::status::State;
use edgeless_daemon::engine::Engine as _;
use edgeless_daemon::store::Table;

use super::*;

mod decisions;
mod durable;
mod identity;
mod leaving;
mod moving;
mod replicas;
mod reports;
mod rows;
mod saves;
mod suspicion;

const KEEP_ALIVE: Duration = Duration::from_secs(2);
const A: NodeId = NodeId(Uuid::from_u128(0xa));
const B: NodeId = NodeId(Uuid::from_u128(0xb));
const C: NodeId = NodeId(Uuid::from_u128(0xc));
const ONE: ComponentId = ComponentId(Uuid::from_u128(1));
const TWO: ComponentId = ComponentId(Uuid::from_u128(2));
const FUNCTION: ComponentKind = ComponentKind::Function;

/// A disk that is played by hand.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(BTreeMap<(Table, Bytes), Bytes>);

impl Disk {
    pub(super) fn apply(&mut self, changes: Vec<Change>) {
        for Change { table, key, value } in changes {
            match value {
                Some(value) => drop(self.0.insert((table, key), value)),
                None => drop(self.0.remove(&(table, key))),
            }
        }
    }

    pub(super) fn table(&self, table: Table) -> Vec<(Bytes, Bytes)> {
        self.0
            .iter()
            .filter(|((of, _), _)| *of == table)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }

    /// What a new process finds.
    pub(super) fn open(&mut self) -> Kept {
        let id = |key: &Bytes| Uuid::from_slice(key).unwrap();
        let code: BTreeMap<Bytes, Bytes> = self.table(disk::CODE).into_iter().collect();
        let component = |(_, value): (Bytes, Bytes)| {
            let mut record = record::Component::decode(&value).unwrap();
            if let ComponentSpec::Function(function) = &mut record.spec
                && !function.class.binary.is_empty()
            {
                let digest = function.class.binary.digest();
                function.class.binary = code[&disk::digest_key(digest)].clone().into();
            }
            record
        };
        let domain = self.table(disk::DOMAIN).pop().map(|(_, own)| record::Domain::decode(&own).unwrap());
        let domain = domain.map_or(record::Domain { nonce: 42, ..Default::default() }, |own| record::Domain {
            restarts: own.restarts + 1,
            ..own
        });
        self.apply(vec![Change::put(disk::DOMAIN, disk::SELF, domain.encode())]);
        let nodes = self.table(disk::NODES).into_iter();
        let left = self.table(disk::LEFT).into_iter();
        let gone = self.table(disk::GONE).into_iter();
        Kept {
            domain,
            components: self.table(disk::COMPONENTS).into_iter().map(component).collect(),
            left: left.map(|(key, own)| (ComponentId(id(&key)), record::Left::decode(&own).unwrap())).collect(),
            gone: gone.map(|(key, own)| (ComponentId(id(&key)), record::Gone::decode(&own).unwrap())).collect(),
            nodes: nodes.map(|(key, own)| (NodeId(id(&key)), record::Node::decode(&own).unwrap())).collect(),
            rows: self.table(disk::ROWS).iter().map(|(_, own)| record::Foreign::decode(own).unwrap().0).collect(),
        }
    }
}

/// An engine, and everything that it decided.
struct World {
    engine: Engine,
    now: Millis,
    tickets: u64,
    instances: u128,
    /// What every instance has saved.
    saved: Option<Bytes>,
    /// What was started last began with this.
    begun: Option<Bytes>,
    calls: Vec<(Op, NodeId, Call)>,
    /// Who is asked which process it is.
    probes: Vec<(Op, NodeId)>,
    /// What is to be written, and where.
    writes: Vec<(Op, Vec<Change>)>,
    disk: Disk,
    answers: BTreeMap<Ticket, Answer>,
    notes: Vec<Note>,
    published: Vec<u32>,
    published_rows: Vec<Vec<Row>>,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            domain: DomainId("domain-1".into()),
            keep_alive: KEEP_ALIVE,
            state_grace: Duration::from_secs(30),
            strategy: Strategy::round_robin(),
            seed: 1,
            max_nodes: 8,
            max_components: 8,
        };
        change(&mut settings);
        Self {
            engine: Engine::new(settings),
            now: Millis(0),
            tickets: 0,
            instances: 100,
            saved: None,
            begun: None,
            calls: vec![],
            probes: vec![],
            writes: vec![],
            disk: Disk::default(),
            answers: BTreeMap::new(),
            notes: vec![],
            published: vec![],
            published_rows: vec![],
        }
    }

    fn send(&mut self, event: Event) {
        for effect in self.engine.on(self.now, event) {
            match effect {
                Effect::Call(op, peer, call) => self.calls.push((op, peer.node, call)),
                Effect::Reply(ticket, answer) => assert!(self.answers.insert(ticket, answer).is_none(), "two answers"),
                Effect::Note(note) => self.notes.push(note),
                Effect::Publish(capabilities) => self.published.push(capabilities.num_nodes),
                Effect::PublishRows(rows) => self.published_rows.push(rows),
                Effect::Persist(op, changes) => self.writes.push((op, changes)),
                Effect::Probe(op, peer) => self.probes.push((op, peer.node)),
                Effect::Forget(_) => {}
            }
        }
        self.engine.check_images();
    }

    fn request(&mut self, event: impl FnOnce(Ticket) -> Event) -> Ticket {
        self.tickets += 1;
        self.send(event(Ticket(self.tickets)));
        Ticket(self.tickets)
    }

    /// The answer to a request; a panic if there is none.
    fn answer(&self, ticket: Ticket) -> Answer {
        self.answers.get(&ticket).cloned().expect("no answer")
    }

    fn refusal(&self, ticket: Ticket) -> Error {
        self.answer(ticket).unwrap_err()
    }

    fn is_open(&self, ticket: Ticket) -> bool {
        !self.answers.contains_key(&ticket)
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.send(Event::Tick);
    }

    /// Lets time pass while these nodes refresh, and every node obeys.
    fn live(&mut self, time: Duration, nodes: &[&Registration]) {
        let end = self.now + time;
        while self.now < end {
            for node in nodes {
                self.register((*node).clone()).unwrap();
            }
            self.pass(Duration::from_millis(500));
            self.obey();
        }
    }

    fn register(&mut self, about: Registration) -> Answer {
        let ticket = self.request(|ticket| Event::Register(ticket, Box::new(about)));
        self.answer(ticket)
    }

    /// A node that is registered, reset and told of the others.
    fn add(&mut self, about: &Registration) {
        self.register(about.clone()).unwrap();
        self.obey();
    }

    fn wanted(&mut self, component: ComponentId, epoch: u64, spec: ComponentSpec) -> Ticket {
        let context = StartContext::new(component, epoch, format!("f{}", component.0.as_u128()));
        self.request(|ticket| Event::Start(ticket, Box::new(Wanted { spec, context, is_held: true })))
    }

    /// A component that runs, for a controller of ours.
    fn run(&mut self, component: ComponentId) -> InstanceId {
        let ticket = self.wanted(component, 1, function(&[]));
        self.obey();
        assert_eq!(self.answer(ticket), Ok(Reply::Started(component)));
        self.instance(component)
    }

    fn patch(&mut self, from: ComponentId, to: &[(&str, ComponentId)]) -> Ticket {
        let outputs = to.iter().map(|(channel, id)| (channel.to_string(), Target::Component(*id))).collect();
        self.request(|ticket| Event::Patch(ticket, FUNCTION, Patch::new(from.0, outputs)))
    }

    fn activate(&mut self, ids: &[ComponentId]) -> Ticket {
        self.request(|ticket| Event::Activate(ticket, ids.to_vec()))
    }

    /// Changes limits that the instance `at` has already; what that is answered.
    fn limit(
        &mut self,
        id: ComponentId,
        changes: &[(&str, &str)],
        at: Option<InstanceId>,
    ) -> Result<Vec<(String, String)>, Error> {
        let at = at.into_iter().collect();
        let ticket = self.request(|ticket| Event::Limit { ticket, id, changes: pairs(changes), at });
        match self.answer(ticket)? {
            Reply::Limits(limits) => {
                assert!(limits.iter().all(|limit| limit.kernel.is_empty()), "the engine knows no kernel");
                Ok(limits.into_iter().map(|limit| (limit.name, limit.asked)).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    fn stop(&mut self, id: ComponentId) -> Ticket {
        self.request(|ticket| Event::Stop(ticket, FUNCTION, id))
    }

    fn status(&self, id: ComponentId) -> ComponentStatus {
        self.engine.view(&[id]).remove(0).status
    }

    fn row(&self, id: ComponentId) -> Row {
        self.engine.row(id)
    }

    fn instance(&self, id: ComponentId) -> InstanceId {
        self.status(id).instance.expect("it runs")
    }

    /// The only call that is under way at a node.
    fn call(&mut self, node: NodeId) -> (Op, Call) {
        let at: Vec<usize> = (0..self.calls.len()).filter(|i| self.calls[*i].1 == node).collect();
        assert_eq!(at.len(), 1, "calls at {node}: {:?}", self.calls);
        let (op, _, call) = self.calls.remove(at[0]);
        (op, call)
    }

    fn end(&mut self, op: Op, result: Result<Outcome, Error>) {
        self.send(Event::Done(op, result));
    }

    /// Ends a call well.
    fn ok(&mut self, node: NodeId, op: Op, call: &Call) {
        let result = match call {
            Call::Create(_) => {
                self.instances += 1;
                let function = Uuid::from_u128(self.instances);
                Outcome::Started(ComponentRef::Instance(InstanceId { node, function }))
            }
            Call::Release { .. } => Outcome::Released(self.saved.clone()),
            _ => Outcome::Done,
        };
        self.end(op, Ok(result));
    }

    /// Ends all calls well, and those that follow; returns them in order.
    fn obey(&mut self) -> Vec<(NodeId, Call)> {
        let mut obeyed = vec![];
        while !self.calls.is_empty() {
            let (op, node, call) = self.calls.remove(0);
            self.ok(node, op, &call);
            obeyed.push((node, call));
        }
        obeyed
    }

    fn note(&self, text: &str) -> bool {
        self.notes.iter().any(|note| note.to_string().contains(text))
    }
}

pub(crate) fn node(id: NodeId) -> Registration {
    let port = u16::try_from(id.0.as_u128()).unwrap();
    Registration {
        node: id,
        agent_url: format!("http://127.0.0.1:{}", 7000 + port).parse().unwrap(),
        invocation_url: format!("http://127.0.0.1:{}", 8000 + port).parse().unwrap(),
        providers: vec![ProviderSpec { id: "log-1".into(), class_type: "file-log".into(), outputs: vec![] }],
        capabilities: Capabilities {
            num_cpus: 1,
            num_cores: 2,
            clock_freq_cpu: 800.0,
            runtimes: vec!["RUST_WASM".into(), CONTAINER.into()],
            ..Capabilities::default()
        },
        nonce: 1,
        lifetime: None,
        interval: None,
        health: Health::default(),
        performance: Performance::default(),
        native: true,
        leaving: false,
        proof: None,
        loads: Vec::new(),
        reports: false,
        report: None,
    }
}

/// A node that speaks only EDGELESS 1.2.
fn plain(id: NodeId) -> Registration {
    Registration { native: false, lifetime: Some(Duration::from_secs(60)), ..node(id) }
}

pub(crate) fn function(annotations: &[(&str, &str)]) -> ComponentSpec {
    ComponentSpec::Function(FunctionSpec {
        class: FunctionClass { id: "f".into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() },
        annotations: annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        state: StateSpec { id: StateId(Uuid::nil()), policy: Default::default() },
        workflow: WorkflowId::NONE,
    })
}

fn container(annotations: &[(&str, &str)]) -> ComponentSpec {
    let mut spec = function(annotations);
    if let ComponentSpec::Function(function) = &mut spec {
        function.class.function_type = CONTAINER.into();
    }
    spec
}

fn pairs(pairs: &[(&str, &str)]) -> Annotations {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn resource() -> ComponentSpec {
    ComponentSpec::Resource(ResourceSpec {
        class_type: "file-log".into(),
        configuration: Annotations::new(),
        workflow: WorkflowId::NONE,
    })
}

fn created(call: &Call) -> &Start {
    match call {
        Call::Create(start) => start,
        other => panic!("{other:?} is not a start"),
    }
}

fn epoch(call: &Call) -> u64 {
    created(call).context.as_ref().unwrap().epoch
}

fn wiring(call: &Call) -> BTreeMap<String, Target> {
    match call {
        Call::SetOutputs(_, patch) => patch.outputs.clone(),
        other => panic!("{other:?} does not wire"),
    }
}

/// The row of a component that its controller wanted once.
fn row(component: ComponentId, epoch: u64, instances: &[InstanceId]) -> Row {
    let addresses = instances.iter().map(|at| (at.node, node(at.node).invocation_url)).collect();
    Row { addresses, ..Row::new(component, (1 << 32) + epoch, instances.to_vec()) }
}

/// The rows that nodes were told.
fn rows_in(calls: &[(NodeId, Call)]) -> Vec<(NodeId, Vec<Row>)> {
    let rows = |(node, call): &(NodeId, Call)| match call {
        Call::SetRows(rows) => Some((*node, rows.clone())),
        _ => None,
    };
    calls.iter().filter_map(rows).collect()
}

/// Outputs that lead to one row.
fn out(row: Row) -> BTreeMap<String, Target> {
    BTreeMap::from([("out".to_string(), Target::Row(row))])
}

fn unanswered() -> Result<Outcome, Error> {
    Err(Error::timeout("no answer"))
}

// Nodes.

#[test]
fn a_new_node_is_reset_and_joining_costs_our_nodes_nothing_else() {
    let mut world = World::new();
    let answer = world.register(node(A));
    assert_eq!(answer, Ok(Reply::Registered(Registered { offers_link: true, ..Registered::new(Some(KEEP_ALIVE)) })));
    assert_eq!(world.obey(), [(A, Call::Reset)]);
    world.register(node(B)).unwrap();
    assert_eq!(world.obey(), [(B, Call::Reset)], "they learn of each other from rows");
    assert!(world.note("new resource advertised by node 00000000-0000-0000-0000-00000000000a: provider_id log-1, class_type file-log, outputs []"));
    assert!(world.note("added function instance client: node_id 00000000-0000-0000-0000-00000000000a, agent URL http://127.0.0.1:7010, invocation URL http://127.0.0.1:8010, capabilities 1 "));
}

#[test]
fn a_plain_node_and_all_others_are_told_of_each_other_and_never_of_themselves() {
    let mut world = World::new();
    world.add(&node(A));
    world.register(plain(B)).unwrap();
    let calls = world.obey();
    let add = |id| Call::UpdatePeers(PeerUpdate::Add(id, node(id).invocation_url));
    assert!(calls.contains(&(A, add(B))));
    let at_b: Vec<_> = calls.into_iter().filter(|(at, _)| *at == B).map(|(_, call)| call).collect();
    assert_eq!(at_b, [Call::Reset, add(A)]);
    world.register(node(C)).unwrap();
    let calls = world.obey();
    assert_eq!(calls.len(), 3, "{calls:?}");
    assert!(calls.contains(&(B, add(C))) && calls.contains(&(C, add(B))));
}

#[test]
fn nothing_is_placed_on_a_node_before_it_is_reset() {
    let mut world = World::new();
    world.register(node(A)).unwrap();
    let ticket = world.wanted(ONE, 1, function(&[]));
    assert!(world.refusal(ticket).message.contains("the domain has no node"));
    assert_eq!(world.obey(), [(A, Call::Reset)]);
    world.run(ONE);
}

#[test]
fn a_reset_that_fails_is_tried_again_after_a_pause() {
    let mut world = World::new();
    world.register(node(A)).unwrap();
    let (op, _) = world.call(A);
    world.end(op, unanswered());
    assert!(world.calls.is_empty());
    assert!(world.note("cannot reset node"));
    world.pass(Duration::from_millis(300));
    assert_eq!(world.call(A).1, Call::Reset);
}

#[test]
fn a_node_that_cannot_be_told_of_others_delays_only_itself() {
    let mut world = World::new();
    world.add(&node(A));
    world.register(plain(B)).unwrap();
    world.register(plain(C)).unwrap();
    let (stuck, _) = world.call(A);
    assert!(matches!(world.call(B).1, Call::Reset), "while A does not answer");
    assert!(matches!(world.call(C).1, Call::Reset));
    world.end(stuck, unanswered());
    world.pass(Duration::from_millis(300));
    let told = |calls: Vec<(NodeId, Call)>| -> BTreeSet<NodeId> {
        let peer = |(_, call): (NodeId, Call)| match call {
            Call::UpdatePeers(PeerUpdate::Add(peer, _)) => Some(peer),
            _ => None,
        };
        calls.into_iter().filter(|(at, _)| *at == A).filter_map(peer).collect()
    };
    assert_eq!(told(world.obey()), BTreeSet::from([B, C]));
}

#[test]
fn a_refresh_moves_the_deadline_and_nothing_else() {
    let mut world = World::new();
    world.add(&node(A));
    let notes = world.notes.len();
    for _ in 0..10 {
        world.pass(Duration::from_secs(1));
        world.register(node(A)).unwrap();
    }
    assert!(world.calls.is_empty(), "{:?}", world.calls);
    assert_eq!(world.notes.len(), notes);
    assert_eq!(world.published, [1]);
    world.pass(Duration::from_secs(2));
    assert!(world.engine.nodes().is_empty());
    assert_eq!(world.published, [1, 0]);
}

/// Ten thousand nodes that come at once must not be summed up ten thousand times.
#[test]
fn what_many_nodes_have_is_told_now_and_then() {
    let mut world = World::with(|settings| settings.max_nodes = 100);
    for n in 1..=100 {
        world.add(&node(NodeId(Uuid::from_u128(n))));
    }
    assert!(world.published.len() < 50, "{:?}", world.published);
    world.pass(Duration::from_millis(10));
    assert_eq!(world.published.last(), Some(&100), "and the last word is right");
}

#[test]
fn a_node_may_ask_for_a_shorter_life_but_not_for_a_longer_one() {
    let alive_after = |about: Registration, time: Duration| {
        let mut world = World::new();
        world.add(&about);
        world.pass(time);
        !world.engine.nodes().is_empty()
    };
    let native = |seconds| Registration { lifetime: Some(Duration::from_secs(seconds)), ..node(A) };
    assert!(!alive_after(native(1), Duration::from_secs(1)));
    assert!(!alive_after(native(60), Duration::from_secs(2)));
    assert!(alive_after(plain(A), Duration::from_secs(59)), "the deadline of a 1.2 node counts");
    let behind = Registration { lifetime: Some(Duration::ZERO), ..plain(A) };
    assert!(alive_after(behind, Duration::from_secs(1)), "even if its clock is behind");
}

#[test]
fn a_restarted_node_is_reset_and_what_it_ran_is_placed_again_once() {
    let mut world = World::new();
    world.add(&node(A));
    let before = world.run(ONE);
    let restarted = Registration { nonce: 2, ..node(A) };
    world.register(restarted.clone()).unwrap();
    let calls = world.obey();
    assert_eq!(calls[0], (A, Call::Reset));
    assert_eq!(epoch(&calls[1].1), 2);
    assert_ne!(world.instance(ONE), before);
    for _ in 0..5 {
        world.pass(Duration::from_millis(700));
        world.register(restarted.clone()).unwrap();
        assert!(world.calls.is_empty(), "the nonce is kept: {:?}", world.calls);
    }
}

#[test]
fn a_goodbye_ends_the_process_that_says_it_and_no_other() {
    let mut world = World::new();
    let goodbye = Registration { leaving: true, ..node(A) };
    world.register(goodbye.clone()).unwrap();
    assert!(world.calls.is_empty(), "from a node that is not known");
    world.add(&node(A));
    world.add(&plain(B));
    world.register(goodbye).unwrap();
    assert_eq!(world.obey(), [(B, Call::UpdatePeers(PeerUpdate::Remove(A)))]);
    assert!(world.notes.iter().any(|note| matches!(note, Note::NodeLost { .. }) && !note.is_warning()));
    world.add(&Registration { nonce: 2, ..node(A) });
    world.register(Registration { leaving: true, ..node(A) }).unwrap();
    assert_eq!(world.engine.nodes().len(), 2, "a goodbye of the process before comes too late");
}

#[test]
fn what_a_node_offers_is_taken_over_when_it_changes() {
    let mut world = World::new();
    world.add(&node(A));
    let ticket = world.wanted(ONE, 1, function(&[("label_match_all", "gpu")]));
    assert!(world.refusal(ticket).message.contains("0 of 1 have the label 'gpu'"));
    let mut changed = node(A);
    changed.capabilities.labels = vec!["gpu".into()];
    changed.providers.push(ProviderSpec { id: "r".into(), class_type: "redis".into(), outputs: vec![] });
    world.register(changed).unwrap();
    assert!(world.note("provider_id r, class_type redis"));
    world.wanted(ONE, 1, function(&[("label_match_all", "gpu")]));
    assert_eq!(world.obey().len(), 1);
}

#[test]
fn impossible_registrations_are_refused() {
    let mut world = World::with(|settings| settings.max_nodes = 1);
    let long = "x".repeat(1000);
    let mut labelled = node(A);
    labelled.capabilities.labels = vec![long.clone()];
    let mut offering = node(A);
    offering.providers[0].outputs = vec![String::new(); 2000];
    for (bad, code) in [
        (Registration { node: NodeId::NONE, ..node(A) }, Code::Rejected),
        (labelled, Code::Exhausted),
        (offering, Code::Exhausted),
    ] {
        assert_eq!(world.register(bad).unwrap_err().code, code);
    }
    world.add(&node(A));
    assert!(world.register(node(B)).unwrap_err().message.contains("max_nodes"));
    assert!(world.register(node(A)).is_ok(), "a known node may stay");
}

// Components.

#[test]
fn a_component_is_started_wired_activated_and_stopped() {
    let mut world = World::new();
    world.add(&node(A));
    let start = world.wanted(ONE, 1, function(&[]));
    assert!(world.is_open(start));
    let (op, call) = world.call(A);
    let context = StartContext::new(ONE, 1, "f1");
    assert_eq!(created(&call).context, Some(context));
    assert_eq!(world.status(ONE).state, State::Starting);
    world.ok(A, op, &call);
    assert_eq!(world.answer(start), Ok(Reply::Started(ONE)));
    assert!(world.note("spawned function 'f1' on node"));
    let two = world.run(TWO);

    let patch = world.patch(ONE, &[("out", TWO)]);
    let (op, call) = world.call(A);
    assert_eq!(wiring(&call), out(row(TWO, 1, &[two])));
    assert!(world.is_open(patch));
    world.ok(A, op, &call);
    assert_eq!(world.answer(patch), Ok(Reply::Done));

    let activate = world.activate(&[ONE, TWO]);
    assert_eq!(world.calls.len(), 2);
    let (op, _, call) = world.calls.remove(0);
    world.ok(A, op, &call);
    assert!(world.is_open(activate), "one of two");
    world.obey();
    assert_eq!(world.answer(activate), Ok(Reply::Done));
    assert_eq!(world.status(ONE).state, State::Running);

    let instance = world.instance(ONE);
    let stop = world.stop(ONE);
    let (op, call) = world.call(A);
    assert_eq!(call, Call::Stop(FUNCTION, instance));
    assert!(world.is_open(stop));
    world.ok(A, op, &call);
    assert_eq!(world.answer(stop), Ok(Reply::Done));
    assert!(world.engine.view(&[ONE]).is_empty());
    assert_eq!(world.engine.nodes()[0].components, 1);
}

#[test]
fn a_resource_is_given_to_a_provider_of_its_class() {
    let mut world = World::new();
    world.add(&node(A));
    world.wanted(ONE, 1, resource());
    let (_, call) = world.call(A);
    assert_eq!(created(&call).context.as_ref().unwrap().provider, "log-1");
}

#[test]
fn a_repeated_start_returns_the_first_result() {
    let mut world = World::new();
    world.add(&node(A));
    let first = world.wanted(ONE, 2, function(&[]));
    let second = world.wanted(ONE, 2, function(&[]));
    let (op, call) = world.call(A);
    world.ok(A, op, &call);
    let third = world.wanted(ONE, 2, function(&[]));
    for ticket in [first, second, third] {
        assert_eq!(world.answer(ticket), Ok(Reply::Started(ONE)));
    }
    assert!(world.calls.is_empty(), "one instance");
    let older = world.wanted(ONE, 1, function(&[]));
    assert!(world.refusal(older).message.contains("newer than 1"));
    let other = world.wanted(ONE, 2, resource());
    assert!(world.refusal(other).message.contains("is a function"));
}

#[test]
fn a_newer_start_starts_afresh_and_stops_the_old_instance() {
    let mut world = World::new();
    world.add(&node(A));
    let old = world.run(ONE);
    let newer = world.wanted(ONE, 2, function(&[]));
    let calls = world.obey();
    assert!(calls.contains(&(A, Call::Stop(FUNCTION, old))));
    assert!(calls.iter().any(|(_, call)| matches!(call, Call::Create(_)) && epoch(call) == 2));
    assert_eq!(world.answer(newer), Ok(Reply::Started(ONE)));
    assert_ne!(world.instance(ONE), old);
}

#[test]
fn a_newer_start_ends_the_wait_for_an_older_one_whose_result_is_stopped() {
    let mut world = World::new();
    world.add(&node(A));
    let old = world.wanted(ONE, 1, function(&[]));
    let (op, call) = world.call(A);
    world.wanted(ONE, 2, function(&[]));
    assert!(world.refusal(old).message.contains("newer epoch"));
    world.obey();
    world.ok(A, op, &call);
    let late = InstanceId { node: A, function: Uuid::from_u128(world.instances) };
    assert_eq!(world.obey(), [(A, Call::Stop(FUNCTION, late))]);
}

#[test]
fn what_a_node_refuses_is_forgotten_and_the_reason_told() {
    let mut world = World::new();
    world.add(&node(A));
    world.add(&node(B));
    let ticket = world.wanted(ONE, 1, function(&[]));
    let (op, _, _) = world.calls.remove(0);
    world.end(op, Err(Error::rejected("the code is garbage")));
    assert_eq!(world.refusal(ticket), Error::rejected("the code is garbage"));
    assert!(world.engine.view(&[ONE]).is_empty());
    assert!(world.calls.is_empty());
    assert!(world.note("refused to start 'f1': the code is garbage"));
}

#[test]
fn an_answer_that_names_another_node_is_not_believed() {
    let mut world = World::new();
    world.add(&node(A));
    let ticket = world.wanted(ONE, 1, function(&[]));
    let (op, _) = world.call(A);
    world.end(op, Ok(Outcome::Started(ComponentRef::Instance(InstanceId::random(B)))));
    assert_eq!(world.refusal(ticket).code, Code::Bug);
}

#[test]
fn impossible_requests_are_refused() {
    let mut world = World::with(|settings| settings.max_components = 2);
    world.add(&node(A));
    let bad = world.wanted(ONE, 1, function(&[("node_id_match_any", "here")]));
    assert!(world.refusal(bad).message.contains("node_id_match_any"));
    let context = StartContext::new(ONE, 1, "x".repeat(300));
    let wanted = Wanted { spec: function(&[]), context, is_held: true };
    let long = world.request(|ticket| Event::Start(ticket, Box::new(wanted)));
    assert_eq!(world.refusal(long).code, Code::Exhausted);
    world.run(ONE);
    world.run(TWO);
    let third = world.wanted(ComponentId::random(), 1, function(&[]));
    assert!(world.refusal(third).message.contains("max_components"));

    let absent = ComponentId::random();
    for ticket in [world.patch(absent, &[]), world.activate(&[ONE, absent])] {
        assert_eq!(world.refusal(ticket).code, Code::NotFound);
    }
    let outputs = BTreeMap::from([("out".to_string(), Target::Instance(InstanceId::random(A)))]);
    let instance = world.request(|ticket| Event::Patch(ticket, FUNCTION, Patch::new(ONE.0, outputs)));
    assert!(world.refusal(instance).message.contains("takes components"));
    let empty = Patch::new(ONE.0, BTreeMap::new());
    let kind = world.request(|ticket| Event::Patch(ticket, ComponentKind::Resource, empty));
    assert!(world.refusal(kind).message.contains("is a function"));
    let kind = world.request(|ticket| Event::Stop(ticket, ComponentKind::Resource, ONE));
    assert!(world.refusal(kind).message.contains("is a function"));
    let many = (0..2000).map(|n| (format!("out{n}"), Target::Component(TWO))).collect();
    let many = world.request(|ticket| Event::Patch(ticket, FUNCTION, Patch::new(ONE.0, many)));
    assert_eq!(world.refusal(many).code, Code::Exhausted);
    assert!(world.calls.is_empty(), "nothing was done");
}

#[test]
fn requests_that_wait_for_one_component_are_bounded() {
    let mut world = World::new();
    world.add(&node(A));
    let tickets: Vec<_> = (0..100).map(|_| world.wanted(ONE, 1, function(&[]))).collect();
    assert_eq!(world.refusal(tickets[99]).code, Code::Exhausted);
    world.obey();
    assert_eq!(world.answer(tickets[0]), Ok(Reply::Started(ONE)));
}

#[test]
fn a_stop_during_a_start_stops_what_was_started() {
    let mut world = World::new();
    world.add(&node(A));
    let start = world.wanted(ONE, 1, function(&[]));
    let stop = world.stop(ONE);
    assert!(world.is_open(stop));
    let again = world.wanted(ONE, 1, function(&[]));
    assert_eq!(world.refusal(again).code, Code::Unavailable, "it is being stopped");
    let calls = world.obey();
    assert!(matches!(calls[..], [(_, Call::Create(_)), (_, Call::Stop(..))]));
    assert_eq!(world.answer(start), Ok(Reply::Started(ONE)));
    assert_eq!(world.answer(stop), Ok(Reply::Done));
}

#[test]
fn a_stop_ends_with_the_node_if_not_before() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    let stop = world.stop(ONE);
    let (op, _) = world.call(A);
    world.end(op, unanswered());
    assert!(world.is_open(stop));
    world.pass(Duration::from_millis(300));
    assert!(matches!(world.call(A).1, Call::Stop(..)), "tried again");
    world.pass(KEEP_ALIVE);
    assert_eq!(world.answer(stop), Ok(Reply::Done));
    let unknown = world.stop(ComponentId::random());
    assert_eq!(world.answer(unknown), Ok(Reply::Done));
}

#[test]
fn everything_is_stopped_at_the_wish_of_the_controller() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.run(TWO);
    let ticket = world.request(Event::StopAll);
    assert_eq!(world.answer(ticket), Ok(Reply::Done));
    assert_eq!(world.obey().len(), 2);
    assert!(world.engine.view(&[ONE, TWO]).is_empty());
}

// Loss and repair.

#[test]
fn what_a_lost_node_ran_runs_elsewhere_and_who_sends_to_it_is_told() {
    let mut world = World::new();
    world.add(&node(A));
    world.add(&node(B));
    let (one, two) = (world.run(ONE), world.run(TWO));
    assert_eq!((one.node, two.node), (A, B));
    world.patch(ONE, &[("out", TWO)]);
    world.obey();
    world.activate(&[ONE, TWO]);
    world.obey();

    world.pass(Duration::from_secs(1));
    world.register(node(A)).unwrap();
    world.pass(Duration::from_secs(1));
    assert!(world.note("lost node 00000000-0000-0000-0000-00000000000b: it was silent for too long, 1 component(s)"));
    let calls = world.obey();
    let moved = world.instance(TWO);
    assert_eq!(moved.node, A);
    assert!(calls.contains(&(A, Call::UpdatePeers(PeerUpdate::Remove(B)))));
    let told = rows_in(&calls);
    assert_eq!(told, [(A, vec![row(TWO, 2, &[])]), (A, vec![row(TWO, 3, &[moved])])], "nowhere at first");
    assert!(calls.contains(&(A, Call::Activate(moved.function))), "it emits without being asked again");
    assert_eq!(world.status(TWO).epoch, 2);
    assert_eq!(world.status(TWO).state, State::Running);
    assert_eq!(world.instance(ONE), one, "who was not touched stays");
}

#[test]
fn a_start_that_is_under_way_when_its_node_is_lost_goes_elsewhere() {
    let mut world = World::new();
    world.add(&node(A));
    world.add(&node(B));
    let ticket = world.wanted(ONE, 1, function(&[]));
    let (late, call) = world.call(A);
    world.register(Registration { leaving: true, ..node(A) }).unwrap();
    world.obey();
    assert_eq!(world.answer(ticket), Ok(Reply::Started(ONE)));
    assert_eq!(world.instance(ONE).node, B);
    let placed = world.instance(ONE);
    world.ok(A, late, &call);
    assert_eq!(world.instance(ONE), placed, "a late answer changes nothing");
}

#[test]
fn a_component_that_ran_waits_for_a_node_and_says_why() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.activate(&[ONE]);
    world.obey();
    world.pass(KEEP_ALIVE);
    let status = world.status(ONE);
    assert_eq!(status.state, State::Waiting);
    assert!(status.reason.contains("the domain has no node"), "{}", status.reason);
    assert!(world.note("waits for a node"));
    let patch = world.patch(ONE, &[("out", TWO)]);
    assert_eq!(world.answer(patch), Ok(Reply::Done), "wired when it runs");
    world.add(&node(B));
    assert_eq!(world.instance(ONE).node, B);
    assert_eq!(world.status(ONE).state, State::Running);
    assert_eq!(world.status(ONE).reason, "");
}

fn asked(limits: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs(limits).into_iter().collect()
}

#[test]
fn limits_that_a_node_has_granted_hold_wherever_the_component_runs_next() {
    let mut world = World::new();
    world.add(&node(A));
    world.wanted(ONE, 1, container(&[("cpu", "1"), ("init-payload", "x")]));
    world.obey();
    let instance = world.instance(ONE);
    let changed = asked(&[("cpu", "0.5"), ("memory", "64MiB")]);
    for _ in 0..2 {
        assert_eq!(world.limit(ONE, &[("cpu", "0.5"), ("memory", "64MiB")], Some(instance)), Ok(changed.clone()));
        assert!(world.calls.is_empty(), "its node has them already");
    }
    assert_eq!(world.limit(ONE, &[], None), Ok(changed), "they are told without a change");
    world.pass(KEEP_ALIVE);
    assert_eq!(world.limit(ONE, &[("pids", "9")], Some(instance)).unwrap().len(), 3, "it was granted before the loss");
    world.add(&node(B));
    let moved = world.instance(ONE);
    assert_eq!(moved.node, B);
    let ComponentSpec::Function(spec) = &world.engine.components[&ONE].spec else { panic!("a function") };
    let expected = [("cpu", "0.5"), ("init-payload", "x"), ("memory", "64MiB"), ("pids", "9")];
    assert_eq!(spec.annotations, pairs(&expected));
    let repeat = world.wanted(ONE, 1, container(&[("cpu", "1")]));
    assert_eq!(world.answer(repeat), Ok(Reply::Started(ONE)));
    assert_eq!(world.limit(ONE, &[], None).unwrap().len(), 3, "a repeated start takes nothing back");
}

/// What a node is told when it is placed again, not only what is noted.
#[test]
fn limits_that_no_node_was_asked_for_are_part_of_the_next_start() {
    let mut world = World::new();
    world.add(&node(A));
    world.wanted(ONE, 1, container(&[]));
    world.obey();
    world.pass(KEEP_ALIVE);
    assert_eq!(world.limit(ONE, &[("cpu", "2")], None), Ok(asked(&[("cpu", "2")])));
    assert_eq!(world.status(ONE).limits.len(), 1);
    let error = world.limit(ONE, &[("tee", "required")], None).unwrap_err();
    assert!(error.message.starts_with("'tee' is not a limit; 'f1' does not run at present"), "{error}");
    for value in ["", &"9".repeat(65)] {
        let error = world.limit(ONE, &[("cpu", value)], None).unwrap_err();
        assert_eq!(error.code, Code::Rejected);
    }
    world.register(node(B)).unwrap();
    while !matches!(world.calls[0].2, Call::Create(_)) {
        let (op, node, call) = world.calls.remove(0);
        world.ok(node, op, &call);
    }
    let (_, call) = world.call(B);
    assert_eq!(*created(&call).spec.annotations(), pairs(&[("cpu", "2")]));
}

#[test]
fn limits_are_not_changed_behind_the_back_of_a_start() {
    let mut world = World::new();
    world.add(&node(A));
    world.wanted(ONE, 1, container(&[]));
    let error = world.limit(ONE, &[("cpu", "1")], None).unwrap_err();
    assert_eq!(error, Error::unavailable("'f1' is being started: try again in a moment"));
    world.obey();
    let instance = world.instance(ONE);
    let other = InstanceId { function: Uuid::nil(), ..instance };
    for at in [None, Some(other)] {
        assert_eq!(world.limit(ONE, &[("cpu", "1")], at).unwrap_err().code, Code::Unavailable, "it has moved");
    }
    assert_eq!(world.limit(ONE, &[], None), Ok(vec![]));
    world.stop(ONE);
    assert_eq!(world.limit(ONE, &[("cpu", "1")], Some(instance)).unwrap_err().code, Code::Unavailable);
    assert_eq!(world.limit(TWO, &[], None).unwrap_err().code, Code::NotFound);
}

#[test]
fn what_is_no_container_has_no_limits_that_can_be_changed() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.wanted(TWO, 1, resource());
    world.obey();
    world.pass(KEEP_ALIVE);
    for (id, what) in [(ONE, "'f1' is a RUST_WASM function"), (TWO, "'f2' is a resource of class file-log")] {
        let refusal = Error::rejected(format!("{what}: only containers have limits that can be changed"));
        assert_eq!(world.limit(id, &[("cpu", "1")], None), Err(refusal.clone()));
        assert_eq!(world.limit(id, &[], None), Err(refusal));
        assert_eq!(world.status(id).limits, []);
    }
}

#[test]
fn a_refused_placement_is_tried_on_other_nodes_then_again_after_a_pause() {
    let mut world = World::new();
    let (a, b, c) = (node(A), node(B), node(C));
    for about in [&a, &b, &c] {
        world.add(about);
    }
    world.run(ONE);
    world.register(Registration { leaving: true, ..node(A) }).unwrap();
    let mut refused = BTreeSet::new();
    while let Some(at) = world.calls.iter().position(|(_, _, call)| matches!(call, Call::Create(_))) {
        let (op, node, _) = world.calls.remove(at);
        assert!(refused.insert(node), "once each");
        world.end(op, Err(Error::exhausted("no memory")));
    }
    assert_eq!(refused, BTreeSet::from([B, C]));
    assert_eq!(world.status(ONE).reason, "no memory");
    world.live(Duration::from_secs(1), &[&b, &c]);
    assert!(world.instance(ONE).node == B || world.instance(ONE).node == C);
    assert_eq!(world.status(ONE).epoch, 4);
}

#[test]
fn an_instance_that_its_node_does_not_know_is_placed_again() {
    let mut world = World::new();
    world.add(&node(A));
    let gone = world.run(ONE);
    let patch = world.patch(ONE, &[("out", TWO)]);
    let (op, _) = world.call(A);
    world.end(op, Err(Error::not_found("no such instance")));
    assert_eq!(world.answer(patch), Ok(Reply::Done), "it is wired wherever it runs next");
    world.live(Duration::from_secs(1), &[&node(A)]);
    assert_ne!(world.instance(ONE), gone);
    assert_eq!(world.status(ONE).epoch, 2);
}

#[test]
fn a_node_that_refuses_to_wire_is_quoted_and_asked_again() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    let patch = world.patch(ONE, &[("out", TWO)]);
    let (op, _) = world.call(A);
    world.end(op, Err(Error::exhausted("too many outputs")));
    assert!(world.refusal(patch).message.contains("too many outputs"));
    world.pass(Duration::from_millis(300));
    assert!(matches!(world.call(A).1, Call::SetOutputs(..)));
}

/// The node may have taken over what it did not acknowledge, so that going back must be said, too.
#[test]
fn a_wiring_whose_answer_was_lost_is_replaced_even_by_the_one_before() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.patch(ONE, &[("out", TWO)]);
    let (op, _) = world.call(A);
    world.end(op, unanswered());
    world.patch(ONE, &[]);
    assert_eq!(wiring(&world.call(A).1), BTreeMap::new());
}

#[test]
fn a_node_is_not_managed_while_a_call_from_before_its_loss_may_still_arrive() {
    let mut world = World::new();
    world.register(node(A)).unwrap();
    let (late, _) = world.call(A);
    world.register(Registration { nonce: 2, ..node(A) }).unwrap();
    assert!(world.calls.is_empty(), "a second reset might come first");
    world.end(late, unanswered());
    assert_eq!(world.call(A).1, Call::Reset);
}

#[test]
fn an_activation_that_a_node_refuses_is_answered_once() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.run(TWO);
    let activate = world.activate(&[ONE, TWO]);
    for (op, _, _) in std::mem::take(&mut world.calls) {
        world.end(op, Err(Error::rejected("the port is taken")));
    }
    assert!(world.refusal(activate).message.contains("the port is taken"));
}

#[test]
fn an_instance_on_a_plain_node_is_wired_to_another_node_only_when_its_own_knows_that_node() {
    let mut world = World::new();
    world.add(&plain(A));
    world.run(ONE);
    world.register(node(B)).unwrap();
    let (about_b, _) = world.call(A);
    world.obey();
    let two = world.run(TWO);
    assert_eq!(two.node, B);
    let patch = world.patch(ONE, &[("out", TWO)]);
    assert!(world.calls.is_empty(), "A has not yet said that it knows B");
    world.end(about_b, Ok(Outcome::Done));
    let (op, call) = world.call(A);
    assert_eq!(wiring(&call), BTreeMap::from([("out".to_string(), Target::Instance(two))]));
    world.ok(A, op, &call);
    assert_eq!(world.answer(patch), Ok(Reply::Done));
}

#[test]
fn outputs_to_a_component_that_was_stopped_lead_nowhere_in_a_newer_epoch() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.run(TWO);
    world.patch(ONE, &[("out", TWO)]);
    world.obey();
    world.stop(TWO);
    let last = world.obey().pop().unwrap();
    assert_eq!(rows_in(&[last]), [(A, vec![row(TWO, 2, &[])])]);
    let two = world.run(TWO);
    assert_eq!(world.status(TWO).epoch, 2, "no start is repeated");
    assert_eq!(world.row(TWO), row(TWO, 3, &[two]), "what its senders have heard is older");
}

// Unknown outcomes.

#[test]
fn a_start_that_one_of_our_nodes_does_not_answer_is_repeated_then_given_up_and_cleaned_up() {
    let mut world = World::new();
    let (a, b) = (node(A), node(B));
    world.add(&a);
    world.add(&b);
    let ticket = world.wanted(ONE, 1, function(&[]));
    for _ in 0..3 {
        let (op, call) = world.call(A);
        assert_eq!(epoch(&call), 1, "the same start");
        world.end(op, unanswered());
        world.register(a.clone()).unwrap();
        world.register(b.clone()).unwrap();
        world.pass(Duration::from_secs(1));
    }
    let (op, call) = world.call(B);
    assert_eq!(epoch(&call), 2);
    world.ok(B, op, &call);
    assert_eq!(world.answer(ticket), Ok(Reply::Started(ONE)));
    let (op, call) = world.call(A);
    assert_eq!(epoch(&call), 1, "its repeat tells what to stop");
    world.ok(A, op, &call);
    let stray = InstanceId { node: A, function: Uuid::from_u128(world.instances) };
    assert_eq!(world.obey(), [(A, Call::Stop(FUNCTION, stray))]);
}

#[test]
fn a_start_that_no_node_answers_fails_with_the_reason() {
    let mut world = World::new();
    let a = node(A);
    world.add(&a);
    let ticket = world.wanted(ONE, 1, function(&[]));
    for _ in 0..3 {
        let (op, _) = world.call(A);
        world.end(op, unanswered());
        world.register(a.clone()).unwrap();
        world.pass(Duration::from_secs(1));
    }
    let error = world.refusal(ticket);
    assert_eq!(error.code, Code::Timeout);
    assert!(error.message.contains("did not start it: no answer"), "{error}");
}

/// A second start would be a second instance there, and nobody could stop the first.
#[test]
fn a_start_that_a_plain_node_does_not_answer_is_never_repeated_there() {
    let mut world = World::new();
    world.add(&plain(A));
    world.add(&node(B));
    world.wanted(ONE, 1, function(&[]));
    let (op, _) = world.call(A);
    world.end(op, unanswered());
    let calls = world.obey();
    assert_eq!(world.instance(ONE).node, B);
    let at_a: Vec<_> = calls.iter().filter(|(at, _)| *at == A).map(|(_, call)| call).collect();
    assert_eq!(at_a[0], &Call::Reset, "nothing else ran there, so that it can be made certain");
    assert!(!at_a.iter().any(|call| matches!(call, Call::Create(_))));
}

#[test]
fn a_plain_node_in_doubt_is_not_reset_under_what_runs_there() {
    let mut world = World::new();
    world.add(&plain(A));
    world.run(ONE);
    let ticket = world.wanted(TWO, 1, function(&[]));
    let (op, _) = world.call(A);
    world.end(op, unanswered());
    assert_eq!(world.refusal(ticket).code, Code::Timeout);
    assert!(world.calls.is_empty());
    world.stop(ONE);
    let calls = world.obey();
    assert!(matches!(calls[..], [(A, Call::Stop(..)), (A, Call::Reset)]), "{calls:?}");
    world.run(TWO);
}

#[test]
fn a_stop_while_the_outcome_of_a_start_is_unknown_cleans_up_behind_it() {
    let mut world = World::new();
    world.add(&node(A));
    let start = world.wanted(ONE, 1, function(&[]));
    let (op, _) = world.call(A);
    world.end(op, unanswered());
    let stop = world.stop(ONE);
    assert_eq!(world.answer(stop), Ok(Reply::Done));
    assert_eq!(world.refusal(start).code, Code::Unavailable);
    let calls = world.obey();
    assert!(matches!(calls[..], [(A, Call::Create(_)), (A, Call::Stop(..))]), "{calls:?}");
}

// Peers that speak only EDGELESS 1.2.

#[test]
fn a_plain_node_is_told_of_instances_and_never_activated() {
    let mut world = World::new();
    world.add(&plain(A));
    world.run(ONE);
    let patch = world.patch(ONE, &[("out", TWO)]);
    assert!(world.calls.is_empty(), "an empty mapping is not sent");
    assert_eq!(world.answer(patch), Ok(Reply::Done));
    let two = world.run(TWO);
    let activate = world.activate(&[ONE, TWO]);
    assert_eq!(world.answer(activate), Ok(Reply::Done));
    assert_eq!(world.status(ONE).state, State::Running);
    let patch = world.patch(ONE, &[("out", TWO)]);
    assert_eq!(world.answer(patch), Ok(Reply::Done), "it was wired when its target appeared");
    world.stop(TWO);
    world.obey();
    let again = world.run(TWO);
    assert_ne!(two, again);
    assert!(world.engine.view(&[ONE])[0].peers.is_empty(), "it cannot be asked how it is");
}

#[test]
fn a_plain_node_is_wired_to_the_instance_that_there_is() {
    let mut world = World::new();
    world.add(&plain(A));
    let two = world.run(TWO);
    world.run(ONE);
    world.patch(ONE, &[("out", TWO)]);
    let (_, call) = world.call(A);
    assert_eq!(wiring(&call), BTreeMap::from([("out".to_string(), Target::Instance(two))]));
}

#[test]
fn a_component_of_a_plain_controller_emits_from_its_first_patch_or_after_a_second() {
    let start = |world: &mut World, component| {
        let context = StartContext::new(component, 0, "f");
        let wanted = Wanted { spec: function(&[]), context, is_held: false };
        world.request(|ticket| Event::Start(ticket, Box::new(wanted)));
        world.obey();
    };
    let mut world = World::new();
    world.add(&node(A));
    start(&mut world, ONE);
    assert_eq!(world.status(ONE).state, State::Starting);
    world.patch(ONE, &[]);
    assert!(matches!(world.call(A).1, Call::Activate(_)));
    start(&mut world, TWO);
    world.pass(Duration::from_millis(900));
    assert!(world.calls.is_empty());
    world.pass(Duration::from_millis(200));
    assert!(matches!(world.call(A).1, Call::Activate(_)));
}

// What can be asked.

#[test]
fn a_plan_says_where_components_would_go_and_changes_nothing() {
    let mut world = World::new();
    let mut labelled = node(B);
    labelled.capabilities.labels = vec!["hostname=beta".into()];
    world.add(&node(A));
    world.add(&labelled);
    let items = [("one".to_string(), function(&[])), ("two".to_string(), function(&[]))];
    let plan = world.engine.plan(&items).unwrap();
    assert_eq!(plan.iter().map(|place| place.node).collect::<Vec<_>>(), [A, B]);
    assert_eq!((plan[0].name.as_str(), plan[1].hostname.as_str()), ("one", "beta"));
    assert_eq!(world.engine.plan(&items).unwrap(), plan);
    assert_eq!(world.run(ONE).node, A, "as foreseen");
    let error = world.engine.plan(&[("three".into(), function(&[("tee", "required")]))]).unwrap_err();
    assert!(error.message.starts_with("no node for 'three': 2 of 2 nodes run RUST_WASM, 0 of 2"), "{error}");
}

#[test]
fn a_plan_is_what_then_happens() {
    let annotations: [&[(&str, &str)]; 6] = [
        &[],
        &[("memory", "3GiB")],
        &[("min_instances", "2"), ("spread", "node")],
        &[("min_instances", "3"), ("memory", "1GiB")],
        &[("min_instances", "4"), ("spread", "node")],
        &[("min_instances", "0")],
    ];
    let (mut planned, mut refused) = (0, 0);
    for (seed, strategy) in (1..30).flat_map(|seed| crate::placement::STRATEGIES.map(|strategy| (seed, strategy))) {
        let mut world = World::with(|settings| (settings.seed, settings.strategy) = (seed, strategy));
        for id in [A, B, C] {
            world.add(&node(id));
        }
        for nth in 1..=4_usize {
            let annotations = annotations[(seed as usize * 31 + nth * nth) % annotations.len()];
            let id = ComponentId(Uuid::from_u128(nth as u128));
            let name = format!("f{nth}");
            let plan = world.engine.plan(&[(name, function(annotations))]);
            let ticket = world.wanted(id, 1, function(annotations));
            world.obey();
            match plan {
                Ok(places) if annotations.contains(&("min_instances", "0")) => assert_eq!(places.len(), 1),
                Ok(places) => {
                    planned += 1;
                    let places: Vec<NodeId> = places.iter().map(|place| place.node).collect();
                    let ran: Vec<NodeId> = world.row(id).instances.iter().map(|instance| instance.node).collect();
                    assert_eq!(places, ran, "seed {seed} {strategy:?} {annotations:?}");
                }
                Err(error) => {
                    refused += 1;
                    assert_eq!(error, world.refusal(ticket), "seed {seed} {strategy:?} {annotations:?}");
                }
            }
        }
    }
    assert!(planned > 100 && refused > 20, "{planned} {refused}");
}
