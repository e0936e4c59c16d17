//! What is written when, what becomes of a write that fails, and what a restart makes of each record.

use edgeless_api::component::Row;
use edgeless_api::record;

use super::moving::stateless;
use super::split::noting;
use super::*;

/// A disk, and what happened in its order: writes among the other steps.
#[derive(Default)]
struct Disk {
    records: BTreeMap<WorkflowId, Bytes>,
    steps: Vec<String>,
    is_full: bool,
}

fn full() -> Error {
    Error::unavailable("cannot write controller.redb: no space left on device")
}

impl Disk {
    /// Notes a step, and writes what is to be written; domains answer by `script`.
    fn on(&mut self, effect: &Effect, script: Script<'_>) -> Option<Event> {
        let Effect::Persist { workflow, record, .. } = effect else {
            self.steps.push(in_words(effect));
            self.steps.retain(|step| !step.is_empty());
            return script(effect);
        };
        let what = record.as_ref().map(|record| record::Workflow::decode(record.clone()).unwrap().phase);
        self.steps.push(what.map_or_else(|| "remove".into(), |phase| format!("write {phase:?}")));
        if self.is_full {
            return written(effect, Err(full()));
        }
        match record {
            Some(record) => self.records.insert(*workflow, record.clone()),
            None => self.records.remove(workflow),
        };
        written(effect, Ok(()))
    }

    fn take_steps(&mut self) -> Vec<String> {
        std::mem::take(&mut self.steps)
    }

    fn records(&self) -> Vec<record::Workflow> {
        self.records.values().map(|record| record::Workflow::decode(record.clone()).unwrap()).collect()
    }

    fn only(&self) -> record::Workflow {
        let [record] = self.records().try_into().unwrap();
        record
    }

    /// A controller that starts from what is here.
    fn restart(&self, domains: &[&str]) -> World {
        let mut world = World::new(domains);
        world.engine = Engine::restore(world.settings.clone(), 8, self.records()).unwrap();
        world
    }
}

/// A controller, `d`, and its disk with a workflow that runs.
fn running(workflow: Workflow) -> (World, Disk, WorkflowStatus) {
    let (mut world, mut disk) = (World::with_domain(), Disk::default());
    let request = Some(Uuid::from_u128(1));
    let ticket = world.start(workflow, request, &mut |effect| disk.on(effect, &mut obey));
    disk.take_steps();
    let status = world.status_for(ticket);
    (world, disk, status)
}

#[test]
fn a_workflow_is_written_before_it_is_created_acknowledged_stopped_and_forgotten() {
    let (mut world, mut disk) = (World::with_domain(), Disk::default());
    let ticket = world.start(pair(), None, &mut |effect| disk.on(effect, &mut obey));
    assert_eq!(
        disk.take_steps(),
        ["plan at d", "write Starting", "create f@1", "create l@1", "patch #0", "activate 2", "write Running", "grant"]
    );
    let status = world.status_for(ticket);
    world.stop(status.workflow, &mut |effect| disk.on(effect, &mut obey));
    assert_eq!(disk.take_steps(), ["write Stopping", "stop #0", "stop #1", "remove", "grant"]);
    assert!(disk.records.is_empty() && world.engine.runs.is_empty() && world.engine.places.is_empty());
}

#[test]
fn nothing_is_done_for_a_workflow_while_it_is_being_written() {
    let mut world = World::with_domain();
    let mut writes = Vec::new();
    let mut slow = |effect: &Effect| match effect {
        Effect::Persist { .. } => {
            writes.extend(obey(effect));
            None
        }
        _ => obey(effect),
    };
    let request = Some(Uuid::from_u128(1));
    let first = world.start(pair(), request, &mut slow);
    world.up_with("d", 1, &mut slow);
    world.pass(Duration::from_secs(4), &mut slow);
    assert_eq!(world.take_trace(), ["plan at d"]);
    let write = writes.pop().unwrap();
    let mut slow = |effect: &Effect| match effect {
        Effect::Persist { .. } => {
            writes.extend(obey(effect));
            None
        }
        _ => obey(effect),
    };
    world.on(write, &mut slow);
    assert_eq!(world.take_trace(), ["create f@1", "create l@1", "patch #0", "activate 2"]);
    assert!(world.engine.list().is_empty(), "nobody is told of it");
    let second = world.start(pair(), request, &mut obey);
    assert_eq!((world.try_reply_to(first), world.try_reply_to(second)), (None, None));
    world.on(writes.pop().unwrap(), &mut obey);
    let status = world.status_for(first);
    assert_eq!(world.engine.list(), [status.workflow]);
    assert_eq!(world.status_for(second), status);
}

