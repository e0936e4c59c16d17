//! What functions have saved, when their node is lost.

use std::time::UNIX_EPOCH;

use edgeless_api::component::StatePolicy;
use edgeless_api::journal::SavedState;
use edgeless_api::node::Running;

use super::*;

fn with(policy: StatePolicy) -> ComponentSpec {
    let mut spec = function(&[]);
    if let ComponentSpec::Function(function) = &mut spec {
        function.state.policy = policy;
    }
    spec
}

fn reporting(id: NodeId) -> Registration {
    let mut about = Registration { reports: true, ..node(id) };
    about.capabilities.has_global_state = true;
    about
}

fn saved(epoch: u64, syncs: u64, state: Option<&'static str>) -> Saved {
    let at = UNIX_EPOCH + Duration::from_secs(12 * 3600 + 3 * 60 + 7);
    let state = state.map(|state| Bytes::from_static(state.as_bytes()));
    Saved { component: ONE, about: SavedState { epoch, syncs, at }, state }
}

impl World {
    /// Nodes A and B, and ONE on A.
    fn keeping(policy: StatePolicy) -> Self {
        let mut world = Self::durable();
        world.comes_with(&reporting(A), &[]);
        world.wanted(ONE, 1, with(policy));
        world.go_on();
        world.comes_with(&reporting(B), &[]);
        assert_eq!(world.instance(ONE).node, A);
        world
    }

    fn save(&mut self, at: NodeId, saved: Saved) -> Ticket {
        self.request(|ticket| Event::Saved(ticket, at, vec![saved]))
    }

    /// Time passes while B is there; returns what the nodes were asked.
    fn without_a(&mut self, time: Duration) -> Vec<(NodeId, Call)> {
        let (end, mut calls) = (self.now + time, vec![]);
        while self.now < end {
            self.register(reporting(B)).unwrap();
            self.pass(Duration::from_millis(500));
            calls.extend(self.go_on());
        }
        calls
    }

    fn loss(&self) -> String {
        self.engine.view(&[ONE]).remove(0).loss
    }
}

fn begun_with(calls: &[(NodeId, Call)]) -> Vec<(NodeId, Option<Bytes>)> {
    let create = |(node, call): &(NodeId, Call)| match call {
        Call::Create(start) => Some((*node, start.context.as_ref()?.state.clone())),
        _ => None,
    };
    calls.iter().filter_map(create).collect()
}

#[test]
fn what_has_saved_waits_for_its_lost_node_and_then_says_what_is_missing() {
    let mut world = World::keeping(StatePolicy::NodeLocal);
    world.save(A, saved(1, 4, None));
    world.go_on();
    let calls = world.without_a(Duration::from_secs(30));
    assert_eq!(begun_with(&calls), []);
    let status = world.status(ONE);
    assert_eq!(status.state, State::Waiting);
    assert!(status.reason.contains("waits up to 30s for that node, which alone has its state"), "{}", status.reason);
    let calls = world.without_a(Duration::from_secs(4));
    assert_eq!(begun_with(&calls), [(B, None)]);
    let expected = format!("it runs without its state: 4 syncs, the last at 12:03:07 UTC, are on node {A}");
    assert_eq!(world.loss(), format!("state lost: {expected}"));

    // What it saves there is all that it has now.
    world.save(B, saved(2, 1, None));
    world.go_on();
    let mut world = world.restarted();
    assert!(world.loss().contains(&expected), "it is still to be said");
    world.comes_with(&reporting(A), &[]);
    world.pass(Duration::from_secs(10));
    world.go_on();
    let calls = world.comes_with(&reporting(A), &[]);
    assert_eq!(begun_with(&calls), [], "the time begins again");
    world.comes_with(&reporting(B), &[]);
    let status = world.status(ONE);
    assert_eq!((status.state, status.instance.map(|at| at.node)), (State::Starting, Some(B)));
    assert_eq!(world.loss(), "", "its node has what it saved");
}

