//! Chooses the node for each component of a domain.
//!
//! Pure: no clock, no I/O, and a random generator that is part of the value. Placement never starts
//! anything; it answers "where", or says which requirement no node meets, and the engine turns the
//! answer into effects. The same inputs always give the same node.
//!
//! A new strategy is a file beside this one and a line in [`STRATEGIES`].

mod random;
mod round_robin;

use std::fmt;

use edgeless_api::component::{ComponentSpec, FunctionSpec};
use edgeless_api::error::Error;
use edgeless_api::id::NodeId;
use edgeless_api::node::{Capabilities, ProviderSpec};
use edgeless_api::requirements::Requirements;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Deserializer};

/// All strategies.
pub const STRATEGIES: [&Strategy; 2] = [&random::STRATEGY, &round_robin::STRATEGY];

/// A way to choose among nodes that can all run a component.
pub struct Strategy {
    /// Its name in the configuration.
    pub name: &'static str,
    /// Its name in sentences.
    pub title: &'static str,
    /// Chooses among nodes that are ordered by id; `None` only if there are none.
    pick: fn(&[Candidate<'_>], &mut Memory) -> Option<NodeId>,
}

impl Strategy {
    /// A node at random, the faster ones more often.
    pub const fn random() -> &'static Self {
        &random::STRATEGY
    }

    /// One node after the other.
    pub const fn round_robin() -> &'static Self {
        &round_robin::STRATEGY
    }
}

impl fmt::Debug for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Strategy {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<'de> Deserialize<'de> for &'static Strategy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        STRATEGIES.into_iter().find(|strategy| strategy.name == name).ok_or_else(|| {
            let known = STRATEGIES.map(|strategy| strategy.name).join(", ");
            serde::de::Error::custom(format!("'{name}' is not an orchestration strategy: write one of {known}"))
        })
    }
}

/// What strategies remember from one choice to the next.
#[derive(Clone, Debug)]
pub struct Memory {
    rng: SmallRng,
    last: Option<NodeId>,
}

/// A node that a component may land on.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The node.
    pub node: NodeId,
    /// What it has.
    pub capabilities: &'a Capabilities,
    /// What opens resources there.
    pub providers: &'a [ProviderSpec],
}

/// The nodes that can run a component, in their order.
///
/// # Errors
/// None can; the message counts, requirement by requirement, how many are left.
pub fn feasible<'a>(
    name: &str,
    spec: &ComponentSpec,
    requirements: &Requirements,
    nodes: impl Iterator<Item = Candidate<'a>>,
) -> Result<Vec<Candidate<'a>>, Error> {
    let mut sieve = Sieve { left: nodes.collect(), counts: Vec::new() };
    if sieve.left.is_empty() {
        return Err(Error::rejected(format!(
            "no node for '{name}': the domain has no node; start a node whose orchestrator_url names this orchestrator"
        )));
    }
    match spec {
        ComponentSpec::Function(function) => sieve.runs(function),
        ComponentSpec::Resource(resource) => {
            let class = &resource.class_type;
            sieve.keep(&format!("offer {class}"), |node| node.providers.iter().any(|own| own.class_type == *class));
        }
    }
    for requirement in requirements.each() {
        sieve.keep(&requirement.to_string(), |node| {
            requirement.is_met_by(node.node, node.capabilities, node.providers.iter().map(|own| own.id.as_str()))
        });
    }
    if sieve.left.is_empty() {
        let counts = sieve.counts.join(", ");
        return Err(Error::rejected(format!("no node for '{name}': {counts}; add such a node or ask for less")));
    }
    Ok(sieve.left)
}

/// Nodes that pass one requirement after the other.
struct Sieve<'a> {
    left: Vec<Candidate<'a>>,
    counts: Vec<String>,
}

impl Sieve<'_> {
    fn runs(&mut self, function: &FunctionSpec) {
        let kind = &function.class.function_type;
        self.keep(&format!("run {kind}"), |node| node.capabilities.runtimes.contains(kind));
        // A node without any core hosts resources only. As good as no node is like that, so that
        // it is mentioned only where it matters.
        let has_core = |node: &Candidate<'_>| node.capabilities.num_cpus > 0 && node.capabilities.num_cores > 0;
        if !self.left.iter().all(has_core) {
            self.keep("have a processor core", has_core);
        }
    }

    fn keep(&mut self, requirement: &str, is_met_by: impl Fn(&Candidate<'_>) -> bool) {
        let before = self.left.len();
        if before == 0 {
            return;
        }
        self.left.retain(is_met_by);
        let nodes = if self.counts.is_empty() { " nodes" } else { "" };
        self.counts.push(format!("{} of {before}{nodes} {requirement}", self.left.len()));
    }
}

