//! The configuration of a node: `node.toml`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use edgeless_api::node::Capabilities;
use edgeless_api::{NodeId, Url, url};
use serde::Deserialize;
use toml::Value;

use crate::capabilities::{self, Overrides};
use crate::resources::{CLASSES, Class, Settings};
use crate::runtimes::container::limits::Limits as ContainerLimits;
use crate::runtimes::container::options::{Ports, Reach, Subnet};
use crate::runtimes::wasm::cache::Disk;
use crate::shared;

/// A node's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the node is and where.
    pub general: General,
    /// Another place for `metrics_url`.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Functions in WebAssembly.
    #[serde(default)]
    pub wasm_runtime: WasmRuntime,
    /// Functions in containers.
    #[serde(default)]
    pub container_runtime: ContainerRuntime,
    /// What resources the node offers: the keys are those of the classes.
    #[serde(default)]
    pub resources: BTreeMap<String, Value>,
    /// What the operator says of the machine.
    #[serde(default)]
    pub user_node_capabilities: Overrides,
    /// What others may ask of the node.
    #[serde(default)]
    pub limits: Limits,
}

/// `[general]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct General {
    /// Unique in the domain.
    pub node_id: NodeId,
    /// Where the orchestrator commands the node.
    pub agent_url: Url,
    /// What the orchestrator is told instead.
    #[serde(default, deserialize_with = "url::optional")]
    pub agent_url_announced: Option<Url>,
    /// Where other nodes send events.
    pub invocation_url: Url,
    /// What other nodes are told instead.
    #[serde(default, deserialize_with = "url::optional")]
    pub invocation_url_announced: Option<Url>,
    /// Not available: must be empty.
    #[serde(default)]
    pub invocation_url_coap: String,
    /// Not available: must be empty.
    #[serde(default)]
    pub invocation_url_announced_coap: String,
    /// Where metrics are served.
    #[serde(default, deserialize_with = "url::optional")]
    pub metrics_url: Option<Url>,
    /// The orchestrator of the domain.
    #[serde(default, deserialize_with = "url::optional")]
    pub orchestrator_url: Option<Url>,
    /// Where the orchestrator registers nodes, if that is another address.
    #[serde(default, deserialize_with = "url::optional")]
    pub node_register_url: Option<Url>,
    /// Seconds between two announcements, to an orchestrator that does not say how often.
    #[serde(default = "default_refresh")]
    pub subscription_refresh_interval_sec: u64,
    /// Where the key of the node and functions' saved state are kept.
    #[serde(default = "default_state_directory")]
    pub state_directory: PathBuf,
    /// The Redis server that keeps the state of functions that ask for `state=global`; empty: none.
    #[serde(default)]
    pub state_url: String,
}

impl General {
    /// Where global state is kept, if anywhere.
    pub fn state_url(&self) -> Option<&str> {
        Some(self.state_url.as_str()).filter(|url| !url.is_empty())
    }
}

fn default_refresh() -> u64 {
    2
}

fn default_state_directory() -> PathBuf {
    PathBuf::from("function_state")
}

/// `[telemetry]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where metrics are served, if `[general]` does not say.
    #[serde(deserialize_with = "url::optional")]
    pub metrics_url: Option<Url>,
    /// Whether the orchestrator is told of each measurement of an instance, and of what it logs.
    pub performance_samples: bool,
}

/// `[wasm_runtime]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WasmRuntime {
    /// Whether the node runs functions in WebAssembly.
    pub enabled: bool,
    /// Instances at the same time.
    pub max_instances: u32,
    /// Memory of each instance.
    pub memory_limit: ByteSize,
    /// Processor time of each handler.
    #[serde(with = "humantime_serde")]
    pub cpu_limit: Duration,
    /// Where compiled modules are kept; empty: nowhere; not set: beside the state directory.
    pub cache_directory: Option<PathBuf>,
    /// The size of what is kept there.
    pub cache_size: ByteSize,
}