#[test]
fn a_workflow_that_cannot_be_written_is_refused_and_nothing_is_done_for_it() {
    let (mut world, mut disk) = (World::with_domain(), Disk { is_full: true, ..Disk::default() });
    let request = Some(Uuid::from_u128(1));
    let ticket = world.start(pair(), request, &mut |effect| disk.on(effect, &mut obey));
    assert_eq!(world.reply_to(ticket), Err(full()));
    assert_eq!(disk.take_steps(), ["plan at d", "write Starting", &format!("refuse: {}", full())]);
    assert!(world.engine.runs.is_empty() && world.engine.places.is_empty());
    disk.is_full = false;
    let again = world.start(pair(), request, &mut |effect| disk.on(effect, &mut obey));
    world.status_for(again);
}

#[test]
fn a_start_that_cannot_be_acknowledged_is_undone_though_the_disk_is_full() {
    let (mut world, mut disk) = (World::with_domain(), Disk::default());
    let fill = |disk: &mut Disk, effect: &Effect| {
        disk.is_full |= matches!(effect, Effect::Activate { .. });
        disk.on(effect, &mut obey)
    };
    let ticket = world.start(pair(), None, &mut |effect| fill(&mut disk, effect));
    assert_eq!(disk.take_steps().last().unwrap(), "write Running");
    assert_eq!(world.try_reply_to(ticket), None, "it is being undone");
    world.pass(Duration::from_secs(1), &mut |effect| fill(&mut disk, effect));
    assert_eq!(disk.take_steps(), ["stop #0", "stop #1", "remove", &format!("refuse: {}", full())]);
    assert_eq!(world.reply_to(ticket), Err(full()));
    assert_eq!(disk.only().phase, record::Phase::Starting);
    disk.is_full = false;
    world.pass(Duration::from_secs(6), &mut |effect| disk.on(effect, &mut obey));
    assert_eq!(disk.take_steps(), ["remove"]);
    assert!(world.engine.runs.is_empty());
}

#[test]
fn a_stop_that_cannot_be_written_is_told_and_done_when_there_is_room() {
    let (mut world, mut disk, status) = running(pair());
    disk.is_full = true;
    let ticket = world.stop(status.workflow, &mut |effect| disk.on(effect, &mut obey));
    assert_eq!(world.reply_to(ticket), Err(full()));
    world.up("d", 1);
    world.pass(Duration::from_secs(5), &mut |effect| disk.on(effect, &mut obey));
    let steps = disk.take_steps();
    assert!(!steps.iter().any(|step| step.starts_with("stop")), "it may not be stopped yet: {steps:?}");
    let tries = steps.iter().filter(|step| *step == "write Stopping").count();
    assert!((3..8).contains(&tries), "with growing pauses: {steps:?}");
    disk.is_full = false;
    world.up("d", 1);
    world.pass(Duration::from_secs(5), &mut |effect| disk.on(effect, &mut obey));
    assert_eq!(disk.take_steps(), ["write Stopping", "stop #0", "stop #1", "remove"]);
    assert!(disk.records.is_empty() && world.engine.runs.is_empty());
}

