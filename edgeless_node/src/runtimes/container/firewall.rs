//! Keeps the containers of a network to the guest API of their node.
//!
//! ```text
//!   INPUT -i BRIDGE --> EDGELESS-xxxxxxxx: established, related   accept
//!                                          tcp to the guest API   accept
//!                                          everything else        drop
//! ```
//! The engine cuts a network off from the world (`internal`) and its containers from each other (no
//! `enable_icc`), but not from the host, all of whose ports they reach at any of its addresses. That is what this
//! chain is for. It is made in one transaction, so that there is no moment without it, and it is the same however
//! often it is made; it outlives a node that is killed and is taken over by the next of the same id.
//!
//! IPv6 does not exist in these containers; should one come to it after all, a chain of the same name drops it.

use std::fmt::Write as _;
use std::process::Stdio;

use edgeless_api::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The rules are not as they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network=platform needs the program {program}: {reason}")]
pub(super) struct Error {
    program: &'static str,
    reason: String,
}

/// The rules of one node.
#[derive(Clone, Debug)]
pub(super) struct Firewall {
    chain: String,
}

impl Firewall {
    /// Touches nothing yet.
    pub(super) fn new(node: NodeId) -> Self {
        let digits: String = node.to_string().chars().filter(char::is_ascii_hexdigit).take(8).collect();
        Self { chain: format!("EDGELESS-{digits}") }
    }

    /// Lets what comes from this bridge reach one TCP port of the host and nothing else of it.
    ///
    /// A node has one such bridge: what was allowed to another before is no longer.
    pub(super) async fn allow(&self, bridge: &str, port: u16) -> Result<(), Error> {
        if !is_device(bridge) {
            return Err(IPV4.error(format!("it does not take {bridge:?} for a network device")));
        }
        let listing = IPV4.list().await?;
        IPV4.restore(&rules(&listing, &self.chain, &[("INPUT", bridge)], Some(port))).await?;
        // Best effort: where there is no ip6tables there is hardly IPv6.
        if let Ok(listing) = IPV6.list().await {
            let jumps = [("INPUT", bridge), ("FORWARD", bridge)];
            if let Err(error) = IPV6.restore(&rules(&listing, &self.chain, &jumps, None)).await {
                tracing::debug!(%error, "no rules for IPv6");
            }
        }
        Ok(())
    }

    /// Removes all that [`Firewall::allow`] has made, in this run of the node or an earlier one.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        let listing = IPV4.list().await?;
        if let Some(script) = removal(&listing, &self.chain) {
            IPV4.restore(&script).await?;
        }
        if let Ok(listing) = IPV6.list().await
            && let Some(script) = removal(&listing, &self.chain)
        {
            IPV6.restore(&script).await?;
        }
        Ok(())
    }
}

/// The programs of one family of addresses.
struct Family {
    iptables: &'static str,
    restore: &'static str,
}

const IPV4: Family = Family { iptables: "iptables", restore: "iptables-restore" };
const IPV6: Family = Family { iptables: "ip6tables", restore: "ip6tables-restore" };

/// How long they wait for others who change rules, the engine above all.
const WAIT_SECONDS: &str = "30";

impl Family {
    fn error(&self, reason: impl Into<String>) -> Error {
        Error { program: self.iptables, reason: reason.into() }
    }

    async fn list(&self) -> Result<String, Error> {
        self.run(Command::new(self.iptables).args(["-w", WAIT_SECONDS, "-S"]), "").await
    }

    async fn restore(&self, script: &str) -> Result<(), Error> {
        self.run(Command::new(self.restore).args(["-w", WAIT_SECONDS, "--noflush"]), script).await.map(drop)
    }

    async fn run(&self, command: &mut Command, input: &str) -> Result<String, Error> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => self.error("it is not installed, or not in PATH"),
            _ => self.error(format!("it does not start: {error}")),
        })?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends before it has read has more to say on its standard error.
            stdin.write_all(input.as_bytes()).await.ok();
        }
        let output = child.wait_with_output().await.map_err(|error| self.error(error.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(self.error(format!("it says {:?}", complaint(&String::from_utf8_lossy(&output.stderr)))))
    }
}

/// The first line that says what is wrong. Comments tell of rules in the other of the two kernel interfaces.
fn complaint(stderr: &str) -> &str {
    let mut lines = stderr.lines().map(str::trim);
    lines.find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or("nothing, but fails")
}

/// Whether a name is one that a network device can have, and means that device alone: `+` stands for any ending.
fn is_device(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=15).contains(&name.len()) && name.bytes().all(is_plain)
}

/// The script that makes the chain, and the jumps to it the first rules of other chains, whatever there is now:
/// `listing` is what `iptables -S` says.
fn rules(listing: &str, chain: &str, jumps: &[(&str, &str)], port: Option<u16>) -> String {
    // In a script that does not flush everything, to name a chain makes or empties it.
    let mut script = format!("*filter\n:{chain} - [0:0]\n");
    delete_jumps(&mut script, listing, chain);
    for (from, bridge) in jumps {
        line(&mut script, format_args!("-I {from} 1 -i {bridge} -j {chain}"));
    }
    if let Some(port) = port {
        line(&mut script, format_args!("-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"));
        line(&mut script, format_args!("-A {chain} -p tcp -m tcp --dport {port} -j ACCEPT"));
    }
    line(&mut script, format_args!("-A {chain} -j DROP"));
    line(&mut script, format_args!("COMMIT"));
    script
}

/// The script that removes the chain and all jumps to it. `None`: there is no trace of it.
fn removal(listing: &str, chain: &str) -> Option<String> {
    let declared = format!("-N {chain}");
    listing.lines().find(|line| *line == declared)?;
    let mut script = format!("*filter\n:{chain} - [0:0]\n");
    delete_jumps(&mut script, listing, chain);
    line(&mut script, format_args!("-X {chain}"));
    line(&mut script, format_args!("COMMIT"));
    Some(script)
}

fn delete_jumps(script: &mut String, listing: &str, chain: &str) {
    let jump = format!(" -j {chain}");
    for rule in listing.lines().filter(|line| line.ends_with(&jump)) {
        if let Some(rule) = rule.strip_prefix("-A ") {
            line(script, format_args!("-D {rule}"));
        }
    }
}

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    // To write into a string does not fail.
    writeln!(script, "{text}").ok();
}
