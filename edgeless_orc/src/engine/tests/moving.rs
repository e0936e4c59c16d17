//! Moves, cordons, and what would be lost.

use edgeless_api::component::StatePolicy;

use super::*;

pub(super) fn with_state() -> ComponentSpec {
    let mut spec = function(&[]);
    if let ComponentSpec::Function(function) = &mut spec {
        function.state.policy = StatePolicy::NodeLocal;
    }
    spec
}

impl World {
    pub(super) fn move_to(&mut self, component: ComponentId, node: NodeId) -> Ticket {
        self.request(|ticket| Event::Move { ticket, component, node })
    }

    fn evict(&mut self, component: ComponentId, node: NodeId) -> Ticket {
        self.request(|ticket| Event::Evict { ticket, component, node })
    }

    pub(super) fn cordon(&mut self, node: NodeId, is_cordoned: bool) -> Answer {
        let ticket = self.request(|ticket| Event::Cordon { ticket, node, is_cordoned });
        self.answer(ticket)
    }

    /// Nodes A and B; ONE on A sends to TWO, which is on A as well, and both are active.
    pub(super) fn pair(spec: ComponentSpec) -> Self {
        let mut world = Self::new();
        world.add(&node(A));
        world.run(ONE);
        world.wanted(TWO, 1, spec);
        world.obey();
        world.add(&node(B));
        world.patch(ONE, &[("out", TWO)]);
        world.obey();
        world.activate(&[ONE, TWO]);
        world.obey();
        world
    }

    /// The next call of this sort, taken out.
    pub(super) fn take(&mut self, is_it: impl Fn(&Call) -> bool) -> (Op, NodeId, Call) {
        let at = self.calls.iter().position(|(_, _, call)| is_it(call));
        let at = at.unwrap_or_else(|| panic!("it is not among {:?}", self.calls));
        self.calls.remove(at)
    }
}

fn on_its_way(component: ComponentId, epoch: u64) -> Row {
    Row { moving: true, ..row(component, epoch, &[]) }
}

fn release(at: InstanceId) -> Call {
    Call::Release { instance: at.function, grace: super::super::steps::GRACE }
}

#[test]
fn without_state_the_new_instance_is_ready_before_the_old_one_goes() {
    let mut world = World::pair(function(&[]));
    let old = world.instance(TWO);
    let ticket = world.move_to(TWO, B);
    let (op, call) = world.call(B);
    let context = created(&call).context.clone().unwrap();
    assert_eq!((context.replica, context.epoch, context.state), (1, 2, None));
    assert_eq!(world.row(TWO), row(TWO, 1, &[old]), "nobody is told yet");
    world.ok(B, op, &call);
    let new = InstanceId { node: B, function: Uuid::from_u128(world.instances) };
    let (op, call) = world.call(A);
    assert_eq!(call, Call::SetRows(vec![row(TWO, 2, &[new])]), "who sends to it, and the node that it leaves");
    assert!(world.is_open(ticket));
    world.ok(A, op, &call);
    let (op, call) = world.call(A);
    assert_eq!(call, release(old));
    world.ok(A, op, &call);
    assert!(world.is_open(ticket), "it does not emit yet");
    assert_eq!(world.obey(), [(B, Call::Activate(new.function))]);
    assert_eq!(world.answer(ticket), Ok(Reply::Done));
    assert_eq!((world.instance(TWO), world.status(TWO).state), (new, State::Running));
    assert_eq!(world.status(TWO).instances.len(), 1);
    let again = world.move_to(TWO, B);
    assert_eq!(world.answer(again), Ok(Reply::Done), "it is there");
    assert!(world.calls.is_empty());
}

