//! Nodes that tell what they run: what is wanted goes on, what is not is stopped, nothing runs twice.

use edgeless_api::node::Running;

use super::*;

fn reporting(id: NodeId) -> Registration {
    Registration { reports: true, ..node(id) }
}

/// The same node, another process of it.
fn restarted(about: &Registration) -> Registration {
    Registration { nonce: about.nonce + 1, ..about.clone() }
}

fn running(component: ComponentId, epoch: u64, instance: u128) -> Running {
    let instance = Uuid::from_u128(instance);
    Running { component, replica: 0, epoch, instance, kind: FUNCTION, is_active: true }
}

fn function_at(node: NodeId, instance: u128) -> InstanceId {
    InstanceId { node, function: Uuid::from_u128(instance) }
}

impl World {
    /// Announces a node, and whether it is asked what it runs.
    fn is_asked(&mut self, about: &Registration) -> bool {
        match self.register(about.clone()) {
            Ok(Reply::Registered(registered)) => registered.wants_report,
            other => panic!("{other:?}"),
        }
    }

    fn tell(&mut self, about: &Registration, report: &[Running]) {
        let about = Registration { report: Some(report.to_vec()), ..about.clone() };
        assert!(!self.is_asked(&about), "it has told");
    }

    /// A node that runs nothing at first.
    fn join(&mut self, about: &Registration) {
        assert!(self.is_asked(about));
        self.tell(about, &[]);
        self.obey();
    }

    /// The epoch in which a component was placed last.
    fn epoch(&self, id: ComponentId) -> u64 {
        self.status(id).epoch
    }
}

#[test]
fn a_node_that_tells_what_it_runs_is_never_reset_and_takes_nothing_before() {
    let mut world = World::new();
    let a = reporting(A);
    assert!(world.is_asked(&a), "it is new");
    let ticket = world.wanted(ONE, 1, function(&[]));
    assert!(world.refusal(ticket).message.contains("the domain has no node"), "it has not told yet");
    assert!(world.is_asked(&a), "it is asked until it tells");
    assert!(world.published.is_empty(), "it is not part of the domain");
    world.tell(&a, &[]);
    assert_eq!(world.obey(), []);
    world.run(ONE);
    assert!(!world.is_asked(&a));
    assert!(world.is_asked(&restarted(&a)));
    assert_eq!(world.obey(), []);
}

#[test]
fn a_node_that_never_tells_is_asked_each_time_and_lost_like_any_other() {
    let mut world = World::new();
    let a = reporting(A);
    for _ in 0..4 {
        assert!(world.is_asked(&a));
        world.pass(Duration::from_secs(1));
    }
    world.pass(KEEP_ALIVE);
    assert!(world.note("lost node") && world.engine.nodes().is_empty());
}

/// Else a lost answer would have a node stop what an orchestrator has placed there since.
#[test]
fn what_was_not_asked_for_is_not_believed() {
    let mut world = World::new();
    let a = reporting(A);
    let early = Registration { report: Some(vec![running(ONE, 1, 7)]), ..a.clone() };
    assert!(world.is_asked(&early), "it may be from before");
    world.tell(&a, &[]);
    let instance = world.run(ONE);
    world.tell(&a, &[]);
    assert_eq!((world.obey(), world.instance(ONE)), (vec![], instance));
}

#[test]
fn a_restarted_node_goes_on_with_what_it_ran_and_is_wired_anew() {
    let mut world = World::new();
    let a = reporting(A);
    world.join(&a);
    let (one, two) = (world.run(ONE), world.run(TWO));
    world.patch(ONE, &[("out", TWO)]);
    world.activate(&[ONE, TWO]);
    world.obey();
    world.join(&reporting(B));
    let a = restarted(&a);
    assert!(world.is_asked(&a));
    assert_eq!(world.obey(), [], "B could run them, but A may yet");
    assert_eq!((world.instance(ONE), world.instance(TWO)), (one, two));
    let report = [running(ONE, 1, one.function.as_u128()), running(TWO, 1, two.function.as_u128())];
    world.tell(&a, &report);
    let calls = world.obey();
    let at_a = |(node, call): &(NodeId, Call)| *node == A && !matches!(call, Call::Create(_) | Call::Stop(..));
    assert!(!calls.is_empty() && calls.iter().all(at_a), "{calls:?}");
    assert!(calls.iter().any(|(_, call)| matches!(call, Call::SetOutputs(_, patch) if patch.id == one.function
        && patch.outputs.values().all(|target| matches!(target, Target::Row(row) if row.component == TWO)))));
    assert_eq!((world.instance(ONE), world.epoch(ONE), world.status(ONE).state), (one, 1, State::Running));
    assert_eq!((world.instance(TWO), world.epoch(TWO)), (two, 1));
    assert!(world.note("runs component 00000000-0000-0000-0000-000000000001 'f1' already"));
}

#[test]
fn what_a_restarted_node_runs_no_more_is_placed_anew() {
    let mut world = World::new();
    let a = reporting(A);
    world.join(&a);
    world.run(ONE);
    let a = restarted(&a);
    assert!(world.is_asked(&a));
    world.tell(&a, &[]);
    let calls = world.obey();
    assert!(matches!(calls.as_slice(), [(A, create), ..] if epoch(create) == 2), "{calls:?}");
    assert_eq!(world.epoch(ONE), 2);
}