#[test]
fn a_move_that_cannot_be_written_is_refused_and_possible_later() {
    let (mut world, mut disk, status) = running(stateless());
    world.up("e", 1);
    let request = Event::Register {
        ticket: world.ticket(),
        registration: DomainRegistration {
            domain: DomainId("e".into()),
            orchestrator_url: url("e"),
            capabilities: everything(),
            lifetime: Duration::from_secs(600),
            counter: 0,
            nonce: 1,
        },
    };
    world.on(request.clone(), &mut obey);
    world.on(request, &mut obey);
    disk.is_full = true;
    let ticket = world.migrate(status.workflow, "e", None, &mut |effect| disk.on(effect, &mut obey));
    let refused = world.reply_to(ticket).unwrap_err();
    assert_eq!(refused, full());
    assert!(!disk.take_steps().iter().any(|step| step.starts_with("create")), "nothing was done");
    assert_eq!(world.homes(status.workflow), ["d", "d", "d"]);
    disk.is_full = false;
    world.up("d", 1);
    world.pass(Duration::from_secs(5), &mut |effect| disk.on(effect, &mut obey));
    disk.take_steps();
    let ticket = world.migrate(status.workflow, "e", None, &mut |effect| disk.on(effect, &mut obey));
    world.reply_to(ticket).unwrap();
    assert_eq!(world.homes(status.workflow), ["e", "e", "e"]);
    let steps = disk.take_steps();
    let at =
        |step: &str| steps.iter().position(|own| own.starts_with(step)).unwrap_or_else(|| panic!("{step}: {steps:?}"));
    assert!(at("write") < at("create") && at("create") < at("release"), "{steps:?}");
}

#[test]
fn other_limits_are_granted_once_they_are_written() {
    let (mut world, mut disk, status) = running(pair());
    let part = world.engine.part(status.mapping[0].component).unwrap().part;
    let cpu = |value: &str| Annotations::from([("cpu".to_string(), value.to_string())]);
    let mut limit = |disk: &mut Disk, value: &str| {
        let ticket = world.ticket();
        let event = Event::Limit { ticket, part, changes: cpu(value) };
        world.on(event, &mut |effect| disk.on(effect, &mut obey));
        world.reply_to(ticket)
    };
    assert_eq!(limit(&mut disk, "0.5"), Ok(Answer::Limited));
    assert_eq!(disk.take_steps(), ["write Running", "grant"]);
    assert_eq!(disk.only().asked.unwrap().functions()[0].annotations, cpu("0.5"));
    disk.is_full = true;
    assert_eq!(limit(&mut disk, "0.7"), Err(full()));
}

/// A domain that has lost everything is given it again, but not before the new epochs are known: the next restart
/// must not take what came before for what is there.
#[test]
fn what_a_domain_has_lost_is_written_before_it_is_created_again() {
    let (mut world, mut disk, _) = running(pair());
    world.up_with("d", 2, &mut |effect| disk.on(effect, &mut obey));
    let again = ["write Running", "create f@2", "create l@2", "patch #0", "activate 2", "write Running"];
    assert_eq!(disk.take_steps(), again);
    let record = disk.only();
    assert_eq!((record.domains[0].nonce, record.components[0].place.epoch), (2, 2));
}

#[test]
fn what_ran_runs_on_after_a_restart_and_nothing_is_done_for_it() {
    let (world, disk, status) = running(pair());
    let before = world.engine.inspect(status.workflow).unwrap();
    let mut world = disk.restart(&["d"]);
    assert_eq!(world.engine.list(), [status.workflow], "before its domain is in reach");
    assert!(world.peer_of(status.workflow).unwrap_err().contains("has not answered yet"));
    world.up("d", 1);
    world.pass(Duration::from_secs(3), &mut obey);
    assert_eq!(world.take_trace(), Vec::<String>::new());
    assert_eq!(world.engine.inspect(status.workflow).unwrap(), before);
    assert!(world.engine.view(status.workflow).unwrap().components.iter().all(|own| own.is_up && own.epoch == 1));

    // The request that started it is known.
    let again = world.start(pair(), Some(Uuid::from_u128(1)), &mut obey);
    assert_eq!(world.status_for(again), status);
    world.take_trace();
    let ticket = world.stop(status.workflow, &mut obey);
    assert_eq!(world.take_trace(), ["stop #0", "stop #1", "grant"]);
    assert_eq!(world.reply_to(ticket), Ok(Answer::Stopped));
}