#[test]
fn what_the_new_instance_leads_to_is_wired_before_it_takes_over() {
    let mut world = World::pair(function(&[]));
    let ticket = world.move_to(ONE, B);
    let (op, call) = world.call(B);
    world.ok(B, op, &call);
    let (op, call) = world.call(B);
    assert_eq!(wiring(&call), out(world.row(TWO)));
    assert_eq!(world.instance(ONE).node, A);
    world.ok(B, op, &call);
    world.obey();
    assert_eq!(world.answer(ticket), Ok(Reply::Done));
}

#[test]
fn state_is_taken_along_and_two_instances_never_keep_it_at_once() {
    let mut world = World::pair(with_state());
    world.saved = Some(Bytes::from_static(b"42"));
    let old = world.instance(TWO);
    let ticket = world.move_to(TWO, B);
    let (op, call) = world.call(A);
    assert_eq!(call, Call::SetRows(vec![on_its_way(TWO, 2)]), "its senders hold what they have for it");
    world.ok(A, op, &call);
    let (op, call) = world.call(A);
    assert_eq!(call, release(old));
    world.ok(A, op, &call);
    let (op, call) = world.call(B);
    let context = created(&call).context.clone().unwrap();
    assert_eq!((context.replica, context.epoch, context.state), (0, 2, world.saved.clone()));
    world.ok(B, op, &call);
    let calls = world.obey();
    let new = world.instance(TWO);
    assert_eq!(rows_in(&calls), [(A, vec![row(TWO, 3, &[new])])]);
    assert_eq!(world.answer(ticket), Ok(Reply::Done));
    world.run(ComponentId(Uuid::from_u128(3)));
    world.register(Registration { leaving: true, ..node(B) }).unwrap();
    let calls = world.obey();
    let again = calls.iter().find(|(_, call)| matches!(call, Call::Create(_))).unwrap();
    assert_eq!(created(&again.1).context.as_ref().unwrap().state, None, "it is the node's now");
}

/// The first place for it fails and the way back leads nowhere: from then on there is nothing to wait for.
#[test]
fn a_row_says_that_its_component_is_on_its_way_until_it_runs_or_has_no_place() {
    for has_place in [true, false] {
        let mut world = World::pair(with_state());
        world.move_to(TWO, B);
        let mut starts = Vec::new();
        while !world.calls.is_empty() {
            let (op, node, call) = world.calls.remove(0);
            match &call {
                Call::Create(_) => {
                    assert_eq!(world.row(TWO), on_its_way(TWO, 2), "while it is tried");
                    starts.push(node);
                    if node == A && has_place {
                        world.ok(node, op, &call);
                    } else {
                        world.end(op, Err(Error::exhausted("no memory")));
                    }
                    if starts.len() == 3 {
                        break;
                    }
                }
                _ => world.ok(node, op, &call),
            }
        }
        if has_place {
            assert_eq!(starts, [B, A]);
            assert_eq!(world.row(TWO), row(TWO, 3, &[world.instance(TWO)]));
        } else {
            assert_eq!(starts, [B, A, A], "it may go back even if A takes nothing new");
            assert_eq!(world.row(TWO), row(TWO, 3, &[]), "it waits, and is not on its way");
            assert_eq!(rows_in(&world.obey()), [(A, vec![row(TWO, 3, &[])])], "its senders are told");
        }
    }
}

/// What it has for it yet has to go there.
#[test]
fn the_node_that_was_left_is_told_where_its_component_runs_however_long_that_takes() {
    let mut world = World::pair(with_state());
    let ticket = world.move_to(TWO, B);
    world.obey();
    assert_eq!(world.answer(ticket), Ok(Reply::Done));
    world.live(Duration::from_secs(60), &[&node(A), &node(B)]);
    world.move_to(TWO, A);
    let (op, start) = loop {
        let (op, node, call) = world.calls.remove(0);
        if matches!(call, Call::Create(_)) {
            break (op, call);
        }
        world.ok(node, op, &call);
    };
    // B has no sender of it.
    for outputs in [&[][..], &[("out", TWO)]] {
        for _ in 0..15 {
            world.register(node(A)).unwrap();
            world.register(node(B)).unwrap();
            world.pass(Duration::from_secs(1));
            world.obey();
        }
        world.patch(ONE, outputs);
        world.obey();
    }
    world.ok(A, op, &start);
    let told = rows_in(&world.obey());
    let new = row(TWO, 5, &[world.instance(TWO)]);
    assert!(told.contains(&(B, vec![new])), "{told:?}");
    world.live(Duration::from_secs(11), &[&node(A), &node(B)]);
    let former = &world.engine.links[&TWO].former;
    assert!(former.values().all(|until| *until <= world.now), "and no longer than it forwards: {former:?}");
}