impl Default for WasmRuntime {
    fn default() -> Self {
        Self {
            enabled: true,
            max_instances: 1000,
            memory_limit: ByteSize::mib(128),
            cpu_limit: Duration::from_secs(10),
            cache_directory: None,
            cache_size: ByteSize::mib(256),
        }
    }
}

/// `[container_runtime]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerRuntime {
    /// Whether the node runs functions and services in containers.
    pub enabled: bool,
    /// Where containers reach the node; not set: at the gateway of their network, on a free port.
    #[serde(deserialize_with = "url::optional")]
    pub guest_api_host_url: Option<Url>,
    /// Where the Docker engine listens.
    pub docker_socket: PathBuf,
    /// The configuration with the credentials of registries; not set: that of the user who runs the node.
    pub docker_config: Option<PathBuf>,
    /// Where the sockets of functions are that are made with our SDK.
    pub socket_directory: PathBuf,
    /// Containers at the same time.
    pub max_containers: usize,
    /// How long a container may take until it serves.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    /// How long containers of an earlier run of this node wait to be taken over before they are removed.
    #[serde(with = "humantime_serde")]
    pub adopt_within: Duration,
    /// Whether a server that shows no token may be attached.
    pub allow_untokened: bool,
    /// Whether a container may run as root.
    pub allow_root: bool,
    /// The devices that containers may ask for.
    pub devices: Vec<String>,
    /// The capabilities that containers may ask for.
    pub capabilities: Vec<String>,
    /// What containers reach that say nothing about it.
    pub network: Reach,
    /// What their networks are carved from.
    pub subnet: Subnet,
    /// The ports that services may publish.
    pub publish_ports: Ports,
    /// Where they are published.
    pub publish_address: IpAddr,
    /// Limits of containers that say nothing about them.
    #[serde(deserialize_with = "ContainerLimits::defaults")]
    pub defaults: ContainerLimits,
    /// What they may not ask more than.
    #[serde(deserialize_with = "ContainerLimits::maxima")]
    pub maxima: ContainerLimits,
}

impl Default for ContainerRuntime {
    fn default() -> Self {
        Self {
            enabled: false,
            guest_api_host_url: None,
            docker_socket: PathBuf::from("/var/run/docker.sock"),
            docker_config: None,
            socket_directory: PathBuf::from("/run/edgeless"),
            max_containers: 100,
            start_timeout: Duration::from_secs(30),
            adopt_within: Duration::from_secs(30),
            allow_untokened: false,
            allow_root: false,
            devices: Vec::new(),
            capabilities: Vec::new(),
            network: Reach::Full,
            subnet: Subnet::DEFAULT,
            publish_ports: Ports::UNPRIVILEGED,
            publish_address: IpAddr::from([0, 0, 0, 0]),
            defaults: ContainerLimits::usual(),
            maxima: ContainerLimits::default(),
        }
    }
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest payload of an event.
    pub payload: ByteSize,
    /// The largest message of the control plane; bounds the code of a function.
    pub message: ByteSize,
    /// Events that wait for one component.
    pub mailbox: usize,
    /// The payloads that wait for one component; as much again of what it holds back or delays; and as
    /// much for one other node.
    pub queued: ByteSize,
    /// How long a sender waits for room in a mailbox, or for a component that runs nowhere.
    #[serde(with = "humantime_serde")]
    pub emit_wait: Duration,
    /// How long it waits for a component that is on its way to another node or domain; at least as long.
    #[serde(with = "humantime_serde")]
    pub move_wait: Duration,
    /// How long another node may be out of reach before what is on its way to it is given up.
    #[serde(with = "humantime_serde")]
    pub peer_lost_after: Duration,
    /// How long a caller waits for a reply.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// How often the target of an event that is delivered at least once may fail at it, before it is a dead letter.
    pub delivery_tries: u32,
    /// How long handlers may go on once their component, or the node, is being stopped.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Lines of log that are kept of each component.
    pub log_lines: usize,
    /// Components that may run on the node.
    pub components: usize,
    /// Instances with metrics of their own.
    pub max_series: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload: ByteSize::mib(4),
            message: ByteSize::mib(64),
            mailbox: 512,
            queued: ByteSize::mib(64),
            emit_wait: Duration::from_secs(2),
            move_wait: Duration::from_secs(30),
            peer_lost_after: Duration::from_secs(10),
            call_timeout: Duration::from_secs(30),
            delivery_tries: 10,
            grace: Duration::from_secs(5),
            log_lines: 200,
            components: 10_000,
            max_series: 1000,
        }
    }
}

