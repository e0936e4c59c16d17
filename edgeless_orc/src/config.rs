//! The configuration of an orchestrator: the keys of `orchestrator.toml`, their defaults and what
//! is refused.
//!
//! Every key has a default, an unknown key is an error, and an empty URL means that it is not set.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use edgeless_api::id::NodeId;
use edgeless_api::url::{self, Url};
use serde::{Deserialize, Deserializer};

use crate::mirror;
use crate::placement::Strategy;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who and where it is.
    pub general: General,
    /// Where the domain is part of another one.
    pub parent: Parent,
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
    /// Other domains reach its components through `invocation_url` only.
    pub private: bool,
    /// The node that its forwarder is to others; drawn at each start if it is not set.
    pub forwarder_id: Option<NodeId>,
    /// Where it listens to its controller and, unless `node_register_url` is set, to its nodes.
    pub orchestrator_url: Url,
    /// What it tells others of `orchestrator_url`.
    #[serde(deserialize_with = "url::optional")]
    pub orchestrator_url_announced: Option<Url>,
    /// Where the parent commands it; bound only where there is one.
    #[serde(deserialize_with = "url::optional")]
    pub agent_url: Option<Url>,
    /// What it tells others of `agent_url`.
    #[serde(deserialize_with = "url::optional")]
    pub agent_url_announced: Option<Url>,
    /// Where its forwarder takes events; bound only where the domain is private or has a parent.
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
    /// The directory that keeps the domain over a restart; empty: nothing is kept.
    pub state_directory: PathBuf,
    /// Where monitoring asks for `/healthz`, `/readyz` and `/metrics`.
    #[serde(deserialize_with = "url::optional")]
    pub metrics_url: Option<Url>,
}

impl Default for General {
    fn default() -> Self {
        let local = |port: u16| Url::of(([127, 0, 0, 1], port).into());
        Self {
            domain_id: "domain-1".into(),
            private: false,
            forwarder_id: None,
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
            state_directory: PathBuf::from("edgeless_orc_state"),
            metrics_url: None,
        }
    }
}

/// Where a domain is part of another one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parent {
    /// The orchestrator to which the whole domain is one node.
    #[serde(deserialize_with = "url::optional")]
    pub orchestrator_url: Option<Url>,
    /// The node that it is there; if it is not set, one that follows from `domain_id`.
    pub node_id: Option<NodeId>,
}

/// The longest that is waited for a lost node.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 3600);

/// How an orchestrator places components and watches nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Baseline {
    /// How a node is chosen among those that can run a component.
    pub orchestration_strategy: &'static Strategy,
    /// A node that is silent for this time is lost.
    pub keep_alive_interval_secs: u64,
    /// So long is waited for a lost node that alone has the state of a component.
    #[serde(with = "humantime_serde")]
    pub state_grace: Duration,
}

impl Default for Baseline {
    fn default() -> Self {
        let state_grace = Duration::from_secs(30);
        Self { orchestration_strategy: Strategy::random(), keep_alive_interval_secs: 2, state_grace }
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
    /// `None` or `Redis`, in any case.
    pub proxy_type: String,
    /// The database; it holds nothing but the mirror of this domain, or what has other keys.
    pub redis_url: String,
    /// The age at which measurements are deleted; 0 keeps all.
    pub proxy_gc_period_seconds: u64,
    /// The history of the domain in files, if there shall be a copy.
    pub dataset_settings: Option<DatasetSettings>,
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

/// The history of the domain in files.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatasetSettings {
    /// What the names of the files begin with.
    pub dataset_path: String,
    /// Whether files that are there already are continued.
    pub append: bool,
    /// What each line begins with.
    pub additional_fields: String,
    /// What the first line of each file begins with.
    pub additional_header: String,
}

impl Default for DatasetSettings {
    fn default() -> Self {
        let (dataset_path, additional_fields, additional_header) = Default::default();
        Self { dataset_path, append: true, additional_fields, additional_header }
    }
}

impl Proxy {
    /// The database, if there shall be a copy.
    pub fn database(&self) -> Option<String> {
        is_redis(&self.proxy_type).then(|| self.redis_url.clone())
    }

