//! Domains that are lost: some for good.

use edgeless_api::node::{Capabilities, NodeInfo};

use super::*;

fn node_info(domain: &str, n: u128) -> NodeInfo {
    NodeInfo {
        node: NodeId(Uuid::from_u128(n)),
        domain: DomainId(domain.into()),
        agent_url: format!("http://{domain}.example:{n}").parse().unwrap(),
        invocation_url: url(domain),
        capabilities: Capabilities::default(),
        providers: Vec::new(),
        components: 0,
        native: true,
        cordoned: false,
        suspected: false,
    }
}

const GONE: Pulse = Pulse { alive: 0, gone: 3, silent: 0 };

/// A domain that has two nodes, and of which so much is left when it is lost.
fn with_nodes(pulse: Pulse) -> impl FnMut(&Effect) -> Option<Event> {
    move |effect| match effect {
        Effect::Nodes(peer) => {
            let nodes = (1..=2).map(|n| node_info(&peer.domain.0, n)).collect();
            Some(Event::Nodes { domain: peer.domain.clone(), result: Ok(nodes) })
        }
        Effect::Probe { domain, urls } => {
            assert_eq!(urls.len(), 3, "the orchestrator and two nodes");
            Some(Event::Probed { domain: domain.clone(), pulse })
        }
        _ => obey(effect),
    }
}

impl World {
    /// A workflow in `a`, whose nodes are known, and `b` that could host it.
    fn at_risk(workflow: Workflow) -> (Self, WorkflowId) {
        let mut world = Self::new(&["a", "b"]);
        world.up("a", 1);
        let id = world.started(workflow).workflow;
        world.up("b", 1);
        world.pass(Duration::from_millis(250), &mut with_nodes(GONE));
        world.up("a", 1);
        world.take_trace();
        (world, id)
    }

    /// Time passes while only `b` is in reach.
    fn without_a(&mut self, time: Duration, script: Script<'_>) {
        let end = self.now + time;
        while self.now < end {
            self.up_with("b", 1, script);
            self.pass(Duration::from_millis(250), script);
        }
    }
}

#[test]
fn a_domain_of_which_nothing_is_left_is_left_after_its_grace() {
    let (mut world, id) = World::at_risk(pair());
    world.lost("a");
    world.without_a(GRACE - Duration::from_secs(1), &mut with_nodes(GONE));
    assert_eq!(world.take_trace(), Vec::<String>::new());
    assert_eq!(world.homes(id), ["a", "a"]);
    world.without_a(Duration::from_secs(2), &mut with_nodes(GONE));
    assert_eq!(world.take_trace(), ["probe a at 3", "plan at b", "create f@2", "create l@2", "patch #0", "activate 2"]);
    assert_eq!(world.homes(id), ["b", "b"]);
    assert!(world.engine.view(id).unwrap().components.iter().all(|own| own.is_up));

    // Its orchestrator comes back as a new process, which runs nothing.
    world.up("a", 2);
    assert_eq!(world.take_trace(), Vec::<String>::new());
    assert!(world.engine.runs[&id].leftovers.is_empty());
}

/// The process that has started them may be the new one, which had not given a sign of life yet.
#[test]
fn a_domain_that_is_new_is_told_to_stop_what_it_may_have_been_given_after_all() {
    let (mut world, _) = World::at_risk(pair());
    let id = world.started_in_a(pair());
    world.lost("a");
    world.without_a(GRACE * 2, &mut with_nodes(GONE));
    world.take_trace();
    world.up("a", 2);
    assert_eq!(world.take_trace(), ["release #0", "stop #1"]);
    assert!(world.engine.runs[&id].leftovers.is_empty());
}

#[test]
fn a_domain_that_was_taken_for_gone_is_told_to_stop_what_was_moved() {
    let (mut world, id) = World::at_risk(pair());
    world.lost("a");
    world.without_a(GRACE * 2, &mut with_nodes(GONE));
    world.take_trace();
    world.up("a", 1);
    assert_eq!(world.take_trace(), ["release #0", "stop #1"]);
    assert_eq!(world.homes(id), ["b", "b"]);
}

#[test]
fn a_domain_of_which_something_answers_or_nothing_is_known_keeps_its_components() {
    for pulse in [
        Pulse { alive: 1, gone: 2, silent: 0 },
        Pulse { alive: 0, gone: 2, silent: 1 },
        Pulse { alive: 0, gone: 0, silent: 3 },
        Pulse::default(),
    ] {
        let (mut world, id) = World::at_risk(pair());
        world.lost("a");
        world.without_a(GRACE * 4, &mut with_nodes(pulse));
        let trace = world.take_trace();
        assert!(trace.len() > 3 && trace.iter().all(|step| step == "probe a at 3"), "probed again: {trace:?}");
        assert_eq!(world.homes(id), ["a", "a"]);
        // What is left of it goes later.
        world.without_a(Duration::from_secs(11), &mut with_nodes(GONE));
        assert_eq!(world.homes(id), ["b", "b"]);
    }
}