impl Limits {
    /// What peers may send.
    pub fn api(&self) -> edgeless_api::Limits {
        let bytes = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        edgeless_api::Limits { message: bytes(self.message), payload: bytes(self.payload) }
    }
}

impl Config {
    /// Where the node registers.
    pub fn register_url(&self) -> Option<&Url> {
        self.general.node_register_url.as_ref().or(self.general.orchestrator_url.as_ref())
    }

    /// Where compiled modules are kept, if anywhere.
    pub fn module_cache(&self) -> Option<Disk> {
        let WasmRuntime { cache_directory, cache_size, .. } = &self.wasm_runtime;
        let directory = match cache_directory {
            Some(directory) if directory.as_os_str().is_empty() => return None,
            Some(directory) => directory.clone(),
            None => self.general.state_directory.with_file_name("function_cache"),
        };
        Some(Disk { directory, quota: cache_size.as_u64() })
    }

    /// Where metrics are served.
    pub fn metrics_url(&self) -> Option<&Url> {
        self.general.metrics_url.as_ref().or(self.telemetry.metrics_url.as_ref())
    }

    /// The classes that the node offers, each with its settings; the name of its provider first.
    ///
    /// # Errors
    /// A key that no class has, or a value that is neither text nor number.
    pub fn providers(&self) -> Result<Vec<(&'static Class, String, Settings)>, String> {
        let known = |key: &str| CLASSES.iter().any(|class| class.settings.iter().any(|setting| setting.name == key));
        for (key, value) in &self.resources {
            let is_empty = value.as_str().is_some_and(str::is_empty);
            // A provider of a class that this node does not have may be named as long as it is off.
            if !known(key) && key != PREPEND_HOSTNAME && !is_empty {
                let names: Vec<_> = CLASSES.iter().flat_map(|class| class.settings).map(|key| key.name).collect();
                return Err(format!("resources.{key}: not available on this node; there are: {}", names.join(", ")));
            }
        }
        let prefix = match self.resources.get(PREPEND_HOSTNAME) {
            None | Some(Value::Boolean(false)) => String::new(),
            Some(Value::Boolean(true)) => {
                let found = capabilities::detect();
                format!("{}-", found.hostname())
            }
            Some(_) => return Err(format!("resources.{PREPEND_HOSTNAME}: must be true or false")),
        };
        let mut providers = Vec::new();
        for class in CLASSES {
            let Some(name) = class.settings.first() else { continue };
            let named = self.resources.get(name.name).map(text).transpose();
            let Some(provider) = named.map_err(|error| format!("resources.{}: {error}", name.name))? else { continue };
            if provider.is_empty() {
                continue;
            }
            let provider = format!("{prefix}{provider}");
            let mut settings = Settings::default();
            for key in class.settings {
                let value = match self.resources.get(key.name) {
                    Some(value) => text(value).map_err(|error| format!("resources.{}: {error}", key.name))?,
                    None => key.default.unwrap_or_default().to_string(),
                };
                settings.0.insert(key.name, value);
            }
            settings.0.insert(name.name, provider.clone());
            providers.push((class, provider, settings));
        }
        Ok(providers)
    }
}

/// The longest time that can be configured.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

const PREPEND_HOSTNAME: &str = "prepend_hostname";

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(truth) => Ok(truth.to_string()),
        other => Err(format!("must be a text or a number, not {}", other.type_str())),
    }
}

impl edgeless_daemon::config::Config for Config {
    const FILE: &'static str = "node.toml";
    const ENVIRONMENT: &'static str = "EDGELESS_NODE";

