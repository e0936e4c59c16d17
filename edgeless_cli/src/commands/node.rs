//! `node`: the nodes, as their orchestrators see them.

use edgeless_api::client::Workflows;
use edgeless_api::node::NodeInfo;
use edgeless_api::{DomainId, NodeId, Url};
use serde::Serialize;

use super::unless_offered;
use crate::failure::Failure;
use crate::opts::Node;
use crate::output::{Console, Report, Style, fitting_table, one_line, or_dash};

/// Looks at nodes.
pub(crate) async fn run(command: Node, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let Node::List { domain } = command;
    let nodes = workflows.nodes(domain.map(DomainId)).await.map_err(unless_offered("list of nodes"))?;
    let mut nodes: Vec<Row> = nodes.into_iter().map(Row::from).collect();
    nodes.sort_by(|a, b| (&a.domain, &a.hostname, a.node).cmp(&(&b.domain, &b.hostname, b.node)));
    if nodes.is_empty() {
        console.hint("there is no node: is edgeless_node_d running?");
    }
    console.report(&Nodes(nodes))
}

#[derive(Serialize)]
struct Row {
    node: NodeId,
    hostname: String,
    domain: String,
    runtimes: Vec<String>,
    providers: Vec<Provider>,
    components: u32,
    num_cpus: u32,
    num_cores: u32,
    model_name_cpu: String,
    mem_size: u32,
    disk_tot_space: u32,
    num_gpus: u32,
    model_name_gpu: String,
    mem_size_gpu: u32,
    labels: Vec<String>,
    is_tee_running: bool,
    has_tpm: bool,
    agent_url: Url,
    invocation_url: Url,
    native: bool,
}

#[derive(Serialize)]
struct Provider {
    id: String,
    class_type: String,
    outputs: Vec<String>,
}

impl From<NodeInfo> for Row {
    fn from(info: NodeInfo) -> Self {
        let hostname = info.capabilities.hostname().to_string();
        let has = info.capabilities;
        let provider = |provider: edgeless_api::node::ProviderSpec| Provider {
            id: provider.id,
            class_type: provider.class_type,
            outputs: provider.outputs,
        };
        Self {
            node: info.node,
            hostname,
            domain: info.domain.0,
            runtimes: has.runtimes,
            providers: info.providers.into_iter().map(provider).collect(),
            components: info.components,
            num_cpus: has.num_cpus,
            num_cores: has.num_cores,
            model_name_cpu: has.model_name_cpu,
            mem_size: has.mem_size,
            disk_tot_space: has.disk_tot_space,
            num_gpus: has.num_gpus,
            model_name_gpu: has.model_name_gpu,
            mem_size_gpu: has.mem_size_gpu,
            labels: has.labels,
            is_tee_running: has.is_tee_running,
            has_tpm: has.has_tpm,
            agent_url: info.agent_url,
            invocation_url: info.invocation_url,
            native: info.native,
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Nodes(Vec<Row>);

/// The columns that a narrow terminal does without, the first to go first.
const SPARE: [&str; 5] = ["AGENT", "MEMORY/MiB", "CPUS", "COMPONENTS", "HOSTNAME"];

impl Report for Nodes {
    fn text(&self, style: Style) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let header =
            ["NODE", "HOSTNAME", "DOMAIN", "RUNTIMES", "PROVIDERS", "COMPONENTS", "CPUS", "MEMORY/MiB", "AGENT"];
        fitting_table(style, &header, self.0.iter().map(Row::cells).collect(), &SPARE)
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let providers = self.providers.iter().map(|provider| one_line(&provider.id)).collect::<Vec<_>>();
        vec![
            self.node.to_string(),
            or_dash(&self.hostname),
            or_dash(&self.domain),
            or_dash(&self.runtimes.join(", ")),
            or_dash(&providers.join(", ")),
            self.components.to_string(),
            self.num_cpus.saturating_mul(self.num_cores).to_string(),
            self.mem_size.to_string(),
            self.agent_url.to_string(),
        ]
    }
}
