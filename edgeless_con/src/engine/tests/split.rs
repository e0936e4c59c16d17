//! Workflows that no domain can host alone.

use super::*;

impl World {
    /// Two domains that can host a pair together only: `a` the function, `b` the log.
    pub(super) fn halves() -> Self {
        let mut world = Self::new(&["a", "b"]);
        world.up_having("a", 1, only_functions(), &mut obey);
        world.up_having("b", 1, only_logs(), &mut obey);
        world
    }

    pub(super) fn homes(&self, workflow: WorkflowId) -> Vec<String> {
        let (_, status) = self.engine.inspect(workflow).unwrap();
        status.mapping.into_iter().map(|own| own.domain.0).collect()
    }

    /// A domain says where it runs a component.
    pub(super) fn row(&mut self, domain: &str, row: Row, script: Script<'_>) {
        self.on(Event::Rows { domain: DomainId(domain.into()), rows: vec![row] }, script);
    }
}

pub(super) fn domain_of(effect: &Effect) -> Option<&str> {
    match effect {
        Effect::Plan { peer, .. }
        | Effect::Create { peer, .. }
        | Effect::Patch { peer, .. }
        | Effect::Activate { peer, .. }
        | Effect::Stop { peer, .. }
        | Effect::Release { peer, .. } => Some(&peer.domain.0),
        _ => None,
    }
}

/// Obeys, and notes what domains were told, each with its domain.
pub(super) fn noting(told: &mut Vec<String>) -> impl FnMut(&Effect) -> Option<Event> {
    |effect| {
        if let Some(domain) = domain_of(effect).filter(|_| !matches!(effect, Effect::Plan { .. })) {
            told.push(format!("{domain}: {}", in_words(effect)));
        }
        obey(effect)
    }
}

pub(super) fn instance(n: u128) -> InstanceId {
    InstanceId { node: NodeId(Uuid::from_u128(n)), function: Uuid::from_u128(n) }
}

#[test]
fn a_workflow_that_no_domain_can_host_alone_is_split() {
    let mut world = World::halves();
    let (mut told, mut patches) = (Vec::new(), Vec::new());
    let ticket = world.start(pair(), None, &mut |effect| {
        if let Effect::Patch { patch, .. } = effect {
            patches.push(patch.clone());
        }
        noting(&mut told)(effect)
    });
    let status = world.status_for(ticket);
    assert_eq!(world.homes(status.workflow), ["a", "b"]);
    let expected = ["a: create f@1", "b: create l@1", "a: patch #0", "b: patch #1", "a: activate 1", "b: activate 1"];
    assert_eq!(told, expected);
    assert!(world.take_trace().contains(&"follow b".to_string()), "where the log runs is of interest to others");

    // Nobody knows yet where the log runs: events to it wait.
    let [f, l] = [status.mapping[0].component, status.mapping[1].component];
    let Target::Row(unknown) = &patches[0].outputs["out"] else { panic!("{patches:?}") };
    assert_eq!((patches[0].id, unknown.component, unknown.instances.len()), (f.0, l, 0));
    assert!(!patches[0].exported && patches[1].exported && patches[1].outputs.is_empty());
    assert_eq!(patches[1].id, l.0);

    // The domain of the log says where it runs, and again.
    let mut rows = Vec::new();
    for (epoch, at) in [(1 << 32, 7), (1 << 32, 7), ((1 << 32) + 1, 8)] {
        let mut row = Row::new(l, epoch, vec![instance(at)]);
        row.addresses.insert(NodeId(Uuid::from_u128(at)), url("b"));
        world.row("b", row.clone(), &mut |effect| {
            if let Effect::Patch { patch, peer, .. } = effect {
                rows.push((peer.domain.0.clone(), patch.outputs["out"].clone()));
            }
            obey(effect)
        });
        assert_eq!(rows.last(), Some(&("a".to_string(), Target::Row(row))));
    }
    assert_eq!(rows.len(), 2, "a repeat changes nothing");
    world.row("a", Row::new(l, 9 << 32, vec![instance(9)]), &mut |effect| panic!("{effect:?}"));

    world.take_trace();
    let ticket = world.stop(status.workflow, &mut obey);
    assert_eq!(world.reply_to(ticket), Ok(Answer::Stopped));
    assert!(world.engine.runs.is_empty() && world.engine.places.is_empty());
}

