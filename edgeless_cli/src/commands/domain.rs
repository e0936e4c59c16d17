//! `domain`: what the nodes of each orchestration domain have together.

use std::collections::BTreeSet;

use edgeless_api::client::Workflows;
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::{Code, DomainId};
use serde::Serialize;

use crate::failure::Failure;
use crate::opts::{Domain, Which};
use crate::output::{Console, Report, Style, one_line, table};

/// Looks at domains.
pub(crate) async fn run(command: Domain, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    match command {
        Domain::List => {
            let list = List(domains(workflows, None).await?);
            if list.0.is_empty() {
                console.hint("no orchestrator is known to the controller: is edgeless_orc_d running?");
            }
            console.report(&list)
        }
        Domain::Inspect { which: Which::All } => console.report(&Details(domains(workflows, None).await?)),
        Domain::Inspect { which: Which::One(id) } => {
            let found = domains(workflows, Some(DomainId(id.clone()))).await?;
            match found.into_iter().find(|summary| summary.domain == id) {
                Some(summary) => console.report(&summary),
                None => Err(absent(id, workflows).await),
            }
        }
    }
}

/// Why there is nothing to show of a domain: controllers say so only when asked for its nodes.
async fn absent(id: String, workflows: &Workflows) -> Failure {
    match workflows.nodes(Some(DomainId(id.clone()))).await {
        Err(error) if error.code != Code::Unimplemented => error.into(),
        _ => Failure::Refused(format!("domain {id} not found: `edgeless_cli domain list` shows all")),
    }
}

async fn domains(workflows: &Workflows, domain: Option<DomainId>) -> Result<Vec<Summary>, Failure> {
    Ok(workflows.domains(domain).await?.into_iter().map(Summary::from).collect())
}

/// A domain, with the names that operators know from the protocol.
#[derive(Serialize)]
struct Summary {
    domain: String,
    num_nodes: u32,
    num_cpus: u32,
    num_cores: u32,
    mem_size: u32,
    labels: BTreeSet<String>,
    num_tee: u32,
    num_tpm: u32,
    runtimes: BTreeSet<String>,
    resource_classes: BTreeSet<String>,
    resource_providers: BTreeSet<String>,
    disk_tot_space: u32,
    num_gpus: u32,
    mem_size_gpu: u32,
}

impl From<(DomainId, DomainCapabilities)> for Summary {
    fn from((domain, has): (DomainId, DomainCapabilities)) -> Self {
        Self {
            domain: domain.0,
            num_nodes: has.num_nodes,
            num_cpus: has.num_cpus,
            num_cores: has.num_cores,
            mem_size: has.mem_size,
            labels: has.labels,
            num_tee: has.num_tee,
            num_tpm: has.num_tpm,
            runtimes: has.runtimes,
            resource_classes: has.resource_classes,
            resource_providers: has.resource_providers,
            disk_tot_space: has.disk_tot_space,
            num_gpus: has.num_gpus,
            mem_size_gpu: has.mem_size_gpu,
        }
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| one_line(name)).collect::<Vec<_>>().join(", ")
}

impl Report for Summary {
    fn text(&self, _: Style) -> String {
        format!(
            "domain {},{} nodes, {} CPUs ({} cores) with {} MiB, labels [{}], num TEE {}, num TPM {}, runtimes [{}], \
             resources classes [{}] providers [{}], disk space {} MiB, {} GPUs with {} MiB\n",
            one_line(&self.domain),
            self.num_nodes,
            self.num_cpus,
            self.num_cores,
            self.mem_size,
            joined(&self.labels),
            self.num_tee,
            self.num_tpm,
            joined(&self.runtimes),
            joined(&self.resource_classes),
            joined(&self.resource_providers),
            self.disk_tot_space,
            self.num_gpus,
            self.mem_size_gpu,
        )
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Details(Vec<Summary>);

impl Report for Details {
    fn text(&self, style: Style) -> String {
        self.0.iter().map(|summary| summary.text(style)).collect()
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct List(Vec<Summary>);

impl Report for List {
    fn text(&self, style: Style) -> String {
        if style.terminal && !self.0.is_empty() {
            return self.table(style);
        }
        let line = |summary: &Summary| format!("domain {} ({} nodes)\n", one_line(&summary.domain), summary.num_nodes);
        self.0.iter().map(line).collect()
    }
}

impl List {
    fn table(&self, style: Style) -> String {
        let row = |summary: &Summary| {
            vec![
                one_line(&summary.domain).into_owned(),
                summary.num_nodes.to_string(),
                summary.num_cpus.to_string(),
                summary.mem_size.to_string(),
                joined(&summary.runtimes),
                joined(&summary.resource_classes),
            ]
        };
        let header = ["DOMAIN", "NODES", "CPUS", "MEMORY/MiB", "RUNTIMES", "RESOURCES"];
        table(style, &header, self.0.iter().map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_table_on_a_terminal_only() {
        let capabilities = DomainCapabilities { num_nodes: 1, ..DomainCapabilities::default() };
        let list = List(vec![(DomainId("d".into()), capabilities).into()]);
        assert_eq!(list.text(Style::default()), "domain d (1 nodes)\n");
        assert!(list.text(Style { terminal: true, ..Style::default() }).starts_with("DOMAIN  NODES"));
    }
}
