//! Who a node is: keys, agent URLs, and what is remembered of those that are gone.

use edgeless_api::node::{NodeKey, Proof};

use super::*;

/// The engine looks at the key only: whoever sends it `Register` has seen to the signature.
fn with_key(key: u8, about: Registration) -> Registration {
    Registration { proof: Some(Proof { key: NodeKey([key; 32]), signature: [0; 64] }), ..about }
}

fn at(port: u16, about: Registration) -> Registration {
    Registration { agent_url: format!("http://127.0.0.1:{port}").parse().unwrap(), ..about }
}

fn restarted(about: Registration) -> Registration {
    Registration { nonce: about.nonce + 1, ..about }
}

impl World {
    fn announce(&mut self, about: Registration) -> Answer {
        let ticket = self.request(|ticket| Event::Announce(ticket, Box::new(about)));
        self.answer(ticket)
    }

    fn forget(&mut self, node: NodeId) -> Answer {
        let ticket = self.request(|ticket| Event::Forget(ticket, node));
        self.answer(ticket)
    }

    /// A node that says goodbye.
    fn leave(&mut self, about: Registration) {
        let there = self.engine.nodes().len();
        self.register(Registration { leaving: true, ..about }).unwrap();
        assert_eq!(self.engine.nodes().len(), there - 1);
    }
}

#[test]
fn an_id_that_is_bound_to_a_key_is_taken_with_that_key_only() {
    let mut world = World::new();
    let own = with_key(1, node(A));
    world.add(&own);
    let one = world.run(ONE);
    let thieves = [
        ("another key", with_key(2, restarted(node(A)))),
        ("no key", restarted(node(A))),
        ("another key elsewhere", with_key(2, at(6666, restarted(node(A))))),
        ("the same process", with_key(2, node(A))),
        ("a goodbye", with_key(2, Registration { leaving: true, ..node(A) })),
        ("a goodbye without a key", Registration { leaving: true, ..node(A) }),
    ];
    for is_lost in [false, true] {
        for (what, thief) in &thieves {
            for answer in [world.announce(thief.clone()), world.register(thief.clone())] {
                let error = answer.unwrap_err();
                assert_eq!(error.code, Code::Rejected, "{what}");
                assert!(error.message.contains("is bound to another key: choose another node_id"), "{what}: {error}");
            }
            assert_eq!(world.engine.nodes().len(), usize::from(!is_lost), "{what}");
        }
        if !is_lost {
            assert_eq!(world.instance(ONE), one, "what runs there goes on");
            world.pass(KEEP_ALIVE);
        }
    }
    let refused = |note: &&Note| matches!(note, Note::NodeRefused { node: A, fault: Fault::Key, .. });
    assert_eq!(world.notes.iter().filter(refused).count(), 4 * thieves.len());
    assert!(world.calls.is_empty());
    world.add(&own);
    assert_eq!(world.instance(ONE).node, A, "the node itself is welcome");
}

/// Two nodes with the same id and the same directory would take each other's place for ever.
#[test]
fn a_copy_of_a_node_is_refused_as_long_as_the_node_is_there() {
    let mut world = World::new();
    let own = with_key(1, node(A));
    world.add(&own);
    let copy = at(6666, restarted(own));
    let error = world.register(copy.clone()).unwrap_err();
    assert!(error.message.contains("is in use by the node at http://127.0.0.1:7010"), "{error}");
    world.register(Registration { leaving: true, ..copy.clone() }).unwrap();
    assert_eq!(world.engine.nodes().len(), 1, "its goodbye means nothing");
    world.pass(KEEP_ALIVE);
    world.add(&copy);
    assert_eq!(world.engine.nodes()[0].agent_url, copy.agent_url, "it may move, once it is lost where it was");
}

#[test]
fn a_node_without_a_key_is_known_by_its_agent_url_as_long_as_it_is_there() {
    let mut world = World::new();
    world.add(&plain(A));
    for (what, other) in [
        ("another process", at(6666, restarted(plain(A)))),
        ("one with the same nonce", at(6666, plain(A))),
        ("one with a key", with_key(1, at(6666, restarted(node(A))))),
    ] {
        let error = world.register(other.clone()).unwrap_err();
        assert!(error.message.contains("is in use by the node at http://127.0.0.1:7010"), "{what}: {error}");
        world.register(Registration { leaving: true, ..other }).unwrap();
        assert_eq!(world.engine.nodes().len(), 1, "{what}: a goodbye means nothing");
    }
    let thief = with_key(1, restarted(node(A)));
    let error = world.register(thief.clone()).unwrap_err();
    assert!(error.message.contains("which has no key"), "{error}");
    world.leave(plain(A));
    world.add(&thief);
    let error = world.register(restarted(restarted(node(A)))).unwrap_err();
    assert!(error.message.contains("is bound to another key"), "its key counts from now on: {error}");

    world.add(&plain(B));
    world.leave(plain(B));
    world.add(&at(6666, restarted(plain(B))));
    assert_eq!(world.engine.nodes().len(), 2, "who left without a key has left no claim");
}