/// Where a component goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// What opens it there; empty for a function.
    pub provider: String,
}

/// A strategy and what it remembers. A clone foresees the choices of the original.
#[derive(Clone, Debug)]
pub struct Placer {
    strategy: &'static Strategy,
    memory: Memory,
}

impl Placer {
    /// A strategy that has chosen nothing yet.
    pub fn new(strategy: &'static Strategy, seed: u64) -> Self {
        Self { strategy, memory: Memory { rng: SmallRng::seed_from_u64(seed), last: None } }
    }

    /// Chooses among nodes that can all run a component; `None` if there are none.
    pub fn choose(&mut self, spec: &ComponentSpec, candidates: &[Candidate<'_>]) -> Option<Place> {
        let node = (self.strategy.pick)(candidates, &mut self.memory)?;
        let provider = match spec {
            ComponentSpec::Function(_) => String::new(),
            ComponentSpec::Resource(resource) => {
                let chosen = candidates.iter().find(|candidate| candidate.node == node)?;
                let mut of_class: Vec<_> =
                    chosen.providers.iter().filter(|own| own.class_type == resource.class_type).collect();
                let one = self.memory.rng.random_range(0..of_class.len().max(1));
                (one < of_class.len()).then(|| of_class.swap_remove(one).id.clone())?
            }
        };
        Some(Place { node, provider })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeless_api::component::{Annotations, FunctionClass, ResourceSpec, StateSpec};
    use edgeless_api::id::{StateId, WorkflowId};
    use std::collections::BTreeMap;
    use uuid::Uuid;

    #[derive(Clone, Debug, Default)]
    struct Node {
        capabilities: Capabilities,
        providers: Vec<ProviderSpec>,
    }

    fn id(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    fn wasm() -> Node {
        let capabilities = Capabilities {
            num_cpus: 1,
            num_cores: 4,
            clock_freq_cpu: 1000.0,
            runtimes: vec!["RUST_WASM".into()],
            ..Capabilities::default()
        };
        Node { capabilities, providers: vec![] }
    }

    fn with_label(mut node: Node, label: &str) -> Node {
        node.capabilities.labels.push(label.into());
        node
    }

    fn offering(mut node: Node, provider: &str, class: &str) -> Node {
        node.providers.push(ProviderSpec { id: provider.into(), class_type: class.into(), outputs: vec![] });
        node
    }

    pub(super) fn function(annotations: &[(&str, &str)]) -> ComponentSpec {
        ComponentSpec::Function(FunctionSpec {
            class: FunctionClass { function_type: "RUST_WASM".into(), ..FunctionClass::default() },
            annotations: annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            state: StateSpec { id: StateId(Uuid::nil()), policy: Default::default() },
            workflow: WorkflowId::NONE,
        })
    }

    fn resource(class: &str) -> ComponentSpec {
        ComponentSpec::Resource(ResourceSpec {
            class_type: class.into(),
            configuration: Annotations::new(),
            workflow: WorkflowId::NONE,
        })
    }

    fn candidates(nodes: &[Node]) -> Vec<Candidate<'_>> {
        nodes
            .iter()
            .enumerate()
            .map(|(n, node)| Candidate {
                node: id(n as u128 + 1),
                capabilities: &node.capabilities,
                providers: &node.providers,
            })
            .collect()
    }

    fn who(spec: &ComponentSpec, nodes: &[Node]) -> Result<Vec<u128>, String> {
        let requirements = Requirements::parse(spec.annotations()).unwrap();
        let found = feasible("resize", spec, &requirements, candidates(nodes).into_iter());
        found.map(|all| all.iter().map(|one| one.node.0.as_u128()).collect()).map_err(|error| error.message)
    }

    #[test]
    fn a_refusal_counts_the_nodes_that_are_left_after_each_requirement() {
        let nodes = [wasm(), wasm(), Node::default(), wasm(), Node::default()];
        let error = who(&function(&[("label_match_all", "gpu"), ("tee", "required")]), &nodes).unwrap_err();
        assert_eq!(
            error,
            "no node for 'resize': 3 of 5 nodes run RUST_WASM, 0 of 3 have the label 'gpu'; \
             add such a node or ask for less"
        );
        let error = who(&resource("redis"), &nodes).unwrap_err();
        assert!(error.contains("0 of 5 nodes offer redis"), "{error}");
        let error = who(&function(&[]), &[]).unwrap_err();
        assert!(error.contains("the domain has no node") && error.contains("orchestrator_url"), "{error}");
    }

    #[test]
    fn every_requirement_restricts_functions_and_resources() {
        let mut secure = offering(with_label(wasm(), "gpu"), "redis-1", "redis");
        secure.capabilities.is_tee_running = true;
        secure.capabilities.has_tpm = true;
        let nodes = [wasm(), secure];
        let second = id(2).to_string();
        for annotation in [
            ("label_match_all", "gpu"),
            ("resource_match_all", "redis-1"),
            ("node_id_match_any", second.as_str()),
            ("tee", "required"),
            ("tpm", "REQUIRED"),
        ] {
            assert_eq!(who(&function(&[annotation]), &nodes), Ok(vec![2]), "{annotation:?}");
        }
        assert_eq!(who(&resource("redis"), &nodes), Ok(vec![2]));
        assert_eq!(who(&function(&[("tee", "no")]), &nodes), Ok(vec![1, 2]));
    }

    #[test]
    fn a_node_without_a_core_runs_no_function_but_opens_resources() {
        let mut coreless = offering(wasm(), "redis-1", "redis");
        coreless.capabilities.num_cores = 0;
        let error = who(&function(&[]), std::slice::from_ref(&coreless)).unwrap_err();
        assert!(error.contains("1 of 1 nodes run RUST_WASM, 0 of 1 have a processor core"), "{error}");
        assert_eq!(who(&resource("redis"), &[coreless]), Ok(vec![1]));
    }

    #[test]
    fn the_provider_is_one_of_the_class_on_the_chosen_node() {
        let node = offering(offering(offering(wasm(), "a", "redis"), "b", "file-log"), "c", "redis");
        let nodes = [node];
        let mut placer = Placer::new(Strategy::random(), 7);
        let mut seen = BTreeMap::new();
        for _ in 0..100 {
            let place = placer.choose(&resource("redis"), &candidates(&nodes)).unwrap();
            *seen.entry(place.provider).or_insert(0) += 1;
        }
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["a", "c"], "both, and never the file log");
    }

    fn some<T: Clone>(rng: &mut SmallRng, all: &[T]) -> Vec<T> {
        all.iter().filter(|_| rng.random_bool(0.6)).cloned().collect()
    }

    fn any_node(rng: &mut SmallRng) -> Node {
        let strings = |all: Vec<&str>| all.into_iter().map(str::to_string).collect();
        let providers = some(rng, &[("redis-1", "redis"), ("redis-2", "redis"), ("log-1", "file-log")]);
        let bare = Node {
            capabilities: Capabilities {
                num_cpus: rng.random_range(0..2),
                num_cores: rng.random_range(0..3),
                clock_freq_cpu: [0.0, f32::NAN, -1.0, f32::MAX, 800.0][rng.random_range(0..5_usize)],
                runtimes: strings(some(rng, &["RUST_WASM", "CONTAINER"])),
                labels: strings(some(rng, &["gpu", "fast", ""])),
                is_tee_running: rng.random_bool(0.6),
                has_tpm: rng.random_bool(0.6),
                ..Capabilities::default()
            },
            providers: vec![],
        };
        providers.into_iter().fold(bare, |node, (id, class)| offering(node, id, class))
    }

    /// Up to three of the annotations that restrict, each of which may be met in part or not at all.
    fn any_annotations(rng: &mut SmallRng) -> Annotations {
        let ids: Vec<String> = (1..=9).map(|n| id(n).to_string()).collect();
        let all = [
            ("node_id_match_any", some(rng, &ids).join(",")),
            ("label_match_all", some(rng, &["gpu", "fast", ""]).join(",")),
            ("resource_match_all", some(rng, &["redis-1", "redis-2", "log-1"]).join(",")),
            ("tee", some(rng, &["required"]).concat()),
            ("tpm", some(rng, &["Required"]).concat()),
        ];
        assert_eq!(all.each_ref().map(|(key, _)| *key), edgeless_api::requirements::KEYS.map(|(key, _)| key));
        (0..rng.random_range(0..4))
            .map(|_| all[rng.random_range(0..all.len())].clone())
            .map(|(key, value)| (key.into(), value))
            .collect()
    }

    /// Whether a node may run a component, word by word from the documentation and without the code
    /// that is tested.
    fn may_run(spec: &ComponentSpec, n: u128, node: &Node) -> bool {
        let own = &node.capabilities;
        let listed = |key: &str, has: &dyn Fn(&str) -> bool| {
            spec.annotations().get(key).is_none_or(|list| list.split(',').all(has))
        };
        let required = |key: &str| spec.annotations().get(key).is_some_and(|value| value.to_lowercase() == "required");
        let is_named = match spec.annotations().get("node_id_match_any").map(String::as_str) {
            None | Some("") => true,
            Some(list) => list.split(',').any(|one| one == id(n).to_string()),
        };
        let has_place = match spec {
            ComponentSpec::Function(function) => {
                own.runtimes.contains(&function.class.function_type) && own.num_cpus > 0 && own.num_cores > 0
            }
            ComponentSpec::Resource(resource) => node.providers.iter().any(|one| one.class_type == resource.class_type),
        };
        has_place
            && is_named
            && listed("label_match_all", &|label| own.labels.iter().any(|one| one == label))
            && listed("resource_match_all", &|provider| node.providers.iter().any(|one| one.id == provider))
            && (!required("tee") || own.is_tee_running)
            && (!required("tpm") || own.has_tpm)
    }

    /// Whatever the nodes and the requirements: a component is refused exactly if no node may run it,
    /// every choice of every strategy is a node that may, and a seed repeats it.
    #[test]
    fn no_strategy_ever_chooses_an_infeasible_node() {
        let mut rng = SmallRng::seed_from_u64(42);
        let mut placed: BTreeMap<String, u32> = BTreeMap::new();
        let mut refused = 0;
        for round in 0..5000 {
            let nodes: Vec<Node> = (0..rng.random_range(0..9)).map(|_| any_node(&mut rng)).collect();
            let annotations = any_annotations(&mut rng);
            let mut spec = if rng.random_bool(0.6) { function(&[]) } else { resource("redis") };
            match &mut spec {
                ComponentSpec::Function(function) => function.annotations = annotations.clone(),
                ComponentSpec::Resource(resource) => resource.configuration = annotations.clone(),
            }
            let may: Vec<u128> =
                (1..).zip(&nodes).filter(|(n, node)| may_run(&spec, *n, node)).map(|(n, _)| n).collect();
            let case = || format!("round {round}: {annotations:?} on {nodes:?}");
            let found = who(&spec, &nodes);
            assert_eq!(found.unwrap_or_default(), may, "{}", case());
            if may.is_empty() {
                refused += 1;
                continue;
            }
            for key in annotations.keys() {
                *placed.entry(key.clone()).or_default() += 1;
            }
            let requirements = Requirements::parse(spec.annotations()).unwrap();
            let fit = feasible("f", &spec, &requirements, candidates(&nodes).into_iter()).unwrap();
            for strategy in STRATEGIES {
                let choose = |mut placer: Placer| [(); 3].map(|()| placer.choose(&spec, &fit).unwrap());
                let chosen = choose(Placer::new(strategy, round));
                assert_eq!(chosen, choose(Placer::new(strategy, round)), "{strategy:?}, {}", case());
                for place in chosen {
                    let n = place.node.0.as_u128();
                    assert!(may.contains(&n), "{strategy:?} chose {n}, {}", case());
                    let providers = &nodes[n as usize - 1].providers;
                    let is_right = match &spec {
                        ComponentSpec::Function(_) => place.provider.is_empty(),
                        ComponentSpec::Resource(_) => {
                            providers.iter().any(|own| own.id == place.provider && own.class_type == "redis")
                        }
                    };
                    assert!(is_right, "{strategy:?} chose {place:?}, {}", case());
                }
            }
        }
        let often = placed.values().filter(|count| **count > 100).count();
        assert!(often == 5 && refused > 500, "every requirement was met and refused often: {placed:?}, {refused}");
    }
}
