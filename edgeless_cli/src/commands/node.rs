//! `node`: the nodes, as their orchestrators see them, and their removal from use.

use edgeless_api::client::{Operations, Workflows};
use edgeless_api::node::NodeInfo;
use edgeless_api::status::{ComponentStatus, State};
use edgeless_api::{Code, ComponentId, DomainId, Error, NodeId, Url};
use futures_util::StreamExt;
use serde::Serialize;

use super::unless_offered;
use crate::failure::{Failure, INTERRUPTED};
use crate::opts::Node;
use crate::output::{Console, Report, Style, fitting_table, one_line, or_dash, table};

/// The components that are named at most of those that a drain leaves.
const NAMED: usize = 10;

/// Does it.
pub(crate) async fn run(
    command: Node,
    workflows: &Workflows,
    operations: &Operations,
    console: &Console,
) -> Result<(), Failure> {
    match command {
        Node::List { domain } => list(domain, workflows, console).await,
        Node::Inspect { node } => {
            let node = find(&node, workflows).await?;
            let residents = operations.residents(node.node).await.map_err(unless_offered("list of what runs there"))?;
            console.report(&Details { node: node.into(), runs: residents.into_iter().map(Resident::from).collect() })
        }
        Node::Cordon { node } => cordon(&node, true, workflows, operations, console).await,
        Node::Uncordon { node } => cordon(&node, false, workflows, operations, console).await,
        Node::Forget { node } => {
            operations.forget(node).await.map_err(unless_offered("way to forget nodes"))?;
            console.line(format!("node {node} forgotten"))
        }
        Node::Drain { node } => drain(&node, workflows, operations, console).await,
    }
}

/// A node, by its id or by its host name.
pub(super) async fn find(wanted: &str, workflows: &Workflows) -> Result<NodeInfo, Error> {
    let nodes = workflows.nodes(None).await.map_err(unless_offered("list of nodes"))?;
    let is_it = |node: &NodeInfo| node.node.to_string() == wanted || node.capabilities.hostname() == wanted;
    let mut found = nodes.into_iter().filter(is_it);
    let wanted = one_line(wanted);
    match (found.next(), found.count()) {
        (Some(node), 0) => Ok(node),
        (Some(_), others) => Err(Error::rejected(format!(
            "{} nodes have the host name {wanted}: name one by its id, which `edgeless_cli node list` shows",
            others + 1
        ))),
        (None, _) => Err(Error::not_found(format!("there is no node {wanted}: `edgeless_cli node list` shows all"))),
    }
}

async fn cordon(
    node: &str,
    cordoned: bool,
    workflows: &Workflows,
    operations: &Operations,
    console: &Console,
) -> Result<(), Failure> {
    let node = match find(node, workflows).await {
        Ok(found) => found.node,
        // One that is gone is still known by its id.
        Err(error) if error.code == Code::NotFound => node.parse().map_err(|_| error)?,
        Err(error) => return Err(error.into()),
    };
    operations.cordon(node, cordoned).await.map_err(unless_offered("cordons"))?;
    console.line(format!("node {node} {}", if cordoned { "cordoned" } else { "uncordoned" }))
}