#[test]
fn what_a_domain_has_lost_while_the_controller_was_away_is_created_again() {
    let (_, disk, status) = running(pair());
    let mut world = disk.restart(&["d"]);
    world.up("d", 2);
    assert_eq!(world.take_trace(), ["create f@2", "create l@2", "patch #0", "activate 2"]);
    assert_eq!(world.engine.list(), [status.workflow]);
}

#[test]
fn a_domain_that_announces_itself_is_not_reset_for_a_controller_that_was_restarted() {
    let mut disk = Disk::default();
    let mut world = World::new(&[]);
    assert!(world.register("own", 1, 1).unwrap().reset);
    assert!(!world.register("own", 1, 1).unwrap().reset);
    world.start(pair(), None, &mut |effect| disk.on(effect, &mut obey));
    let mut world = disk.restart(&[]);
    assert!(!world.register("own", 1, 1).unwrap().reset);
    assert_eq!(world.take_trace(), ["grant"]);
    assert!(world.register("own", 1, 2).unwrap().reset, "a new process");
}

/// It was never acknowledged: its user has seen an error, and will start another one.
#[test]
fn what_was_being_started_is_undone_after_a_restart() {
    let (mut world, mut disk) = (World::with_domain(), Disk::default());
    let request = Some(Uuid::from_u128(1));
    world.start(pair(), request, &mut |effect| if is_create(effect, "l") { None } else { disk.on(effect, &mut obey) });
    assert_eq!(disk.only().phase, record::Phase::Starting);
    let mut world = disk.restart(&["d"]);
    disk.take_steps();
    assert!(world.engine.list().is_empty());
    let asked_again = world.start(pair(), request, &mut obey);
    world.up_with("d", 1, &mut |effect| disk.on(effect, &mut obey));
    assert_eq!(
        disk.take_steps(),
        [
            "stop #0",
            "stop #1",
            "remove",
            "refuse: the controller was restarted before the workflow had started: start it again"
        ]
    );
    assert_eq!(world.reply_to(asked_again).unwrap_err().code, Code::Unavailable);
    assert!(disk.records.is_empty());
    let again = world.start(pair(), request, &mut obey);
    world.status_for(again);
}

/// The create may have reached a new process of the domain, which the controller did not live to see.
#[test]
fn what_was_being_started_is_stopped_in_a_domain_that_is_new_as_well() {
    let (mut world, mut disk) = (World::with_domain(), Disk::default());
    world.start(pair(), None, &mut |effect| if is_create(effect, "l") { None } else { disk.on(effect, &mut obey) });
    let mut world = disk.restart(&["d"]);
    disk.take_steps();
    world.up_with("d", 2, &mut |effect| disk.on(effect, &mut obey));
    let steps = disk.take_steps();
    assert!(steps.ends_with(&["stop #0".into(), "stop #1".into(), "remove".into()]), "{steps:?}");
}

#[test]
fn what_was_being_stopped_is_stopped_after_a_restart() {
    let (mut world, mut disk, status) = running(pair());
    world.stop(status.workflow, &mut |effect| match effect {
        Effect::Stop { part, .. } if part.place == 1 => None,
        _ => disk.on(effect, &mut obey),
    });
    let record = disk.only();
    assert_eq!((record.phase, record.asked), (record::Phase::Stopping, None), "and its code is needed no more");
    let mut world = disk.restart(&["d"]);
    assert!(world.engine.list().is_empty());
    disk.take_steps();
    let ticket = world.stop(status.workflow, &mut obey);
    assert_eq!(world.reply_to(ticket), Ok(Answer::Stopped), "nothing more can be done before the domain is back");
    world.up_with("d", 1, &mut |effect| disk.on(effect, &mut obey));
    assert_eq!(disk.take_steps(), ["stop #0", "stop #1", "remove"]);
    assert!(disk.records.is_empty() && world.engine.runs.is_empty());
}