#[test]
fn what_loses_its_node_is_not_on_its_way() {
    for spec in [function(&[]), with_state()] {
        let mut world = World::pair(spec);
        world.cordon(A, true).unwrap();
        let ticket = world.evict(TWO, A);
        world.obey();
        assert_eq!(world.answer(ticket), Ok(Reply::Done));
        world.register(Registration { leaving: true, ..node(B) }).unwrap();
        world.obey();
        assert_eq!(world.status(TWO).state, State::Waiting);
        assert!(world.row(TWO).instances.is_empty() && !world.row(TWO).moving);
    }
}

#[test]
fn what_is_stopped_on_its_way_is_on_its_way_no_more() {
    let mut world = World::pair(with_state());
    world.move_to(TWO, B);
    assert_eq!(world.row(TWO), on_its_way(TWO, 2));
    world.stop(TWO);
    assert_eq!(world.row(TWO), row(TWO, 3, &[]));
}

#[test]
fn what_is_started_again_on_its_way_is_on_its_way_until_it_runs() {
    let mut world = World::pair(with_state());
    world.move_to(TWO, B);
    let (op, call) = world.call(A);
    world.ok(A, op, &call);
    world.wanted(TWO, 2, with_state());
    let calls: Vec<_> = world.calls.iter().map(|(_, node, call)| (*node, call.clone())).collect();
    let now = world.row(TWO);
    assert!(now.instances.is_empty() && now.moving);
    assert_eq!(rows_in(&calls), [(A, vec![now])], "its senders keep what they have for it");
    world.obey();
    assert!(!world.row(TWO).instances.is_empty() && !world.row(TWO).moving);
}

#[test]
fn what_the_new_node_refuses_stays_where_it_is() {
    let mut world = World::pair(function(&[]));
    let old = world.instance(TWO);
    let ticket = world.move_to(TWO, B);
    let (op, _) = world.call(B);
    world.end(op, Err(Error::rejected("no such runtime")));
    assert_eq!(world.refusal(ticket).message, "no such runtime");
    assert_eq!((world.instance(TWO), world.obey()), (old, vec![]));
    assert_eq!(world.status(TWO).reason, "");
}

#[test]
fn what_has_saved_its_state_already_goes_back_if_the_new_node_refuses_it() {
    let mut world = World::pair(with_state());
    world.saved = Some(Bytes::from_static(b"42"));
    world.cordon(A, true).unwrap();
    let ticket = world.evict(TWO, A);
    let mut refused = 0;
    while !world.calls.is_empty() {
        let (op, node, call) = world.calls.remove(0);
        if node == B && matches!(call, Call::Create(_)) {
            refused += 1;
            world.end(op, Err(Error::exhausted("no memory")));
            continue;
        }
        if let Call::Create(start) = &call {
            assert_eq!(start.context.as_ref().unwrap().state, world.saved);
        }
        world.ok(node, op, &call);
    }
    assert_eq!((refused, world.instance(TWO).node), (1, A), "though nothing new is placed there");
    assert_eq!(world.refusal(ticket).message, "no memory");
    assert_eq!(world.status(TWO).state, State::Running);
}

