//! What a controller is configured by: the keys of `controller.toml`.
//!
//! This module owns names, defaults and checks; what the values do is decided elsewhere. Every key
//! has a default, so that an empty file is a configuration too.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use edgeless_api::id::DomainId;
use edgeless_api::url::{self, Url};
use serde::Deserialize;

/// The configuration of a controller.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where users reach the controller.
    pub controller_url: Url,
    /// The domains whose orchestrators the controller dials.
    pub orchestrators: Vec<Orchestrator>,
    /// Where orchestrators announce themselves; not set: at `controller_url`.
    #[serde(deserialize_with = "url::optional")]
    pub domain_register_url: Option<Url>,
    /// Where workflows are kept over a restart.
    pub state_directory: PathBuf,
    /// The file that keeps them; empty: `controller.redb` in `state_directory`.
    pub persistence_filename: String,
    /// Where monitoring asks how the controller is; not set: nowhere.
    #[serde(deserialize_with = "url::optional")]
    pub metrics_url: Option<Url>,
    /// The largest message that is accepted. Code travels in messages.
    pub max_message_size: ByteSize,
    /// The code that is kept, each once: that of the workflows that run, and what was used last.
    pub code_memory: ByteSize,
    /// The most workflows at a time.
    pub max_workflows: usize,
    /// The most domains at a time.
    pub max_domains: usize,
    /// How long a domain is out of reach before it is seen whether anything of it is left.
    #[serde(with = "humantime_serde")]
    pub domain_grace: Duration,
    /// How long an orchestrator may take to start one component.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// How long requests in hand may take to finish when the controller stops.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// A domain and where its orchestrator is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orchestrator {
    /// The domain's name; the orchestrator is configured with the same.
    pub domain_id: DomainId,
    /// Where the orchestrator takes components.
    pub orchestrator_url: Url,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controller_url: Url::of(SocketAddr::from(([127, 0, 0, 1], 7001))),
            orchestrators: Vec::new(),
            domain_register_url: None,
            state_directory: PathBuf::from("edgeless_con_state"),
            persistence_filename: String::new(),
            metrics_url: None,
            max_message_size: ByteSize::mib(64),
            code_memory: ByteSize::mib(256),
            max_workflows: 10_000,
            max_domains: 1_000,
            domain_grace: Duration::from_secs(30),
            call_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// The file that keeps workflows over a restart.
    pub fn store_file(&self) -> PathBuf {
        match self.persistence_filename.as_str() {
            "" => self.state_directory.join("controller.redb"),
            file => PathBuf::from(file),
        }
    }

    fn check_addresses(&self) -> Result<(), String> {
        let bound = [
            ("controller_url", Some(&self.controller_url)),
            ("domain_register_url", self.domain_register_url.as_ref()),
            ("metrics_url", self.metrics_url.as_ref()),
        ];
        for (key, url) in bound {
            if let Some(Err(error)) = url.map(Url::bind_addr) {
                return Err(format!("{key}: {error}"));
            }
        }
        Ok(())
    }

    fn check_orchestrators(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (index, Orchestrator { domain_id, orchestrator_url }) in self.orchestrators.iter().enumerate() {
            if domain_id.0.is_empty() {
                return Err(format!("orchestrators[{index}].domain_id: must not be empty"));
            }
            if !seen.insert(domain_id) {
                return Err(format!(
                    "orchestrators[{index}].domain_id: '{domain_id}' is listed before: give each domain its own name"
                ));
            }
            if orchestrator_url.port() == 0 {
                return Err(format!(
                    "orchestrators[{index}].orchestrator_url: '{orchestrator_url}' has no port that can be dialled"
                ));
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), String> {
        if self.orchestrators.len() > self.max_domains {
            let count = self.orchestrators.len();
            return Err(format!("max_domains: {} are fewer than the {count} orchestrators listed", self.max_domains));
        }
        if self.max_message_size < ByteSize::kib(64) || self.max_message_size > ByteSize::gib(2) {
            return Err(format!("max_message_size: {} is not between 64KiB and 2GiB", self.max_message_size));
        }
        if self.domain_grace < Duration::from_millis(100) {
            return Err("domain_grace: must be 100ms or longer".into());
        }
        if self.call_timeout < Duration::from_millis(100) {
            return Err("call_timeout: must be 100ms or longer".into());
        }
        Ok(())
    }
}

impl edgeless_daemon::config::Config for Config {
    const FILE: &'static str = "controller.toml";
    const ENVIRONMENT: &'static str = "EDGELESS_CON";

    fn template() -> String {
        TEMPLATE.to_string()
    }

    fn check(&self) -> Result<(), String> {
        if self.persistence_filename.is_empty() && self.state_directory.as_os_str().is_empty() {
            return Err("state_directory: must not be empty: workflows are kept there".to_string());
        }
        self.check_addresses()?;
        self.check_orchestrators()?;
        self.check_limits()
    }
}

const TEMPLATE: &str = r#"# Configuration of the EDGELESS controller, edgeless_con_d.
# Every key can be left out, and can be set by an environment variable as well:
# EDGELESS_CON__CONTROLLER_URL=http://127.0.0.1:8001

# Where users, with edgeless_cli, reach the controller. The host must be an IP address of this
# machine; 0.0.0.0 is all of them.
controller_url = "http://127.0.0.1:7001"

# The orchestration domains: the name of each and the URL of its orchestrator. Both must be the same
# as in the configuration of that orchestrator.
orchestrators = [
    { domain_id = "domain-1", orchestrator_url = "http://127.0.0.1:7011" },
]

# Where orchestrators that are not listed above announce themselves. "" means at controller_url.
domain_register_url = ""

# The directory that keeps workflows, and their code, over a restart of the controller. It is made if
# it is missing, and must be on a disk of its own machine. One controller at a time uses it.
state_directory = "edgeless_con_state"

# The file that keeps them. "" means controller.redb in state_directory.
persistence_filename = ""

# Where monitoring finds /healthz, /readyz and /metrics, such as "http://127.0.0.1:7009". "" means
# nowhere.
metrics_url = ""

# The largest message that is accepted. The code of a workflow's functions travels in one message.
max_message_size = "64MiB"

# The code that is kept in memory, each once: that of the workflows that run, and what was used last.
# Workflows whose code does not fit are refused.
code_memory = "256MiB"

# The most workflows at a time; further ones are refused.
max_workflows = 10000

# The most orchestration domains at a time; further ones are refused.
max_domains = 1000

# How long a domain must be out of reach before it is seen whether anything of it is left. If its
# orchestrator and all its nodes are gone, its components are started in other domains; a domain of
# which something answers, or nothing is known, keeps them.
domain_grace = "30s"

# How long an orchestrator may take to start one component. A start that takes longer is undone.
call_timeout = "30s"

# How long requests in hand may take to finish when the controller is stopped.
grace = "5s"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use edgeless_daemon::config::{Config as _, parse};

    fn read(text: &str) -> Result<Config, String> {
        parse::<Config>(text, std::iter::empty())
    }

    #[test]
    fn the_template_holds_the_defaults_and_the_domain_of_the_guide() {
        let domain_1 = Orchestrator {
            domain_id: DomainId("domain-1".into()),
            orchestrator_url: "http://127.0.0.1:7011".parse().unwrap(),
        };
        assert_eq!(read(&Config::template()).unwrap(), Config { orchestrators: vec![domain_1], ..Config::default() });
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        assert_eq!(read("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_impossible_is_refused_with_its_key() {
        let twice = r#"orchestrators = [{ domain_id = "a", orchestrator_url = "http://127.0.0.1:1" },
                                        { domain_id = "a", orchestrator_url = "http://127.0.0.1:2" }]"#;
        for (text, parts) in [
            ("controller_ulr = \"http://127.0.0.1:1\"", ["line 1", "controller_ulr"]),
            ("controller_url = \"127.0.0.1\"", ["line 1", "http://<host>:<port>"]),
            ("controller_url = \"https://127.0.0.1:1\"", ["https", "not available"]),
            ("controller_url = \"http://localhost:1\"", ["controller_url", "IP address"]),
            ("state_directory = \"\"", ["state_directory", "must not be empty"]),
            (twice, ["orchestrators[1].domain_id", "'a' is listed before"]),
            ("orchestrators = [{ domain_id = \"\", orchestrator_url = \"http://a:1\" }]", ["[0].domain_id", "empty"]),
            ("orchestrators = [{ domain_id = \"a\", orchestrator_url = \"http://a:0\" }]", ["[0].orch", "dialled"]),
            ("orchestrators = [{ domain_id = \"a\" }]", ["line 1", "orchestrator_url"]),
            ("max_message_size = \"1KiB\"", ["max_message_size", "64KiB"]),
            ("domain_grace = \"0s\"", ["domain_grace", "100ms"]),
            ("call_timeout = \"1ms\"", ["call_timeout", "100ms"]),
            ("call_timeout = 3", ["line 1", "call_timeout"]),
        ] {
            let error = read(text).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }
}