/// A workflow in `a`, whose move to `b` ends with the first effect that `stops` names. What is on the disk.
fn interrupted(workflow: Workflow, stops: &str) -> (Disk, WorkflowStatus) {
    let (mut world, mut disk) = (World::new(&["a", "b"]), Disk::default());
    world.up("a", 1);
    let ticket = world.start(workflow, None, &mut |effect| disk.on(effect, &mut obey));
    let status = world.status_for(ticket);
    world.up("b", 1);
    let mut is_over = false;
    world.migrate(status.workflow, "b", None, &mut |effect| {
        is_over |= in_words(effect) == stops;
        if is_over { None } else { disk.on(effect, &mut obey) }
    });
    assert!(is_over, "{:?}", disk.steps);
    disk.take_steps();
    (disk, status)
}

#[test]
fn a_move_that_was_interrupted_is_undone() {
    let (mut disk, status) = interrupted(stateless(), "patch #0");
    let mut world = disk.restart(&["a", "b"]);
    let mut told = Vec::new();
    let mut script = |effect: &Effect| disk.on(effect, &mut noting(&mut told));
    world.up_with("a", 1, &mut script);
    world.up_with("b", 1, &mut script);
    told.retain(|step| step.starts_with("b:") || !step.contains("patch"));
    assert_eq!(told, ["b: stop #0", "b: stop #1", "b: stop #2"], "what runs in a is told its outputs at most");
    assert_eq!(world.homes(status.workflow), ["a", "a", "a"]);
    assert!(world.engine.view(status.workflow).unwrap().components.iter().all(|own| own.is_up && own.epoch == 1));
    assert!(disk.only().leftovers.is_empty());
    // And it can be moved again.
    let ticket = world.migrate(status.workflow, "b", None, &mut obey);
    world.reply_to(ticket).unwrap();
    assert_eq!(world.homes(status.workflow), ["b", "b", "b"]);
}

#[test]
fn a_component_that_was_handed_over_is_created_again_with_its_state_where_it_was() {
    let stateful = workflow_of(vec![function("f", &[], &[])]);
    let (mut disk, status) = interrupted(stateful, "create f@2");
    let mut world = disk.restart(&["a", "b"]);
    let mut states = Vec::new();
    let mut script = |effect: &Effect| {
        if let Effect::Create { peer, start, .. } = effect {
            states.push((peer.domain.0.clone(), start.context.clone().unwrap().state));
        }
        disk.on(effect, &mut obey)
    };
    world.up_with("b", 1, &mut script);
    world.up_with("a", 1, &mut script);
    assert_eq!(states, [("a".to_string(), Some(Bytes::from_static(b"remembered")))]);
    let steps = disk.take_steps();
    assert!(steps.contains(&"stop #0".to_string()), "what may be in b: {steps:?}");
    assert_eq!(world.homes(status.workflow), ["a"]);
    assert!(world.engine.view(status.workflow).unwrap().components[0].is_up);
}

/// The answer, and with it the state, is lost; that it may be gone is not.
#[test]
fn a_component_whose_hand_over_was_under_way_is_asked_for_again() {
    let stateful = workflow_of(vec![function("f", &[], &[])]);
    let (disk, status) = interrupted(stateful, "release #0");
    let mut world = disk.restart(&["a", "b"]);
    world.up("a", 1);
    world.up("b", 1);
    let trace = world.take_trace();
    assert!(trace.contains(&"create f@1".to_string()), "the same epoch: {trace:?}");
    assert_eq!(world.homes(status.workflow), ["a"]);
}