#[test]
fn a_new_node_that_is_lost_in_the_middle_changes_nothing() {
    for steps in 0..4 {
        for spec in [function(&[]), with_state()] {
            let mut world = World::pair(spec);
            let ticket = world.move_to(TWO, B);
            for _ in 0..steps {
                if world.calls.is_empty() {
                    break;
                }
                let (op, node, call) = world.calls.remove(0);
                world.ok(node, op, &call);
            }
            world.register(Registration { leaving: true, ..node(B) }).unwrap();
            world.calls.retain(|(_, node, _)| *node != B);
            world.live(Duration::from_secs(3), &[&node(A)]);
            assert_eq!(world.status(TWO).state, State::Running, "after {steps} steps");
            assert_eq!(world.instance(TWO).node, A);
            assert_eq!(world.row(TWO).instances, [world.instance(TWO)]);
            assert!(!world.is_open(ticket));
        }
    }
}

#[test]
fn an_old_node_that_is_lost_in_the_middle_does_not_stop_a_move() {
    for steps in 0..4 {
        for keeps_state in [false, true] {
            let mut world = World::pair(if keeps_state { with_state() } else { function(&[]) });
            world.saved = keeps_state.then(|| Bytes::from_static(b"42"));
            let ticket = world.move_to(TWO, B);
            let mut was_released = false;
            for _ in 0..steps {
                if world.calls.is_empty() {
                    break;
                }
                let (op, node, call) = world.calls.remove(0);
                was_released |= matches!(call, Call::Release { .. });
                world.ok(node, op, &call);
            }
            world.register(Registration { leaving: true, ..node(A) }).unwrap();
            world.calls.retain(|(_, node, _)| *node != A);
            world.live(Duration::from_secs(3), &[&node(B)]);
            assert_eq!(world.status(TWO).state, State::Running, "after {steps} steps");
            if keeps_state && !was_released {
                let refusal = world.refusal(ticket).message;
                assert!(refusal.starts_with("it has moved and begins anew: state lost: node"), "{refusal}");
                let view = world.engine.view(&[TWO]).remove(0);
                assert!(view.loss.starts_with("state lost: node"), "{}", view.loss);
            } else {
                assert_eq!(world.answer(ticket), Ok(Reply::Done));
            }
            assert_eq!(world.instance(TWO).node, B);
            assert_eq!(world.status(TWO).instances.len(), 1);
        }
    }
}

/// A node that does not answer for the moment must not hold up a move for ever: what it sends to the
/// old instance is forwarded.
#[test]
fn a_sender_that_cannot_be_told_delays_a_release_only_for_a_while() {
    let mut world = World::pair(function(&[]));
    world.move_to(TWO, B);
    let (op, call) = world.call(B);
    world.ok(B, op, &call);
    let (stuck, _) = world.call(A);
    for _ in 0..6 {
        world.register(node(A)).unwrap();
        world.register(node(B)).unwrap();
        world.pass(Duration::from_secs(1));
    }
    assert!(matches!(world.call(A).1, Call::Release { .. }));
    world.end(stuck, unanswered());
}

