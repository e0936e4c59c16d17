//! Nodes whose link has ended: suspected, asked, and lost only when their process is gone.

use edgeless_api::node::Presence;

use super::*;
use crate::engine::Found;

const MOMENT: Duration = Duration::from_millis(800);

impl World {
    fn link_up(&mut self, node: NodeId, nonce: u64, link: u64) -> Answer {
        let ticket = self.request(|ticket| Event::LinkUp { ticket, node, nonce, link });
        self.answer(ticket)
    }

    /// Answers the only question that is open.
    fn find(&mut self, node: NodeId, found: Found) {
        let [(op, asked)] = self.probes[..] else { panic!("one question: {:?}", self.probes) };
        assert_eq!(asked, node);
        self.probes.clear();
        self.send(Event::Probed(op, node, found));
    }

    fn is_suspected(&self, node: NodeId) -> bool {
        self.engine.nodes().iter().any(|info| info.node == node && info.suspected)
    }

    fn is_there(&self, node: NodeId) -> bool {
        self.engine.nodes().iter().any(|info| info.node == node)
    }
}

fn process(node: NodeId, nonce: u64) -> Found {
    Found::Process(Presence { node, nonce })
}

/// Two nodes with links of the same number, and a component on the first.
fn linked() -> World {
    let mut world = World::new();
    world.add(&node(A));
    assert_eq!(world.run(ONE).node, A);
    world.add(&node(B));
    for id in [A, B] {
        assert_eq!(world.link_up(id, 1, 7), Ok(Reply::Done));
    }
    world
}

/// A linked world whose first node has lost its link.
fn suspicious() -> World {
    let mut world = linked();
    world.send(Event::LinkLost { node: A, link: 7 });
    assert!(world.is_suspected(A) && !world.is_suspected(B));
    world
}

#[test]
fn a_node_whose_process_is_gone_is_lost_when_nothing_is_there_twice() {
    let mut world = suspicious();
    world.find(A, Found::Nothing);
    assert!(world.is_there(A), "it may be started again at once");
    assert!(world.probes.is_empty() && world.calls.is_empty());
    world.pass(MOMENT);
    world.find(A, Found::Nothing);
    assert!(!world.is_there(A) && world.note("its process is gone"));
    world.obey();
    assert_eq!(world.instance(ONE).node, B);
}

#[test]
fn a_node_that_has_only_lost_its_link_keeps_what_runs_there() {
    let mut world = suspicious();
    world.find(A, process(A, 1));
    assert!(!world.is_suspected(A) && world.calls.is_empty());
    world.live(2 * KEEP_ALIVE, &[&node(A), &node(B)]);
    assert_eq!((world.instance(ONE).node, world.probes.len()), (A, 0));
}

#[test]
fn a_node_that_is_heard_again_is_not_suspected_and_late_findings_do_not_count() {
    for with_link in [true, false] {
        let mut world = suspicious();
        let (op, _) = world.probes.remove(0);
        if with_link {
            world.link_up(A, 1, 8).unwrap();
        } else {
            world.register(node(A)).unwrap();
        }
        assert!(!world.is_suspected(A));
        world.send(Event::Probed(op, A, Found::Nothing));
        world.pass(MOMENT);
        assert!(world.is_there(A) && world.probes.is_empty() && world.calls.is_empty());
    }
}

/// The process before is gone for good, and with it nothing: the node goes on with what ran there, once it has told.
#[test]
fn a_node_that_is_back_in_another_process_is_waited_for() {
    let mut world = suspicious();
    world.find(A, Found::Nothing);
    for _ in 0..2 {
        world.pass(MOMENT);
        world.find(A, process(A, 2));
        world.register(node(B)).unwrap();
        assert!(world.is_there(A) && world.is_suspected(A) && world.calls.is_empty());
    }
    world.register(Registration { nonce: 2, ..node(A) }).unwrap();
    assert!(!world.is_suspected(A), "this process has lost no link");
}

#[test]
fn another_node_at_the_address_is_none() {
    let mut world = suspicious();
    world.find(A, process(B, 1));
    world.pass(MOMENT);
    world.find(A, process(B, 1));
    assert!(!world.is_there(A));
}

/// A process that hangs may go on: only its deadline ends that.
#[test]
fn a_node_that_does_not_answer_is_lost_at_its_deadline_only() {
    let mut world = suspicious();
    for _ in 0..2 {
        world.find(A, Found::Unknown);
        world.register(node(B)).unwrap();
        world.pass(MOMENT);
        assert!(world.is_there(A) && world.calls.is_empty());
    }
    world.find(A, Found::Nothing);
    world.pass(Duration::from_millis(100));
    assert!(world.is_there(A), "nothing was there once");
    world.pass(KEEP_ALIVE);
    assert!(!world.is_there(A) && world.note("silent for too long"));
}

#[test]
fn links_of_before_and_of_strangers_do_not_count() {
    let mut world = linked();
    world.link_up(A, 1, 8).unwrap();
    world.send(Event::LinkLost { node: A, link: 7 });
    world.send(Event::LinkLost { node: C, link: 7 });
    assert!(!world.is_suspected(A) && world.probes.is_empty());
    for (node, nonce) in [(C, 1), (A, 2)] {
        let refusal = world.link_up(node, nonce, 9).unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable, "{refusal}");
    }
    world.send(Event::LinkLost { node: A, link: 9 });
    assert!(!world.is_suspected(A));
    world.send(Event::LinkLost { node: A, link: 8 });
    assert!(world.is_suspected(A));
}
