//! Components with several instances, or none at first.

use edgeless_api::node::InstanceLoad;

use super::*;

impl World {
    /// A component with these annotations, started and active.
    fn scaled(&mut self, id: ComponentId, annotations: &[(&str, &str)]) {
        let ticket = self.wanted(id, 1, function(annotations));
        self.obey();
        assert_eq!(self.answer(ticket), Ok(Reply::Started(id)));
        self.activate(&[id]);
        self.obey();
    }

    fn instances(&self, id: ComponentId) -> Vec<InstanceId> {
        self.status(id).instances.iter().map(|one| one.instance).collect()
    }

    /// Time passes, and each instance at this node has so much to do.
    fn report(&mut self, about: &Registration, seconds: u64, queued: u32) {
        for _ in 0..seconds {
            let at = |id: &ComponentId| self.instances(*id);
            let instances = self.engine.components.keys().flat_map(at).filter(|at| at.node == about.node);
            let load = |at: InstanceId| InstanceLoad { instance: at.function, queued, handled: 7 };
            let loads = instances.map(load).collect();
            self.register(Registration { loads, ..about.clone() }).unwrap();
            self.pass(Duration::from_secs(1));
            self.obey();
        }
    }
}

#[test]
fn a_start_is_answered_when_the_first_of_them_are_there() {
    let mut world = World::new();
    world.add(&node(A));
    world.add(&node(B));
    let annotations = [("min_instances", "3"), ("max_instances", "5"), ("partition_by", "source")];
    let ticket = world.wanted(ONE, 1, function(&annotations));
    let calls = std::mem::take(&mut world.calls);
    let contexts: Vec<_> = calls.iter().map(|(_, _, call)| created(call).context.clone().unwrap()).collect();
    let about = contexts.iter().map(|context| (context.replica, context.epoch, context.reports_load));
    assert_eq!(about.collect::<Vec<_>>(), [(0, 1, true), (1, 2, true), (2, 3, true)]);
    for (op, node, call) in calls {
        assert!(world.is_open(ticket));
        world.ok(node, op, &call);
    }
    assert_eq!(world.answer(ticket), Ok(Reply::Started(ONE)));
    let row = world.row(ONE);
    assert_eq!(row.instances, world.instances(ONE));
    assert_eq!((row.instances.len(), row.addresses.len(), row.partition_by.as_str()), (3, 2, "source"));
    world.activate(&[ONE]);
    assert_eq!(world.obey().iter().filter(|(_, call)| matches!(call, Call::Activate(_))).count(), 3);
    world.stop(ONE);
    assert_eq!(world.obey().len(), 3);
    assert!(world.engine.view(&[ONE]).is_empty());
}

#[test]
fn if_one_of_them_cannot_start_none_is_left() {
    let mut world = World::new();
    world.add(&node(A));
    let ticket = world.wanted(ONE, 1, function(&[("min_instances", "2"), ("max_instances", "2")]));
    let (op, _, call) = world.calls.remove(0);
    world.ok(A, op, &call);
    let (op, _, _) = world.calls.remove(0);
    world.end(op, Err(Error::rejected("the code is garbage")));
    assert_eq!(world.refusal(ticket), Error::rejected("the code is garbage"));
    assert!(matches!(world.obey()[..], [(A, Call::Stop(..))]));
    assert!(world.engine.view(&[ONE]).is_empty());
    let spread = world.wanted(TWO, 1, function(&[("min_instances", "2"), ("spread", "node")]));
    world.obey();
    assert!(world.refusal(spread).message.contains("spread"), "{}", world.refusal(spread));
    assert_eq!(world.engine.nodes()[0].components, 0);
}

#[test]
fn several_instances_of_what_keeps_state_are_refused() {
    let mut world = World::new();
    world.add(&node(A));
    let mut spec = function(&[("max_instances", "2")]);
    if let ComponentSpec::Function(function) = &mut spec {
        function.state.policy = edgeless_api::component::StatePolicy::Global;
    }
    let ticket = world.wanted(ONE, 1, spec);
    assert!(world.refusal(ticket).message.contains("state=transient"));
    let wrong = world.wanted(ONE, 1, function(&[("min_instances", "-1")]));
    assert!(world.refusal(wrong).message.contains("min_instances"));
}

#[test]
fn what_is_lost_of_several_is_placed_again_and_the_others_go_on() {
    let mut world = World::new();
    world.add(&node(A));
    world.add(&node(B));
    world.scaled(ONE, &[("min_instances", "2")]);
    let before = world.instances(ONE);
    world.register(Registration { leaving: true, ..node(B) }).unwrap();
    let stays: Vec<_> = before.iter().copied().filter(|at| at.node == A).collect();
    assert_eq!(world.row(ONE).instances, stays);
    world.obey();
    let after = world.instances(ONE);
    assert_eq!(after.len(), 2);
    assert!(stays.iter().all(|at| after.contains(at)) && after.iter().all(|at| at.node == A));
    assert_eq!(world.row(ONE).instances, after);
}

