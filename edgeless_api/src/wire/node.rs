//! Nodes: registration, capabilities, peers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{pb, required, uuid};
use crate::component::ComponentKind;
use crate::error::Error;
use crate::id::{ComponentId, DomainId, NodeId};
use crate::node::{
    Capabilities, Health, InstanceLoad, NodeInfo, NodeKey, PeerUpdate, Proof, ProviderSpec, Registered, Registration,
    Running,
};
use crate::wire::performance;

/// What a node that sends no lifetime is given when its deadline lies absurdly far ahead.
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);

impl From<Capabilities> for pb::NodeCapabilities {
    fn from(own: Capabilities) -> Self {
        Self {
            num_cpus: own.num_cpus,
            model_name_cpu: own.model_name_cpu,
            clock_freq_cpu: own.clock_freq_cpu,
            num_cores: own.num_cores,
            mem_size: own.mem_size,
            labels: own.labels,
            is_tee_running: own.is_tee_running,
            has_tpm: own.has_tpm,
            runtimes: own.runtimes,
            disk_tot_space: own.disk_tot_space,
            num_gpus: own.num_gpus,
            model_name_gpu: own.model_name_gpu,
            mem_size_gpu: own.mem_size_gpu,
            has_global_state: own.has_global_state,
        }
    }
}

impl From<pb::NodeCapabilities> for Capabilities {
    fn from(own: pb::NodeCapabilities) -> Self {
        Self {
            num_cpus: own.num_cpus,
            model_name_cpu: own.model_name_cpu,
            clock_freq_cpu: own.clock_freq_cpu,
            num_cores: own.num_cores,
            mem_size: own.mem_size,
            labels: own.labels,
            is_tee_running: own.is_tee_running,
            has_tpm: own.has_tpm,
            runtimes: own.runtimes,
            disk_tot_space: own.disk_tot_space,
            num_gpus: own.num_gpus,
            model_name_gpu: own.model_name_gpu,
            mem_size_gpu: own.mem_size_gpu,
            has_global_state: own.has_global_state,
        }
    }
}

impl From<ProviderSpec> for pb::ResourceProviderSpecification {
    fn from(provider: ProviderSpec) -> Self {
        Self { provider_id: provider.id, class_type: provider.class_type, outputs: provider.outputs }
    }
}

impl TryFrom<pb::ResourceProviderSpecification> for ProviderSpec {
    type Error = Error;

    fn try_from(provider: pb::ResourceProviderSpecification) -> Result<Self, Error> {
        if provider.provider_id.is_empty() || provider.class_type.is_empty() {
            return Err(Error::rejected("a resource provider lacks its provider_id or its class_type"));
        }
        Ok(Self { id: provider.provider_id, class_type: provider.class_type, outputs: provider.outputs })
    }
}

fn health_message(health: Health) -> pb::NodeHealthStatus {
    let i32_or = |value: Option<i32>| value.unwrap_or(-1);
    let i64_or = |value: Option<i64>| value.unwrap_or(-1);
    let load = |index: usize| health.load_avg.and_then(|load| load.get(index).copied()).unwrap_or(-1);
    pb::NodeHealthStatus {
        mem_free: i32_or(health.mem_free),
        mem_used: i32_or(health.mem_used),
        mem_available: i32_or(health.mem_available),
        proc_cpu_usage: i32_or(health.proc_cpu_usage),
        proc_memory: i32_or(health.proc_memory),
        proc_vmemory: i32_or(health.proc_vmemory),
        load_avg_1: load(0),
        load_avg_5: load(1),
        load_avg_15: load(2),
        tot_rx_bytes: i64_or(health.rx_bytes),
        tot_rx_pkts: i64_or(health.rx_packets),
        tot_rx_errs: i64_or(health.rx_errors),
        tot_tx_bytes: i64_or(health.tx_bytes),
        tot_tx_pkts: i64_or(health.tx_packets),
        tot_tx_errs: i64_or(health.tx_errors),
        disk_free_space: i64_or(health.disk_free_space),
        disk_tot_reads: i64_or(health.disk_reads),
        disk_tot_writes: i64_or(health.disk_writes),
        gpu_load_perc: i32_or(health.gpu_load),
        gpu_temp_cels: i32_or(health.gpu_temperature),
        active_power: i32_or(health.active_power),
    }
}