    fn template() -> String {
        template(NodeId::random(), &capabilities::detect())
    }

    fn check(&self) -> Result<(), String> {
        if self.register_url().is_none() {
            return Err("general.orchestrator_url: must name the orchestrator of the domain".into());
        }
        let general = &self.general;
        for (key, url) in [
            ("invocation_url_coap", &general.invocation_url_coap),
            ("invocation_url_announced_coap", &general.invocation_url_announced_coap),
        ] {
            if !url.is_empty() {
                return Err(format!("general.{key}: CoAP is not available: leave it empty"));
            }
        }
        if let Some(Err(reason)) = general.state_url().map(shared::client) {
            return Err(format!("general.state_url: {reason}"));
        }
        if self.container_runtime.max_containers == 0 {
            return Err(
                "container_runtime.max_containers: must be at least 1; `enabled = false` turns the runtime off".into(),
            );
        }
        if self.wasm_runtime.max_instances == 0 {
            return Err(
                "wasm_runtime.max_instances: must be at least 1; `enabled = false` turns the runtime off".into()
            );
        }
        let page = ByteSize::kib(64);
        if self.wasm_runtime.memory_limit < page || self.wasm_runtime.memory_limit > ByteSize::gib(4) {
            return Err("wasm_runtime.memory_limit: must be between 64KiB and 4GiB".into());
        }
        for (key, time) in [
            ("wasm_runtime.cpu_limit", self.wasm_runtime.cpu_limit),
            ("container_runtime.start_timeout", self.container_runtime.start_timeout),
            ("container_runtime.adopt_within", self.container_runtime.adopt_within),
            ("limits.emit_wait", self.limits.emit_wait),
            ("limits.move_wait", self.limits.move_wait),
            ("limits.peer_lost_after", self.limits.peer_lost_after),
            ("limits.call_timeout", self.limits.call_timeout),
            ("limits.grace", self.limits.grace),
        ] {
            if time.is_zero() || time > LONGEST {
                return Err(format!("{key}: must be longer than nothing and at most a day"));
            }
        }
        if self.limits.payload > self.limits.message {
            return Err("limits.payload: must not be larger than limits.message".into());
        }
        self.providers().map(|_| ())
    }
}