#[test]
fn a_node_that_is_gone_keeps_its_cordon_and_its_key_until_it_is_forgotten() {
    let mut world = World::new();
    let own = with_key(1, node(A));
    world.add(&own);
    world.cordon(A, true).unwrap();
    assert!(world.forget(A).unwrap_err().message.contains("is there: stop it first"));
    assert_eq!(world.forget(B).unwrap_err().code, Code::NotFound);
    world.leave(own.clone());
    world.add(&own);
    assert!(world.engine.nodes()[0].cordoned);
    world.pass(KEEP_ALIVE);
    world.cordon(A, false).unwrap();
    world.add(&own);
    assert!(!world.engine.nodes()[0].cordoned, "it was uncordoned while it was away");
    world.leave(own.clone());
    world.cordon(A, true).unwrap();

    let reinstalled = with_key(2, restarted(node(A)));
    assert!(world.register(reinstalled.clone()).is_err());
    world.forget(A).unwrap();
    assert!(world.note("forgot node"));
    assert_eq!(world.cordon(A, true).unwrap_err().code, Code::NotFound);
    world.add(&reinstalled);
    assert!(!world.engine.nodes()[0].cordoned, "it is a new node");
    assert!(world.register(restarted(own)).is_err(), "and the id is its own");
}

/// Each that comes could push out one that is away; of those, the one that has been away longest goes, and its
/// cordon with it.
#[test]
fn no_more_nodes_are_remembered_than_four_times_as_many_as_may_be_there() {
    let mut world = World::with(|settings| settings.max_nodes = 1);
    let nodes: Vec<Registration> = (0x10..0x15_u8).map(|n| with_key(n, node(id(n)))).collect();
    for about in &nodes {
        world.add(about);
        world.cordon(about.node, true).unwrap();
        world.leave(about.clone());
    }
    let thief = |n: u8| with_key(99, restarted(node(id(n))));
    assert!((0x11..0x15).all(|n| world.register(thief(n)).is_err()), "four are remembered");
    assert_eq!(world.cordon(id(0x10), false).unwrap_err().code, Code::NotFound);
    world.add(&thief(0x10));
    assert!(!world.engine.nodes()[0].cordoned);
}

fn id(n: u8) -> NodeId {
    NodeId(Uuid::from_u128(u128::from(n)))
}

/// Only what was checked when the node came is taken without a check.
#[test]
fn what_a_node_did_not_say_before_is_to_be_checked() {
    let mut world = World::new();
    let own = with_key(1, node(A));
    assert_eq!(world.announce(own.clone()), Ok(Reply::ToBeChecked(Box::new(own.clone()))));
    assert!(world.engine.nodes().is_empty(), "nothing is believed yet");
    world.add(&own);
    let keep_alive = Some(KEEP_ALIVE);
    let busier = Registration { health: Health { mem_free: Some(1), ..Health::default() }, ..own.clone() };
    world.pass(KEEP_ALIVE / 2);
    assert_eq!(
        world.announce(busier.clone()),
        Ok(Reply::Registered(Registered { offers_link: true, ..Registered::new(keep_alive) }))
    );
    world.pass(KEEP_ALIVE / 2);
    assert_eq!(world.engine.nodes().len(), 1, "it was refreshed");
    let signature = [1; 64];
    for (what, changed) in [
        ("a restart", restarted(busier.clone())),
        ("another invocation URL", Registration { invocation_url: own.agent_url.clone(), ..busier.clone() }),
        (
            "another signature",
            Registration { proof: own.proof.map(|own| Proof { signature, ..own }), ..busier.clone() },
        ),
        ("a goodbye", Registration { leaving: true, ..busier.clone() }),
    ] {
        assert_eq!(world.announce(changed.clone()), Ok(Reply::ToBeChecked(Box::new(changed))), "{what}");
    }
    assert_eq!(world.engine.nodes().len(), 1);
}