impl From<pb::NodeHealthStatus> for Health {
    fn from(health: pb::NodeHealthStatus) -> Self {
        let measured = |value: i32| (value >= 0).then_some(value);
        let counted = |value: i64| (value >= 0).then_some(value);
        let load = [health.load_avg_1, health.load_avg_5, health.load_avg_15];
        Self {
            mem_free: measured(health.mem_free),
            mem_used: measured(health.mem_used),
            mem_available: measured(health.mem_available),
            proc_cpu_usage: measured(health.proc_cpu_usage),
            proc_memory: measured(health.proc_memory),
            proc_vmemory: measured(health.proc_vmemory),
            load_avg: load.iter().all(|value| *value >= 0).then_some(load),
            rx_bytes: counted(health.tot_rx_bytes),
            rx_packets: counted(health.tot_rx_pkts),
            rx_errors: counted(health.tot_rx_errs),
            tx_bytes: counted(health.tot_tx_bytes),
            tx_packets: counted(health.tot_tx_pkts),
            tx_errors: counted(health.tot_tx_errs),
            disk_free_space: counted(health.disk_free_space),
            disk_reads: counted(health.disk_tot_reads),
            disk_writes: counted(health.disk_tot_writes),
            gpu_load: measured(health.gpu_load_perc),
            gpu_temperature: measured(health.gpu_temp_cels),
            active_power: measured(health.active_power),
        }
    }
}

/// The time until an absolute deadline, by our clock.
pub(crate) fn until(deadline: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(deadline).saturating_sub(now).min(LONGEST_LIFETIME)
}