#[test]
fn it_grows_under_load_and_shrinks_without_losing_what_is_queued() {
    let mut world = World::new();
    let a = node(A);
    world.add(&a);
    world.scaled(ONE, &[("max_instances", "3"), ("min_instances", "1")]);
    world.run(TWO);
    world.patch(TWO, &[("out", ONE)]);
    world.obey();
    world.report(&a, 3, 50);
    assert_eq!(world.instances(ONE).len(), 2);
    world.report(&a, 10, 50);
    assert_eq!(world.instances(ONE).len(), 3, "never more");
    assert_eq!(world.status(ONE).instances[0].queued, 50);
    let last = world.instances(ONE)[2];
    // Now nothing happens.
    while world.calls.is_empty() {
        let at = world.instances(ONE);
        let load = |at: &InstanceId| InstanceLoad { instance: at.function, queued: 0, handled: 7 };
        world.register(Registration { loads: at.iter().map(load).collect(), ..a.clone() }).unwrap();
        world.pass(Duration::from_millis(500));
        assert!(world.now < Millis(60_000));
    }
    let (op, call) = world.call(A);
    let Call::SetRows(rows) = &call else { panic!("{call:?}") };
    assert!(!rows[0].instances.contains(&last), "nothing more is sent to it");
    world.ok(A, op, &call);
    let (op, call) = world.call(A);
    assert!(matches!(call, Call::Release { instance, .. } if instance == last.function), "{call:?}");
    world.ok(A, op, &call);
    world.report(&a, 20, 0);
    assert_eq!(world.instances(ONE).len(), 1);
    assert!(world.note("is scaled from 2 to 1"));
}

#[test]
fn what_finds_no_place_beyond_the_least_is_done_without() {
    let mut world = World::new();
    let a = node(A);
    world.add(&a);
    world.scaled(ONE, &[("max_instances", "2"), ("min_instances", "1"), ("spread", "node")]);
    world.report(&a, 6, 50);
    assert_eq!(world.instances(ONE).len(), 1);
    assert_eq!(world.status(ONE).reason, "");
    assert!(world.engine.homeless.is_empty());
    world.add(&node(B));
    for _ in 0..4 {
        world.register(node(B)).unwrap();
        world.report(&a, 1, 50);
    }
    assert_eq!(world.instances(ONE).len(), 2);
}

#[test]
fn nothing_runs_before_the_first_event_and_none_after_a_while_without() {
    let mut world = World::new();
    let a = node(A);
    world.add(&a);
    world.scaled(ONE, &[("min_instances", "0")]);
    assert!(world.instances(ONE).is_empty());
    assert_eq!(world.status(ONE).state, State::Waiting);
    world.run(TWO);
    world.patch(TWO, &[("out", ONE)]);
    let calls = world.obey();
    assert!(wiring(&calls[0].1).values().all(|target| matches!(target, Target::Row(row) if row.instances.is_empty())));
    for _ in 0..2 {
        let wake = world.request(|ticket| Event::Wake(ticket, vec![ONE, ComponentId::random()]));
        assert_eq!(world.answer(wake), Ok(Reply::Done));
    }
    let calls = world.obey();
    let one = world.instance(ONE);
    assert_eq!(rows_in(&calls), [(A, vec![world.row(ONE)])]);
    assert!(calls.contains(&(A, Call::Activate(one.function))), "it was activated before it ran");
    world.report(&a, 9, 0);
    assert_eq!(world.instances(ONE), [one]);
    world.report(&a, 4, 0);
    assert!(world.instances(ONE).is_empty());
    world.request(|ticket| Event::Wake(ticket, vec![ONE]));
    world.obey();
    assert_eq!(world.status(ONE).state, State::Running);
    world.report(&a, 5, 0);
    assert_eq!(world.instances(ONE).len(), 1, "the time before does not count");
}

#[test]
fn what_could_never_be_placed_is_refused_even_if_nothing_runs_at_first() {
    let mut world = World::new();
    world.add(&node(A));
    let ticket = world.wanted(ONE, 1, function(&[("min_instances", "0"), ("tee", "required")]));
    assert!(world.refusal(ticket).message.contains("trusted"), "{}", world.refusal(ticket));
    assert!(world.engine.view(&[ONE]).is_empty());
}

/// A plain node cannot wake anybody.
#[test]
fn what_a_plain_node_sends_to_always_runs() {
    let mut world = World::new();
    world.add(&plain(A));
    world.run(TWO);
    world.scaled(ONE, &[("min_instances", "0")]);
    assert!(world.instances(ONE).is_empty());
    world.patch(TWO, &[("out", ONE)]);
    world.obey();
    assert_eq!(world.instances(ONE).len(), 1);
}

#[test]
fn limits_hold_when_all_instances_have_them() {
    let mut world = World::new();
    world.add(&node(A));
    world.wanted(ONE, 1, container(&[("min_instances", "2")]));
    world.obey();
    let at = world.instances(ONE);
    assert_eq!(world.limit(ONE, &[("cpu", "1")], at.first().copied()).unwrap_err().code, Code::Unavailable);
    let changes = pairs(&[("cpu", "1")]);
    let ticket = world.request(|ticket| Event::Limit { ticket, id: ONE, changes, at });
    assert!(world.answer(ticket).is_ok());
}
