//! Domains: registration and capabilities.

use std::collections::BTreeMap;
use std::time::Duration;

use super::node::{deadline_after, millis, until};
use super::{pb, required};
use crate::domain::{DomainCapabilities, DomainRegistered, DomainRegistration, DomainState};
use crate::error::Error;
use crate::id::DomainId;

impl From<DomainCapabilities> for pb::DomainCapabilities {
    fn from(own: DomainCapabilities) -> Self {
        Self {
            num_nodes: own.num_nodes,
            num_cpus: own.num_cpus,
            num_cores: own.num_cores,
            mem_size: own.mem_size,
            labels: own.labels.into_iter().collect(),
            num_tee: own.num_tee,
            num_tpm: own.num_tpm,
            runtimes: own.runtimes.into_iter().collect(),
            disk_tot_space: own.disk_tot_space,
            num_gpus: own.num_gpus,
            mem_size_gpu: own.mem_size_gpu,
            num_global_state: own.num_global_state,
            resource_providers: own.resource_providers.into_iter().collect(),
            resource_classes: own.resource_classes.into_iter().collect(),
        }
    }
}

impl From<pb::DomainCapabilities> for DomainCapabilities {
    fn from(own: pb::DomainCapabilities) -> Self {
        Self {
            num_nodes: own.num_nodes,
            num_cpus: own.num_cpus,
            num_cores: own.num_cores,
            mem_size: own.mem_size,
            labels: own.labels.into_iter().collect(),
            num_tee: own.num_tee,
            num_tpm: own.num_tpm,
            runtimes: own.runtimes.into_iter().collect(),
            disk_tot_space: own.disk_tot_space,
            num_gpus: own.num_gpus,
            mem_size_gpu: own.mem_size_gpu,
            num_global_state: own.num_global_state,
            resource_providers: own.resource_providers.into_iter().collect(),
            resource_classes: own.resource_classes.into_iter().collect(),
        }
    }
}

fn domain_id(text: String) -> Result<DomainId, Error> {
    if text.is_empty() { Err(Error::rejected("the domain has no id")) } else { Ok(DomainId(text)) }
}

impl From<DomainRegistration> for pb::UpdateDomainRequest {
    fn from(domain: DomainRegistration) -> Self {
        Self {
            domain_id: domain.domain.0,
            orchestrator_url: domain.orchestrator_url.to_string(),
            capabilities: Some(domain.capabilities.into()),
            refresh_deadline: deadline_after(domain.lifetime),
            counter: domain.counter,
            nonce: domain.nonce,
            lifetime_ms: millis(domain.lifetime),
        }
    }
}

impl TryFrom<pb::UpdateDomainRequest> for DomainRegistration {
    type Error = Error;

    fn try_from(request: pb::UpdateDomainRequest) -> Result<Self, Error> {
        let lifetime = match request.lifetime_ms {
            0 => until(request.refresh_deadline),
            ms => Duration::from_millis(ms),
        };
        Ok(Self {
            domain: domain_id(request.domain_id)?,
            orchestrator_url: request.orchestrator_url.parse()?,
            capabilities: required(request.capabilities, "capabilities")?.into(),
            lifetime,
            counter: request.counter,
            nonce: request.nonce,
        })
    }
}

impl From<DomainRegistered> for pb::UpdateDomainResponse {
    fn from(registered: DomainRegistered) -> Self {
        Self { response_error: None, reset: registered.reset }
    }
}

impl TryFrom<pb::UpdateDomainResponse> for DomainRegistered {
    type Error = Error;

    fn try_from(response: pb::UpdateDomainResponse) -> Result<Self, Error> {
        match response.response_error {
            Some(error) => Err(error.into()),
            None => Ok(Self { reset: response.reset }),
        }
    }
}

impl From<DomainState> for pb::DomainState {
    fn from(state: DomainState) -> Self {
        Self {
            domain_id: state.domain.0,
            nonce: state.nonce,
            capabilities: Some(state.capabilities.into()),
            lifetime_ms: millis(state.lifetime),
        }
    }
}

impl TryFrom<pb::DomainState> for DomainState {
    type Error = Error;

    fn try_from(state: pb::DomainState) -> Result<Self, Error> {
        Ok(Self {
            domain: domain_id(state.domain_id)?,
            nonce: state.nonce,
            capabilities: required(state.capabilities, "capabilities")?.into(),
            lifetime: Duration::from_millis(state.lifetime_ms),
        })
    }
}

pub(crate) type Domains = BTreeMap<DomainId, DomainCapabilities>;

pub(crate) fn domains(list: pb::DomainCapabilitiesList) -> Result<Domains, Error> {
    let entry = |entry: pb::DomainCapabilitiesEntry| {
        let capabilities = required(entry.domain_capabilities, "domain_capabilities")?;
        Ok((domain_id(entry.domain_id)?, capabilities.into()))
    };
    list.domain_capabilities.into_iter().map(entry).collect()
}

pub(crate) fn domain_list(domains: Domains) -> pb::DomainCapabilitiesList {
    let entry = |(id, capabilities): (DomainId, DomainCapabilities)| pb::DomainCapabilitiesEntry {
        domain_id: id.0,
        domain_capabilities: Some(capabilities.into()),
    };
    pb::DomainCapabilitiesList { domain_capabilities: domains.into_iter().map(entry).collect() }
}