/// The absolute deadline, rounded up, after a time from now.
pub(crate) fn deadline_after(time: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now + time).as_secs() + 1
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl From<Registration> for pb::UpdateNodeRequest {
    fn from(node: Registration) -> Self {
        let two_beats = node.interval.unwrap_or(Duration::from_secs(2)).saturating_mul(2);
        let lifetime = node.lifetime.unwrap_or(two_beats);
        Self {
            node_id: node.node.to_string(),
            agent_url: node.agent_url.to_string(),
            invocation_url: node.invocation_url.to_string(),
            resource_providers: node.providers.into_iter().map(Into::into).collect(),
            capabilities: Some(node.capabilities.into()),
            refresh_deadline: deadline_after(lifetime),
            nonce: node.nonce,
            health_status: Some(health_message(node.health)),
            performance_samples: Some(performance::message(node.performance)),
            native: node.native,
            lifetime_ms: node.lifetime.map(millis).unwrap_or_default(),
            leaving: node.leaving,
            loads: node.loads.into_iter().map(Into::into).collect(),
            reports: node.reports,
            report: node.report.map(|all| pb::InstanceReport { instances: all.into_iter().map(Into::into).collect() }),
            key: node.proof.map(|proof| proof.key.0.to_vec().into()).unwrap_or_default(),
            signature: node.proof.map(|proof| proof.signature.to_vec().into()).unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::UpdateNodeRequest> for Registration {
    type Error = Error;

    fn try_from(request: pb::UpdateNodeRequest) -> Result<Self, Error> {
        let lifetime = match (request.native, request.lifetime_ms) {
            (true, 0) => None,
            (true, ms) => Some(Duration::from_millis(ms).min(LONGEST_LIFETIME)),
            (false, _) => Some(until(request.refresh_deadline)),
        };
        let mut ids = std::collections::BTreeSet::new();
        let mut providers = Vec::new();
        for provider in request.resource_providers {
            let provider = ProviderSpec::try_from(provider)?;
            if !ids.insert(provider.id.clone()) {
                return Err(Error::rejected(format!("the provider '{}' is named twice", provider.id)));
            }
            providers.push(provider);
        }
        Ok(Self {
            node: NodeId(uuid(&request.node_id, "node_id")?),
            agent_url: request.agent_url.parse()?,
            invocation_url: request.invocation_url.parse()?,
            providers,
            capabilities: required(request.capabilities, "capabilities")?.into(),
            nonce: request.nonce,
            lifetime,
            interval: None,
            health: request.health_status.map(Into::into).unwrap_or_default(),
            performance: request.performance_samples.map(performance::parsed).unwrap_or_default(),
            native: request.native,
            leaving: request.leaving,
            loads: request.loads.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            reports: request.reports,
            report: request.report.map(report).transpose()?,
            proof: proof(&request.key, &request.signature)?,
        })
    }
}

fn proof(key: &[u8], signature: &[u8]) -> Result<Option<Proof>, Error> {
    if key.is_empty() && signature.is_empty() {
        return Ok(None);
    }
    match (key.try_into(), signature.try_into()) {
        (Ok(key), Ok(signature)) => Ok(Some(Proof { key: NodeKey(key), signature })),
        _ => Err(Error::rejected("the key of a node has 32 bytes, and its signature 64")),
    }
}

fn report(report: pb::InstanceReport) -> Result<Vec<Running>, Error> {
    report.instances.into_iter().map(TryInto::try_into).collect()
}

impl From<Running> for pb::RunningInstance {
    fn from(running: Running) -> Self {
        Self {
            component_id: running.component.to_string(),
            replica: running.replica,
            epoch: running.epoch,
            instance_id: running.instance.to_string(),
            is_resource: running.kind == ComponentKind::Resource,
            is_active: running.is_active,
        }
    }
}

impl TryFrom<pb::RunningInstance> for Running {
    type Error = Error;

    fn try_from(running: pb::RunningInstance) -> Result<Self, Error> {
        Ok(Self {
            component: ComponentId(uuid(&running.component_id, "component_id")?),
            replica: running.replica,
            epoch: running.epoch,
            instance: uuid(&running.instance_id, "instance_id")?,
            kind: if running.is_resource { ComponentKind::Resource } else { ComponentKind::Function },
            is_active: running.is_active,
        })
    }
}

impl From<InstanceLoad> for pb::InstanceLoad {
    fn from(load: InstanceLoad) -> Self {
        Self { instance_id: load.instance.to_string(), queued: load.queued, handled: load.handled }
    }
}

impl TryFrom<pb::InstanceLoad> for InstanceLoad {
    type Error = Error;

    fn try_from(load: pb::InstanceLoad) -> Result<Self, Error> {
        Ok(Self { instance: uuid(&load.instance_id, "instance_id")?, queued: load.queued, handled: load.handled })
    }
}

impl From<Registered> for pb::UpdateNodeResponse {
    fn from(registered: Registered) -> Self {
        Self {
            response_error: None,
            keep_alive_ms: registered.keep_alive.map(millis).unwrap_or_default(),
            wants_report: registered.wants_report,
            offers_link: registered.offers_link,
        }
    }
}

impl TryFrom<pb::UpdateNodeResponse> for Registered {
    type Error = Error;

    fn try_from(response: pb::UpdateNodeResponse) -> Result<Self, Error> {
        if let Some(error) = response.response_error {
            return Err(error.into());
        }
        let keep_alive = Some(response.keep_alive_ms).filter(|ms| *ms > 0).map(Duration::from_millis);
        Ok(Self { keep_alive, wants_report: response.wants_report, offers_link: response.offers_link })
    }
}

impl From<PeerUpdate> for pb::UpdatePeersRequest {
    fn from(update: PeerUpdate) -> Self {
        let (request_type, node, url) = match update {
            PeerUpdate::Add(node, url) => (pb::UpdatePeersRequestType::Add, Some(node), Some(url)),
            PeerUpdate::Remove(node) => (pb::UpdatePeersRequestType::Del, Some(node), None),
            PeerUpdate::Clear => (pb::UpdatePeersRequestType::Clear, None, None),
        };
        Self {
            request_type: request_type.into(),
            node_id: node.map(|node| node.to_string()),
            invocation_url: url.map(|url| url.to_string()),
        }
    }
}

impl TryFrom<pb::UpdatePeersRequest> for PeerUpdate {
    type Error = Error;

    fn try_from(request: pb::UpdatePeersRequest) -> Result<Self, Error> {
        let node = || Ok::<_, Error>(NodeId(uuid(&required(request.node_id.clone(), "node_id")?, "node_id")?));
        Ok(match pb::UpdatePeersRequestType::try_from(request.request_type) {
            Ok(pb::UpdatePeersRequestType::Add) => {
                Self::Add(node()?, required(request.invocation_url.clone(), "invocation_url")?.parse()?)
            }
            Ok(pb::UpdatePeersRequestType::Del) => Self::Remove(node()?),
            Ok(pb::UpdatePeersRequestType::Clear) => Self::Clear,
            Err(_) => return Err(Error::rejected(format!("{} is not a kind of peer update", request.request_type))),
        })
    }
}

impl From<NodeInfo> for pb::NodeInfo {
    fn from(node: NodeInfo) -> Self {
        Self {
            node_id: node.node.to_string(),
            domain_id: node.domain.0,
            agent_url: node.agent_url.to_string(),
            invocation_url: node.invocation_url.to_string(),
            capabilities: Some(node.capabilities.into()),
            resource_providers: node.providers.into_iter().map(Into::into).collect(),
            components: node.components,
            native: node.native,
            cordoned: node.cordoned,
            suspected: node.suspected,
        }
    }
}

impl TryFrom<pb::NodeInfo> for NodeInfo {
    type Error = Error;

    fn try_from(node: pb::NodeInfo) -> Result<Self, Error> {
        Ok(Self {
            node: NodeId(uuid(&node.node_id, "node_id")?),
            domain: DomainId(node.domain_id),
            agent_url: node.agent_url.parse()?,
            invocation_url: node.invocation_url.parse()?,
            capabilities: required(node.capabilities, "capabilities")?.into(),
            providers: node.resource_providers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            components: node.components,
            native: node.native,
            cordoned: node.cordoned,
            suspected: node.suspected,
        })
    }
}

pub(crate) fn node_infos(list: pb::NodeList) -> Result<Vec<NodeInfo>, Error> {
    list.nodes.into_iter().map(TryInto::try_into).collect()
}

pub(crate) fn node_list(nodes: Vec<NodeInfo>) -> pb::NodeList {
    pb::NodeList { nodes: nodes.into_iter().map(Into::into).collect() }
}
