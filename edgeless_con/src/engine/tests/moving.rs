//! Components that move to another domain.

use edgeless_api::record;

use super::split::{domain_of, instance, noting};
use super::*;

impl World {
    pub(super) fn migrate(
        &mut self,
        workflow: WorkflowId,
        to: &str,
        component: Option<&str>,
        script: Script<'_>,
    ) -> Ticket {
        let ticket = self.ticket();
        let (domain, component) = (DomainId(to.into()), component.map(String::from));
        self.on(Event::Migrate { ticket, workflow, domain, component }, script);
        ticket
    }

    fn refused_to(&mut self, workflow: WorkflowId, to: &str, component: Option<&str>) -> Error {
        let ticket = self.migrate(workflow, to, component, &mut obey);
        self.reply_to(ticket).unwrap_err()
    }

    /// A workflow in `a`, and `b` that could host it.
    fn moving(workflow: Workflow) -> (Self, WorkflowStatus) {
        let mut world = Self::new(&["a", "b"]);
        world.up("a", 1);
        let status = world.started(workflow);
        world.up("b", 1);
        world.take_trace();
        (world, status)
    }
}

/// A function without state that sends to a log, and gets events from another one without state.
pub(super) fn stateless() -> Workflow {
    let log = pair().resources().to_vec();
    let transient = [("state", "transient")];
    let functions = vec![function("s", &[("out", "f")], &transient), function("f", &[("out", "l")], &transient)];
    Workflow::new(functions, log, BTreeMap::new()).unwrap()
}

#[test]
fn a_workflow_without_state_has_its_new_place_before_it_leaves_the_old_one() {
    let (mut world, before) = World::moving(stateless());
    let mut told = Vec::new();
    let ticket = world.migrate(before.workflow, "b", None, &mut noting(&mut told));
    let Ok(Answer::Migrated(after)) = world.reply_to(ticket) else { panic!("{told:?}") };
    assert_eq!(world.homes(before.workflow), ["b", "b", "b"]);
    assert_eq!(after.workflow, before.workflow);
    let ids = |status: &WorkflowStatus| status.mapping.iter().map(|own| own.component).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    let at = |step: &str| told.iter().position(|own| own == step).unwrap_or_else(|| panic!("{step}: {told:?}"));
    assert!(at("b: create f@2") < at("b: patch #1") && at("b: patch #1") < at("a: release #1"), "{told:?}");
    assert!(at("a: release #1") < at("b: activate 3") && at("a: stop #2") < at("b: activate 3"), "{told:?}");
    assert!(world.engine.runs[&before.workflow].leftovers.is_empty());
    assert!(world.engine.view(before.workflow).unwrap().components.iter().all(|own| own.is_up));

    // It runs there now: the old domain may do what it likes.
    world.take_trace();
    world.up("a", 2);
    assert_eq!(world.take_trace(), Vec::<String>::new());
}

