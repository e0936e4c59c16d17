//! What the mirror says: the keys and values for a domain, and what to write when it changed.
//!
//! Pure, and the only place that knows how they look. They are those of EDGELESS 1.2, whose programs
//! read them; names and the order of fields are part of that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use edgeless_api::component::{Annotations, ComponentSpec, StatePolicy};
use edgeless_api::id::{InstanceId, NodeId, WorkflowId};
use edgeless_api::node::{Capabilities, Health};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::engine::{ComponentState, NodeState};

/// The key that tells whose mirror a database holds.
pub(crate) const OWNER: &str = "domain_info:domain_id";
/// The list of intents.
pub(crate) const INTENTS: &str = "intents";

const CAPABILITIES: &str = "node:capabilities:";
const HEALTH: &str = "node:health:";
const PROVIDER: &str = "provider:";
const INSTANCE: &str = "instance:";
const DEPENDENCY: &str = "dependency:";
/// Each of these groups has a key that tells when it last changed.
const GROUPS: [&str; 4] = [CAPABILITIES, PROVIDER, INSTANCE, DEPENDENCY];
const LAST_UPDATE: &str = "last_update";

/// What finds all keys that may be of a mirror.
pub(crate) const PATTERNS: [&str; 5] =
    ["node:capabilities:*", "node:health:*", "provider:*", "instance:*", "dependency:*"];

/// The sorted set with what was measured of an instance, or with what it logged to a target.
pub(crate) fn samples_key(instance: Uuid, what: &str) -> String {
    format!("performance:{instance}:{what}")
}

/// A time as others read it: seconds since 1970, UTC.
pub(crate) fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:09}", since.as_secs(), since.subsec_nanos())
}

/// The sorted set with the health of a node.
pub(crate) fn health_key(node: NodeId) -> String {
    format!("{HEALTH}{node}")
}

/// Keys and values that tell what a domain consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Documents(BTreeMap<String, String>);

impl Documents {
    /// Adds a node. Those of a domain must be added in the order of their ids, which decides who has
    /// the key where several call a provider the same.
    pub(crate) fn add_node(&mut self, state: &NodeState) {
        self.0.insert(format!("{CAPABILITIES}{}", state.node), json(&NodeCapabilities::of(&state.capabilities)));
        for provider in &state.providers {
            let mut key = format!("{PROVIDER}{}", provider.id);
            if provider.id == LAST_UPDATE || self.0.contains_key(&key) {
                key = format!("{key}:{}", state.node);
            }
            let (class_type, outputs) = (&provider.class_type, &provider.outputs);
            self.0.insert(key, json(&Provider { class_type, node_id: state.node, outputs }));
        }
    }

    /// Adds a component.
    pub(crate) fn add_component(&mut self, state: &ComponentState) {
        let id = state.component;
        self.0.insert(format!("{INSTANCE}{id}"), json(&Active::of(state)));
        if !state.outputs.is_empty() {
            self.0.insert(format!("{DEPENDENCY}{id}"), json(&state.outputs));
        }
    }

    /// What to write into a database that holds `before`. What it holds beside that is kept.
    pub(crate) fn since(&self, before: &Self) -> Change {
        let is_new = |(key, value): &(&String, &String)| before.0.get(*key) != Some(value);
        let set: BTreeMap<String, String> =
            self.0.iter().filter(is_new).map(|(key, value)| (key.clone(), value.clone())).collect();
        let gone: BTreeSet<String> = before.0.keys().filter(|key| !self.0.contains_key(*key)).cloned().collect();
        Change::new(set, gone)
    }

    /// What to write into a database of which only the keys are known that are stale: everything, in
    /// place of these.
    pub(crate) fn instead_of(&self, stale: impl IntoIterator<Item = String>) -> Change {
        Change::new(self.0.clone(), stale.into_iter().collect())
    }

    /// Whether a key that [`PATTERNS`] find has the form of one that a mirror writes, and is none that
    /// shall be there.
    pub(crate) fn is_stale(&self, key: &str) -> bool {
        !self.0.contains_key(key) && is_of_mirror(key) && !self.is_health_of_node(key)
    }