#[test]
fn a_start_whose_node_is_restarted_is_found_there() {
    let mut world = World::new();
    let a = reporting(A);
    world.join(&a);
    let ticket = world.wanted(ONE, 1, function(&[]));
    let (op, _) = world.call(A);
    let a = restarted(&a);
    assert!(world.is_asked(&a));
    world.tell(&a, &[running(ONE, 1, 7)]);
    assert_eq!(world.answer(ticket), Ok(Reply::Started(ONE)));
    // The call that started it ends late: it must not be taken for one too many.
    world.end(op, Ok(Outcome::Started(ComponentRef::Instance(function_at(A, 7)))));
    assert!(!world.obey().iter().any(|(_, call)| matches!(call, Call::Stop(..) | Call::Create(_))));
    assert_eq!(world.instance(ONE), function_at(A, 7));
}

#[test]
fn a_node_that_comes_back_goes_on_with_what_has_no_place_meanwhile() {
    let mut world = World::new();
    let a = reporting(A);
    world.join(&a);
    let one = world.run(ONE);
    world.pass(KEEP_ALIVE);
    assert!(world.note("lost node"));
    assert_eq!(world.status(ONE).state, State::Waiting);
    assert!(world.is_asked(&a));
    world.tell(&a, &[running(ONE, 1, one.function.as_u128())]);
    assert!(world.obey().iter().all(|(_, call)| matches!(call, Call::SetOutputs(..))));
    assert_eq!((world.instance(ONE), world.epoch(ONE)), (one, 1));
}

#[test]
fn of_two_the_newer_goes_on_and_the_older_is_stopped_before_anything_new_comes_there() {
    let mut world = World::new();
    let (a, b) = (reporting(A), reporting(B));
    world.join(&a);
    let one = world.run(ONE);
    world.join(&b);
    world.live(KEEP_ALIVE, &[&b]);
    let there = world.instance(ONE);
    assert_eq!((there.node, world.epoch(ONE)), (B, 2));
    assert!(world.is_asked(&a));
    world.tell(&a, &[running(ONE, 1, one.function.as_u128())]);
    let (op, call) = world.call(A);
    assert_eq!(call, Call::Stop(FUNCTION, one));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.published.last(), Some(&1), "A takes nothing yet");
    world.ok(A, op, &call);
    world.pass(Duration::from_millis(1));
    assert_eq!((world.published.last(), world.instance(ONE)), (Some(&2), there));
}

/// What was lost and then stopped, was started anew with another spec, or was never known, has no place here.
#[test]
fn what_nobody_wants_is_stopped() {
    let mut world = World::new();
    let a = reporting(A);
    world.join(&a);
    let (one, two) = (world.run(ONE), world.run(TWO));
    world.pass(KEEP_ALIVE);
    world.stop(TWO);
    world.wanted(ONE, 2, function(&[]));
    assert!(world.is_asked(&a));
    let mut wrong_kind = running(ONE, 9, 8);
    wrong_kind.kind = ComponentKind::Resource;
    let report = [
        running(ONE, 1, one.function.as_u128()),
        running(TWO, 1, two.function.as_u128()),
        running(ComponentId(Uuid::from_u128(77)), 1, 9),
        Running { replica: 3, ..running(ONE, 9, 10) },
        wrong_kind,
    ];
    world.tell(&a, &report);
    let mut stopped: Vec<InstanceId> = world.obey().into_iter().filter_map(|(_, call)| stops(&call)).collect();
    stopped.sort();
    let mut all: Vec<InstanceId> = report.iter().map(|one| function_at(A, one.instance.as_u128())).collect();
    all.sort();
    assert_eq!(stopped, all);
}

fn stops(call: &Call) -> Option<InstanceId> {
    match call {
        Call::Stop(_, instance) => Some(*instance),
        _ => None,
    }
}

/// A start that nobody heard of any more is found by asking; a reset would stop what runs there beside it.
#[test]
fn a_node_in_doubt_tells_what_it_runs_and_is_not_reset() {
    let mut world = World::new();
    let a = reporting(A);
    world.join(&a);
    let one = world.run(ONE);
    world.wanted(TWO, 1, function(&[]));
    let (op, _) = world.call(A);
    world.wanted(TWO, 2, function(&[]));
    let (second, create) = world.call(A);
    world.ok(A, second, &create);
    world.end(op, unanswered());
    assert!(world.is_asked(&a));
    let two = world.instance(TWO);
    let report = [running(ONE, 1, one.function.as_u128()), running(TWO, 1, 7), running(TWO, 2, two.function.as_u128())];
    world.tell(&a, &report);
    let stopped: Vec<InstanceId> = world.obey().iter().filter_map(|(_, call)| stops(call)).collect();
    assert_eq!(stopped, [function_at(A, 7)]);
    assert_eq!((world.instance(ONE), world.instance(TWO)), (one, two));
}