    /// For how long measurements are kept; `None`: for ever.
    pub fn keep_for(&self) -> Option<Duration> {
        (self.proxy_gc_period_seconds > 0).then(|| Duration::from_secs(self.proxy_gc_period_seconds))
    }
}

/// A store for the measurements of nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Collector {
    /// `None` or `Redis`, in any case.
    pub collector_type: String,
    /// The database.
    pub redis_url: String,
}

impl Default for Collector {
    fn default() -> Self {
        Self { collector_type: "None".into(), redis_url: String::new() }
    }
}

impl Collector {
    /// The database, if measurements shall be stored.
    pub fn database(&self) -> Option<String> {
        is_redis(&self.collector_type).then(|| self.redis_url.clone())
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
    /// Instances of this and of other domains that the forwarder knows at a time.
    pub max_forwarded: usize,
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
            max_forwarded: 65_536,
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
        self.check_forwarding()?;
        let positive = [
            ("general.subscription_refresh_interval_sec", general.subscription_refresh_interval_sec),
            ("baseline.keep_alive_interval_secs", self.baseline.keep_alive_interval_secs),
        ];
        for (key, seconds) in positive {
            if !(1..=86_400).contains(&seconds) {
                return Err(format!("{key}: {seconds} is not between 1 and 86400 seconds"));
            }
        }
        if self.baseline.state_grace > LONGEST_GRACE {
            return Err("baseline.state_grace: must be at most a day".into());
        }
        let (proxy, collector) = (&self.proxy, &self.collector);
        check_database("proxy.proxy_type", &proxy.proxy_type, "proxy.redis_url", &proxy.redis_url)?;
        check_database(
            "collector.collector_type",
            &collector.collector_type,
            "collector.redis_url",
            &collector.redis_url,
        )?;
        if proxy.proxy_gc_period_seconds > LONGEST_KEPT {
            return Err(format!("proxy.proxy_gc_period_seconds: must be at most {LONGEST_KEPT}, a year; 0 keeps all"));
        }
        if let Some(dataset) = &proxy.dataset_settings {
            for (key, text) in
                [("additional_fields", &dataset.additional_fields), ("additional_header", &dataset.additional_header)]
            {
                if text.contains(['\n', '\r']) {
                    return Err(format!("proxy.dataset_settings.{key}: must be on one line"));
                }
            }
        }
        Ok(())
    }
}

impl Config {
    /// What a domain needs that takes events for its nodes.
    fn check_forwarding(&self) -> Result<(), String> {
        let (general, parent) = (&self.general, &self.parent);
        if general.private && general.invocation_url.is_none() {
            return Err(
                "general.private: a private domain is reached through its orchestrator: set invocation_url".into()
            );
        }
        if !(1..=10_000_000).contains(&self.limits.max_forwarded) {
            return Err("limits.max_forwarded: choose a number between 1 and 10000000".into());
        }
        if parent.orchestrator_url.is_none() {
            return match parent.node_id {
                Some(_) => Err("parent.node_id: the domain has no parent: set parent.orchestrator_url too".into()),
                None => Ok(()),
            };
        }
        for (key, url) in [("agent_url", &general.agent_url), ("invocation_url", &general.invocation_url)] {
            if url.is_none() {
                return Err(format!(
                    "parent.orchestrator_url: the parent commands this domain as a node: set general.{key}"
                ));
            }
        }
        if general.domain_id.len() > 200 {
            return Err("general.domain_id: the parent knows the domain by it: choose one of at most 200 bytes".into());
        }
        if general.domain_register_url.is_some() {
            return Err(
                "general.domain_register_url: a domain with a parent works for it alone: remove this key or [parent]"
                    .into(),
            );
        }
        if general.forwarder_id.is_some() {
            return Err(
                "general.forwarder_id: with a parent the forwarder is the node of the domain: use parent.node_id"
                    .into(),
            );
        }
        Ok(())
    }
}

