//! The networks of containers: one for each workflow, where its containers find each other by name, and
//! one for all that may reach nothing but their node.
//!
//! Each is made when its first container needs it and removed with its last. Its addresses are carved from
//! a range of the node's own, for the engine's pools have room for about thirty networks only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters::{InspectNetworkOptions, ListNetworksOptionsBuilder};
use edgeless_api::{Error, NodeId, WorkflowId};
use tokio::sync::Mutex;

use super::engine::{Engine, NODE};
use super::firewall::Firewall;
use super::options::{Reach, Subnet};

/// Addresses of a workflow's network, and of that which all others share: prefix lengths.
const OF_WORKFLOW: u32 = 26;
const OF_PLATFORM: u32 = 22;
/// Ranges that are tried: others may have taken some of them.
const TRIES: u32 = 32;

/// A network that a container is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    /// What the engine knows it by.
    pub(super) name: String,
    /// Where the node is, seen from inside.
    pub(super) gateway: IpAddr,
    /// It leads to the node's guest API and nowhere else.
    pub(super) is_platform: bool,
}

/// Which network is meant: that of a workflow, or `None`, the one that leads to the node alone.
type Key = Option<WorkflowId>;

/// The networks of one node.
pub(super) struct Networks {
    engine: Arc<Engine>,
    node: NodeId,
    subnet: Subnet,
    /// The port of the guest API.
    port: u16,
    firewall: Firewall,
    /// How many containers each has. Networks are made and removed one at a time.
    joined: Mutex<HashMap<Key, (Joined, usize)>>,
}

impl Networks {
    pub(super) fn new(engine: Arc<Engine>, node: NodeId, subnet: Subnet, port: u16) -> Self {
        Self { engine, node, subnet, port, firewall: Firewall::new(node), joined: Mutex::default() }
    }

    /// What a container is to be part of; `None`: of nothing.
    pub(super) async fn join(&self, reach: Reach, workflow: WorkflowId) -> Result<Option<Joined>, Error> {
        let key = match reach {
            Reach::None => return Ok(None),
            Reach::Platform => None,
            Reach::Full => Some(workflow),
        };
        let mut joined = self.joined.lock().await;
        if key.is_none() {
            // The filter must be there before anything can pass it, and whoever sets up that of the machine anew
            // takes it away.
            self.firewall.allow(&self.bridge(), self.port).await.map_err(Error::rejected)?;
        }
        if let Some((known, count)) = joined.get_mut(&key) {
            let docker = self.engine.docker().await?;
            // An engine that lost its data, or somebody who tidies up, may have removed it.
            if self.existing(&docker, &known.name).await?.is_some() {
                *count += 1;
                return Ok(Some(known.clone()));
            }
        }
        let made = self.make(key).await.map_err(|error| error.context("cannot make the container's network"))?;
        let count = joined.get(&key).map_or(0, |(_, count)| *count);
        joined.insert(key, (made.clone(), count + 1));
        Ok(Some(made))
    }

    /// A container is gone; the network goes with the last.
    pub(super) async fn leave(&self, reach: Reach, workflow: WorkflowId) {
        let key = match reach {
            Reach::None => return,
            Reach::Platform => None,
            Reach::Full => Some(workflow),
        };
        let mut joined = self.joined.lock().await;
        let Some((known, count)) = joined.get_mut(&key) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        let name = known.name.clone();
        joined.remove(&key);
        if let Ok(docker) = self.engine.docker().await {
            remove(&docker, &name).await;
        }
    }

