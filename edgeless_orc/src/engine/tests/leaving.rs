//! Components that leave for another domain.

use edgeless_api::node::InstanceLoad;

use super::moving::with_state;
use super::*;

const GRACE: Duration = Duration::from_secs(3);
const STATE: Bytes = Bytes::from_static(b"42");

impl World {
    fn release(&mut self, id: ComponentId) -> Ticket {
        self.request(|ticket| Event::Release(ticket, id, GRACE))
    }

    /// What a release yields that all nodes obey.
    fn released(&mut self, id: ComponentId) -> Answer {
        let ticket = self.release(id);
        self.obey();
        self.answer(ticket)
    }

    /// A component that is started in an epoch, by a controller that knows its state or does not.
    fn begin(&mut self, id: ComponentId, epoch: u64, spec: ComponentSpec, state: Option<Bytes>) -> Answer {
        let context = StartContext { state, ..StartContext::new(id, epoch, "f") };
        let wanted = Box::new(Wanted { spec, context, is_held: true });
        let ticket = self.request(|ticket| Event::Start(ticket, wanted));
        if self.answers.contains_key(&ticket) {
            return self.answer(ticket);
        }
        let (_, _, call) = self.calls.iter().find(|(_, _, call)| matches!(call, Call::Create(_))).unwrap();
        self.begun = created(call).context.as_ref().unwrap().state.clone();
        self.obey();
        self.answer(ticket)
    }
}

fn ending(at: InstanceId) -> Call {
    Call::Release { instance: at.function, grace: GRACE }
}

#[test]
fn senders_are_told_before_the_instance_ends_and_what_it_saved_is_handed_over() {
    let mut world = World::pair(with_state());
    world.saved = Some(STATE);
    let at = world.instance(TWO);
    let ticket = world.release(TWO);
    let (op, call) = world.call(A);
    let moving = Row { moving: true, ..row(TWO, 2, &[]) };
    assert_eq!(call, Call::SetRows(vec![moving.clone()]), "its senders hold what they have for it");
    world.ok(A, op, &call);
    let (op, call) = world.call(A);
    assert_eq!(call, ending(at));
    assert!(world.is_open(ticket));
    world.ok(A, op, &call);
    assert_eq!(world.answer(ticket), Ok(Reply::Released(Some(STATE))));
    assert!(world.calls.is_empty() && world.engine.view(&[TWO]).is_empty());
    assert_eq!(world.row(TWO), moving, "until it is heard of where it runs");

    // What still comes to its node goes where it runs now.
    let there = InstanceId::random(C);
    let elsewhere = Row { epoch: 2 << 32, ..row(TWO, 0, &[there]) };
    let elsewhere = Row { addresses: BTreeMap::new(), ..elsewhere };
    world.request(|ticket| Event::Patch(ticket, FUNCTION, Patch::new(ONE.0, out(elsewhere.clone()))));
    assert_eq!(rows_in(&world.obey()), [(A, vec![elsewhere])]);
}

#[test]
fn a_node_that_it_ran_on_is_told_where_it_runs_now_also_without_a_sender_there() {
    let mut world = World::pair(with_state());
    world.saved = Some(STATE);
    world.move_to(ONE, B);
    world.obey();
    assert_eq!((world.instance(ONE).node, world.instance(TWO).node), (B, A));
    assert_eq!(world.released(TWO), Ok(Reply::Released(Some(STATE))));
    let elsewhere = Row { addresses: BTreeMap::new(), ..Row::new(TWO, 2 << 32, vec![InstanceId::random(C)]) };
    world.request(|ticket| Event::Patch(ticket, FUNCTION, Patch::new(ONE.0, out(elsewhere.clone()))));
    let told = rows_in(&world.obey());
    assert!(told.contains(&(A, vec![elsewhere])), "{told:?}");
}

#[test]
fn what_has_left_is_forgotten_in_the_end() {
    let mut world = World::pair(with_state());
    world.released(TWO).unwrap();
    world.patch(ONE, &[]);
    world.obey();
    world.live(Duration::from_secs(599), &[&node(A), &node(B)]);
    assert!(world.engine.links.contains_key(&TWO), "its node may be told yet where it runs");
    world.live(Duration::from_secs(2), &[&node(A), &node(B)]);
    assert!(!world.engine.links.contains_key(&TWO) && !world.engine.left.contains(TWO));
}

#[test]
fn all_instances_end_and_those_under_way_are_abandoned() {
    let mut world = World::new();
    world.add(&node(A));
    world.add(&node(B));
    let ticket = world.wanted(TWO, 1, function(&[("min_instances", "2"), ("max_instances", "2")]));
    let (op, call) = world.call(A);
    world.ok(A, op, &call);
    let released = world.release(TWO);
    assert!(world.is_open(ticket) && world.is_open(released));
    let calls = world.obey();
    let ended = calls.iter().filter(|(_, call)| matches!(call, Call::Release { .. })).count();
    assert_eq!(ended, 2, "what was created meanwhile ends, too: {calls:?}");
    assert_eq!(world.answer(released), Ok(Reply::Released(None)));
    assert!(world.engine.registry.nodes.values().all(|node| node.residents.is_empty()));
}

