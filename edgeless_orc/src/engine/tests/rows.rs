//! Who is told where components run, and of which nodes.

use super::*;

const THREE: ComponentId = ComponentId(Uuid::from_u128(3));

fn foreign(epoch: u64, instances: &[InstanceId]) -> Row {
    let url = "http://127.0.0.1:9000".parse::<Url>().unwrap();
    let addresses = instances.iter().map(|at| (at.node, url.clone())).collect();
    Row { addresses, ..Row::new(THREE, epoch, instances.to_vec()) }
}

impl World {
    fn patch_to_row(&mut self, from: ComponentId, row: Row) -> Ticket {
        self.request(|ticket| Event::Patch(ticket, FUNCTION, Patch::new(from.0, out(row))))
    }

    fn export(&mut self, id: ComponentId, exported: bool) {
        let patch = Patch { exported, ..Patch::new(id.0, BTreeMap::new()) };
        self.request(|ticket| Event::Patch(ticket, FUNCTION, patch));
        self.obey();
    }
}

#[test]
fn a_node_is_told_all_rows_that_changed_at_once_and_others_nothing() {
    let mut world = World::new();
    for id in [A, B, C] {
        world.add(&node(id));
    }
    let ids: Vec<_> = (1..=6).map(|n| ComponentId(Uuid::from_u128(n))).collect();
    for id in &ids {
        world.run(*id);
    }
    // Round robin: 1 and 4 on A, 2 and 5 on B, 3 and 6 on C.
    world.patch(ids[0], &[("a", ids[1]), ("b", ids[4])]);
    world.patch(ids[3], &[("a", ids[1])]);
    world.obey();
    world.register(Registration { leaving: true, ..node(B) }).unwrap();
    let (_, _, call) =
        world.calls.iter().find(|(_, node, call)| *node == A && matches!(call, Call::SetRows(_))).unwrap();
    let Call::SetRows(rows) = call else { panic!() };
    let told: Vec<_> = rows.iter().map(|row| (row.component, row.instances.len())).collect();
    assert_eq!(told, [(ids[1], 0), (ids[4], 0)]);
    let calls = world.obey();
    assert!(!calls.iter().any(|(_, call)| matches!(call, Call::SetOutputs(..))), "nobody is wired anew");
    assert!(!rows_in(&calls).iter().any(|(node, _)| *node == C), "it sends to none of them");
    assert!(calls.contains(&(A, Call::UpdatePeers(PeerUpdate::Remove(B)))), "it sent events there");
    assert!(!calls.contains(&(C, Call::UpdatePeers(PeerUpdate::Remove(B)))), "it never heard of it");
}

#[test]
fn rows_that_change_while_others_are_told_follow_and_the_older_never_win() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.run(TWO);
    world.patch(ONE, &[("out", TWO)]);
    let (wire, _) = world.call(A);
    // The row changes while the wiring is on its way.
    world.stop(TWO);
    let (op, call) = world.call(A);
    world.ok(A, op, &call);
    let (rows, call) = world.call(A);
    assert_eq!(call, Call::SetRows(vec![row(TWO, 2, &[])]));
    world.end(rows, Ok(Outcome::Done));
    world.end(wire, Ok(Outcome::Done));
    assert_eq!(world.obey(), [(A, Call::SetRows(vec![row(TWO, 2, &[])]))], "the wiring may have come last");
}

#[test]
fn rows_that_a_node_did_not_acknowledge_are_told_again() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.run(TWO);
    world.patch(ONE, &[("out", TWO)]);
    world.obey();
    world.stop(TWO);
    let (op, call) = world.call(A);
    world.ok(A, op, &call);
    let (op, _) = world.call(A);
    world.end(op, unanswered());
    let two = ComponentId(Uuid::from_u128(9));
    world.run(two);
    world.pass(Duration::from_millis(300));
    assert_eq!(world.obey(), [(A, Call::SetRows(vec![row(TWO, 2, &[])]))]);
}

#[test]
fn a_node_that_takes_no_rows_is_wired_anew() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.run(TWO);
    world.patch(ONE, &[("out", TWO)]);
    world.obey();
    world.stop(TWO);
    let (op, call) = world.call(A);
    world.ok(A, op, &call);
    let (op, _) = world.call(A);
    world.end(op, Err(Error::unimplemented("only nodes route by rows")));
    let (_, call) = world.call(A);
    assert_eq!(wiring(&call), out(row(TWO, 2, &[])));
}