#[test]
fn what_a_move_has_left_behind_is_stopped_after_a_restart() {
    let (mut disk, status) = interrupted(stateless(), "stop #2");
    assert_eq!(disk.only().leftovers.len(), 3, "a log is stopped, functions handle what they have");
    let mut world = disk.restart(&["a", "b"]);
    let mut told = Vec::new();
    let mut script = |effect: &Effect| disk.on(effect, &mut noting(&mut told));
    world.up_with("b", 1, &mut script);
    world.up_with("a", 1, &mut script);
    for _ in 0..6 {
        world.up_with("b", 1, &mut script);
        world.up_with("a", 1, &mut script);
        world.pass(Duration::from_secs(1), &mut script);
    }
    told.retain(|step| step.starts_with("a:"));
    told.sort();
    assert_eq!(told, ["a: release #0", "a: release #1", "a: stop #2"]);
    assert_eq!(world.homes(status.workflow), ["b", "b", "b"]);
    assert!(disk.only().leftovers.is_empty());
    assert!(world.engine.view(status.workflow).unwrap().components.iter().all(|own| own.is_up));
}

/// Whether a sender was told where its target is now cannot be seen from outside: it is told again.
#[test]
fn senders_are_told_after_a_restart_what_a_move_has_changed() {
    let (mut world, mut disk) = (World::new(&["a", "b"]), Disk::default());
    world.up("a", 1);
    let ticket = world.start(stateless(), None, &mut |effect| disk.on(effect, &mut obey));
    let status = world.status_for(ticket);
    world.up("b", 1);
    world.migrate(status.workflow, "b", Some("f"), &mut |effect| match effect {
        Effect::Patch { part, patch, .. } if part.place == 0 && matches!(patch.outputs["out"], Target::Row(_)) => None,
        _ => disk.on(effect, &mut obey),
    });
    let mut world = disk.restart(&["a", "b"]);
    let mut told = Vec::new();
    let mut script = |effect: &Effect| {
        if let Effect::Patch { part, patch, .. } = effect {
            told.push((part.place, patch.clone()));
        }
        obey(effect)
    };
    world.up_with("a", 1, &mut script);
    world.up_with("b", 1, &mut script);
    assert_eq!(world.homes(status.workflow), ["a", "b", "a"]);
    let row = Row::new(status.mapping[1].component, 2 << 32, vec![super::split::instance(5)]);
    world.row("b", row.clone(), &mut script);
    let last = |place: usize| told.iter().rev().find(|(own, _)| *own == place).map(|(_, patch)| patch).unwrap();
    assert_eq!(last(0).outputs["out"], Target::Row(row));
    assert!(last(1).exported && last(2).exported, "{told:?}");
}

/// A domain that speaks only EDGELESS 1.2 gives components ids of its own: without them nothing could be stopped.
#[test]
fn the_ids_of_a_domain_of_edgeless_1_2_are_remembered() {
    let own = ComponentId(Uuid::from_u128(42));
    let mut old = |effect: &Effect| match effect {
        Effect::Plan { .. } | Effect::Activate { .. } => fail(effect, Error::unimplemented("unknown service")),
        Effect::Create { part, .. } => Some(Event::Created { part: *part, result: Ok(ComponentRef::Component(own)) }),
        _ => obey(effect),
    };
    let mut disk = Disk::default();
    for stops in ["activate 1", "nothing"] {
        let mut world = World::new(&[]);
        world.register("old", 1, 1).unwrap();
        world.register("old", 1, 1).unwrap();
        world.start(workflow_of(vec![function("f", &[], &[])]), None, &mut |effect| {
            if in_words(effect) == stops { None } else { disk.on(effect, &mut old) }
        });
        let mut world = disk.restart(&[]);
        assert!(!world.register("old", 1, 1).unwrap().reset);
        if let Some(workflow) = world.engine.list().first().copied() {
            world.stop(workflow, &mut old);
        }
        assert_eq!(world.stopped, [own], "{stops}");
        disk = Disk::default();
    }
}

#[test]
fn a_record_that_contradicts_itself_is_refused() {
    let (world, disk, status) = running(pair());
    let mut record = disk.only();
    record.components[1].name = "other".into();
    let error = Engine::restore(world.settings.clone(), 1, vec![record]).unwrap_err();
    assert!(error.message.contains(&status.workflow.to_string()), "{error}");
    let mut record = disk.only();
    record.components.pop();
    assert!(Engine::restore(world.settings, 1, vec![record]).is_err());
}