#[test]
fn one_component_moves_and_its_senders_are_told() {
    let (mut world, status) = World::moving(stateless());
    let (mut told, mut patches) = (Vec::new(), Vec::new());
    let mut script = |effect: &Effect| {
        if let Effect::Patch { part, patch, .. } = effect {
            patches.push((part.place, patch.clone()));
        }
        noting(&mut told)(effect)
    };
    let ticket = world.migrate(status.workflow, "b", Some("f"), &mut script);
    let f = status.mapping[1].component;
    let row = |at: u128| Row { addresses: BTreeMap::new(), ..Row::new(f, 2 << 32, vec![instance(at)]) };
    world.row("b", row(5), &mut script);
    assert!(matches!(world.reply_to(ticket), Ok(Answer::Migrated(_))), "{told:?}");
    assert_eq!(world.homes(status.workflow), ["a", "b", "a"]);
    let last = |place: usize| patches.iter().rev().find(|(own, _)| *own == place).map(|(_, patch)| patch).unwrap();
    assert_eq!(last(0).outputs["out"], Target::Row(row(5)), "the sender is in another domain");
    assert!(last(1).exported && matches!(last(1).outputs["out"], Target::Row(_)));
    assert!(last(2).exported, "the log is sent events from another domain");

    // And back: all is as before.
    patches.clear();
    let mut script = |effect: &Effect| {
        if let Effect::Patch { part, patch, .. } = effect {
            patches.push((part.place, patch.clone()));
        }
        obey(effect)
    };
    let ticket = world.migrate(status.workflow, "a", Some("f"), &mut script);
    assert!(matches!(world.reply_to(ticket), Ok(Answer::Migrated(_))));
    assert!(world.engine.runs[&status.workflow].components[1].place.is_exported, "what still comes to b is forwarded");
    world.now = world.now + Duration::from_secs(61);
    for domain in ["a", "b"] {
        world.up_with(domain, 1, &mut script);
    }
    world.on(Event::Tick, &mut script);
    let last = |place: usize| patches.iter().rev().find(|(own, _)| *own == place).map(|(_, patch)| patch).unwrap();
    assert_eq!(last(0).outputs["out"], Target::Component(f));
    assert!(!last(1).exported && !last(2).exported);
    assert!(world.engine.runs[&status.workflow].leftovers.is_empty());
}