async fn drain(node: &str, workflows: &Workflows, operations: &Operations, console: &Console) -> Result<(), Failure> {
    let node = find(node, workflows).await?.node;
    let mut progress = operations.drain(node).await.map_err(unless_offered("drains"))?;
    let mut stuck = 0;
    loop {
        let next = tokio::select! {
            next = progress.next() => next,
            _ = tokio::signal::ctrl_c() => {
                console.note(format!("interrupted: what has not moved yet stays, and node {node} stays cordoned"));
                return Err(Failure::Said(INTERRUPTED));
            }
        };
        let Some(step) = next.transpose()? else { break };
        let component = one_line(&step.component);
        if !step.reason.is_empty() {
            stuck += 1;
            console.error(format!("'{component}': {}", one_line(&step.reason)));
        } else if !component.is_empty() {
            console.note(format!("'{component}' moved ({} of {})", step.moved, step.total));
        }
    }
    // What came too late to be waited for may have moved meanwhile.
    let left = match operations.residents(node).await {
        Ok(residents) if residents.is_empty() => None,
        Ok(residents) => Some(names(&residents)),
        Err(error) if stuck == 0 && matches!(error.code, Code::Unimplemented | Code::NotFound) => None,
        Err(error) if stuck == 0 => Some(format!("whether something is left cannot be told: {error}")),
        Err(error) => Some(format!("{stuck} did not move, and what is left cannot be told: {error}")),
    };
    match left {
        None => console.line(format!("node {node} is empty")),
        Some(left) => Err(Failure::Refused(format!("node {node} is cordoned and not empty: {left}"))),
    }
}

/// The components that are left on a node, of many only some by name.
fn names(left: &[ComponentStatus]) -> String {
    let named: Vec<_> = left.iter().take(NAMED).map(|one| format!("'{}'", one_line(&one.name))).collect();
    match left.len().saturating_sub(NAMED) {
        0 => format!("{} left", named.join(", ")),
        more => format!("{} and {more} more left", named.join(", ")),
    }
}

async fn list(domain: Option<String>, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
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
    cordoned: bool,
    suspected: bool,
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
            cordoned: info.cordoned,
            suspected: info.suspected,
        }
    }
}

/// Something that runs on a node.
#[derive(Serialize)]
struct Resident {
    component: ComponentId,
    name: String,
    state: State,
    handled: u64,
    reason: String,
}

impl From<ComponentStatus> for Resident {
    fn from(status: ComponentStatus) -> Self {
        let ComponentStatus { component, name, state, handled, reason, .. } = status;
        Self { component, name, state, handled, reason }
    }
}

/// One node and what runs there.
#[derive(Serialize)]
struct Details {
    node: Row,
    runs: Vec<Resident>,
}

impl Report for Details {
    fn text(&self, style: Style) -> String {
        let node = &self.node;
        let labels = node.labels.iter().map(|label| one_line(label)).collect::<Vec<_>>().join(", ");
        let mut text = format!(
            "node {} ({}) in {}{}{}\n{} CPUs, {} MiB, labels [{labels}], runtimes [{}], agent {}, invocation {}\n",
            node.node,
            or_dash(&node.hostname),
            or_dash(&node.domain),
            if node.cordoned { ", cordoned" } else { "" },
            if node.suspected { ", suspected to be lost" } else { "" },
            node.num_cpus.saturating_mul(node.num_cores),
            node.mem_size,
            or_dash(&node.runtimes.join(", ")),
            node.agent_url,
            node.invocation_url,
        );
        if self.runs.is_empty() {
            text += "nothing runs here\n";
            return text;
        }
        let row = |resident: &Resident| {
            vec![
                or_dash(&resident.name),
                resident.component.to_string(),
                resident.state.to_string(),
                resident.handled.to_string(),
                or_dash(&resident.reason),
            ]
        };
        let header = ["NAME", "COMPONENT", "STATE", "HANDLED", "REASON"];
        text + &table(style, &header, self.runs.iter().map(row).collect())
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
        let header = [
            "NODE",
            "HOSTNAME",
            "DOMAIN",
            "RUNTIMES",
            "PROVIDERS",
            "COMPONENTS",
            "PLACEMENT",
            "CPUS",
            "MEMORY/MiB",
            "AGENT",
        ];
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
            match (self.cordoned, self.suspected) {
                (false, false) => "open",
                (true, false) => "cordoned",
                (false, true) => "suspected",
                (true, true) => "cordoned, suspected",
            }
            .to_string(),
            self.num_cpus.saturating_mul(self.num_cores).to_string(),
            self.mem_size.to_string(),
            self.agent_url.to_string(),
        ]
    }
}
