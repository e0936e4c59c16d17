//! The configuration of an orchestrator: the keys of `orchestrator.toml`, their defaults and what
//! is refused.
//!
//! Every key has a default, an unknown key is an error, and an empty URL means that it is not set.

use std::time::Duration;

use bytesize::ByteSize;
use edgeless_api::url::{self, Url};
use serde::{Deserialize, Deserializer};

use crate::placement::Strategy;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who and where it is.
    pub general: General,
    /// How it places components and watches nodes.
    pub baseline: Baseline,
    /// A copy of its state in a database.
    pub proxy: Proxy,
    /// A store for the measurements of nodes.
    pub collector: Collector,
    /// What others may ask of it at most.
    pub limits: Limits,
}

/// Who and where an orchestrator is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct General {
    /// The name of its domain.
    pub domain_id: String,
    /// Where it listens to its controller and, unless `node_register_url` is set, to its nodes.
    pub orchestrator_url: Url,
    /// What it tells others of `orchestrator_url`.
    #[serde(deserialize_with = "url::optional")]
    pub orchestrator_url_announced: Option<Url>,
    /// Where nested domains will command it; not bound.
    #[serde(deserialize_with = "url::optional")]
    pub agent_url: Option<Url>,
    /// What it tells others of `agent_url`.
    #[serde(deserialize_with = "url::optional")]
    pub agent_url_announced: Option<Url>,
    /// Where nested domains will send events; not bound.
    #[serde(deserialize_with = "url::optional")]
    pub invocation_url: Option<Url>,
    /// What it tells others of `invocation_url`.
    #[serde(deserialize_with = "url::optional")]
    pub invocation_url_announced: Option<Url>,
    /// A second address, for nodes.
    #[serde(deserialize_with = "url::optional")]
    pub node_register_url: Option<Url>,
    /// Not available.
    #[serde(deserialize_with = "no_coap")]
    pub node_register_coap_url: (),
    /// The controller to announce the domain to.
    #[serde(deserialize_with = "url::optional")]
    pub domain_register_url: Option<Url>,
    /// How often it announces the domain.
    pub subscription_refresh_interval_sec: u64,
    /// Where monitoring asks for `/healthz`, `/readyz` and `/metrics`.
    #[serde(deserialize_with = "url::optional")]
    pub metrics_url: Option<Url>,
}

impl Default for General {
    fn default() -> Self {
        let local = |port: u16| Url::of(([127, 0, 0, 1], port).into());
        Self {
            domain_id: "domain-1".into(),
            orchestrator_url: local(7011),
            orchestrator_url_announced: None,
            agent_url: Some(local(7121)),
            agent_url_announced: None,
            invocation_url: Some(local(7102)),
            invocation_url_announced: None,
            node_register_url: None,
            node_register_coap_url: (),
            domain_register_url: None,
            subscription_refresh_interval_sec: 2,
            metrics_url: None,
        }
    }
}

/// How an orchestrator places components and watches nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Baseline {
    /// How a node is chosen among those that can run a component.
    pub orchestration_strategy: &'static Strategy,
    /// A node that is silent for this time is lost.
    pub keep_alive_interval_secs: u64,
}

impl Default for Baseline {
    fn default() -> Self {
        Self { orchestration_strategy: Strategy::random(), keep_alive_interval_secs: 2 }
    }
}

impl Baseline {
    /// A node that is silent for this time is lost.
    pub fn keep_alive(&self) -> Duration {
        Duration::from_secs(self.keep_alive_interval_secs)
    }
}

/// A copy of the orchestrator's state in a database.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// `None`, in any case.
    pub proxy_type: String,
    /// The database.
    pub redis_url: String,
    /// The age at which measurements are deleted; 0 keeps all.
    pub proxy_gc_period_seconds: u64,
    /// Not available yet.
    pub dataset_settings: Option<toml::Table>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            proxy_type: "None".into(),
            redis_url: String::new(),
            proxy_gc_period_seconds: 360,
            dataset_settings: None,
        }
    }
}

/// A store for the measurements of nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Collector {
    /// `None`, in any case.
    pub collector_type: String,
    /// The database.
    pub redis_url: String,
}