#[test]
fn a_domain_whose_nodes_were_never_learnt_is_not_probed() {
    let mut world = World::new(&["a", "b"]);
    world.up("a", 1);
    let id = world.started(pair()).workflow;
    world.lost("a");
    world.without_a(GRACE * 2, &mut with_nodes(GONE));
    assert!(!world.take_trace().iter().any(|step| step.starts_with("probe")));
    assert_eq!(world.homes(id), ["a", "a"]);
}

#[test]
fn a_probe_of_a_domain_that_was_back_meanwhile_says_nothing() {
    let (mut world, id) = World::at_risk(pair());
    world.lost("a");
    let mut held = None;
    let mut hold = |effect: &Effect| match effect {
        Effect::Probe { domain, .. } => {
            held = Some(Event::Probed { domain: domain.clone(), pulse: GONE });
            None
        }
        _ => with_nodes(GONE)(effect),
    };
    world.without_a(GRACE + Duration::from_secs(1), &mut hold);
    world.up("a", 1);
    world.pass(Duration::from_secs(1), &mut obey);
    world.lost("a");
    world.on(held.unwrap(), &mut obey);
    assert_eq!(world.homes(id), ["a", "a"]);
}

#[test]
fn a_workflow_may_ask_to_leave_a_domain_that_is_merely_away() {
    let relocate = BTreeMap::from([("relocate".to_string(), "after:5s".to_string())]);
    let workflow = Workflow::new(pair().functions().to_vec(), pair().resources().to_vec(), relocate).unwrap();
    let alive = Pulse { alive: 3, ..Pulse::default() };
    let (mut world, id) = World::at_risk(workflow);
    let other = world.started_in_a(pair());
    world.lost("a");
    world.without_a(Duration::from_secs(4), &mut with_nodes(alive));
    assert_eq!(world.homes(id), ["a", "a"]);
    world.without_a(Duration::from_secs(2), &mut with_nodes(alive));
    assert_eq!(world.homes(id), ["b", "b"]);
    assert_eq!(world.homes(other), ["a", "a"], "nobody asked for that");
}

impl World {
    fn started_in_a(&mut self, workflow: Workflow) -> WorkflowId {
        let ticket = self.start(workflow, None, &mut |effect| match effect {
            Effect::Plan { peer, .. } if peer.domain.0 != "a" => fail(effect, Error::rejected("no")),
            _ => obey(effect),
        });
        self.status_for(ticket).workflow
    }
}

#[test]
fn components_without_another_home_wait_for_one() {
    let (mut world, id) = World::at_risk(pair());
    let mut refuse = |effect: &Effect| match effect {
        Effect::Plan { .. } => fail(effect, Error::rejected("no node for 'f'")),
        _ => with_nodes(GONE)(effect),
    };
    world.lost("a");
    world.without_a(GRACE * 3, &mut refuse);
    let asked = world.take_trace().iter().filter(|step| *step == "plan at b").count();
    assert!((4..20).contains(&asked), "with growing pauses: {asked}");
    assert_eq!(world.homes(id), ["a", "a"]);
    world.without_a(Duration::from_secs(31), &mut with_nodes(GONE));
    assert_eq!(world.homes(id), ["b", "b"]);
}

#[test]
fn only_what_was_in_the_lost_domain_moves() {
    let mut world = World::halves();
    let id = world.started(pair()).workflow;
    world.pass(Duration::from_millis(250), &mut with_nodes(GONE));
    world.take_trace();
    world.lost("a");
    let mut told = Vec::new();
    let end = world.now + GRACE * 2;
    while world.now < end {
        let mut script = |effect: &Effect| {
            super::split::noting(&mut told)(effect);
            with_nodes(GONE)(effect)
        };
        world.up_having("b", 1, everything(), &mut script);
        world.pass(Duration::from_millis(250), &mut script);
    }
    assert_eq!(world.homes(id), ["b", "b"]);
    let expected = ["b: create f@2", "b: patch #0", "b: patch #1", "b: activate 1"];
    assert_eq!(told, expected, "the log is no longer sent events from elsewhere");
}

#[test]
fn what_keeps_volumes_waits_for_its_domain() {
    let (mut world, id) = World::at_risk(workflow_of(vec![
        function("db", &[], &[("volume:data", "/data")]),
        function("f", &[("out", "db")], &[]),
    ]));
    world.lost("a");
    world.without_a(GRACE * 2, &mut with_nodes(GONE));
    assert_eq!(world.homes(id), ["a", "b"]);
    let view = world.engine.view(id).unwrap();
    assert_eq!(view.components[0].trouble, "its volumes are in a, and cannot be moved: it waits for that domain");
}