    fn is_health_of_node(&self, key: &str) -> bool {
        key.strip_prefix(HEALTH).is_some_and(|node| self.0.contains_key(&format!("{CAPABILITIES}{node}")))
    }
}

/// Whether a key has the form of those that a mirror writes and removes.
fn is_of_mirror(key: &str) -> bool {
    let is_uuid = |text: &str| Uuid::try_parse(text).is_ok_and(|uuid| uuid.to_string() == text);
    let named = [CAPABILITIES, HEALTH, INSTANCE, DEPENDENCY];
    let is_named = named.iter().any(|prefix| key.strip_prefix(prefix).is_some_and(is_uuid));
    is_named || key.strip_prefix(PROVIDER).is_some_and(|name| name != LAST_UPDATE)
}

/// Whether nothing but a mirror has keys of this form. Of a provider the value must tell.
pub(crate) fn is_for_sure(key: &str) -> bool {
    !key.starts_with(PROVIDER)
}

/// Whether a value is that of a provider.
pub(crate) fn is_provider(value: &[u8]) -> bool {
    serde_json::from_slice::<Provider<String, NodeId, Vec<String>>>(value).is_ok()
}

/// What to write.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Keys and their values.
    pub(crate) set: BTreeMap<String, String>,
    /// Keys to remove.
    pub(crate) delete: BTreeSet<String>,
    /// Keys to set to the time at which this is done.
    pub(crate) touch: Vec<String>,
}

impl Change {
    fn new(set: BTreeMap<String, String>, mut delete: BTreeSet<String>) -> Self {
        let touches = |group: &&&str| set.keys().chain(&delete).any(|key| key.starts_with(**group));
        let touch = GROUPS.iter().filter(touches).map(|group| format!("{group}{LAST_UPDATE}")).collect();
        let nodes: Vec<String> =
            delete.iter().filter_map(|key| key.strip_prefix(CAPABILITIES)).map(Into::into).collect();
        delete.extend(nodes.into_iter().map(|node| format!("{HEALTH}{node}")));
        Self { set, delete, touch }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.delete.is_empty()
    }
}

#[derive(Serialize)]
struct NodeCapabilities<'a> {
    num_cpus: u32,
    model_name_cpu: &'a str,
    clock_freq_cpu: f32,
    num_cores: u32,
    mem_size: u32,
    labels: &'a [String],
    is_tee_running: bool,
    has_tpm: bool,
    runtimes: &'a [String],
    disk_tot_space: u32,
    num_gpus: u32,
    model_name_gpu: &'a str,
    mem_size_gpu: u32,
}

