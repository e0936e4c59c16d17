//! The plan of a container: what a component asks for, as data, and what the engine is asked for by it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, DeviceMapping, EndpointSettings, HealthConfig, HostConfig,
    HostConfigLogConfig, Mount, MountType, NetworkingConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use edgeless_api::{ComponentId, Error, WorkflowId};
use sha2::{Digest as _, Sha256};

use super::Shared;
use super::engine::NODE;
use super::image::Image;
use super::limits::{Cpu, Limits};
use super::network::Joined;
use super::options::{Check, Kind, Options, Ports, Reach, is_root};

/// Labels beside the node's.
pub(super) const COMPONENT: &str = "org.edgeless.component";
pub(super) const PLAN: &str = "org.edgeless.plan";
pub(super) const WORKFLOW: &str = "org.edgeless.workflow";
const NAME: &str = "org.edgeless.name";

/// Where a container finds the socket of its node.
const INSIDE: &str = "/run/edgeless";
/// The socket there.
pub(super) const SOCKET: &str = "host.sock";
/// Who a container runs as whose image says nothing or root: nobody.
const NOBODY: &str = "65534:65534";
/// Microseconds in which a quota holds.
const PERIOD: u64 = 100_000;
/// What a container is to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) component: ComponentId,
    pub(super) workflow: WorkflowId,
    /// The component's name in its workflow, by which the workflow's containers find it.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) image: Image,
    pub(super) options: Options,
    pub(super) limits: Limits,
}

impl Plan {
    /// Whether its function speaks through a socket.
    pub(super) fn has_socket(&self) -> bool {
        self.kind == Kind::Function && self.image.is_sdk
    }

    /// What it is really part of: who has a socket needs no network to reach its node.
    pub(super) fn reach(&self) -> Reach {
        reach(self.options.reach, self.has_socket())
    }

    /// What is wrong with it, as far as that can be known before.
    pub(super) fn check(&self) -> Result<(), Error> {
        let image = &self.image.name;
        if self.options.reach == Reach::None && self.kind == Kind::Function && !self.has_socket() {
            return Err(Error::rejected(format!(
                "network: none is for services and for functions that are made with our SDK, whose image is labelled; \
                 {image} is not: use network=platform"
            )));
        }
        if self.reach() == Reach::None
            && (self.limits.network_bandwidth_up.is_some() || self.limits.network_bandwidth_down.is_some())
        {
            return Err(Error::rejected("network_bandwidth: there is no network to be limited: leave it out"));
        }
        if self.kind == Kind::Function && !self.has_socket() && self.port().is_none() {
            return Err(Error::rejected(format!(
                "the image {image} exposes no port: say with the annotation 'port' where its function listens"
            )));
        }
        let service = &self.options.service;
        if !service.published.is_empty() && self.reach() == Reach::Platform {
            return Err(Error::rejected(
                "publish: nobody reaches a service with network=platform, but through the node's HTTP ingress: \
                 use network=full",
            ));
        }
        let needs_network = !service.published.is_empty()
            || service.ingress.is_some()
            || matches!(service.check, Check::Tcp(_) | Check::Http(..));
        if needs_network && self.reach() == Reach::None {
            return Err(Error::rejected("network: none leaves no way to the service's ports: use another"));
        }
        Ok(())
    }

    /// The port where its function listens.
    pub(super) fn port(&self) -> Option<u16> {
        self.options.port.or_else(|| self.image.ports.first().copied())
    }