#[test]
fn plain_nodes_are_asked_to_stop_what_has_no_state_and_state_stays_with_them() {
    let mut world = World::new();
    world.add(&plain(A));
    let at = world.run(ONE);
    let ticket = world.release(ONE);
    assert_eq!(world.obey(), [(A, Call::Stop(FUNCTION, at))]);
    assert_eq!(world.answer(ticket), Ok(Reply::Released(None)));

    world.begin(TWO, 1, with_state(), None).unwrap();
    let ticket = world.release(TWO);
    let refusal = world.refusal(ticket);
    assert_eq!(refusal.code, Code::Rejected);
    assert!(refusal.message.starts_with("the state of 'f' does not travel: node"), "{refusal}");
    assert!(world.calls.is_empty());
    assert_eq!(world.status(TWO).state, State::Running, "it stays as it was");
}

#[test]
fn a_repeat_is_answered_the_same_and_a_newer_start_forgets() {
    let mut world = World::pair(with_state());
    world.saved = Some(STATE);
    let first = world.release(TWO);
    let joined = world.release(TWO);
    world.obey();
    for ticket in [first, joined] {
        assert_eq!(world.answer(ticket), Ok(Reply::Released(Some(STATE))));
    }
    assert_eq!(world.released(TWO), Ok(Reply::Released(Some(STATE))));
    assert_eq!(world.begin(TWO, 0, with_state(), None).unwrap_err().code, Code::Rejected, "late");

    // Started again in the same epoch: that takes it back.
    world.begin(TWO, 1, with_state(), None).unwrap();
    assert!(!world.row(TWO).moving);
    assert_eq!(world.begun, Some(STATE));
    world.saved = Some(Bytes::from_static(b"43"));
    assert_eq!(world.released(TWO), Ok(Reply::Released(world.saved.clone())));

    // And in a newer one: its controller knows with what.
    world.begin(TWO, 2, with_state(), Some(STATE)).unwrap();
    assert_eq!(world.begun, Some(STATE));
    world.stop(TWO);
    world.obey();
    let unknown = world.release(TWO);
    assert_eq!(world.refusal(unknown), Error::not_found(format!("component {TWO} is not known in this domain")));
}

#[test]
fn what_is_taken_back_and_finds_no_place_is_not_lost() {
    let mut world = World::pair(with_state());
    world.saved = Some(STATE);
    world.released(TWO).unwrap();
    for node in [A, B] {
        world.cordon(node, true).unwrap();
    }
    assert!(world.begin(TWO, 1, with_state(), None).is_err());
    for node in [A, B] {
        world.cordon(node, false).unwrap();
    }
    world.begin(TWO, 1, with_state(), None).unwrap();
    assert_eq!(world.begun, Some(STATE));
}

#[test]
fn an_answer_is_forgotten_after_a_while() {
    let mut world = World::pair(with_state());
    world.saved = Some(STATE);
    world.released(TWO).unwrap();
    world.now = world.now + Duration::from_secs(299);
    assert_eq!(world.released(TWO), Ok(Reply::Released(Some(STATE))));
    world.pass(Duration::from_secs(1));
    let late = world.release(TWO);
    assert_eq!(world.refusal(late).code, Code::NotFound);
}

#[test]
fn a_state_that_cannot_be_had_is_no_empty_state() {
    for is_lost in [false, true] {
        let mut world = World::pair(with_state());
        let ticket = world.release(TWO);
        let (op, call) = world.call(A);
        world.ok(A, op, &call);
        if is_lost {
            world.register(Registration { leaving: true, ..node(A) }).unwrap();
        } else {
            let (op, _) = world.call(A);
            world.end(op, Err(Error::not_found("no such instance")));
        }
        let refusal = world.refusal(ticket);
        assert_eq!(refusal.code, Code::NotFound, "it is gone");
        assert!(refusal.message.starts_with("state lost: "), "{refusal}");
        assert!(world.engine.view(&[TWO]).is_empty());
        let again = world.release(TWO);
        assert_eq!(world.refusal(again), refusal);
        if is_lost {
            continue;
        }
        world.begin(TWO, 1, with_state(), None).unwrap();
        assert_eq!(world.engine.view(&[TWO])[0].loss, refusal.message);
    }
}

#[test]
fn a_node_that_does_not_answer_is_asked_until_the_state_is_had() {
    let mut world = World::pair(with_state());
    world.saved = Some(STATE);
    let ticket = world.release(TWO);
    let (op, call) = world.call(A);
    world.ok(A, op, &call);
    for _ in 0..20 {
        let (op, _, call) = world.take(|call| !matches!(call, Call::Stop(..)));
        assert!(matches!(call, Call::Release { .. }));
        world.end(op, unanswered());
        assert!(world.is_open(ticket) && !world.status(TWO).reason.is_empty());
        while world.calls.is_empty() {
            world.register(node(A)).unwrap();
            world.register(node(B)).unwrap();
            world.pass(Duration::from_secs(1));
        }
    }
    world.obey();
    assert_eq!(world.answer(ticket), Ok(Reply::Released(Some(STATE))));
}

