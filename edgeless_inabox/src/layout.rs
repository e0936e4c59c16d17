//! Which addresses the daemons get, and their configuration files.
//!
//! The files are the templates of the daemons with other addresses, so that there is one text for
//! each. The addresses in a template are told apart by their ports.

use std::net::IpAddr;
use std::path::Path;

use edgeless_api::Url;
use edgeless_daemon::config::{self, Config as _, ConfigError};

/// The ports of the templates, and what each is for.
mod port {
    pub(super) const CONTROLLER: u16 = 7001;
    pub(super) const ORCHESTRATOR: u16 = 7011;
    pub(super) const ORCHESTRATOR_AGENT: u16 = 7121;
    pub(super) const ORCHESTRATOR_INVOCATION: u16 = 7102;
    pub(super) const AGENT: u16 = 7021;
    pub(super) const INVOCATION: u16 = 7002;
    pub(super) const METRICS: u16 = 7003;
    pub(super) const HTTP_INGRESS: u16 = 7035;
}

/// The texts of all configuration files.
#[derive(Clone, Debug)]
pub struct Files {
    /// `controller.toml`
    pub controller: String,
    /// `orchestrator.toml`
    pub orchestrator: String,
    /// `node.toml`, or `node0.toml` and so on.
    pub nodes: Vec<String>,
    /// `cli.toml`
    pub cli: String,
    /// The highest port in use.
    pub last_port: u16,
}

/// The addresses of the guide, and others behind them for every node but the first.
pub fn guide(nodes: u16) -> Files {
    let host = IpAddr::from([127, 0, 0, 1]);
    let mut next = 7200;
    let mut same = |port| port;
    let controller = readdress(&edgeless_con::Config::template(), host, &mut same);
    let orchestrator = readdress(&edgeless_orc::Config::template(), host, &mut same);
    let mut last_port = port::ORCHESTRATOR_AGENT;
    let nodes = (0..nodes.max(1))
        .map(|index| {
            readdress(&edgeless_node::Config::template(), host, &mut |port| match port {
                port::ORCHESTRATOR => port,
                port if index == 0 => port,
                _ => {
                    last_port = take(&mut next);
                    last_port
                }
            })
        })
        .collect();
    Files { controller, orchestrator, nodes, cli: cli(host, port::CONTROLLER), last_port }
}

/// Addresses in sequence, from the one after `initial` on; the domain is named after it.
pub fn sequence(host: IpAddr, initial: u16, nodes: u16) -> Files {
    let mut next = initial.saturating_add(1);
    let controller_port = take(&mut next);
    let orchestrator_port = take(&mut next);
    let orchestrator_agent = take(&mut next);
    let orchestrator_invocation = take(&mut next);
    let mut shared = |port| match port {
        port::CONTROLLER => controller_port,
        port::ORCHESTRATOR => orchestrator_port,
        port::ORCHESTRATOR_AGENT => orchestrator_agent,
        port::ORCHESTRATOR_INVOCATION => orchestrator_invocation,
        // What a template shows in a comment only.
        other => other,
    };
    let domain = |text: String| text.replace("\"domain-1\"", &format!("\"domain-{initial}\""));
    let controller = domain(readdress(&edgeless_con::Config::template(), host, &mut shared));
    let orchestrator = domain(readdress(&edgeless_orc::Config::template(), host, &mut shared));
    let nodes = (0..nodes.max(1))
        .map(|_| {
            readdress(&edgeless_node::Config::template(), host, &mut |port| match port {
                port::ORCHESTRATOR => orchestrator_port,
                port::AGENT | port::INVOCATION | port::METRICS | port::HTTP_INGRESS => take(&mut next),
                other => other,
            })
        })
        .collect();
    let last_port = next.saturating_sub(1);
    Files { controller, orchestrator, nodes, cli: cli(host, controller_port), last_port }
}

fn take(next: &mut u16) -> u16 {
    let port = *next;
    *next = next.saturating_add(1);
    port
}

fn cli(host: IpAddr, port: u16) -> String {
    format!("# Where the controller takes commands.\ncontroller_url = \"{}\"\n", Url::of((host, port).into()))
}