/// A commented configuration that works as it stands.
pub fn template(node: NodeId, found: &Capabilities) -> String {
    let mut resources = String::new();
    for class in CLASSES {
        // A String never fails to be written to.
        let _written = writeln!(resources, "\n# {}: {}", class.class_type, class.description);
        for (index, key) in class.settings.iter().enumerate() {
            let default = key.default.unwrap_or_default();
            // What names and addresses are for each node its own; the rest stays as it is by itself.
            let own = index == 0 || key.name.ends_with("_url");
            let line = format!("{} = {}", key.name, Value::String(default.to_string()));
            let _written = if own {
                writeln!(resources, "{line}")
            } else {
                writeln!(resources, "# {}\n# {line}", key.description)
            };
        }
    }
    let Capabilities { num_cpus, model_name_cpu, clock_freq_cpu, num_cores, mem_size, .. } = found;
    let model_name_cpu = Value::String(model_name_cpu.clone());
    format!(
        r#"# Configuration of a node. Keys that are commented out show their defaults.
# Each key can also be set by a variable: EDGELESS_NODE__GENERAL__AGENT_URL=http://127.0.0.1:7021

[general]
# Who this node is: unique in its domain.
node_id = "{node}"
# Where the orchestrator commands this node. Only those who may start code here should reach it.
agent_url = "http://127.0.0.1:7021"
# What the orchestrator is told instead of it; empty: the same.
agent_url_announced = ""
# Where other nodes send events.
invocation_url = "http://127.0.0.1:7002"
invocation_url_announced = ""
# Where monitoring finds /metrics, /healthz and /readyz; empty: nowhere.
metrics_url = "http://127.0.0.1:7003"
# The orchestrator of the domain.
orchestrator_url = "http://127.0.0.1:7011"
# Where the key by which the orchestrator knows this node, and functions' saved state, are kept.
# state_directory = "function_state"
# The Redis server that keeps the state of functions with the annotation state=global, the same for all nodes; empty:
# this node runs none of those. redis://[[<user>]:<password>@]<host>[:<port>][/<database>]
# state_url = ""

# Whether the orchestrator is told of each measurement of an instance and of each line that it logs, for
# the [proxy] or [collector] of its configuration.
# [telemetry]
# performance_samples = false

[wasm_runtime]
# Whether this node runs functions in WebAssembly.
enabled = true
# Instances at the same time, memory of each, processor time of each handler.
# max_instances = 1000
# memory_limit = "128MiB"
# cpu_limit = "10s"
# Where compiled modules are kept for the next start of this node, and how much of them; empty: nowhere.
# cache_directory = "function_cache"
# cache_size = "256MiB"

[container_runtime]
# Whether this node runs functions and services in containers, on the Docker engine of this machine.
enabled = false
# Where containers reach this node; empty: at the gateway of their network, on a free port.
guest_api_host_url = ""
# docker_socket = "/var/run/docker.sock"
# Where the credentials of registries are; by itself where `docker login` puts them.
# docker_config = "/root/.docker/config.json"
# Where the sockets of functions are that are made with our SDK.
# socket_directory = "/run/edgeless"
# Containers at the same time, and how long one may take until it serves.
# max_containers = 100
# start_timeout = "30s"
# How long containers of an earlier run of this node wait to be taken over before they are removed.
# adopt_within = "30s"
# Whether functions may attach servers that show no token: any local process may then speak as they do.
# allow_untokened = false
# Whether containers may run as root; which devices and capabilities they may ask for.
# allow_root = false
# devices = []
# capabilities = []
# What containers reach that say nothing about it: none, platform (this node's guest API) or full.
# network = "full"
# The addresses that their networks are carved from.
# subnet = "10.231.0.0/16"
# The ports of this machine that services may publish, and at which of its addresses.
# publish_ports = "1024-65535"
# publish_address = "0.0.0.0"

# Limits of containers that say nothing about them: cpu, cpu_shares, cpuset, memory, pids, disk,
# network_bandwidth_up, network_bandwidth_down.
[container_runtime.defaults]
# memory = "256MiB"
# pids = 256
# cpu_shares = 1024

# What containers may not ask more than. No key: as much as there is.
[container_runtime.maxima]
# cpu = 1
# memory = "1GiB"

# What resources this node offers. A class whose provider has no name is not offered.
[resources]
# prepend_hostname = false
{resources}
# What the orchestrator is told about this machine; 0 and "" mean what is found by looking.
[user_node_capabilities]
num_cpus = {num_cpus}
model_name_cpu = {model_name_cpu}
clock_freq_cpu = {clock_freq_cpu:?}
num_cores = {num_cores}
mem_size = {mem_size}
labels = []
is_tee_running = false
has_tpm = false

# What others may ask of this node.
[limits]
# The largest payload of an event, and the largest message of the control plane (code is in one).
# payload = "4MiB"
# message = "64MiB"
# Events that wait for one component, and the size of their payloads; the size also bounds what a
# component holds back or delays, and what waits for one other node.
# mailbox = 512
# queued = "64MiB"
# How long a sender waits for room there, or for a component that runs nowhere; and for one that is on
# its way to another node or domain.
# emit_wait = "2s"
# move_wait = "30s"
# How long another node may be out of reach before what is on its way to it is given up.
# peer_lost_after = "10s"
# How long a caller waits for a reply.
# call_timeout = "30s"
# How often the target of an event that is delivered at least once may fail at it, before it is a dead letter.
# delivery_tries = 10
# How long handlers may go on once they are being stopped.
# grace = "5s"
# Lines of log that are kept of each component.
# log_lines = 200
# Components that may run here, and instances with metrics of their own.
# components = 10000
# max_series = 1000
"#
    )
}