#[test]
fn a_node_that_is_back_in_time_goes_on_or_starts_it_again() {
    for is_running in [true, false] {
        let mut world = World::keeping(StatePolicy::NodeLocal);
        let instance = world.instance(ONE);
        world.save(A, saved(1, 4, None));
        world.go_on();
        world.without_a(Duration::from_secs(20));
        let instance = instance.function;
        let running = Running { component: ONE, replica: 0, epoch: 1, instance, kind: FUNCTION, is_active: true };
        let report = if is_running { vec![running] } else { vec![] };
        let calls = world.comes_with(&reporting(A), &report);
        assert_eq!(begun_with(&calls), if is_running { vec![] } else { vec![(A, None)] });
        let status = world.status(ONE);
        assert_eq!(status.instance.unwrap().node, A);
        assert_eq!(status.epoch, if is_running { 1 } else { 2 });
        assert_eq!(world.loss(), "");
    }
}

#[test]
fn what_has_nothing_to_wait_for_is_placed_at_once() {
    let copy = || Bytes::from_static(b"newest");
    for (policy, state, expected) in [
        (StatePolicy::NodeLocal, None, None),
        (StatePolicy::Transient, None, None),
        (StatePolicy::Global, None, None),
        (StatePolicy::Replicated, Some("newest"), Some(copy())),
    ] {
        let mut world = World::keeping(policy);
        if let Some(state) = state {
            world.save(A, saved(1, 1, Some("before")));
            world.save(A, saved(1, 2, Some(state)));
        }
        world.go_on();
        let calls = world.without_a(Duration::from_secs(5));
        assert_eq!(begun_with(&calls), [(B, expected)], "{policy:?}");
        assert_eq!(world.loss(), "", "{policy:?}");
    }
}

#[test]
fn a_copy_is_on_the_disk_before_that_is_said_and_belongs_to_the_newest_instance() {
    let mut world = World::keeping(StatePolicy::Replicated);
    let ticket = world.save(A, saved(1, 1, Some("first")));
    assert!(world.is_open(ticket));
    world.write(Err(Error::unavailable("the disk is full")));
    assert!(world.refusal(ticket).message.contains("the disk is full"));
    world.pass(Duration::from_secs(1));
    world.go_on();
    let ticket = world.save(A, saved(1, 2, Some("second")));
    world.flush();
    assert_eq!(world.answer(ticket), Ok(Reply::Done));
    world.without_a(Duration::from_secs(5));
    assert_eq!(world.instance(ONE).node, B);
    let ticket = world.save(A, saved(1, 3, Some("late")));
    world.go_on();
    assert!(world.refusal(ticket).message.contains("epoch 1 is older than 2"), "{:?}", world.answer(ticket));

    // Also the next process knows it.
    let mut world = world.restarted();
    world.pass(Duration::from_secs(10));
    let calls = world.comes_with(&reporting(A), &[]);
    assert_eq!(begun_with(&calls), [(A, Some(Bytes::from_static(b"second")))]);
    let ticket = world.request(|ticket| Event::Release(ticket, ONE, Duration::from_secs(1)));
    world.go_on();
    assert_eq!(world.answer(ticket), Ok(Reply::Released(Some(Bytes::from_static(b"second")))));
}

#[test]
fn only_what_is_replicated_is_kept() {
    for policy in [StatePolicy::Transient, StatePolicy::Global] {
        let mut world = World::keeping(policy);
        let ticket = world.save(A, saved(1, 1, Some("x")));
        world.go_on();
        assert!(world.refusal(ticket).message.contains("no copy is kept"), "{policy:?}");
    }
    let mut world = World::keeping(StatePolicy::NodeLocal);
    world.save(A, saved(1, 1, Some("x")));
    world.go_on();
    assert_eq!(world.engine.components[&ONE].saved.as_ref().unwrap().1.state, None);
    world.stop(ONE);
    world.go_on();
    assert_eq!(world.disk.table(disk::COMPONENTS), []);
}
