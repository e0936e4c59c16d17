//! Orchestration domains as the controller sees them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::id::DomainId;
use crate::node::{Capabilities, ProviderSpec};
use crate::url::Url;

/// What the nodes of a domain have together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainCapabilities {
    /// Number of nodes.
    pub num_nodes: u32,
    /// Sum over the nodes.
    pub num_cpus: u32,
    /// Sum over the nodes.
    pub num_cores: u32,
    /// Sum over the nodes, MiB.
    pub mem_size: u32,
    /// Every label that some node has.
    pub labels: BTreeSet<String>,
    /// Number of nodes that run in a trusted execution environment.
    pub num_tee: u32,
    /// Number of nodes with a trusted platform module.
    pub num_tpm: u32,
    /// Every function type that some node runs.
    pub runtimes: BTreeSet<String>,
    /// Sum over the nodes, MiB.
    pub disk_tot_space: u32,
    /// Sum over the nodes.
    pub num_gpus: u32,
    /// Sum over the nodes, MiB.
    pub mem_size_gpu: u32,
    /// Number of nodes that keep the state of functions outside the nodes.
    pub num_global_state: u32,
    /// Every provider that some node has.
    pub resource_providers: BTreeSet<String>,
    /// Every resource class that some node offers.
    pub resource_classes: BTreeSet<String>,
}

impl DomainCapabilities {
    /// Adds what one more node has.
    pub fn add(&mut self, node: &Capabilities, providers: &[ProviderSpec]) {
        let sum = |total: &mut u32, more: u32| *total = total.saturating_add(more);
        sum(&mut self.num_nodes, 1);
        sum(&mut self.num_cpus, node.num_cpus);
        sum(&mut self.num_cores, node.num_cores);
        sum(&mut self.mem_size, node.mem_size);
        sum(&mut self.num_tee, u32::from(node.is_tee_running));
        sum(&mut self.num_tpm, u32::from(node.has_tpm));
        sum(&mut self.disk_tot_space, node.disk_tot_space);
        sum(&mut self.num_gpus, node.num_gpus);
        sum(&mut self.mem_size_gpu, node.mem_size_gpu);
        sum(&mut self.num_global_state, u32::from(node.has_global_state));
        self.labels.extend(node.labels.iter().cloned());
        self.runtimes.extend(node.runtimes.iter().cloned());
        self.resource_providers.extend(providers.iter().map(|provider| provider.id.clone()));
        self.resource_classes.extend(providers.iter().map(|provider| provider.class_type.clone()));
    }
}

/// What an orchestrator tells a controller that it announces itself to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainRegistration {
    /// Its domain.
    pub domain: DomainId,
    /// Where it takes components.
    pub orchestrator_url: Url,
    /// What its nodes have.
    pub capabilities: DomainCapabilities,
    /// How long this holds. From an EDGELESS 1.2 orchestrator: until its deadline, by our clock.
    pub lifetime: Duration,
    /// Raised whenever the capabilities change.
    pub counter: u64,
    /// Random for each process, and drawn again when the domain changes hands.
    pub nonce: u64,
}

/// A controller's answer to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainRegistered {
    /// The orchestrator shall stop everything that it runs.
    pub reset: bool,
}

/// The state of a domain that a controller follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainState {
    /// The domain.
    pub domain: DomainId,
    /// Random for each process of its orchestrator, and drawn again when the domain changes hands: what
    /// ran under another nonce runs no more.
    pub nonce: u64,
    /// What its nodes have.
    pub capabilities: DomainCapabilities,
    /// The next state follows within this time.
    pub lifetime: Duration,
}