#[test]
fn an_instance_that_its_node_has_lost_begins_anew_elsewhere_and_says_so() {
    let mut world = World::pair(with_state());
    let ticket = world.move_to(TWO, B);
    let (op, call) = world.call(A);
    world.ok(A, op, &call);
    let (op, _) = world.call(A);
    world.end(op, Err(Error::not_found("no such instance")));
    world.obey();
    assert_eq!(world.refusal(ticket).message, "it has moved and begins anew: state lost: no such instance");
    assert_eq!((world.instance(TWO).node, world.status(TWO).state), (B, State::Running));
    assert_eq!(world.engine.view(&[TWO])[0].loss, "state lost: no such instance");
    world.saved = Some(STATE);
    let back = world.move_to(TWO, A);
    world.obey();
    assert_eq!(world.answer(back), Ok(Reply::Done));
    assert_eq!(world.engine.view(&[TWO])[0].loss, "", "it has a state again");
}

#[test]
fn what_never_ran_hands_over_what_it_was_to_begin_with() {
    let mut world = World::new();
    world.add(&node(A));
    let context = StartContext { state: Some(STATE), ..StartContext::new(TWO, 1, "f") };
    let wanted = Box::new(Wanted { spec: with_state(), context, is_held: true });
    let ticket = world.request(|ticket| Event::Start(ticket, wanted));
    let (op, call) = world.call(A);
    assert_eq!(created(&call).context.as_ref().unwrap().state, Some(STATE));
    let released = world.release(TWO);
    world.end(op, Err(Error::unavailable("connection refused")));
    world.live(Duration::from_secs(1), &[&node(A)]);
    assert!(world.answer(ticket).is_err());
    assert_eq!(world.answer(released), Ok(Reply::Released(Some(STATE))));
}

#[test]
fn what_waits_for_its_node_does_not_leave_without_its_state() {
    let mut world = World::pair(with_state());
    world.move_to(ONE, B);
    world.obey();
    world.cordon(B, true).unwrap();
    world.register(Registration { leaving: true, ..node(A) }).unwrap();
    assert_eq!(world.status(TWO).state, State::Waiting);
    let ticket = world.release(TWO);
    let refusal = world.refusal(ticket);
    assert_eq!(refusal.code, Code::Unavailable);
    assert!(refusal.message.contains("may be on the node that ran it"), "{refusal}");
}

#[test]
fn a_stop_ends_a_release() {
    let mut world = World::pair(with_state());
    let at = world.instance(TWO);
    let released = world.release(TWO);
    let stopped = world.stop(TWO);
    let calls = world.obey();
    assert!(calls.contains(&(A, Call::Stop(FUNCTION, at))), "{calls:?}");
    assert_eq!(world.answer(stopped), Ok(Reply::Done));
    assert_eq!(world.refusal(released).code, Code::Unavailable);
    assert_eq!(rows_in(&calls).last(), Some(&(A, vec![row(TWO, 3, &[])])), "nobody waits for it");
    let again = world.release(TWO);
    assert_eq!(world.refusal(again).code, Code::NotFound);
}

#[test]
fn a_move_under_way_ends_when_the_component_leaves() {
    for spec in [function(&[]), with_state()] {
        for steps in 0..4 {
            let mut world = World::pair(spec.clone());
            world.saved = (spec == with_state()).then_some(STATE);
            let moved = world.move_to(TWO, B);
            for _ in 0..steps {
                let (op, node, call) = world.calls.remove(0);
                world.ok(node, op, &call);
            }
            let released = world.release(TWO);
            world.obey();
            assert!(!world.is_open(moved), "after {steps} steps");
            assert_eq!(world.answer(released), Ok(Reply::Released(world.saved.clone())), "after {steps} steps");
            assert!(world.engine.registry.nodes.values().all(|node| node.residents.iter().all(|(id, _)| *id == ONE)));
        }
    }
}

/// A function that keeps state may run nowhere for a while; what it saved outlives that.
#[test]
fn what_goes_to_nothing_begins_with_what_it_had() {
    let mut world = World::new();
    world.add(&node(A));
    let mut spec = with_state();
    spec.annotations_mut().insert("min_instances".into(), "0".into());
    let ticket = world.wanted(TWO, 1, spec);
    assert_eq!(world.answer(ticket), Ok(Reply::Started(TWO)));
    world.request(|ticket| Event::Wake(ticket, vec![TWO]));
    world.obey();
    world.saved = Some(STATE);
    while !world.status(TWO).instances.is_empty() {
        world.live(Duration::from_secs(1), &[&node(A)]);
        assert!(world.now < Millis(600_000), "it never goes");
        let load = InstanceLoad {
            instance: world.status(TWO).instance.map(|at| at.function).unwrap_or_default(),
            queued: 0,
            handled: 0,
        };
        world.register(Registration { loads: vec![load], ..node(A) }).unwrap();
        world.obey();
    }
    world.request(|ticket| Event::Wake(ticket, vec![TWO]));
    let (_, _, call) = world.take(|call| matches!(call, Call::Create(_)));
    assert_eq!(created(&call).context.as_ref().unwrap().state, Some(STATE));
}