impl Default for Collector {
    fn default() -> Self {
        Self { collector_type: "None".into(), redis_url: String::new() }
    }
}

/// What others may ask of an orchestrator at most.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Nodes in the domain.
    pub max_nodes: usize,
    /// Components in the domain.
    pub max_components: usize,
    /// Controllers and others that follow the domain.
    pub max_watchers: usize,
    /// The size of a message, code included.
    pub max_message_size: ByteSize,
    /// The code that is kept, each once: that of the components, and what was used last.
    pub code_memory: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_nodes: 1000,
            max_components: 100_000,
            max_watchers: 64,
            max_message_size: ByteSize::mib(64),
            code_memory: ByteSize::mib(256),
        }
    }
}

impl Limits {
    /// The limits of the connections.
    pub fn wire(&self) -> edgeless_api::Limits {
        edgeless_api::Limits { message: bytes(self.max_message_size), ..edgeless_api::Limits::default() }
    }

    /// The bytes of code that are kept.
    pub fn code_memory(&self) -> usize {
        bytes(self.code_memory)
    }
}

/// Saturates where addresses are too short for a limit that nobody can meet then.
fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

impl edgeless_daemon::config::Config for Config {
    const FILE: &'static str = "orchestrator.toml";
    const ENVIRONMENT: &'static str = "EDGELESS_ORC";

    fn template() -> String {
        TEMPLATE.into()
    }

    fn check(&self) -> Result<(), String> {
        let general = &self.general;
        if general.domain_id.trim().is_empty() || general.domain_id.len() > 256 {
            return Err("general.domain_id: give the domain a name of at most 256 bytes".into());
        }
        let bound = [
            ("orchestrator_url", Some(&general.orchestrator_url)),
            ("agent_url", general.agent_url.as_ref()),
            ("invocation_url", general.invocation_url.as_ref()),
            ("node_register_url", general.node_register_url.as_ref()),
            ("metrics_url", general.metrics_url.as_ref()),
        ];
        for (key, url) in bound {
            if let Some(Err(error)) = url.map(Url::bind_addr) {
                return Err(format!("general.{key}: {error}"));
            }
        }
        let positive = [
            ("general.subscription_refresh_interval_sec", general.subscription_refresh_interval_sec),
            ("baseline.keep_alive_interval_secs", self.baseline.keep_alive_interval_secs),
        ];
        for (key, seconds) in positive {
            if !(1..=86_400).contains(&seconds) {
                return Err(format!("{key}: {seconds} is not between 1 and 86400 seconds"));
            }
        }
        none_or_later("proxy.proxy_type", &self.proxy.proxy_type)?;
        none_or_later("collector.collector_type", &self.collector.collector_type)?;
        for (key, url) in
            [("proxy.redis_url", &self.proxy.redis_url), ("collector.redis_url", &self.collector.redis_url)]
        {
            if !url.is_empty() && !url.starts_with("redis://") {
                return Err(format!("{key}: '{url}' is not a URL of the form redis://<host>:<port>"));
            }
        }
        if self.proxy.dataset_settings.is_some() {
            return Err("proxy.dataset_settings: not available yet: remove the section".into());
        }
        Ok(())
    }
}

fn none_or_later(key: &str, value: &str) -> Result<(), String> {
    match value.to_ascii_lowercase().as_str() {
        "none" => Ok(()),
        "redis" => Err(format!("{key}: Redis is not available yet: write \"None\"")),
        _ => Err(format!("{key}: '{value}' is not known: write \"None\"")),
    }
}

fn no_coap<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    if String::deserialize(deserializer)?.is_empty() {
        return Ok(());
    }
    Err(serde::de::Error::custom("CoAP is not available: leave node_register_coap_url empty"))
}

const TEMPLATE: &str = r#"# The configuration of an orchestrator. Every key may be left out: the values below are the defaults.
# An empty URL means that it is not set.