/// Gives every address in a text another host and, by its port, another port.
fn readdress(text: &str, host: IpAddr, port: &mut dyn FnMut(u16) -> u16) -> String {
    const ADDRESS: &str = "http://127.0.0.1:";
    let mut parts = text.split(ADDRESS);
    let mut readdressed = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, rest) = part.split_at(digits);
        let number = number.parse().unwrap_or_default();
        // A line that is a comment shows an example, which takes no port from the sequence.
        let is_comment = readdressed.rsplit('\n').next().unwrap_or_default().trim_start().starts_with('#');
        let number = if is_comment { number } else { port(number) };
        readdressed.push_str(&Url::of((host, number).into()).to_string());
        readdressed.push_str(rest);
    }
    readdressed
}

impl Files {
    /// Each file's name and text.
    pub fn named(&self) -> Vec<(String, &str)> {
        let mut named = vec![
            ("controller.toml".to_string(), self.controller.as_str()),
            ("orchestrator.toml".to_string(), self.orchestrator.as_str()),
        ];
        match self.nodes.as_slice() {
            [only] => named.push(("node.toml".to_string(), only)),
            several => named
                .extend(several.iter().enumerate().map(|(index, text)| (format!("node{index}.toml"), text.as_str()))),
        }
        named.push(("cli.toml".to_string(), &self.cli));
        named
    }

    /// Writes all files that are not there yet; says of each what became of it.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, directory: &Path) -> Result<Vec<(String, bool)>, ConfigError> {
        let mut written = Vec::new();
        for (name, text) in self.named() {
            match config::write_template(&directory.join(&name), text) {
                Ok(()) => written.push((name, true)),
                Err(ConfigError::Exists(_)) => written.push((name, false)),
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgeless_daemon::config::parse;
    use std::collections::BTreeSet;

    /// All addresses that the daemons of these files would bind.
    fn bound(files: &Files) -> Vec<String> {
        let none = std::iter::empty;
        let controller: edgeless_con::Config = parse(&files.controller, none()).unwrap();
        let orchestrator: edgeless_orc::Config = parse(&files.orchestrator, none()).unwrap();
        assert_eq!(controller.orchestrators[0].orchestrator_url, orchestrator.general.orchestrator_url);
        assert_eq!(controller.orchestrators[0].domain_id.0, orchestrator.general.domain_id);
        let mut bound = vec![controller.controller_url.to_string(), orchestrator.general.orchestrator_url.to_string()];
        for text in &files.nodes {
            let node: edgeless_node::Config = parse(text, none()).unwrap();
            assert_eq!(node.register_url(), Some(&orchestrator.general.orchestrator_url));
            bound.push(node.general.agent_url.to_string());
            bound.push(node.general.invocation_url.to_string());
            bound.push(node.general.metrics_url.unwrap().to_string());
            bound.push(node.resources["http_ingress_url"].as_str().unwrap().to_string());
        }
        bound
    }

    #[test]
    fn no_two_daemons_get_the_same_address() {
        for files in
            [guide(1), guide(3), sequence([127, 0, 0, 1].into(), 7000, 3), sequence([10, 0, 0, 7].into(), 9000, 1)]
        {
            let bound = bound(&files);
            assert_eq!(bound.iter().collect::<BTreeSet<_>>().len(), bound.len(), "{bound:?}");
        }
    }

    #[test]
    fn the_guide_is_kept_and_a_sequence_is_one() {
        assert!(bound(&guide(1)).contains(&"http://127.0.0.1:7035".to_string()));
        let files = sequence([10, 0, 0, 7].into(), 9000, 2);
        assert!(files.controller.contains("\"domain-9000\"") && files.orchestrator.contains("\"domain-9000\""));
        assert!(bound(&files).contains(&"http://10.0.0.7:9001".to_string()));
        assert_eq!(files.last_port, 9012);
        let names: Vec<_> = files.named().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["controller.toml", "orchestrator.toml", "node0.toml", "node1.toml", "cli.toml"]);
    }

    #[test]
    fn files_that_exist_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("node.toml"), "mine").unwrap();
        let written = guide(1).write(directory.path()).unwrap();
        assert!(written.contains(&("node.toml".to_string(), false)));
        assert!(written.contains(&("controller.toml".to_string(), true)));
        assert_eq!(std::fs::read_to_string(directory.path().join("node.toml")).unwrap(), "mine");
    }
}
