//! Placement as a whole: refusals, and every strategy with every constraint against a filter written from the
//! documentation.

use std::collections::{BTreeMap, BTreeSet};

use edgeless_api::amount::{Bytes, Cpu};
use edgeless_api::component::{Annotations, ComponentSpec, FunctionClass, FunctionSpec, ResourceSpec, StateSpec};
use edgeless_api::decision::Outcome;
use edgeless_api::id::{ComponentId, NodeId, StateId, WorkflowId};
use edgeless_api::node::{Capabilities, Health, ProviderSpec, Registration};
use edgeless_api::requirements::{KEYS, Requirements};
use edgeless_api::url::Url;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::*;

#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) capabilities: Capabilities,
    pub(super) providers: Vec<ProviderSpec>,
    pub(super) health: Health,
}

pub(super) fn id(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

pub(super) fn wasm() -> Node {
    let capabilities = Capabilities {
        num_cpus: 1,
        num_cores: 4,
        clock_freq_cpu: 1000.0,
        runtimes: vec!["RUST_WASM".into()],
        ..Capabilities::default()
    };
    Node { capabilities, ..Node::default() }
}

pub(super) fn with_label(mut node: Node, label: &str) -> Node {
    node.capabilities.labels.push(label.into());
    node
}

fn offering(mut node: Node, provider: &str, class: &str) -> Node {
    node.providers.push(ProviderSpec { id: provider.into(), class_type: class.into(), outputs: vec![] });
    node
}

fn annotations(pairs: &[(&str, &str)]) -> Annotations {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

pub(super) fn function(pairs: &[(&str, &str)]) -> ComponentSpec {
    function_of(WorkflowId::NONE, pairs)
}

pub(super) fn function_of(workflow: WorkflowId, pairs: &[(&str, &str)]) -> ComponentSpec {
    ComponentSpec::Function(FunctionSpec {
        class: FunctionClass { function_type: "RUST_WASM".into(), ..FunctionClass::default() },
        annotations: annotations(pairs),
        state: StateSpec { id: StateId(Uuid::nil()), policy: Default::default() },
        workflow,
    })
}

fn resource(class: &str) -> ComponentSpec {
    ComponentSpec::Resource(ResourceSpec {
        class_type: class.into(),
        configuration: Annotations::new(),
        workflow: WorkflowId::NONE,
    })
}

fn registration(n: u128, node: &Node) -> Registration {
    let url = || format!("http://127.0.0.1:{}", 7000 + n).parse::<Url>().unwrap();
    Registration {
        node: id(n),
        agent_url: url(),
        invocation_url: url(),
        providers: node.providers.clone(),
        capabilities: node.capabilities.clone(),
        nonce: 0,
        lifetime: None,
        interval: None,
        health: node.health.clone(),
        native: true,
        leaving: false,
        proof: None,
        loads: Vec::new(),
        reports: false,
        report: None,
        performance: edgeless_api::node::Performance::default(),
    }
}

/// The nodes, ready, with the ids 1, 2 and so on.
pub(super) fn placer(strategy: &'static Strategy, seed: u64, nodes: &[Node]) -> Placer {
    let mut placer = Placer::new(strategy, seed);
    for (n, node) in (1..).zip(nodes) {
        placer.nodes.upsert(&registration(n, node));
        placer.nodes.set_ready(id(n), true);
    }
    placer
}

fn requirements(spec: &ComponentSpec) -> Requirements {
    Requirements::parse(spec.annotations()).unwrap()
}

/// The number of the node that is chosen.
pub(super) fn choose(placer: &mut Placer, spec: &ComponentSpec) -> Result<u128, Refusal> {
    choose_near(placer, spec, &[])
}

pub(super) fn choose_near(placer: &mut Placer, spec: &ComponentSpec, neighbours: &[NodeId]) -> Result<u128, Refusal> {
    let requirements = requirements(spec);
    let question = Question { neighbours, ..Question::new("resize", spec, &requirements) };
    placer.choose(&question).map(|place| place.node.0.as_u128())
}

fn tenant(n: u128) -> Tenant {
    Tenant::first(ComponentId(Uuid::from_u128(n)))
}

/// A component of no workflow runs on a node.
pub(super) fn occupy(placer: &mut Placer, node: NodeId, component: u128, pairs: &[(&str, &str)]) {
    let requirements = Requirements::parse(&annotations(pairs)).unwrap();
    placer.nodes.occupy(node, tenant(component), WorkflowId::NONE, &requirements);
}

/// The nodes that are left, or the refusal.
fn who(placer: &Placer, spec: &ComponentSpec) -> Result<Vec<u128>, String> {
    let requirements = requirements(spec);
    who_of(placer, &Question::new("resize", spec, &requirements))
}

fn who_of(placer: &Placer, question: &Question<'_>) -> Result<Vec<u128>, String> {
    let left = placer.nodes.feasible(question).map_err(|error| error.message)?;
    let ids: BTreeSet<u128> = left.ones().map(|slot| placer.nodes.facts().node(slot).unwrap().0.as_u128()).collect();
    Ok(ids.into_iter().collect())
}

#[test]
fn a_refusal_counts_the_nodes_that_are_left_after_each_requirement() {
    let nodes = [wasm(), wasm(), Node::default(), wasm(), Node::default()];
    let placer = placer(Strategy::random(), 0, &nodes);
    let error = who(&placer, &function(&[("label_match_all", "gpu"), ("tee", "required")])).unwrap_err();
    assert_eq!(
        error,
        "no node for 'resize': 3 of 5 nodes run RUST_WASM, 0 of 3 have the label 'gpu'; \
         add such a node or ask for less"
    );
    let error = who(&placer, &resource("redis")).unwrap_err();
    assert!(error.contains("0 of 5 nodes offer redis"), "{error}");
    let error = who(&self::placer(Strategy::random(), 0, &[]), &function(&[])).unwrap_err();
    assert!(error.contains("the domain has no node") && error.contains("orchestrator_url"), "{error}");
}

#[test]
fn a_refusal_says_what_others_have_taken() {
    let mut big = wasm();
    big.capabilities.mem_size = 128;
    let mut placer = placer(Strategy::random(), 0, &[big.clone(), big.clone(), big]);
    for n in [1, 2] {
        occupy(&mut placer, id(n), n, &[("cpu", "3.5"), ("memory", "100MiB")]);
    }
    let refusal = |placer: &Placer, pairs: &[(&str, &str)], taken: &[NodeId]| {
        let (spec, requirements) = (function(pairs), Requirements::parse(&annotations(pairs)).unwrap());
        who_of(placer, &Question { taken, ..Question::new("resize", &spec, &requirements) }).unwrap_err()
    };
    placer.nodes.set_cordoned(id(3), true);
    let error = refusal(&placer, &[("cpu", "1")], &[]);
    assert!(error.contains("1 of 3 have 1 cores that are not reserved (cpu), 0 of 1 are not cordoned"), "{error}");
    let error = refusal(&placer, &[("memory", "64MiB")], &[]);
    assert!(error.contains("1 of 3 have 64MiB of memory that are not reserved (memory), 0 of 1 are"), "{error}");
    let error = refusal(&placer, &[("label_match_any", "gpu,fast")], &[]);
    assert!(error.contains("0 of 3 have one of the labels 'gpu', 'fast'"), "{error}");
    placer.nodes.set_cordoned(id(3), false);
    let error = refusal(&placer, &[("spread", "node"), ("cpu", "4")], &[id(3)]);
    assert!(error.contains("2 of 3 have no other instance of it (spread), 0 of 2 have 4 cores"), "{error}");
}

#[test]
fn every_requirement_restricts_functions_and_resources() {
    let mut secure = offering(with_label(wasm(), "gpu"), "redis-1", "redis");
    secure.capabilities.is_tee_running = true;
    secure.capabilities.has_tpm = true;
    secure.capabilities.mem_size = 128;
    let mut poor = offering(wasm(), "redis-2", "redis");
    poor.capabilities.num_cores = 2;
    poor.capabilities.mem_size = 32;
    let placer = placer(Strategy::random(), 0, &[poor, secure]);
    let second = id(2).to_string();
    for annotation in [
        ("label_match_all", "gpu"),
        ("label_match_any", "fast,gpu"),
        ("resource_match_all", "redis-1"),
        ("node_id_match_any", second.as_str()),
        ("tee", "required"),
        ("tpm", "REQUIRED"),
        ("cpu", "2.5"),
        ("memory", "64MiB"),
    ] {
        let mut of_class = resource("redis");
        *of_class.annotations_mut() = annotations(&[annotation]);
        for spec in [function(&[annotation]), of_class] {
            assert_eq!(who(&placer, &spec), Ok(vec![2]), "{annotation:?} of {spec:?}");
        }
    }
    assert_eq!(who(&placer, &resource("redis")), Ok(vec![1, 2]));
    assert_eq!(who(&placer, &function(&[("tee", "no")])), Ok(vec![1, 2]));
}

/// A node that speaks only EDGELESS 1.x keeps no state outside, whatever it says.
#[test]
fn global_state_needs_a_node_of_ours_that_reaches_it() {
    let mut reaching = wasm();
    reaching.capabilities.has_global_state = true;
    let mut placer = placer(Strategy::random(), 0, &[wasm(), reaching.clone()]);
    placer.nodes.upsert(&Registration { native: false, ..registration(3, &reaching) });
    placer.nodes.set_ready(id(3), true);
    let mut spec = function(&[]);
    assert_eq!(who(&placer, &spec), Ok(vec![1, 2, 3]));
    if let ComponentSpec::Function(function) = &mut spec {
        function.state.policy = edgeless_api::component::StatePolicy::Global;
    }
    assert_eq!(who(&placer, &spec), Ok(vec![2]));
    placer.nodes.upsert(&registration(2, &wasm()));
    let error = who(&placer, &spec).unwrap_err();
    assert!(error.contains("0 of 3 have a state_url (state=global)"), "{error}");
}

/// One that speaks only EDGELESS 1.x knows no repeat, whether it would send or take one.
#[test]
fn delivery_at_least_once_needs_nodes_of_ours() {
    let mut placer = placer(Strategy::random(), 0, &[wasm()]);
    placer.nodes.upsert(&Registration { native: false, ..registration(2, &wasm()) });
    placer.nodes.set_ready(id(2), true);
    assert_eq!(who(&placer, &function(&[("delivery", "at-most-once")])), Ok(vec![1, 2]));
    for annotation in ["delivery", "delivery:out", "input_delivery"] {
        assert_eq!(who(&placer, &function(&[(annotation, "at-least-once")])), Ok(vec![1]), "{annotation}");
    }
    placer.nodes.remove(id(1));
    let error = who(&placer, &function(&[("delivery", "at-least-once")])).unwrap_err();
    assert!(error.contains("can deliver at least once (delivery)"), "{error}");
}

#[test]
fn a_node_without_a_core_runs_no_function_but_opens_resources() {
    let mut coreless = offering(wasm(), "redis-1", "redis");
    coreless.capabilities.num_cores = 0;
    let placer = placer(Strategy::random(), 0, &[coreless]);
    let error = who(&placer, &function(&[])).unwrap_err();
    assert!(error.contains("1 of 1 nodes run RUST_WASM, 0 of 1 have a processor core"), "{error}");
    assert_eq!(who(&placer, &resource("redis")), Ok(vec![1]));
}

#[test]
fn a_node_that_does_not_know_its_memory_is_not_limited_by_it() {
    let placer = placer(Strategy::random(), 0, &[wasm()]);
    assert_eq!(who(&placer, &function(&[("memory", "900GiB")])), Ok(vec![1]));
}

#[test]
fn the_provider_is_one_of_the_class_on_the_chosen_node() {
    let node = offering(offering(offering(wasm(), "a", "redis"), "b", "file-log"), "c", "redis");
    let mut placer = placer(Strategy::random(), 7, &[node]);
    let (spec, requirements) = (resource("redis"), Requirements::default());
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        seen.insert(placer.choose(&Question::new("store", &spec, &requirements)).unwrap().provider);
    }
    assert_eq!(seen.iter().collect::<Vec<_>>(), ["a", "c"], "both, and never the file log");
}

/// An excluded node is no reason to say that the requirements cannot be met.
#[test]
fn a_node_that_failed_is_not_tried_again() {
    let mut placer = placer(Strategy::round_robin(), 0, &[wasm(), wasm()]);
    let (spec, requirements) = (function(&[]), Requirements::default());
    let mut without = |excluded: &[NodeId]| {
        placer.choose(&Question { excluded, ..Question::new("f", &spec, &requirements) }).map(|place| place.node)
    };
    assert_eq!([without(&[id(2)]), without(&[id(2)])], [Ok(id(1)), Ok(id(1))]);
    assert_eq!(without(&[id(1), id(2)]), Err(Refusal::Excluded));
}

#[test]
fn what_is_released_is_free_again_and_what_is_lost_with_its_node_too() {
    let mut placer = placer(Strategy::random(), 0, &[wasm()]);
    let whole = function(&[("cpu", "4")]);
    occupy(&mut placer, id(1), 1, &[("cpu", "1")]);
    occupy(&mut placer, id(1), 1, &[("cpu", "0.5")]);
    assert_eq!(placer.nodes.components(id(1)), 1, "the same one, with other limits");
    assert_eq!(who(&placer, &function(&[("cpu", "3.5")])), Ok(vec![1]));
    assert!(who(&placer, &whole).is_err());
    placer.nodes.release(id(1), tenant(1));
    placer.nodes.release(id(1), tenant(1));
    assert_eq!(who(&placer, &whole), Ok(vec![1]));
    occupy(&mut placer, id(1), 1, &[("cpu", "1")]);
    placer.nodes.remove(id(1));
    placer.nodes.release(id(1), tenant(1));
    placer.nodes.upsert(&registration(1, &wasm()));
    assert!(who(&placer, &whole).is_err(), "it is not ready yet");
    placer.nodes.set_ready(id(1), true);
    assert_eq!(who(&placer, &whole), Ok(vec![1]));
    assert_eq!(placer.nodes.components(id(1)), 0);
}

/// A node that announces less than it has promised is full, not more than full.
#[test]
fn a_node_that_shrinks_keeps_what_it_has_and_takes_no_more() {
    let mut placer = placer(Strategy::random(), 0, &[wasm()]);
    occupy(&mut placer, id(1), 1, &[("cpu", "3")]);
    let mut small = wasm();
    small.capabilities.num_cores = 2;
    placer.nodes.upsert(&registration(1, &small));
    assert!(who(&placer, &function(&[("cpu", "0.01")])).is_err());
    placer.nodes.release(id(1), tenant(1));
    assert_eq!(who(&placer, &function(&[("cpu", "2")])), Ok(vec![1]));
}

#[test]
fn an_explanation_names_the_first_rule_that_each_node_does_not_meet() {
    let host = |node, name: &str| with_label(node, &format!("hostname={name}"));
    let gpu = || with_label(wasm(), "gpu");
    let nodes = [host(gpu(), "a"), host(wasm(), "b"), Node::default(), gpu(), gpu(), gpu(), gpu()];
    let mut placer = placer(Strategy::round_robin(), 0, &nodes);
    placer.nodes.upsert(&registration(8, &gpu()));
    placer.nodes.set_cordoned(id(4), true);
    occupy(&mut placer, id(5), 5, &[("cpu", "3")]);
    let spec = function(&[("label_match_all", "gpu"), ("spread", "node"), ("cpu", "1.5")]);
    let requirements = requirements(&spec);
    let (taken, excluded) = ([id(6)], [id(7)]);
    let question = Question { taken: &taken, excluded: &excluded, ..Question::new("resize", &spec, &requirements) };
    let decision = placer.explain(&question, None);
    assert_eq!(decision.outcome, format!("goes to node {} (a)", id(1)));
    assert_eq!((decision.component.as_str(), decision.strategy.as_str()), ("resize", "round robin"));
    assert_eq!(decision.nodes.iter().map(|verdict| verdict.hostname.as_str()).take(2).collect::<Vec<_>>(), ["a", "b"]);
    let said: Vec<String> = decision.nodes.iter().map(|verdict| verdict.outcome.to_string()).collect();
    let expected = [
        "chosen: chosen when it is its turn",
        "excluded: lacks the label 'gpu'",
        "excluded: does not run RUST_WASM",
        "excluded: is cordoned",
        "excluded: has 1 of 4 cores left, 1.5 are asked for (cpu)",
        "excluded: has another instance of it (spread)",
        "excluded: is left out: it could not start it, or is what it leaves",
        "excluded: is not ready yet: it is being made part of the domain",
    ];
    assert_eq!(said, expected);
    assert_eq!(placer.choose(&question).unwrap().node, id(1), "an explanation takes no turn");
}

/// What it keeps itself is no reason against the node that it is on.
#[test]
fn an_explanation_of_what_runs_takes_its_own_reservations_for_free() {
    let mut placer = placer(Strategy::round_robin(), 0, &[wasm(), wasm()]);
    occupy(&mut placer, id(2), 9, &[("cpu", "4")]);
    let spec = function(&[("cpu", "4")]);
    let requirements = requirements(&spec);
    let question = Question::new("resize", &spec, &requirements);
    let decision = placer.explain(&question, Some((id(2), tenant(9))));
    assert_eq!(decision.outcome, format!("runs on node {}", id(2)));
    assert!(matches!(decision.nodes[0].outcome, Outcome::Score(_)), "{decision:?}");
    assert!(matches!(decision.nodes[1].outcome, Outcome::Chosen(_)), "{decision:?}");
    placer.nodes.set_cordoned(id(2), true);
    let decision = placer.explain(&question, Some((id(2), tenant(9))));
    assert!(decision.outcome.ends_with("where it would not be placed now: that node is cordoned"), "{decision:?}");
    occupy(&mut placer, id(1), 1, &[("cpu", "1")]);
    let decision = placer.explain(&question, None);
    assert!(decision.outcome.starts_with("no node for 'resize': 2 of 2 nodes run"), "{decision:?}");
}

fn some<T: Clone>(rng: &mut SmallRng, all: &[T]) -> Vec<T> {
    all.iter().filter(|_| rng.random_bool(0.6)).cloned().collect()
}

fn any_node(rng: &mut SmallRng) -> Node {
    let strings = |all: Vec<&str>| all.into_iter().map(str::to_string).collect();
    let providers = some(rng, &[("redis-1", "redis"), ("redis-2", "redis"), ("log-1", "file-log")]);
    let load = |rng: &mut SmallRng| rng.random_bool(0.7).then(|| rng.random_range(-1..500));
    let health = Health {
        load_avg: load(rng).map(|load| [load; 3]),
        mem_available: load(rng).map(|load| load << 10),
        ..Health::default()
    };
    let capabilities = Capabilities {
        num_cpus: rng.random_range(0..3),
        num_cores: rng.random_range(0..3),
        mem_size: [0, 64, 256][rng.random_range(0..3_usize)],
        clock_freq_cpu: [0.0, f32::NAN, -1.0, f32::MAX, 800.0][rng.random_range(0..5_usize)],
        runtimes: strings(some(rng, &["RUST_WASM", "CONTAINER"])),
        labels: strings(some(rng, &["gpu", "fast", ""])),
        is_tee_running: rng.random_bool(0.6),
        has_tpm: rng.random_bool(0.6),
        ..Capabilities::default()
    };
    let bare = Node { capabilities, providers: vec![], health };
    providers.into_iter().fold(bare, |node, (id, class)| offering(node, id, class))
}

/// Up to three of the annotations that restrict, each of which may be met in part or not at all.
fn any_annotations(rng: &mut SmallRng) -> Annotations {
    let ids: Vec<String> = (1..=9).map(|n| id(n).to_string()).collect();
    let one = |rng: &mut SmallRng, all: &[&str]| all[rng.random_range(0..all.len())].to_string();
    let all = [
        ("node_id_match_any", some(rng, &ids).join(",")),
        ("label_match_all", some(rng, &["gpu", "fast", ""]).join(",")),
        ("label_match_any", some(rng, &["gpu", "slow"]).join(",")),
        ("resource_match_all", some(rng, &["redis-1", "redis-2", "log-1"]).join(",")),
        ("tee", some(rng, &["required"]).concat()),
        ("tpm", some(rng, &["Required"]).concat()),
        ("spread", "node".to_string()),
        ("cpu", one(rng, &["0.5", "1", "3", "none"])),
        ("memory", one(rng, &["16MiB", "64MiB", "200MiB"])),
    ];
    assert_eq!(all.each_ref().map(|(key, _)| *key), KEYS.map(|(key, _)| key));
    (0..rng.random_range(0..4))
        .map(|_| all[rng.random_range(0..all.len())].clone())
        .map(|(key, value)| (key.into(), value))
        .collect()
}

/// The nodes of a domain as a list, with what was placed on them: what the index must agree with.
#[derive(Clone, Debug, Default)]
struct Plain {
    nodes: BTreeMap<u128, (Node, bool)>,
    cordoned: BTreeSet<u128>,
    tenants: BTreeMap<u128, (u128, Requirements)>,
}

impl Plain {
    fn reserved<T>(&self, n: u128, amount: impl Fn(&Requirements) -> Option<T>) -> Vec<T> {
        self.tenants.values().filter(|(node, _)| *node == n).filter_map(|(_, own)| amount(own)).collect()
    }

    /// Whether a node may run a component, word by word from the documentation and without the code
    /// that is tested.
    fn may_run(&self, spec: &ComponentSpec, n: u128, taken: &[NodeId]) -> bool {
        let Some((node, true)) = self.nodes.get(&n) else { return false };
        let own = &node.capabilities;
        let text = |key: &str| spec.annotations().get(key).map(String::as_str);
        let listed = |key: &str, has: &dyn Fn(&str) -> bool| text(key).is_none_or(|list| list.split(',').all(has));
        let listed_any = |key: &str, has: &dyn Fn(&str) -> bool| text(key).is_none_or(|list| list.split(',').any(has));
        let required = |key: &str| text(key).is_some_and(|value| value.eq_ignore_ascii_case("required"));
        let is_named = match text("node_id_match_any") {
            None | Some("") => true,
            Some(list) => list.split(',').any(|one| one == id(n).to_string()),
        };
        let has_place = match spec {
            ComponentSpec::Function(function) => {
                own.runtimes.contains(&function.class.function_type) && own.num_cpus > 0 && own.num_cores > 0
            }
            ComponentSpec::Resource(resource) => node.providers.iter().any(|one| one.class_type == resource.class_type),
        };
        let cpu = match text("cpu") {
            None | Some("none") => 0.0,
            Some(cpu) => cpu.parse().unwrap(),
        };
        let cores: f64 = self.reserved(n, |own| own.cpu).into_iter().map(|cpu| cpu.nanos as f64 / 1e9).sum();
        let memory = text("memory").map_or(0, |text| text.parse::<Bytes>().unwrap().0);
        let bytes: u64 = self.reserved(n, |own| own.memory).into_iter().map(|memory| memory.0).sum();
        let label = |label: &str| own.labels.iter().any(|one| one == label);
        has_place
            && is_named
            && !self.cordoned.contains(&n)
            && listed("label_match_all", &label)
            && listed_any("label_match_any", &label)
            && listed("resource_match_all", &|provider| node.providers.iter().any(|one| one.id == provider))
            && (!required("tee") || own.is_tee_running)
            && (!required("tpm") || own.has_tpm)
            && (text("spread") != Some("node") || !taken.contains(&id(n)))
            && (cpu == 0.0 || cores + cpu <= f64::from(own.num_cpus * own.num_cores))
            && (memory == 0 || own.mem_size == 0 || bytes + memory <= u64::from(own.mem_size) << 20)
    }

    /// Something happens to the domain.
    fn change(&mut self, rng: &mut SmallRng, placers: &mut [Placer]) {
        let n = rng.random_range(1..=9);
        match rng.random_range(0..8) {
            0..=2 => {
                let node = any_node(rng);
                placers.iter_mut().for_each(|placer| placer.nodes.upsert(&registration(n, &node)));
                let entry = self.nodes.entry(n).or_default();
                entry.0 = node;
            }
            3 => {
                placers.iter_mut().for_each(|placer| placer.nodes.remove(id(n)));
                self.nodes.remove(&n);
                self.cordoned.remove(&n);
                self.tenants.retain(|_, (node, _)| *node != n);
            }
            4 | 5 => {
                let is_ready = rng.random_bool(0.8);
                placers.iter_mut().for_each(|placer| placer.nodes.set_ready(id(n), is_ready));
                if let Some((_, own)) = self.nodes.get_mut(&n) {
                    *own = is_ready;
                }
            }
            6 if self.nodes.contains_key(&n) => {
                let is_cordoned = rng.random_bool(0.3);
                placers.iter_mut().for_each(|placer| placer.nodes.set_cordoned(id(n), is_cordoned));
                self.cordoned.remove(&n);
                self.cordoned.extend(is_cordoned.then_some(n));
            }
            _ => {
                let component = rng.random_range(0..8);
                if let Some((node, _)) = self.tenants.remove(&component) {
                    placers.iter_mut().for_each(|placer| placer.nodes.release(id(node), tenant(component)));
                }
            }
        }
    }

    fn keeps_to_what_nodes_have(&self) -> bool {
        self.nodes.iter().all(|(n, (node, _))| {
            let own = &node.capabilities;
            let cpu: u64 = self.reserved(*n, |own| own.cpu).iter().map(|cpu| cpu.nanos).sum();
            let memory: u64 = self.reserved(*n, |own| own.memory).iter().map(|memory| memory.0).sum();
            let all = u64::from(own.mem_size) << 20;
            cpu <= u64::from(own.num_cpus * own.num_cores) * Cpu::cores(1.0).nanos && (all == 0 || memory <= all)
        })
    }
}

/// Whatever happens to the nodes and whatever is asked for: the index knows what a list knows, a component is
/// refused exactly if no node may run it, every choice of every strategy is a node that may, and a seed repeats it.
#[test]
fn no_strategy_ever_chooses_an_infeasible_node() {
    let mut rng = SmallRng::seed_from_u64(42);
    let (mut placed, mut refused): (BTreeMap<String, u32>, u32) = (BTreeMap::new(), 0);
    for round in 0..150 {
        let mut placers = STRATEGIES.map(|strategy| Placer::new(strategy, round));
        let mut plain = Plain::default();
        for step in 0..60 {
            plain.change(&mut rng, &mut placers);
            let annotations = any_annotations(&mut rng);
            let workflow = WorkflowId(Uuid::from_u128(rng.random_range(0..3)));
            let mut spec = if rng.random_bool(0.6) { function_of(workflow, &[]) } else { resource("redis") };
            *spec.annotations_mut() = annotations.clone();
            let nodes = |rng: &mut SmallRng| some(rng, &[id(1), id(2), id(2), id(5), id(77)]);
            let (neighbours, taken, excluded) = (nodes(&mut rng), nodes(&mut rng), [id(rng.random_range(1..20))]);
            let requirements = requirements(&spec);
            let question = Question {
                neighbours: &neighbours,
                taken: &taken,
                excluded: &excluded,
                ..Question::new("f", &spec, &requirements)
            };
            let may: Vec<u128> = (1..=9).filter(|n| plain.may_run(&spec, *n, &taken)).collect();
            let case = || format!("round {round}.{step}: {annotations:?} on {plain:#?}");
            assert_eq!(who_of(&placers[0], &question).unwrap_or_default(), may, "{}", case());
            let open: Vec<u128> = may.iter().copied().filter(|n| id(*n) != excluded[0]).collect();
            let mut chosen = Vec::new();
            for placer in &mut placers {
                let decision = placer.explain(&question, None);
                let again = placer.clone().choose(&question);
                let place = placer.choose(&question);
                assert_eq!(place, again, "{}", case());
                let listed = |is: fn(&Outcome) -> bool| -> Vec<u128> {
                    let listed = decision.nodes.iter().filter(|verdict| is(&verdict.outcome));
                    listed.map(|verdict| verdict.node.0.as_u128()).collect()
                };
                let all: Vec<u128> = plain.nodes.keys().copied().collect();
                assert_eq!(decision.nodes.iter().map(|verdict| verdict.node.0.as_u128()).collect::<Vec<_>>(), all);
                assert_eq!(listed(|outcome| !matches!(outcome, Outcome::Excluded(_))), open, "{}", case());
                let node = place.as_ref().ok().map(|place| place.node.0.as_u128());
                assert_eq!(listed(|outcome| matches!(outcome, Outcome::Chosen(_))), Vec::from_iter(node), "{}", case());
                assert_eq!(matches!(place, Err(Refusal::Infeasible(_))), may.is_empty(), "{}", case());
                assert_eq!(place.is_ok(), !open.is_empty(), "{}", case());
                if let Ok(place) = place {
                    let n = place.node.0.as_u128();
                    assert!(open.contains(&n), "{placer:?} chose {n}, {}", case());
                    let providers = &plain.nodes[&n].0.providers;
                    let is_right = match &spec {
                        ComponentSpec::Function(_) => place.provider.is_empty(),
                        ComponentSpec::Resource(_) => {
                            providers.iter().any(|own| own.id == place.provider && own.class_type == "redis")
                        }
                    };
                    assert!(is_right, "{placer:?} chose {place:?}, {}", case());
                    chosen.push(n);
                }
            }
            // One of them is placed, in the eyes of all, so that they go on alike.
            if chosen.is_empty() {
                refused += 1;
                continue;
            }
            let n = chosen[rng.random_range(0..chosen.len())];
            for key in annotations.keys() {
                *placed.entry(key.clone()).or_default() += 1;
            }
            let component = rng.random_range(0..8);
            if plain.tenants.contains_key(&component) {
                continue;
            }
            let kept_before = plain.keeps_to_what_nodes_have();
            plain.tenants.insert(component, (n, requirements.clone()));
            assert!(plain.keeps_to_what_nodes_have() || !kept_before, "round {round}.{step}: {plain:#?}");
            for placer in &mut placers {
                placer.nodes.occupy(id(n), tenant(component), spec.workflow(), &requirements);
            }
        }
    }
    let often = placed.values().filter(|count| **count > 100).count();
    assert!(often == KEYS.len() && refused > 500, "every requirement was met and refused often: {placed:?}, {refused}");
}

/// Replicas that are spread never meet, until there are more than nodes.
#[test]
fn spread_is_honoured_by_every_strategy() {
    for strategy in STRATEGIES {
        let mut placer = placer(strategy, 3, &[wasm(), wasm(), wasm()]);
        let spec = function(&[("spread", "node")]);
        let requirements = requirements(&spec);
        let mut taken = Vec::new();
        for replica in 0..3 {
            let question = Question { taken: &taken, ..Question::new("f", &spec, &requirements) };
            let node = placer.choose(&question).unwrap().node;
            assert!(!taken.contains(&node), "{strategy:?}");
            placer.nodes.occupy(
                node,
                Tenant { component: ComponentId(Uuid::nil()), replica },
                spec.workflow(),
                &requirements,
            );
            taken.push(node);
        }
        let question = Question { taken: &taken, ..Question::new("f", &spec, &requirements) };
        assert!(matches!(placer.choose(&question), Err(Refusal::Infeasible(_))), "{strategy:?}");
    }
}