[general]
# The name of the domain: the one that the controller knows it by.
domain_id = "domain-1"
# Where the orchestrator listens to its controller and its nodes.
orchestrator_url = "http://127.0.0.1:7011"
# What it tells others of this address, if that is another one: behind a NAT, for instance.
orchestrator_url_announced = ""
# These two are for nested domains; they are checked, and not listened on yet.
agent_url = "http://127.0.0.1:7121"
agent_url_announced = ""
invocation_url = "http://127.0.0.1:7102"
invocation_url_announced = ""
# A second address, for nodes only.
# node_register_url = "http://127.0.0.1:7004"
# The controller to announce this domain to, and how often. Not needed where the controller's file
# lists this orchestrator.
# domain_register_url = "http://127.0.0.1:7001"
# subscription_refresh_interval_sec = 2
# Where monitoring finds /healthz, /readyz and /metrics.
# metrics_url = "http://127.0.0.1:7012"

[baseline]
# How a node is chosen among those that can run a component: "Random", weighted by the speed of the
# nodes, "RoundRobin", "LeastLoaded", or "Locality", which keeps together what talks to each other.
orchestration_strategy = "Random"
# A node that is silent for this time is lost, and its components are started elsewhere.
keep_alive_interval_secs = 2

[proxy]
# A copy of the orchestrator's state for other programs. Only "None" is available yet.
proxy_type = "None"
redis_url = ""
# proxy_gc_period_seconds = 360

[collector]
# A store for the measurements of nodes. Only "None" is available yet.
collector_type = "None"
redis_url = ""

# What others may ask of this orchestrator at most.
# [limits]
# max_nodes = 1000
# max_components = 100000
# max_watchers = 64
# max_message_size = "64MiB"
# The code that is kept in memory, each once: that of the components, and what was used last.
# code_memory = "256MiB"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        edgeless_daemon::config::parse(text, std::iter::empty())
    }

    #[test]
    fn the_template_works_and_says_the_defaults() {
        assert_eq!(parse(TEMPLATE).unwrap(), Config::default());
        let uncommented: Vec<_> = TEMPLATE
            .lines()
            .map(|line| {
                line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || *rest == "[limits]").unwrap_or(line)
            })
            .collect();
        let config = parse(&uncommented.join("\n")).unwrap();
        assert_eq!(config.limits, Limits::default(), "what is commented out is valid too");
        assert!(config.general.domain_register_url.is_some());
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn strategies_and_empty_urls_are_read() {
        let config = parse("[general]\nagent_url = \"\"\n[baseline]\norchestration_strategy = \"RoundRobin\"").unwrap();
        assert_eq!(config.baseline.orchestration_strategy.name, "RoundRobin");
        assert_eq!(config.general.agent_url, None);
        assert!(parse("[proxy]\nproxy_type = \"none\"\nredis_url = \"redis://127.0.0.1:6379\"").is_ok());
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_key_and_a_way_out() {
        for (text, parts) in [
            ("[general]\ndomain = \"a\"", ["domain", "line 2"]),
            ("[general]\ndomain_id = \" \"", ["domain_id", "name"]),
            ("[general]\norchestrator_url = \"https://127.0.0.1:1\"", ["https", "line 2"]),
            ("[general]\norchestrator_url = \"http://localhost:1\"", ["orchestrator_url", "IP address"]),
            ("[general]\nnode_register_coap_url = \"coap://127.0.0.1:1\"", ["CoAP is not available", "line 2"]),
            ("[general]\nsubscription_refresh_interval_sec = 0", ["subscription_refresh_interval_sec", "between 1"]),
            ("[baseline]\norchestration_strategy = \"Fastest\"", ["Fastest", "Random, RoundRobin"]),
            ("[baseline]\nkeep_alive_interval_secs = 0", ["keep_alive_interval_secs", "between 1"]),
            ("[proxy]\nproxy_type = \"REDIS\"", ["proxy.proxy_type", "not available yet"]),
            ("[proxy]\nproxy_type = \"sqlite\"", ["sqlite", "\"None\""]),
            ("[proxy]\nredis_url = \"127.0.0.1\"", ["proxy.redis_url", "redis://"]),
            ("[proxy.dataset_settings]\nappend = true", ["dataset_settings", "not available yet"]),
            ("[collector]\ncollector_type = \"Redis\"", ["collector.collector_type", "not available yet"]),
            ("[limits]\nmax_message_size = \"big\"", ["line 2", "max_message_size"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }
}