/// The longest time that measurements may be kept before they are deleted, seconds.
const LONGEST_KEPT: u64 = 366 * 86_400;

fn is_redis(kind: &str) -> bool {
    kind.eq_ignore_ascii_case("redis")
}

fn check_database(key: &str, kind: &str, url_key: &str, url: &str) -> Result<(), String> {
    if !is_redis(kind) && !kind.eq_ignore_ascii_case("none") {
        return Err(format!("{key}: '{kind}' is not known: write \"None\" or \"Redis\""));
    }
    match url.is_empty() {
        true if is_redis(kind) => Err(format!("{url_key}: name the server, such as redis://127.0.0.1:6379")),
        true => Ok(()),
        false => mirror::client(url_key, url).map(drop).map_err(|error| error.message),
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
# Whether other domains reach the components of this one only through invocation_url: for nodes that
# cannot be reached from outside.
private = false
# The id that the forwarder behind invocation_url has as a node. Drawn at each start if it is not set.
# forwarder_id = "6b0f3f6e-6f0e-4d5b-9e0e-6f2f1a0f8c11"
# Where the orchestrator listens to its controller and its nodes.
orchestrator_url = "http://127.0.0.1:7011"
# What it tells others of this address, if that is another one: behind a NAT, for instance.
orchestrator_url_announced = ""
# Where the parent of this domain commands it. Listened on only where there is one: see [parent].
agent_url = "http://127.0.0.1:7121"
agent_url_announced = ""
# Where the forwarder takes events for the nodes of this domain. Listened on only where the domain is
# private or has a parent.
invocation_url = "http://127.0.0.1:7102"
invocation_url_announced = ""
# A second address, for nodes only.
# node_register_url = "http://127.0.0.1:7004"
# The controller to announce this domain to, and how often. Not needed where the controller's file
# lists this orchestrator.
# domain_register_url = "http://127.0.0.1:7001"
# subscription_refresh_interval_sec = 2
# The directory that keeps the domain over a restart, in a file named after domain_id. "" keeps nothing.
state_directory = "edgeless_orc_state"
# Where monitoring finds /healthz, /readyz and /metrics.
# metrics_url = "http://127.0.0.1:7012"

# Makes the domain one node of another domain.
# [parent]
# The orchestrator of that domain. This one then works for it alone, and for no controller.
# orchestrator_url = "http://127.0.0.1:7111"
# The node that this domain is there. If it is not set, one that follows from domain_id.
# node_id = "0d6c7a53-2f7b-4f0c-8f0e-3a4b7a1f9d52"

[baseline]
# How a node is chosen among those that can run a component: "Random", weighted by the speed of the
# nodes, "RoundRobin", "LeastLoaded", or "Locality", which keeps together what talks to each other.
orchestration_strategy = "Random"
# A node that is silent for this time is lost, and its components are started elsewhere.
keep_alive_interval_secs = 2
# So long a component with state=node-local waits for its lost node, which alone has its state.
# state_grace = "30s"

[proxy]
# A copy of the domain's state in Redis, for other programs, which may also ask for something there:
# "None" or "Redis". The server may go and come; the domain goes on in any case.
proxy_type = "None"
# The server, such as "redis://127.0.0.1:6379". A domain needs a database of its own.
redis_url = ""
# Measurements that are older, seconds, are deleted; 0 keeps all.
# proxy_gc_period_seconds = 360
# The history of the domain as CSV files, beside the copy. What their names begin with; whether files that
# are there are continued; what each line, and the first one, begin with.
# [proxy.dataset_settings]
# dataset_path = ""
# append = true
# additional_fields = ""
# additional_header = ""

[collector]
# What nodes measure of functions if their `performance_samples` is true, in Redis: "None" or "Redis".
# The copy above has it as well.
collector_type = "None"
redis_url = ""

# What others may ask of this orchestrator at most.
# [limits]
# max_nodes = 1000
# max_components = 100000
# max_watchers = 64
# Instances of this and of other domains that the forwarder knows at a time.
# max_forwarded = 65536
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
        // A domain has a controller or a parent.
        let without_parent = |line: &&str| !line.contains(":7111") && !line.contains("0d6c7a53");
        let uncommented: Vec<_> = TEMPLATE
            .lines()
            .filter(without_parent)
            .map(|line| {
                line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || rest.starts_with('[')).unwrap_or(line)
            })
            .collect();
        let config = parse(&uncommented.join("\n")).unwrap();
        assert_eq!(config.limits, Limits::default(), "what is commented out is valid too");
        assert_eq!(config.proxy.dataset_settings, Some(DatasetSettings::default()));
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
        let proxy = parse("[proxy]\nproxy_type = \"none\"\nredis_url = \"redis://127.0.0.1:6379\"").unwrap().proxy;
        assert_eq!(proxy.database(), None);
        let text = "[proxy]\nproxy_type = \"REDIS\"\nredis_url = \"redis://:secret@h/1\"\nproxy_gc_period_seconds = 0";
        let proxy = parse(text).unwrap().proxy;
        assert_eq!((proxy.database().as_deref(), proxy.keep_for()), (Some("redis://:secret@h/1"), None));
        let error = parse("[proxy]\nredis_url = \"http://:secret@h\"").unwrap_err();
        assert!(error.contains("proxy.redis_url") && !error.contains("secret"), "{error}");
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
            ("[general]\nprivate = true\ninvocation_url = \"\"", ["general.private", "set invocation_url"]),
            ("[general]\nforwarder_id = \"me\"", ["line 2", "forwarder_id"]),
            (
                "[parent]\norchestrator_url = \"http://a:1\"\n[general]\nagent_url = \"\"",
                ["parent.", "general.agent_url"],
            ),
            ("[parent]\nnode_id = \"6b0f3f6e-6f0e-4d5b-9e0e-6f2f1a0f8c11\"", ["parent.node_id", "orchestrator_url"]),
            (
                "[general]\ndomain_register_url = \"http://a:1\"\n[parent]\norchestrator_url = \"http://a:1\"",
                ["domain_register_url", "remove this key or [parent]"],
            ),
            ("[limits]\nmax_forwarded = 0", ["limits.max_forwarded", "between 1"]),
            ("[baseline]\norchestration_strategy = \"Fastest\"", ["Fastest", "Random, RoundRobin"]),
            ("[baseline]\nkeep_alive_interval_secs = 0", ["keep_alive_interval_secs", "between 1"]),
            ("[proxy]\nproxy_type = \"REDIS\"", ["proxy.redis_url", "redis://127.0.0.1:6379"]),
            ("[proxy]\nproxy_type = \"sqlite\"", ["sqlite", "\"None\" or \"Redis\""]),
            ("[proxy]\nredis_url = \"127.0.0.1\"", ["proxy.redis_url", "redis://"]),
            ("[proxy]\nredis_url = \"redis://:x@h:y\"", ["proxy.redis_url", "redis://["]),
            ("[proxy]\nproxy_gc_period_seconds = 40000000", ["proxy_gc_period_seconds", "at most"]),
            ("[proxy.dataset_settings]\nappend = 1", ["line 2", "append"]),
            ("[proxy.dataset_settings]\nadditional_fields = \"a\\nb\"", ["additional_fields", "on one line"]),
            ("[collector]\ncollector_type = \"Redis\"", ["collector.redis_url", "name the server"]),
            ("[collector]\ncollector_type = \"file\"", ["collector.collector_type", "'file' is not known"]),
            ("[limits]\nmax_message_size = \"big\"", ["line 2", "max_message_size"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }
}