#[test]
fn a_component_of_another_domain_is_wired_like_any_other_and_the_newer_row_wins() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.run(TWO);
    let far = InstanceId::random(C);
    world.patch_to_row(ONE, foreign(5, &[far]));
    assert_eq!(world.obey().iter().map(|(_, call)| wiring(call)).collect::<Vec<_>>(), [out(foreign(5, &[far]))]);
    let farther = InstanceId::random(B);
    let patch = world.patch_to_row(TWO, foreign(6, &[farther]));
    let calls = world.obey();
    assert_eq!(world.answer(patch), Ok(Reply::Done));
    assert_eq!(rows_in(&calls), [(A, vec![foreign(6, &[farther])])], "the other sender, too");
    world.patch_to_row(ONE, foreign(4, &[far]));
    world.obey();
    assert_eq!(world.row(THREE), foreign(6, &[farther]));
    for id in [ONE, TWO] {
        world.stop(id);
    }
    world.obey();
    assert!(world.engine.foreign.is_empty(), "nobody needs it any more");
}

#[test]
fn a_component_that_comes_from_another_domain_has_a_newer_row_here() {
    let mut world = World::new();
    world.add(&node(A));
    world.run(ONE);
    world.patch_to_row(ONE, foreign((1 << 32) + 7, &[InstanceId::random(C)]));
    world.obey();
    world.wanted(THREE, 2, function(&[]));
    let calls = world.obey();
    let epochs: Vec<_> = rows_in(&calls).into_iter().flat_map(|(_, rows)| rows).map(|row| row.epoch).collect();
    assert_eq!(epochs, [(2 << 32) + 1, (2 << 32) + 2]);
    assert_eq!(world.row(THREE).instances, [world.instance(THREE)]);
}

#[test]
fn other_domains_are_told_of_what_is_exported_whenever_it_changes() {
    let mut world = World::new();
    world.add(&node(A));
    let one = world.run(ONE);
    world.run(TWO);
    assert!(world.published_rows.is_empty());
    world.export(ONE, true);
    assert_eq!(world.published_rows, [[row(ONE, 1, &[one])]]);
    assert_eq!(world.engine.exported_rows(), [row(ONE, 1, &[one])]);
    world.export(ONE, true);
    assert_eq!(world.published_rows.len(), 1, "nothing has changed");
    world.add(&node(B));
    world.register(Registration { leaving: true, ..node(A) }).unwrap();
    world.obey();
    let moved = world.instance(ONE);
    assert_eq!(world.published_rows[1..], [[row(ONE, 2, &[])], [row(ONE, 3, &[moved])]]);
    world.stop(ONE);
    world.obey();
    assert_eq!(world.published_rows.last().unwrap()[..], [row(ONE, 4, &[])]);
    assert!(world.engine.exported_rows().is_empty());
    world.export(TWO, true);
    let count = world.published_rows.len();
    world.export(TWO, false);
    world.stop(TWO);
    world.obey();
    assert_eq!(world.published_rows.len(), count);
}

#[test]
fn a_node_with_a_new_address_is_found_by_who_sends_events_there() {
    let mut world = World::new();
    world.add(&node(A));
    world.add(&node(B));
    world.run(ONE);
    let two = world.run(TWO);
    world.patch(ONE, &[("out", TWO)]);
    world.obey();
    let url: Url = "http://127.0.0.1:9999".parse().unwrap();
    world.register(Registration { invocation_url: url.clone(), ..node(B) }).unwrap();
    let calls = world.obey();
    assert!(calls.contains(&(A, Call::UpdatePeers(PeerUpdate::Add(B, url.clone())))));
    let told = rows_in(&calls);
    assert_eq!(told[0].1[0].addresses, BTreeMap::from([(two.node, url.clone())]));
    assert_eq!(world.engine.locate(B), Some(url));
    assert_eq!(world.engine.locate(C), None);
}

#[test]
fn the_id_of_a_node_that_is_there_is_refused_to_others() {
    let mut world = World::new();
    world.add(&node(A));
    let agent_url: Url = "http://127.0.0.1:6666".parse().unwrap();
    let other = Registration { nonce: 2, agent_url, ..node(A) };
    let error = world.register(other.clone()).unwrap_err();
    assert_eq!(error.code, Code::Rejected);
    let text = format!("node id {A} is in use by the node at http://127.0.0.1:7010: choose another node_id");
    assert_eq!(error.message, text);
    assert!(world.calls.is_empty());
    assert!(world.register(Registration { leaving: true, ..other.clone() }).is_ok(), "a goodbye means nothing");
    assert_eq!(world.engine.nodes().len(), 1);
    world.pass(KEEP_ALIVE);
    assert!(world.register(other).is_ok(), "the other one is gone");
}