impl<'a> NodeCapabilities<'a> {
    fn of(own: &'a Capabilities) -> Self {
        Self {
            num_cpus: own.num_cpus,
            model_name_cpu: &own.model_name_cpu,
            clock_freq_cpu: own.clock_freq_cpu,
            num_cores: own.num_cores,
            mem_size: own.mem_size,
            labels: &own.labels,
            is_tee_running: own.is_tee_running,
            has_tpm: own.has_tpm,
            runtimes: &own.runtimes,
            disk_tot_space: own.disk_tot_space,
            num_gpus: own.num_gpus,
            model_name_gpu: &own.model_name_gpu,
            mem_size_gpu: own.mem_size_gpu,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider<C, N, O> {
    class_type: C,
    node_id: N,
    outputs: O,
}

/// A component. A function has a list of instances, a resource one, which is the one that stands for
/// none while it runs nowhere.
#[derive(Serialize)]
enum Active<'a> {
    Function(Function<'a>, Vec<String>),
    Resource(Resource<'a>, String),
}

#[derive(Serialize)]
struct Function<'a> {
    spec: Class<'a>,
    annotations: &'a Annotations,
    state_specification: StateSpecification,
    workflow_id: WorkflowId,
}

/// The code itself is left out.
#[derive(Serialize)]
struct Class<'a> {
    id: &'a str,
    function_type: &'a str,
    version: &'a str,
    binary: Option<()>,
    code: &'a str,
    outputs: &'a [String],
}

#[derive(Serialize)]
struct StateSpecification {
    state_id: Uuid,
    state_policy: &'static str,
}

#[derive(Serialize)]
struct Resource<'a> {
    class_type: &'a str,
    configuration: &'a Annotations,
    workflow_id: WorkflowId,
}

impl<'a> Active<'a> {
    fn of(state: &'a ComponentState) -> Self {
        match &state.spec {
            ComponentSpec::Function(spec) => {
                let class = &spec.class;
                let function = Function {
                    spec: Class {
                        id: &class.id,
                        function_type: &class.function_type,
                        version: &class.version,
                        binary: None,
                        code: &class.code,
                        outputs: &class.outputs,
                    },
                    annotations: &spec.annotations,
                    state_specification: StateSpecification {
                        state_id: spec.state.id.0,
                        state_policy: match spec.state.policy {
                            StatePolicy::Transient => "Transient",
                            StatePolicy::NodeLocal | StatePolicy::Replicated => "NodeLocal",
                            StatePolicy::Global => "Global",
                        },
                    },
                    workflow_id: spec.workflow,
                };
                Self::Function(function, state.instances.iter().map(ToString::to_string).collect())
            }
            ComponentSpec::Resource(spec) => {
                let (class_type, configuration, workflow_id) = (&spec.class_type, &spec.configuration, spec.workflow);
                let instance = state.instances.first().unwrap_or(&InstanceId::NONE);
                Self::Resource(Resource { class_type, configuration, workflow_id }, instance.to_string())
            }
        }
    }
}

/// -1: not measured.
#[derive(Serialize)]
struct NodeHealthStatus {
    mem_free: i32,
    mem_used: i32,
    mem_available: i32,
    proc_cpu_usage: i32,
    proc_memory: i32,
    proc_vmemory: i32,
    load_avg_1: i32,
    load_avg_5: i32,
    load_avg_15: i32,
    tot_rx_bytes: i64,
    tot_rx_pkts: i64,
    tot_rx_errs: i64,
    tot_tx_bytes: i64,
    tot_tx_pkts: i64,
    tot_tx_errs: i64,
    disk_free_space: i64,
    disk_tot_reads: i64,
    disk_tot_writes: i64,
    gpu_load_perc: i32,
    gpu_temp_cels: i32,
    active_power: i32,
}

/// The health of a node, as a member of its sorted set.
pub(crate) fn health(own: &Health) -> String {
    let number = |value: Option<i32>| value.unwrap_or(-1);
    let count = |value: Option<i64>| value.unwrap_or(-1);
    let [load_avg_1, load_avg_5, load_avg_15] = own.load_avg.unwrap_or([-1; 3]);
    json(&NodeHealthStatus {
        mem_free: number(own.mem_free),
        mem_used: number(own.mem_used),
        mem_available: number(own.mem_available),
        proc_cpu_usage: number(own.proc_cpu_usage),
        proc_memory: number(own.proc_memory),
        proc_vmemory: number(own.proc_vmemory),
        load_avg_1,
        load_avg_5,
        load_avg_15,
        tot_rx_bytes: count(own.rx_bytes),
        tot_rx_pkts: count(own.rx_packets),
        tot_rx_errs: count(own.rx_errors),
        tot_tx_bytes: count(own.tx_bytes),
        tot_tx_pkts: count(own.tx_packets),
        tot_tx_errs: count(own.tx_errors),
        disk_free_space: count(own.disk_free_space),
        disk_tot_reads: count(own.disk_reads),
        disk_tot_writes: count(own.disk_writes),
        gpu_load_perc: number(own.gpu_load),
        gpu_temp_cels: number(own.gpu_temperature),
        active_power: number(own.active_power),
    })
}

fn json(value: &impl Serialize) -> String {
    // No map here has keys that are not text, which is all that could fail; a float that is no number is null.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use edgeless_api::Binary;
    use edgeless_api::component::{FunctionClass, FunctionSpec, ResourceSpec, StateSpec};
    use edgeless_api::id::{ComponentId, StateId};
    use edgeless_api::node::ProviderSpec;

    use super::*;

    fn uuid(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn node(number: u128, providers: &[&str]) -> NodeState {
        let provider =
            |id: &&str| ProviderSpec { id: id.to_string(), class_type: "file-log".into(), outputs: vec!["out".into()] };
        NodeState {
            node: NodeId(uuid(number)),
            capabilities: Capabilities {
                num_cpus: 2,
                model_name_cpu: "a \"CPU\"".into(),
                clock_freq_cpu: 4800.5,
                num_cores: 1,
                mem_size: 1024,
                labels: vec!["hostname=h".into()],
                is_tee_running: true,
                runtimes: vec!["RUST_WASM".into()],
                disk_tot_space: 7,
                ..Capabilities::default()
            },
            providers: providers.iter().map(provider).collect(),
        }
    }

    fn instance(node: u128, function: u128) -> InstanceId {
        InstanceId { node: NodeId(uuid(node)), function: uuid(function) }
    }

    fn function(number: u128, instances: Vec<InstanceId>, outputs: &[(&str, u128)]) -> ComponentState {
        ComponentState {
            component: ComponentId(uuid(number)),
            spec: ComponentSpec::Function(FunctionSpec {
                class: FunctionClass {
                    id: "f".into(),
                    function_type: "RUST_WASM".into(),
                    version: "0.1".into(),
                    binary: Binary::from(b"code".to_vec()),
                    code: String::new(),
                    outputs: vec!["out".into()],
                },
                annotations: Annotations::from([("a".into(), "1".into())]),
                state: StateSpec { id: StateId(uuid(8)), policy: StatePolicy::NodeLocal },
                workflow: WorkflowId(uuid(9)),
            }),
            instances,
            outputs: outputs.iter().map(|(name, id)| (name.to_string(), ComponentId(uuid(*id)))).collect(),
        }
    }

    fn resource(number: u128, instances: Vec<InstanceId>) -> ComponentState {
        ComponentState {
            spec: ComponentSpec::Resource(ResourceSpec {
                class_type: "file-log".into(),
                configuration: Annotations::from([("filename".into(), "x".into())]),
                workflow: WorkflowId(uuid(9)),
            }),
            ..function(number, instances, &[])
        }
    }

    fn documents(nodes: &[NodeState], components: &[ComponentState]) -> Documents {
        let mut documents = Documents::default();
        nodes.iter().for_each(|node| documents.add_node(node));
        components.iter().for_each(|component| documents.add_component(component));
        documents
    }

    #[test]
    fn the_texts_are_those_that_other_programs_read() {
        let nodes = [node(1, &["file-log-1"])];
        let components = [function(2, vec![instance(1, 5), instance(1, 6)], &[("out", 3)]), resource(3, vec![])];
        let written: Vec<(String, String)> = documents(&nodes, &components).0.into_iter().collect();
        let id = |number: u128| uuid(number).to_string();
        let (one, two, three, five, six, eight, nine) = (id(1), id(2), id(3), id(5), id(6), id(8), id(9));
        let none = InstanceId::NONE;
        let expected = [
            (format!("dependency:{two}"), format!(r#"{{"out":"{three}"}}"#)),
            (
                format!("instance:{two}"),
                format!(
                    r#"{{"Function":[{{"spec":{{"id":"f","function_type":"RUST_WASM","version":"0.1","binary":null,"code":"","outputs":["out"]}},"annotations":{{"a":"1"}},"state_specification":{{"state_id":"{eight}","state_policy":"NodeLocal"}},"workflow_id":"{nine}"}},["InstanceId(node_id: {one}, function_id: {five})","InstanceId(node_id: {one}, function_id: {six})"]]}}"#
                ),
            ),
            (
                format!("instance:{three}"),
                format!(
                    r#"{{"Resource":[{{"class_type":"file-log","configuration":{{"filename":"x"}},"workflow_id":"{nine}"}},"{none}"]}}"#
                ),
            ),
            (
                format!("node:capabilities:{one}"),
                r#"{"num_cpus":2,"model_name_cpu":"a \"CPU\"","clock_freq_cpu":4800.5,"num_cores":1,"mem_size":1024,"labels":["hostname=h"],"is_tee_running":true,"has_tpm":false,"runtimes":["RUST_WASM"],"disk_tot_space":7,"num_gpus":0,"model_name_gpu":"","mem_size_gpu":0}"#.into(),
            ),
            (
                "provider:file-log-1".into(),
                format!(r#"{{"class_type":"file-log","node_id":"{one}","outputs":["out"]}}"#),
            ),
        ];
        assert_eq!(written, expected);
        let measured = Health { mem_free: Some(5), load_avg: Some([1, 2, 3]), rx_bytes: Some(9), ..Health::default() };
        assert_eq!(
            health(&measured),
            r#"{"mem_free":5,"mem_used":-1,"mem_available":-1,"proc_cpu_usage":-1,"proc_memory":-1,"proc_vmemory":-1,"load_avg_1":1,"load_avg_5":2,"load_avg_15":3,"tot_rx_bytes":9,"tot_rx_pkts":-1,"tot_rx_errs":-1,"tot_tx_bytes":-1,"tot_tx_pkts":-1,"tot_tx_errs":-1,"disk_free_space":-1,"disk_tot_reads":-1,"disk_tot_writes":-1,"gpu_load_perc":-1,"gpu_temp_cels":-1,"active_power":-1}"#
        );
        assert_eq!(time(UNIX_EPOCH + Duration::new(12, 5_000)), "12.000005000");
        assert_eq!(samples_key(uuid(5), "edgeless"), format!("performance:{five}:edgeless"));
    }

    #[test]
    fn providers_of_one_name_are_told_apart() {
        let names = |nodes: &[NodeState]| -> Vec<String> {
            documents(nodes, &[]).0.into_keys().filter(|key| key.starts_with(PROVIDER)).collect()
        };
        let two = uuid(2);
        assert_eq!(
            names(&[node(1, &["a"]), node(2, &["a", "b"])]),
            ["provider:a".to_string(), format!("provider:a:{two}"), "provider:b".into()]
        );
        assert_eq!(names(&[node(2, &["last_update"])]), [format!("provider:last_update:{two}")]);
    }

    #[test]
    fn only_what_changed_is_written() {
        let before =
            documents(&[node(1, &["a"]), node(2, &[])], &[function(3, vec![], &[("out", 4)]), resource(4, vec![])]);
        assert_eq!(before.since(&before), Change::default());
        let after = documents(&[node(1, &["a"])], &[function(3, vec![instance(1, 5)], &[]), resource(4, vec![])]);
        let change = after.since(&before);
        let (two, three) = (uuid(2), uuid(3));
        assert_eq!(change.set.into_keys().collect::<Vec<_>>(), [format!("instance:{three}")]);
        let gone = [format!("dependency:{three}"), format!("node:capabilities:{two}"), format!("node:health:{two}")];
        assert_eq!(change.delete, BTreeSet::from(gone));
        let touched = ["node:capabilities:last_update", "instance:last_update", "dependency:last_update"];
        assert_eq!(change.touch, touched);
    }

    #[test]
    fn in_an_unknown_database_only_what_is_a_mirrors_and_stale_is_removed() {
        let documents = documents(&[node(1, &["a"])], &[function(2, vec![], &[])]);
        let (one, two, three) = (uuid(1), uuid(2), uuid(3));
        for kept in [
            format!("node:capabilities:{one}"),
            format!("node:health:{one}"),
            format!("instance:{two}"),
            "provider:a".into(),
            "provider:last_update".into(),
            "instance:last_update".into(),
            "instance:of-a-cloud".into(),
            format!("instance:{}", three.simple()),
            format!("performance:{three}:function_execution_time"),
            OWNER.into(),
            "intents".into(),
        ] {
            assert!(!documents.is_stale(&kept), "{kept}");
        }
        let stale = [
            format!("node:capabilities:{three}"),
            format!("node:health:{three}"),
            format!("instance:{three}"),
            format!("dependency:{two}"),
            "provider:b".into(),
        ];
        for key in &stale {
            assert!(documents.is_stale(key), "{key}");
            assert_eq!(is_for_sure(key), !key.starts_with("provider:"), "{key}");
        }
        assert!(is_provider(json(&Provider { class_type: "c", node_id: NodeId(one), outputs: ["o"] }).as_bytes()));
        assert!(!is_provider(b"{\"class_type\":\"c\"}") && !is_provider(b"electricity"));
        let change = documents.instead_of(stale.clone());
        assert_eq!((change.set, change.delete), (documents.0, BTreeSet::from(stale)));
        assert_eq!(change.touch.len(), 4);
    }
}