    /// Names all that cannot be changed while it runs: equal plans make equal containers.
    pub(super) fn digest(&self) -> String {
        let Self { component, workflow, name, kind, image, options, limits: Limits { disk, .. } } = self;
        let text = format!("{component} {workflow} {name} {kind:?} {} {options:?} {disk:?}", image.id);
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn user(&self) -> String {
        match &self.options.user {
            Some(user) => user.clone(),
            None if is_root(&self.image.user) => NOBODY.to_string(),
            None => self.image.user.clone(),
        }
    }

    /// The name of a volume at the engine.
    pub(super) fn volume(&self, name: &str) -> String {
        format!("edgeless-{}-{name}", self.workflow)
    }

    /// What the engine is asked for.
    pub(super) fn body(
        &self,
        shared: &Shared,
        joined: Option<&Joined>,
        socket: Option<&PathBuf>,
    ) -> ContainerCreateBody {
        let text = |value: &str| value.to_string();
        let labels = HashMap::from([
            (text(NODE), shared.node.to_string()),
            (text(COMPONENT), self.component.to_string()),
            (text(WORKFLOW), self.workflow.to_string()),
            (text(NAME), self.name.clone()),
            (text(PLAN), self.digest()),
        ]);
        let service = &self.options.service;
        let endpoints = joined.map(|joined| {
            let settings = EndpointSettings { aliases: Some(aliases(&self.name)), ..EndpointSettings::default() };
            NetworkingConfig { endpoints_config: Some(HashMap::from([(joined.name.clone(), settings)])) }
        });
        ContainerCreateBody {
            image: Some(self.image.id.clone()),
            user: Some(self.user()),
            env: Some(self.options.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            cmd: self.options.command.clone(),
            labels: Some(labels),
            // The node runs it itself, if anybody wants to know.
            healthcheck: Some(HealthConfig { test: Some(vec![text("NONE")]), ..HealthConfig::default() }),
            exposed_ports: Some(
                service.published.iter().map(|port| format!("{}/{}", port.container, port.protocol)).collect(),
            ),
            host_config: Some(self.host(shared, joined, socket)),
            networking_config: endpoints,
            ..ContainerCreateBody::default()
        }
    }

    fn host(&self, shared: &Shared, joined: Option<&Joined>, socket: Option<&PathBuf>) -> HostConfig {
        let Self { options, limits, .. } = self;
        let text = |value: &str| value.to_string();
        let mut mounts: Vec<Mount> = options
            .service
            .volumes
            .iter()
            .map(|volume| Mount {
                typ: Some(MountType::VOLUME),
                source: Some(self.volume(&volume.name)),
                target: Some(volume.path.clone()),
                read_only: Some(volume.is_read_only),
                ..Mount::default()
            })
            .collect();
        mounts.extend(socket.map(|directory| Mount {
            typ: Some(MountType::BIND),
            source: Some(directory.display().to_string()),
            target: Some(text(INSIDE)),
            // It can be connected to nevertheless.
            read_only: Some(true),
            ..Mount::default()
        }));
        let address = shared.settings.publish_address.to_string();
        let mut ports: BTreeMap<String, Vec<PortBinding>> = BTreeMap::new();
        // What the engine chooses is one of those that the operator allows.
        let allowed = shared.settings.publish_ports;
        let any = (allowed != Ports::UNPRIVILEGED).then(|| allowed.to_string());
        for port in &options.service.published {
            let host_port = port.host.map(|port| port.to_string()).or_else(|| any.clone());
            let binding = PortBinding { host_ip: Some(address.clone()), host_port };
            ports.entry(format!("{}/{}", port.container, port.protocol)).or_default().push(binding);
        }
        let device = |path: &String| DeviceMapping {
            path_on_host: Some(path.clone()),
            path_in_container: Some(path.clone()),
            cgroup_permissions: Some(text("rw")),
        };
        let memory = limits.memory.map(|memory| signed(memory.0));
        HostConfig {
            // Not NanoCpus: what is set by them cannot be taken away again.
            cpu_period: limits.cpu.map(|_| signed(PERIOD)),
            cpu_quota: limits.cpu.map(quota),
            cpu_shares: limits.cpu_shares.map(|shares| signed(shares.0)),
            cpuset_cpus: limits.cpuset.as_ref().map(|set| set.0.clone()),
            memory,
            // As much with swap as without: none.
            memory_swap: memory,
            pids_limit: limits.pids.map(|pids| signed(pids.0)),
            storage_opt: limits.disk.map(|disk| HashMap::from([(text("size"), disk.0.to_string())])),
            readonly_rootfs: Some(options.is_read_only),
            tmpfs: Some(HashMap::from([(text("/tmp"), format!("rw,nosuid,nodev,mode=1777,size={}", options.tmp.0))])),
            cap_drop: Some(vec![text("ALL")]),
            cap_add: Some(options.capabilities.clone()),
            security_opt: Some(vec![text("no-new-privileges:true")]),
            privileged: Some(false),
            devices: Some(options.devices.iter().map(device).collect()),
            mounts: Some(mounts),
            port_bindings: Some(ports.into_iter().map(|(port, bindings)| (port, Some(bindings))).collect()),
            network_mode: Some(joined.map_or_else(|| text("none"), |joined| joined.name.clone())),
            // An engine may forward questions about names from a network that leads nowhere.
            dns: joined.filter(|joined| joined.is_platform).map(|_| vec![text("127.0.0.1")]),
            log_config: Some(HostConfigLogConfig {
                typ: Some(text("json-file")),
                config: Some(HashMap::from([(text("max-size"), text("1m")), (text("max-file"), text("2"))])),
            }),
            // The node sees to that, by the policy of all functions.
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            ..HostConfig::default()
        }
    }
}

/// What a container is part of that asks for so much.
pub(super) fn reach(asked: Reach, has_socket: bool) -> Reach {
    match asked {
        Reach::Platform if has_socket => Reach::None,
        asked => asked,
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn quota(cpu: Cpu) -> i64 {
    signed(cpu.nanos.saturating_mul(PERIOD) / 1_000_000_000)
}

/// The names by which the workflow's containers find a component: its own, in any case of letters, and one
/// that is a host name also if the own one is not.
fn aliases(name: &str) -> Vec<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let host: String = name.chars().map(plain).collect();
    let host = host.trim_matches('-').to_string();
    let mut aliases = vec![name.to_string()];
    if !host.is_empty() && !host.eq_ignore_ascii_case(name) {
        aliases.push(host);
    }
    aliases
}

/// What the engine is asked to change. What is not limited any more has to be said as well.
pub(super) fn update(limits: &Limits, processors: i64) -> ContainerUpdateBody {
    let memory = limits.memory.map_or(-1, |memory| signed(memory.0));
    ContainerUpdateBody {
        cpu_period: Some(signed(PERIOD)),
        cpu_quota: Some(limits.cpu.map_or(-1, quota)),
        cpu_shares: Some(limits.cpu_shares.map_or(1024, |shares| signed(shares.0))),
        cpuset_cpus: Some(
            limits.cpuset.as_ref().map_or_else(|| format!("0-{}", processors.max(1) - 1), |set| set.0.clone()),
        ),
        memory: Some(memory),
        memory_swap: Some(memory),
        pids_limit: Some(limits.pids.map_or(-1, |pids| signed(pids.0))),
        ..ContainerUpdateBody::default()
    }
}
