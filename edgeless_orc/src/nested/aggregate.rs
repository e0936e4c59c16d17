//! A whole domain as one node: what it has, and what is asked of it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use edgeless_api::component::{Annotations, ComponentSpec};
use edgeless_api::id::{ComponentId, DomainId, NodeId};
use edgeless_api::node::{Capabilities, NodeInfo, ProviderSpec};
use uuid::Uuid;

/// Names a node may have of each kind; of a large domain not all that its nodes are called fits.
const NAMES: usize = 1024;

/// What the parent looks at when it places a component, and what is therefore settled.
const SETTLED: [&str; 5] = ["node_id_match_any", "min_instances", "max_instances", "partition_by", "spread"];

/// The node that a domain is to its parent, if the configuration names none.
pub(crate) fn node_of(domain: &DomainId) -> NodeId {
    NodeId(Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("edgeless domain {domain}").as_bytes()))
}

/// The component of the domain that is one replica of a component of the parent. Those of different
/// `generation`s, between which everything was stopped, are not confused.
pub(crate) fn component_of(component: ComponentId, replica: u32, generation: u64) -> ComponentId {
    let name = [&replica.to_be_bytes()[..], &generation.to_be_bytes()[..]].concat();
    ComponentId(Uuid::new_v5(&component.0, &name))
}

/// The label that the domain has as a node.
fn hostname(domain: &DomainId) -> String {
    format!("hostname={domain}")
}

/// What the nodes of a domain have together, as if they were one. Nodes on which nothing new is placed do
/// not count.
pub(crate) fn capabilities(domain: &DomainId, nodes: &[NodeInfo]) -> Capabilities {
    let members: Vec<&Capabilities> =
        nodes.iter().filter(|node| !node.cordoned).map(|node| &node.capabilities).collect();
    let sum = |of: fn(&Capabilities) -> u32| members.iter().map(|node| of(node)).fold(0, u32::saturating_add);
    let cores = |node: &Capabilities| node.num_cpus.saturating_mul(node.num_cores);
    let total = sum(cores);
    // The speed of all cores together is what it is.
    let speed: f64 = members.iter().map(|node| f64::from(cores(node)) * f64::from(node.clock_freq_cpu)).sum();
    // A node that says 0 is not limited, and neither is a domain that has it.
    let is_limited = members.iter().all(|node| node.mem_size > 0);
    let first = |of: fn(&Capabilities) -> &String| {
        members.iter().map(|node| of(node)).find(|name| !name.is_empty()).cloned().unwrap_or_default()
    };
    Capabilities {
        num_cpus: total,
        num_cores: 1,
        #[allow(clippy::cast_possible_truncation, reason = "a speed need not be exact")]
        clock_freq_cpu: if total == 0 { 0.0 } else { (speed / f64::from(total)) as f32 },
        model_name_cpu: first(|node| &node.model_name_cpu),
        mem_size: if is_limited { sum(|node| node.mem_size) } else { 0 },
        labels: labels(domain, &members),
        is_tee_running: !members.is_empty() && members.iter().all(|node| node.is_tee_running),
        has_tpm: !members.is_empty() && members.iter().all(|node| node.has_tpm),
        runtimes: members
            .iter()
            .flat_map(|node| &node.runtimes)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .cloned()
            .collect(),
        disk_tot_space: sum(|node| node.disk_tot_space),
        num_gpus: sum(|node| node.num_gpus),
        model_name_gpu: first(|node| &node.model_name_gpu),
        mem_size_gpu: sum(|node| node.mem_size_gpu),
        has_global_state: members.iter().any(|node| node.has_global_state),
    }
}

/// Its own name comes first, those of its nodes last: they are many.
fn labels(domain: &DomainId, members: &[&Capabilities]) -> Vec<String> {
    let own = hostname(domain);
    let all: BTreeSet<&String> = members.iter().flat_map(|node| &node.labels).filter(|label| **label != own).collect();
    let (names, others): (Vec<&String>, Vec<&String>) =
        all.into_iter().partition(|label| label.starts_with("hostname="));
    std::iter::once(&own).chain(others).chain(names).take(NAMES).cloned().collect()
}

/// What opens resources in a domain, each by its name once.
pub(crate) fn providers(nodes: &[NodeInfo]) -> Vec<ProviderSpec> {
    let mut by_id: BTreeMap<&String, &ProviderSpec> = BTreeMap::new();
    for provider in nodes.iter().filter(|node| !node.cordoned).flat_map(|node| &node.providers) {
        by_id.entry(&provider.id).or_insert(provider);
    }
    // Where not all fit, each class has its first.
    let mut classes = BTreeSet::new();
    let (first, more): (Vec<_>, Vec<_>) =
        by_id.into_values().partition(|provider| classes.insert(&provider.class_type));
    first.into_iter().chain(more).take(NAMES).cloned().collect()
}

/// A component as the domain shall start it: without what the parent asked of the node that the domain is,
/// and as the one replica that it is.
pub(crate) fn within(domain: &DomainId, mut spec: ComponentSpec) -> ComponentSpec {
    let annotations = spec.annotations_mut();
    for key in SETTLED {
        annotations.remove(key);
    }
    let own = hostname(domain);
    let labels = |annotations: &Annotations, key: &str| -> Vec<String> {
        annotations.get(key).map(|labels| labels.split(',').map(str::to_string).collect()).unwrap_or_default()
    };
    let any = labels(annotations, "label_match_any");
    if any.iter().any(|label| label.trim() == own) {
        annotations.remove("label_match_any");
    }
    let all = labels(annotations, "label_match_all");
    let others: Vec<String> = all.iter().filter(|label| label.trim() != own).cloned().collect();
    if others.is_empty() {
        annotations.remove("label_match_all");
    } else if others.len() < all.len() {
        annotations.insert("label_match_all".into(), others.join(","));
    }
    spec
}