#[test]
fn state_travels_and_senders_elsewhere_keep_their_events_meanwhile() {
    // f keeps state in b; s sends to it from a.
    let functions = vec![function("s", &[("out", "f")], &[("state", "transient")]), function("f", &[], &[])];
    let mut world = World::new(&["a", "b", "c"]);
    world.up("a", 1);
    let status = world.started(workflow_of(functions));
    world.up("b", 1);
    world.up("c", 1);
    let first = world.migrate(status.workflow, "b", Some("f"), &mut obey);
    world.reply_to(first).unwrap();
    let f = status.mapping[1].component;
    world.row("b", Row::new(f, 2 << 32 | 3, vec![instance(1)]), &mut obey);

    let (mut told, mut states, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut script = |effect: &Effect| {
        match effect {
            Effect::Create { start, .. } => states.push(start.context.clone().unwrap().state),
            Effect::Patch { patch, peer, .. } if peer.domain.0 == "a" => {
                let Target::Row(row) = &patch.outputs["out"] else { panic!("{patch:?}") };
                rows.push(row.clone());
            }
            _ => {}
        }
        noting(&mut told)(effect)
    };
    let ticket = world.migrate(status.workflow, "c", Some("f"), &mut script);
    world.row("c", Row::new(f, 3 << 32, vec![instance(2)]), &mut script);
    assert!(matches!(world.reply_to(ticket), Ok(Answer::Migrated(_))));
    let expected = ["a: patch #0", "b: release #1", "c: create f@3", "c: patch #1"];
    assert_eq!(told[..4], expected, "{told:?}");
    assert_eq!(states, [Some(Bytes::from_static(b"remembered"))]);
    assert!(rows[0].instances.is_empty() && rows[0].epoch > (2 << 32 | 3) && rows[0].epoch < 3 << 32, "{rows:?}");
    assert_eq!(rows.last().unwrap().instances, [instance(2)]);
    assert!(rows.is_sorted_by_key(|row| row.epoch));
    assert!(!told.iter().any(|step| step.contains("stop")), "{told:?}");
}

#[test]
fn a_new_place_that_fails_leaves_everything_where_it_was() {
    for (step, name) in [("create l@2", "l"), ("patch #1", "f"), ("create s@2", "s")] {
        let (mut world, status) = World::moving(stateless());
        let mut told = Vec::new();
        let ticket = world.migrate(status.workflow, "b", None, &mut |effect| {
            let obeyed = noting(&mut told)(effect);
            let fails = domain_of(effect) == Some("b") && in_words(effect) == step;
            if fails { fail(effect, Error::rejected("the disk is full")) } else { obeyed }
        });
        let expected = Error::rejected(format!("b cannot host '{name}': the disk is full"));
        assert_eq!(world.reply_to(ticket), Err(expected));
        assert_eq!(world.homes(status.workflow), ["a", "a", "a"]);
        let at_home = told.iter().filter(|step| step.starts_with("a: ") && !step.contains("patch")).count();
        assert_eq!(at_home, 0, "{told:?}");
        let run = &world.engine.runs[&status.workflow];
        assert!(run.leftovers.is_empty() && run.change.is_none(), "{step}: what was new is stopped: {told:?}");
        assert!(world.engine.view(status.workflow).unwrap().components.iter().all(|own| own.is_up));
    }
}

/// A newer start takes the place of what is left somewhere, but only if it is made.
#[test]
fn what_is_left_somewhere_is_stopped_though_a_second_move_there_cannot_be_written() {
    let (mut world, status) = World::moving(stateless());
    world.migrate(status.workflow, "b", None, &mut |effect| match effect {
        Effect::Create { .. } if is_create(effect, "l") => fail(effect, Error::rejected("no room")),
        Effect::Stop { .. } => fail(effect, Error::unavailable("connection reset")),
        _ => obey(effect),
    });
    let full = || Error::unavailable("no space left on device");
    let ticket =
        world.migrate(status.workflow, "b", None, &mut |effect| written(effect, Err(full())).or_else(|| obey(effect)));
    assert_eq!(world.reply_to(ticket), Err(full()));
    world.take_trace();
    world.pass(Duration::from_secs(2), &mut obey);
    assert_eq!(world.take_trace(), ["stop #0", "stop #1"]);
}

/// A domain may restart while something moves there, and the new process may have what the controller believes to be
/// lost with the old one.
#[test]
fn a_new_place_that_may_be_in_a_new_process_is_stopped_though_its_next_start_is_refused() {
    let (mut world, status) = World::moving(stateless());
    world.migrate(status.workflow, "b", None, &mut |effect| if is_create(effect, "l") { None } else { obey(effect) });
    world.take_trace();
    world.up_with("b", 2, &mut |effect| match effect {
        Effect::Create { .. } => fail(effect, Error::rejected("no room")),
        _ => obey(effect),
    });
    let refusal = "refuse: b cannot host 's': no room";
    assert_eq!(world.take_trace(), ["create s@3", "create f@3", "stop #0", refusal, "stop #1"]);
}

#[test]
fn a_function_whose_new_place_fails_goes_on_with_its_state_where_it_was() {
    let (mut world, status) = World::moving(workflow_of(vec![function("f", &[], &[])]));
    let (mut told, mut states) = (Vec::new(), Vec::new());
    let ticket = world.migrate(status.workflow, "b", None, &mut |effect| {
        let obeyed = noting(&mut told)(effect);
        if let Effect::Create { start, .. } = effect {
            states.push(start.context.clone().unwrap().state);
        }
        if in_words(effect) == "create f@2" { fail(effect, Error::rejected("no")) } else { obeyed }
    });
    assert_eq!(world.reply_to(ticket), Err(Error::rejected("b cannot host 'f': no")));
    assert_eq!(told, ["a: release #0", "b: create f@2", "a: create f@3", "a: activate 1"]);
    assert_eq!(states, [Some(Bytes::from_static(b"remembered")), Some(Bytes::from_static(b"remembered"))]);
    assert_eq!(world.homes(status.workflow), ["a"]);
}

#[test]
fn a_state_that_cannot_travel_is_not_left_behind() {
    let (mut world, status) = World::moving(pair());
    let ticket = world.migrate(status.workflow, "b", None, &mut |effect| match effect {
        Effect::Release { .. } => fail(effect, Error::unimplemented("only nodes release instances")),
        _ => obey(effect),
    });
    let error = world.reply_to(ticket).unwrap_err();
    assert!(error.message.starts_with("the state of 'f' does not travel: the orchestrator of a cannot"), "{error}");
    assert_eq!(world.homes(status.workflow), ["a", "a"]);
    assert!(world.engine.view(status.workflow).unwrap().components.iter().all(|own| own.is_up));
    assert!(world.engine.runs[&status.workflow].leftovers.is_empty());

    // An answer that is lost may mean that it is gone there: it is asked for again.
    world.take_trace();
    let mut lost = |effect: &Effect| match effect {
        Effect::Release { .. } => fail(effect, Error::timeout("silent")),
        _ => obey(effect),
    };
    let ticket = world.migrate(status.workflow, "b", None, &mut lost);
    for _ in 0..4 {
        world.up("a", 1);
        world.up("b", 1);
        world.pass(Duration::from_secs(1), &mut lost);
    }
    assert_eq!(world.reply_to(ticket), Err(Error::timeout("a does not say: silent")));
    let trace = world.take_trace();
    assert_eq!(trace.iter().filter(|step| *step == "release #0").count(), 3, "{trace:?}");
    assert!(trace.contains(&"create f@1".to_string()), "the same epoch: {trace:?}");
    assert!(world.engine.view(status.workflow).unwrap().components.iter().all(|own| own.is_up));
}

#[test]
fn a_domain_that_does_not_know_a_component_has_lost_its_state_and_says_so() {
    for (said, loss) in
        [("not known", "state lost: not known"), ("state lost: no such instance", "state lost: no such instance")]
    {
        let (mut world, status) = World::moving(workflow_of(vec![function("f", &[], &[])]));
        let (mut told, mut states) = (Vec::new(), Vec::new());
        let ticket = world.migrate(status.workflow, "b", None, &mut |effect| {
            let obeyed = noting(&mut told)(effect);
            if let Effect::Create { start, .. } = effect {
                states.push(start.context.clone().unwrap().state);
            }
            if matches!(effect, Effect::Release { .. }) { fail(effect, Error::not_found(said)) } else { obeyed }
        });
        let expected = format!("a cannot hand over 'f', which begins anew there: {said}");
        assert_eq!(world.reply_to(ticket), Err(Error::not_found(expected)));
        assert_eq!(told, ["a: release #0", "a: create f@3", "a: activate 1"]);
        assert_eq!(states, [None]);
        let view = world.engine.view(status.workflow).unwrap();
        assert!(view.components[0].is_up);
        assert_eq!(view.components[0].loss, loss);

        // A move that takes a state along makes up for it.
        let ticket = world.migrate(status.workflow, "b", None, &mut obey);
        assert!(matches!(world.reply_to(ticket), Ok(Answer::Migrated(_))));
        assert_eq!(world.engine.view(status.workflow).unwrap().components[0].loss, "");
    }
}

/// It has another epoch, which a restart of the controller must know.
#[test]
fn what_is_gone_with_its_state_after_its_move_was_given_up_is_written() {
    let (mut world, status) = World::moving(workflow_of(vec![function("f", &[], &[])]));
    let mut gone = None;
    world.migrate(status.workflow, "b", None, &mut |effect| match effect {
        Effect::Release { .. } => {
            gone = fail(effect, Error::not_found("not known"));
            None
        }
        _ => obey(effect),
    });
    world.lost("b");
    let mut epochs = Vec::new();
    world.on(gone.unwrap(), &mut |effect| {
        if let Effect::Persist { record: Some(record), .. } = effect {
            epochs.push(record::Workflow::decode(record.clone()).unwrap().components[0].place.epoch);
        }
        obey(effect)
    });
    assert_eq!(epochs.first(), Some(&3));
}

#[test]
fn what_cannot_be_moved_is_refused_in_words() {
    let (mut world, status) = World::moving(pair());
    let id = status.workflow;
    let gone = WorkflowId(Uuid::nil());
    assert_eq!(world.refused_to(gone, "b", None).code, Code::NotFound);
    assert_eq!(world.refused_to(id, "x", None), Error::not_found("there is no domain 'x'; there are: a, b"));
    assert_eq!(world.refused_to(id, "a", None), Error::rejected("the workflow runs in a already"));
    assert_eq!(world.refused_to(id, "a", Some("f")), Error::rejected("'f' runs in a already"));
    let unknown = world.refused_to(id, "b", Some("x"));
    assert_eq!(unknown, Error::not_found(format!("there is no component 'x' in {id}; there are: f, l")));
    let ticket = world.migrate(id, "b", None, &mut |effect| fail(effect, Error::rejected("no node for 'f'")));
    assert_eq!(world.reply_to(ticket), Err(Error::rejected("b cannot host it: no node for 'f'")));
    world.lost("a");
    let away = world.refused_to(id, "b", Some("f"));
    assert!(away.code == Code::Unavailable && away.message.starts_with("'f' keeps its state in a, which is"), "{away}");
    world.lost("b");
    assert!(world.refused_to(id, "b", None).message.starts_with("the domain b is out of reach"));

    let volumes = [("volume:data", "/data"), ("state", "transient")];
    let (mut world, status) = World::moving(workflow_of(vec![function("db", &[], &volumes)]));
    let error = world.refused_to(status.workflow, "b", None);
    assert!(error.message.starts_with("'db' keeps volumes in a, and they cannot be moved: "), "{error}");
}

#[test]
fn one_move_at_a_time() {
    let (mut world, status) = World::moving(stateless());
    let mut held = Vec::new();
    let first = world.migrate(status.workflow, "b", None, &mut |effect| match effect {
        Effect::Create { .. } => {
            held.extend(obey(effect));
            None
        }
        _ => obey(effect),
    });
    let again = world.refused_to(status.workflow, "b", None);
    assert_eq!(again, Error::unavailable("the workflow is being moved: try again in a moment"));
    let part = world.engine.part(status.mapping[0].component).unwrap().part;
    assert!(world.limit(part, Annotations::new()).unwrap_err().message.contains("is being moved"));
    for event in held {
        world.on(event, &mut obey);
    }
    assert!(matches!(world.reply_to(first), Ok(Answer::Migrated(_))));
}

#[test]
fn a_workflow_that_is_stopped_while_it_moves_leaves_nothing_behind() {
    for part_of_it in ["create f@2", "patch #1", "release #1", "activate 3"] {
        let (mut world, status) = World::moving(stateless());
        let mut held = Vec::new();
        let moving = world.migrate(status.workflow, "b", None, &mut |effect| {
            if in_words(effect) == part_of_it {
                held.extend(obey(effect));
                return None;
            }
            obey(effect)
        });
        let stopping = world.stop(status.workflow, &mut obey);
        for event in held {
            world.on(event, &mut obey);
        }
        assert_eq!(world.reply_to(stopping), Ok(Answer::Stopped), "{part_of_it}");
        assert!(world.reply_to(moving).is_err());
        assert!(world.engine.runs.is_empty(), "{part_of_it}: {:?}", world.engine.runs);
    }
}

#[test]
fn a_domain_that_is_lost_while_something_moves_there_ends_the_move() {
    let (mut world, status) = World::moving(stateless());
    let ticket = world.migrate(status.workflow, "b", None, &mut |effect| match effect {
        Effect::Create { .. } if is_create(effect, "l") => None,
        _ => obey(effect),
    });
    world.lost("b");
    assert!(world.reply_to(ticket).unwrap_err().message.starts_with("b is out of reach"));
    assert_eq!(world.homes(status.workflow), ["a", "a", "a"]);
    world.take_trace();
    world.up("b", 1);
    let mut stops = world.take_trace();
    stops.sort();
    assert_eq!(stops, ["stop #0", "stop #1"], "the third was never answered and waits for its answer");
}