#[test]
fn what_does_not_answer_its_release_is_asked_again_and_then_stopped() {
    let mut world = World::pair(function(&[]));
    let old = world.instance(TWO);
    let ticket = world.move_to(TWO, B);
    let mut releases = 0;
    for _ in 0..40 {
        while !world.calls.is_empty() {
            let (op, node, call) = world.calls.remove(0);
            if matches!(call, Call::Release { .. }) {
                releases += 1;
                world.end(op, unanswered());
            } else {
                world.ok(node, op, &call);
            }
        }
        world.register(node(A)).unwrap();
        world.register(node(B)).unwrap();
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(releases, 5);
    assert_eq!(world.answer(ticket), Ok(Reply::Done));
    assert_ne!(world.instance(TWO), old);
}

#[test]
fn plain_nodes_start_and_stop_what_moves() {
    let mut world = World::new();
    world.add(&plain(A));
    world.run(ONE);
    let old = world.run(TWO);
    world.add(&plain(B));
    world.patch(ONE, &[("out", TWO)]);
    world.obey();
    world.activate(&[ONE, TWO]);
    let ticket = world.move_to(TWO, B);
    let calls = world.obey();
    assert_eq!(world.answer(ticket), Ok(Reply::Done));
    let new = world.instance(TWO);
    assert_eq!(new.node, B);
    let rest: Vec<_> = calls.iter().map(|(_, call)| call).collect();
    assert!(matches!(rest[0], Call::Create(_)), "{rest:?}");
    assert!(rest.contains(&&Call::Stop(FUNCTION, old)));
    let leads = BTreeMap::from([("out".to_string(), Target::Instance(new))]);
    assert!(rest.iter().any(|call| matches!(call, Call::SetOutputs(..)) && wiring(call) == leads));
}

#[test]
fn a_move_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut world = World::pair(function(&[]));
    let c = C;
    for (ticket, code, text) in [
        (world.move_to(ComponentId::random(), B), Code::NotFound, "is not known in this domain"),
        (world.move_to(TWO, c), Code::NotFound, "is not known in this domain"),
    ] {
        let error = world.refusal(ticket);
        assert!(error.code == code && error.message.contains(text), "{error}");
    }
    world.cordon(B, true).unwrap();
    let ticket = world.move_to(TWO, B);
    assert!(world.refusal(ticket).message.contains("is cordoned: uncordon it first"));
    world.cordon(B, false).unwrap();
    let mut poor = node(C);
    poor.capabilities.runtimes = vec![];
    world.add(&poor);
    let ticket = world.move_to(TWO, C);
    let error = world.refusal(ticket);
    assert!(error.message.contains("cannot run 'f2'") && error.message.contains("RUST_WASM"), "{error}");
    let evicted = world.evict(TWO, B);
    assert_eq!(world.answer(evicted), Ok(Reply::Done), "there is nothing of it");
    assert!(world.calls.is_empty());
}

#[test]
fn a_component_with_volumes_is_not_moved() {
    let mut world = World::pair(function(&[("volume:data", "/data")]));
    for ticket in [world.move_to(TWO, B), world.evict(TWO, A)] {
        assert!(world.refusal(ticket).message.contains("has volumes"));
    }
    assert!(world.calls.is_empty());
}

#[test]
fn whoever_asks_for_the_same_move_is_answered_with_it() {
    for spec in [function(&[]), with_state()] {
        let mut world = World::pair(spec);
        let first = world.move_to(TWO, B);
        let second = world.move_to(TWO, B);
        assert!(world.is_open(second));
        world.obey();
        assert_eq!((world.answer(first), world.answer(second)), (Ok(Reply::Done), Ok(Reply::Done)));
    }
}

#[test]
fn a_stop_in_the_middle_of_a_move_stops_both() {
    for steps in 0..4 {
        for spec in [function(&[]), with_state()] {
            let mut world = World::pair(spec);
            let ticket = world.move_to(TWO, B);
            for _ in 0..steps {
                if world.calls.is_empty() {
                    break;
                }
                let (op, node, call) = world.calls.remove(0);
                world.ok(node, op, &call);
            }
            let stop = world.stop(TWO);
            world.obey();
            assert_eq!(world.answer(stop), Ok(Reply::Done));
            assert!(!world.is_open(ticket));
            assert!(world.engine.view(&[TWO]).is_empty());
            let residents: Vec<_> = world.engine.nodes().iter().map(|node| node.components).collect();
            assert_eq!(residents, [1, 0]);
        }
    }
}