#[cfg(test)]
mod tests {
    use edgeless_api::component::ResourceSpec;
    use edgeless_api::id::WorkflowId;
    use edgeless_api::url::Url;

    use super::*;

    fn domain() -> DomainId {
        DomainId("d".into())
    }

    fn node(cpus: u32, cores: u32, labels: &[&str]) -> NodeInfo {
        let url = Url::of(([127, 0, 0, 1], 1).into());
        NodeInfo {
            node: NodeId::random(),
            domain: domain(),
            agent_url: url.clone(),
            invocation_url: url,
            capabilities: Capabilities {
                num_cpus: cpus,
                num_cores: cores,
                clock_freq_cpu: 1000.0,
                mem_size: 512,
                labels: labels.iter().map(|label| label.to_string()).collect(),
                runtimes: vec!["RUST_WASM".into()],
                is_tee_running: true,
                ..Capabilities::default()
            },
            providers: vec![],
            components: 0,
            native: true,
            cordoned: false,
            suspected: false,
        }
    }

    #[test]
    fn a_domain_is_as_much_as_its_nodes_together() {
        let mut nodes = [node(2, 4, &["a", "hostname=n1"]), node(1, 4, &["b", "hostname=n2"]), node(9, 9, &["c"])];
        nodes[1].capabilities.is_tee_running = false;
        nodes[1].capabilities.clock_freq_cpu = 4000.0;
        nodes[1].capabilities.runtimes.push("CONTAINER".into());
        nodes[2].cordoned = true;
        let sum = capabilities(&domain(), &nodes);
        assert_eq!((sum.num_cpus * sum.num_cores, sum.mem_size, sum.clock_freq_cpu), (12, 1024, 2000.0));
        assert_eq!(sum.labels, ["hostname=d", "a", "b", "hostname=n1", "hostname=n2"]);
        assert_eq!(sum.hostname(), "d");
        assert_eq!(sum.runtimes, ["CONTAINER", "RUST_WASM"]);
        assert!(!sum.is_tee_running && !sum.has_tpm, "not all have it");
        nodes[1].capabilities.mem_size = 0;
        assert_eq!(capabilities(&domain(), &nodes).mem_size, 0, "one of them is not limited");
    }

    #[test]
    fn a_domain_without_nodes_has_nothing() {
        let none = capabilities(&domain(), &[]);
        let name = vec!["hostname=d".to_string()];
        assert_eq!(none, Capabilities { num_cores: 1, labels: name, ..Capabilities::default() });
    }

    #[test]
    fn names_that_are_too_many_are_left_out_and_those_of_nodes_first() {
        let nodes: Vec<_> = (0..2000).map(|n| node(1, 1, &[&format!("hostname=n{n}"), "z"])).collect();
        let labels = capabilities(&domain(), &nodes).labels;
        assert_eq!((labels.len(), &labels[..2]), (NAMES, &["hostname=d".to_string(), "z".to_string()][..]));
        let provider = |id: String, class: &str| ProviderSpec { id, class_type: class.into(), outputs: vec![] };
        let mut nodes = [node(1, 1, &[]), node(1, 1, &[])];
        nodes[0].providers = (0..2000).map(|n| provider(format!("a-{n}"), "a")).collect();
        nodes[1].providers = vec![provider("z-1".into(), "z"), provider("a-1".into(), "a")];
        let providers = providers(&nodes);
        assert_eq!(providers.len(), NAMES);
        assert!(providers.iter().any(|provider| provider.id == "z-1"), "each class is there");
    }

    #[test]
    fn what_was_asked_of_the_domain_is_not_asked_of_its_nodes() {
        let within = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let configuration = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            let class_type = "file-log".to_string();
            let spec = ResourceSpec { class_type, configuration, workflow: WorkflowId::random() };
            within(&domain(), ComponentSpec::Resource(spec)).annotations().clone().into_iter().collect()
        };
        let is = |key: &str, value: &str| vec![(key.to_string(), value.to_string())];
        assert!(within(&[("node_id_match_any", "x"), ("max_instances", "3"), ("spread", "node")]).is_empty());
        assert_eq!(within(&[("label_match_all", "gpu,hostname=d")]), is("label_match_all", "gpu"));
        assert!(within(&[("label_match_all", "hostname=d")]).is_empty());
        assert_eq!(within(&[("label_match_all", " gpu")]), is("label_match_all", " gpu"), "blanks count");
        assert!(within(&[("label_match_any", "gpu,hostname=d")]).is_empty());
        assert_eq!(within(&[("label_match_any", "gpu,x")]), is("label_match_any", "gpu,x"));
        assert_eq!(within(&[("cpu", "2")]), is("cpu", "2"));
    }

    #[test]
    fn ids_follow_from_names() {
        assert_eq!(node_of(&domain()), node_of(&domain()));
        assert_ne!(node_of(&domain()), node_of(&DomainId("e".into())));
        let component = ComponentId::random();
        let ids = BTreeSet::from([
            component_of(component, 0, 1),
            component_of(component, 1, 1),
            component_of(component, 0, 2),
        ]);
        assert_eq!(ids.len(), 3);
        assert!(ids.contains(&component_of(component, 1, 1)));
    }
}