#[test]
fn a_row_that_cannot_be_told_is_told_again_later() {
    let mut world = World::halves();
    let l = world.started(pair()).mapping[1].component;
    let mut failures = 2;
    let mut script = |effect: &Effect| match effect {
        Effect::Patch { .. } if failures > 0 => {
            failures -= 1;
            fail(effect, Error::unavailable("busy"))
        }
        _ => obey(effect),
    };
    world.row("b", Row::new(l, 1 << 32, vec![instance(1)]), &mut script);
    for _ in 0..3 {
        world.up_having("a", 1, only_functions(), &mut script);
        world.up_having("b", 1, only_logs(), &mut script);
        world.pass(Duration::from_secs(1), &mut script);
    }
    let patches = world.take_trace().iter().filter(|step| *step == "patch #0").count();
    assert_eq!(patches, 3);
}

#[test]
fn one_domain_of_a_split_workflow_may_restart_alone() {
    let mut world = World::halves();
    let status = world.started(pair());
    let mut told = Vec::new();
    world.up_having("b", 2, only_logs(), &mut noting(&mut told));
    assert_eq!(told, ["b: create l@2", "b: patch #1", "b: activate 1"]);
    // Its rows count from nothing again.
    let mut last = Vec::new();
    let mut script = |effect: &Effect| {
        if let Effect::Patch { patch, .. } = effect
            && let Some(Target::Row(row)) = patch.outputs.get("out")
        {
            last.push(row.epoch);
        }
        obey(effect)
    };
    let l = status.mapping[1].component;
    world.row("b", Row::new(l, 1, vec![instance(2)]), &mut script);
    world.row("b", Row::new(l, 1 << 32 | 5, vec![instance(1)]), &mut script);
    assert_eq!(last, [2 << 32 | 1], "what the process before said is late");
    assert!(world.engine.view(status.workflow).unwrap().components.iter().all(|own| own.is_up));
}

#[test]
fn what_is_split_is_asked_for_domain_by_domain() {
    let mut world = World::halves();
    let status = world.started(pair());
    world.lost("b");
    let view = world.engine.view(status.workflow).unwrap();
    assert!(view.peers[&DomainId("a".into())].is_ok() && view.peers[&DomainId("b".into())].is_err());
    let told: Vec<_> = view.components.iter().map(|own| own.domain.0.as_str()).collect();
    assert_eq!(told, ["a", "b"]);
    assert!(world.engine.part(status.mapping[0].component).unwrap().peer.is_ok());
    assert!(world.engine.part(status.mapping[1].component).unwrap().peer.is_err());

    let ticket = world.stop(status.workflow, &mut obey);
    assert_eq!(world.reply_to(ticket), Ok(Answer::Stopped), "the domain in reach has stopped its part");
    assert_eq!(world.engine.runs.len(), 1);
    world.take_trace();
    world.up_having("b", 1, only_logs(), &mut obey);
    assert_eq!(world.take_trace(), ["stop #1"]);
    assert!(world.engine.runs.is_empty());
}

#[test]
fn a_failure_in_one_domain_undoes_the_start_in_all() {
    let mut world = World::halves();
    let mut told = Vec::new();
    let error = world.refusal_of(pair(), &mut |effect| {
        let obeyed = noting(&mut told)(effect);
        if is_create(effect, "l") { fail(effect, Error::rejected("the disk is full")) } else { obeyed }
    });
    assert_eq!(error, Error::rejected("component 'l': the disk is full"));
    assert_eq!(told, ["a: create f@1", "b: create l@1", "a: stop #0"]);
    assert!(world.engine.runs.is_empty());
}

/// A chain of functions, each of which sends to the next one.
fn chain(length: usize) -> Workflow {
    let name = |n: usize| format!("f{n}");
    let one = |n: usize| {
        let next = name(n + 1);
        let outputs: &[(&str, &str)] = if n + 1 < length { &[("out", &next)] } else { &[] };
        function(&name(n), outputs, &[])
    };
    workflow_of((0..length).map(one).collect())
}

fn refuse_if(effect: &Effect, is_refused: impl Fn(&str, &[String]) -> bool) -> Option<Event> {
    let Effect::Plan { peer, items, .. } = effect else { return obey(effect) };
    let names: Vec<String> = items.iter().map(|(name, _)| name.clone()).collect();
    if is_refused(&peer.domain.0, &names) { fail(effect, Error::rejected("no node for it")) } else { obey(effect) }
}

#[test]
fn what_a_domain_refuses_is_found_by_asking_and_put_elsewhere() {
    let mut world = World::new(&["a", "b"]);
    world.up("a", 1);
    world.up("b", 1);
    // Only b takes f2 and f5, only a takes f7; nobody says so in words that could be read.
    let mut script = |effect: &Effect| {
        refuse_if(effect, |domain, names| {
            let has = |name: &str| names.iter().any(|own| own == name);
            (domain == "a" && (has("f2") || has("f5"))) || (domain == "b" && has("f7"))
        })
    };
    let ticket = world.start(chain(8), None, &mut script);
    let status = world.status_for(ticket);
    let homes = world.homes(status.workflow);
    assert_eq!((homes[2].as_str(), homes[5].as_str(), homes[7].as_str()), ("b", "b", "a"));
    let crossings = homes.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!(crossings, 1, "{homes:?}");
}