    /// Removes the networks of an earlier run that nothing is part of, and all traces of the filter if no
    /// network needs it.
    pub(super) async fn sweep(&self, docker: &Docker) {
        let joined = self.joined.lock().await;
        let filters = HashMap::from([("label", vec![format!("{NODE}={}", self.node)])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let found = docker.list_networks(Some(options)).await.unwrap_or_default();
        let mut needs_filter = joined.contains_key(&None);
        for name in found.into_iter().filter_map(|network| network.name) {
            let is_joined = joined.values().any(|(known, _)| known.name == name);
            // One with containers that may still be taken over stays, and is not to be left without its filter.
            if !is_joined && !remove(docker, &name).await {
                needs_filter |= name == self.name(None);
            }
        }
        if !needs_filter && let Err(error) = self.firewall.remove().await {
            tracing::debug!(%error, "there may be rules of a filter left");
        }
    }

    /// Removes all networks of the node, whoever still counts on one: there are no containers any more.
    pub(super) async fn close(&self, docker: &Docker) {
        self.joined.lock().await.clear();
        self.sweep(docker).await;
    }

    fn name(&self, key: Key) -> String {
        let node = self.node.to_string();
        let node = short(&node);
        match key {
            Some(workflow) => format!("edgeless-{node}-{}", short(&workflow.to_string())),
            None => format!("edgeless-{node}-platform"),
        }
    }

    /// The device of the network that leads to the node alone.
    fn bridge(&self) -> String {
        format!("edgls{}", short(&self.node.to_string()))
    }

    async fn make(&self, key: Key) -> Result<Joined, Error> {
        let docker = self.engine.docker().await?;
        let name = self.name(key);
        let is_platform = key.is_none();
        let gateway = match self.existing(&docker, &name).await? {
            Some(gateway) => gateway,
            None => self.create(&docker, &name, key, &self.bridge()).await?,
        };
        Ok(Joined { name, gateway, is_platform })
    }

    /// The gateway of a network that an earlier run left for containers that still run.
    async fn existing(&self, docker: &Docker, name: &str) -> Result<Option<IpAddr>, Error> {
        let found = match docker.inspect_network(name, None::<InspectNetworkOptions>).await {
            Ok(found) => found,
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
            Err(error) => return Err(self.engine.error(error)),
        };
        let configs = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        let gateway = configs.into_iter().find_map(|config| config.gateway?.parse().ok());
        gateway.map(Some).ok_or_else(|| Error::rejected(format!("the network {name} has no gateway: remove it")))
    }

    async fn create(&self, docker: &Docker, name: &str, key: Key, bridge: &str) -> Result<IpAddr, Error> {
        let (bits, options) = match key {
            Some(_) => (OF_WORKFLOW, None),
            None => {
                let options = [
                    ("com.docker.network.bridge.name", bridge),
                    ("com.docker.network.bridge.enable_icc", "false"),
                    ("com.docker.network.bridge.enable_ip_masquerade", "false"),
                ];
                (OF_PLATFORM, Some(options.map(|(key, value)| (key.to_string(), value.to_string())).into()))
            }
        };
        let mut labels = HashMap::from([(NODE.to_string(), self.node.to_string())]);
        labels.extend(key.map(|workflow| ("org.edgeless.workflow".to_string(), workflow.to_string())));
        let first = rand::random_range(0..self.subnet.count(bits).max(1));
        let mut refused = None;
        for index in 0..TRIES.min(self.subnet.count(bits)) {
            let (subnet, gateway) = self.subnet.carve(bits, first.wrapping_add(index));
            let config =
                IpamConfig { subnet: Some(subnet), gateway: Some(gateway.to_string()), ..IpamConfig::default() };
            let request = NetworkCreateRequest {
                name: name.to_string(),
                driver: Some("bridge".into()),
                internal: Some(key.is_none()),
                ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }),
                enable_ipv6: Some(false),
                options: options.clone(),
                labels: Some(labels.clone()),
                ..NetworkCreateRequest::default()
            };
            match docker.create_network(request).await {
                Ok(_) => return Ok(gateway),
                Err(DockerError::DockerResponseServerError { message, .. }) if message.contains("overlaps") => {
                    refused = Some(message);
                }
                Err(error) => return Err(self.engine.error(error)),
            }
        }
        let reason = refused.unwrap_or_default();
        Err(Error::exhausted(format!("all of container_runtime.subnet is taken by others: {reason}: choose another")))
    }
}

/// Removes a network; whether it is gone.
async fn remove(docker: &Docker, name: &str) -> bool {
    match docker.remove_network(name).await {
        Ok(()) | Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => true,
        Err(error) => {
            tracing::debug!(network = name, %error, "a network stays for now");
            false
        }
    }
}

/// The first digits of an id: enough to tell what one machine has.
pub(super) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}