#[test]
fn nothing_new_is_placed_on_a_cordoned_node_not_even_after_its_restart() {
    let mut world = World::new();
    world.add(&node(A));
    let one = world.run(ONE);
    world.cordon(A, true).unwrap();
    world.cordon(A, true).unwrap();
    assert_eq!(world.notes.iter().filter(|note| matches!(note, Note::Cordoned { .. })).count(), 1);
    assert!(world.engine.nodes()[0].cordoned);
    assert_eq!(world.instance(ONE), one, "what runs there stays");
    let ticket = world.wanted(TWO, 1, function(&[]));
    assert!(world.refusal(ticket).message.contains("cordoned"), "{:?}", world.refusal(ticket));
    world.add(&Registration { nonce: 2, ..node(A) });
    assert_eq!(world.status(ONE).state, State::Waiting);
    world.cordon(A, false).unwrap();
    world.obey();
    assert_eq!(world.instance(ONE).node, A);
    assert_eq!(world.cordon(B, true).unwrap_err().code, Code::NotFound);
}

#[test]
fn a_node_is_emptied_one_by_one() {
    let mut world = World::pair(with_state());
    world.cordon(A, true).unwrap();
    for id in [ONE, TWO] {
        let ticket = world.evict(id, A);
        world.obey();
        assert_eq!(world.answer(ticket), Ok(Reply::Done));
        assert_eq!(world.instance(id).node, B);
    }
    let nodes = world.engine.nodes();
    assert_eq!((nodes[0].components, nodes[1].components), (0, 2));
    assert_eq!(world.engine.residents(A).unwrap().len(), 0);
    assert_eq!(world.engine.residents(B).unwrap().len(), 2);
    assert!(world.engine.residents(C).is_none());
}

#[test]
fn a_plan_of_a_loss_says_where_each_component_goes_and_changes_nothing() {
    for (seed, strategy) in (1..20).flat_map(|seed| crate::placement::STRATEGIES.map(|strategy| (seed, strategy))) {
        let mut world = World::with(|settings| {
            settings.seed = seed;
            settings.strategy = strategy;
            settings.max_components = 20;
        });
        for id in [A, B, C] {
            world.add(&node(id));
        }
        let ids: Vec<_> = (1..13).map(|n| ComponentId(Uuid::from_u128(n))).collect();
        for id in &ids {
            let spec =
                if id.0.as_u128() % 3 == 0 { function(&[("spread", "node")]) } else { function(&[("memory", "1GiB")]) };
            world.wanted(*id, 1, spec);
            world.obey();
        }
        let before = format!("{:?}", world.engine);
        let plan = world.engine.plan_loss(A).unwrap();
        assert_eq!(format!("{:?}", world.engine), before);
        assert_eq!(plan.len(), world.engine.residents(A).unwrap().len());
        world.register(Registration { leaving: true, ..node(A) }).unwrap();
        world.obey();
        for relocation in plan {
            assert_eq!(relocation.to.unwrap().0, world.instance(relocation.component).node, "seed {seed} {strategy:?}");
        }
    }
}

#[test]
fn a_plan_of_a_loss_says_what_would_run_nowhere_and_why() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    let plan = world.engine.plan_loss(A).unwrap();
    assert!(plan[0].to.as_ref().unwrap_err().contains("the domain has no node"), "{plan:?}");
    assert_eq!(world.engine.plan_loss(B).unwrap_err().code, Code::NotFound);
}

#[test]
fn a_release_that_is_not_offered_is_a_stop() {
    let mut world = World::pair(function(&[]));
    let old = world.instance(TWO);
    world.move_to(TWO, B);
    while !world.calls.iter().any(|(_, _, call)| matches!(call, Call::Release { .. })) {
        let (op, node, call) = world.calls.remove(0);
        world.ok(node, op, &call);
    }
    let (op, _, _) = world.take(|call| matches!(call, Call::Release { .. }));
    world.end(op, Err(Error::unimplemented("only nodes release instances")));
    world.live(Duration::from_secs(1), &[&node(A), &node(B)]);
    assert_ne!(world.instance(TWO), old);
    assert_eq!(world.status(TWO).instances.len(), 1);
}