#[test]
fn domains_that_take_each_component_and_not_all_are_given_fewer() {
    let mut world = World::new(&["a", "b"]);
    world.up("a", 1);
    world.up("b", 1);
    let mut script = |effect: &Effect| refuse_if(effect, |_, names| names.len() > 4);
    let ticket = world.start(chain(7), None, &mut script);
    let status = world.status_for(ticket);
    let homes = world.homes(status.workflow);
    let count = |name: &str| homes.iter().filter(|home| *home == name).count();
    assert!(count("a") <= 4 && count("b") <= 4, "{homes:?}");
    assert_eq!(homes.windows(2).filter(|pair| pair[0] != pair[1]).count(), 1, "{homes:?}");

    let mut script = |effect: &Effect| refuse_if(effect, |_, names| names.len() > 3);
    let error = world.refusal_of(chain(7), &mut script);
    assert!(
        error.message.starts_with("no domain can host this workflow: a: no node for it; b: no node for it"),
        "{error}"
    );
    assert!(world.engine.searches.is_empty());
}

#[test]
fn a_plan_shows_how_a_workflow_would_be_split() {
    let mut world = World::halves();
    let ticket = world.ticket();
    world.on(Event::Plan { ticket, workflow: pair() }, &mut obey);
    let Ok(Answer::Planned(placements)) = world.reply_to(ticket) else { panic!("no plan") };
    let told: Vec<_> = placements.iter().map(|own| (own.name.as_str(), own.domain.0.as_str())).collect();
    assert_eq!(told, [("f", "a"), ("l", "b")]);
    assert!(world.engine.runs.is_empty());
}

#[test]
fn a_domain_of_edgeless_1_2_takes_no_part() {
    let mut world = World::new(&["a"]);
    world.up_having("a", 1, only_functions(), &mut obey);
    let mut old = |effect: &Effect| match domain_of(effect) {
        Some("old") => fail(effect, Error::unimplemented("unknown service")),
        _ => obey(effect),
    };
    for _ in 0..2 {
        world.register_as("old", only_logs(), &mut old).unwrap();
    }
    let error = world.refusal_of(pair(), &mut old);
    assert_eq!(
        error.message,
        "no domain can host this workflow: a lacks the resource class file-log, which 'l' needs; old lacks the runtime \
         RUST_WASM, which 'f' needs; old speaks only EDGELESS 1.2 and cannot host a part of a workflow"
    );
}

#[test]
fn what_gets_events_from_elsewhere_keeps_an_instance() {
    let functions = || {
        let zero = [("min_instances", "0")];
        let labelled = [("min_instances", "0"), ("label_match_all", "b")];
        vec![function("f", &[("out", "g")], &zero), function("g", &[], &labelled)]
    };
    let mut world = World::new(&["a", "b"]);
    let labels = |name: &str| DomainCapabilities { labels: BTreeSet::from([name.to_string()]), ..everything() };
    let script = |effect: &Effect| {
        refuse_if(effect, |domain, names| names.iter().any(|name| name == if domain == "b" { "f" } else { "g" }))
    };
    world.up_having("a", 1, labels("a"), &mut obey);
    world.up_having("b", 1, labels("b"), &mut obey);
    let mut least = Vec::new();
    world.start(workflow_of(functions()), None, &mut |effect| {
        if let Effect::Create { start, .. } = effect {
            least.push(start.spec.annotations()["min_instances"].clone());
        }
        script(effect)
    });
    assert_eq!(least, ["0", "1"]);
}

#[test]
fn a_domain_that_says_absurd_things_is_believed_within_bounds() {
    let mut world = World::new(&["a", "b"]);
    let absurd = DomainCapabilities {
        num_nodes: u32::MAX,
        labels: (0..200_000).map(|n| n.to_string()).collect(),
        runtimes: BTreeSet::from(["RUST_WASM".into(), "x".repeat(100_000)]),
        ..everything()
    };
    world.up_having("a", 1, absurd, &mut obey);
    let a = DomainId("a".into());
    let known = &world.engine.domains(Some(&a))[&a];
    assert_eq!((known.labels.len(), known.runtimes.len()), (100_000, 1));
    world.started(pair());
}
