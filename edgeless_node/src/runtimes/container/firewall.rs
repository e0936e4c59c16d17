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

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::process::Command as StdCommand;

    use super::super::live::{Container, Engine, wait_for};
    use super::*;

    const LISTING: &str = "\
-P INPUT ACCEPT
-P FORWARD DROP
-N DOCKER
-N EDGELESS-11111111
-N EDGELESS-22222222
-A INPUT -i br-other -j EDGELESS-22222222
-A INPUT -i br-old -j EDGELESS-11111111
-A INPUT -i br-old -j EDGELESS-11111111
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A EDGELESS-11111111 -j DROP
-A EDGELESS-22222222 -j DROP
";

    #[test]
    fn rules_are_the_same_whatever_there_was() {
        let fresh = "\
*filter
:EDGELESS-11111111 - [0:0]
-I INPUT 1 -i br-new -j EDGELESS-11111111
-A EDGELESS-11111111 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A EDGELESS-11111111 -p tcp -m tcp --dport 7035 -j ACCEPT
-A EDGELESS-11111111 -j DROP
COMMIT
";
        let make = |listing: &str| rules(listing, "EDGELESS-11111111", &[("INPUT", "br-new")], Some(7035));
        assert_eq!(make("-P INPUT ACCEPT\n"), fresh);
        let jump = "-I INPUT 1";
        let again = "-D INPUT -i br-old -j EDGELESS-11111111\n-D INPUT -i br-old -j EDGELESS-11111111\n-I INPUT 1";
        assert_eq!(make(LISTING), fresh.replace(jump, again), "those of another node are left alone");
    }

    #[test]
    fn without_a_port_everything_is_dropped() {
        let script = rules("", "EDGELESS-1", &[("INPUT", "br-a"), ("FORWARD", "br-a")], None);
        let expected = "\
*filter
:EDGELESS-1 - [0:0]
-I INPUT 1 -i br-a -j EDGELESS-1
-I FORWARD 1 -i br-a -j EDGELESS-1
-A EDGELESS-1 -j DROP
COMMIT
";
        assert_eq!(script, expected);
    }

    #[test]
    fn what_was_made_is_removed_and_nothing_else() {
        let expected = "\
*filter
:EDGELESS-22222222 - [0:0]
-D INPUT -i br-other -j EDGELESS-22222222
-X EDGELESS-22222222
COMMIT
";
        assert_eq!(removal(LISTING, "EDGELESS-22222222").as_deref(), Some(expected));
        assert_eq!(removal(LISTING, "EDGELESS-2222222"), None);
        assert_eq!(removal("-P INPUT ACCEPT\n", "EDGELESS-22222222"), None);
    }

    #[test]
    fn only_the_name_of_one_device_is_taken() {
        for name in ["br-0123456789ab", "docker0", "a", "eth0.1"] {
            assert!(is_device(name), "{name:?}");
        }
        for name in ["", "br+", "br 0", "br\n-F", "sixteen-letters-", "é"] {
            assert!(!is_device(name), "{name:?}");
        }
    }

    #[test]
    fn a_complaint_is_the_line_that_says_something() {
        let table = [
            (
                "# Warning: iptables-legacy tables present\n\niptables: Permission denied\n",
                "iptables: Permission denied",
            ),
            ("", "nothing, but fails"),
        ];
        for (stderr, expected) in table {
            assert_eq!(complaint(stderr), expected);
        }
    }

    #[tokio::test]
    async fn a_program_that_is_missing_or_refuses_is_named() {
        let missing = Family { iptables: "iptables", restore: "/nowhere/iptables-restore" };
        let error = missing.restore("").await.unwrap_err();
        let text = "network=platform needs the program iptables: it is not installed, or not in PATH";
        assert_eq!(error.to_string(), text);
        let refusing = Family { iptables: "iptables", restore: "false" };
        let error = refusing.restore("").await.unwrap_err();
        let text = "network=platform needs the program iptables: it says \"nothing, but fails\"";
        assert_eq!(error.to_string(), text);
        let error = Firewall::new(NodeId::random()).allow("br+", 1).await.unwrap_err();
        let text = "network=platform needs the program iptables: it does not take \"br+\" for a network device";
        assert_eq!(error.to_string(), text);
    }

    /// Greets whoever connects, on all addresses of the host, for as long as the test process lives.
    fn greeter() -> u16 {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                std::io::Write::write_all(&mut connection.unwrap(), b"hello").ok();
            }
        });
        port
    }

    fn reaches(container: &Container<'_>, host: &str, port: u16) -> bool {
        container.busybox(&["nc", "-w", "2", host, &port.to_string()]).contains("hello")
    }

    fn traces(chain: &str) -> Vec<String> {
        let mut found = Vec::new();
        for program in ["iptables", "ip6tables"] {
            let output = StdCommand::new(program).args(["-w", "30", "-S"]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            found.extend(text.lines().filter(|line| line.contains(chain)).map(|line| format!("{program} {line}")));
        }
        found
    }

    /// Removes the rules of a test that fails, too.
    struct Cleaned(Firewall);

    impl Drop for Cleaned {
        fn drop(&mut self) {
            let Self(firewall) = self;
            let remove = async { firewall.remove().await.unwrap() };
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(remove));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_container_reaches_the_guest_api_and_nothing_else() {
        let Some(engine) = Engine::find() else { return };
        let network = engine.network(&["--internal", "-o", "com.docker.network.bridge.enable_icc=false"]);
        let (bridge, gateway) = (network.bridge(), network.gateway());
        let elsewhere = engine.network(&[]);
        // With all the capabilities that an engine gives by itself, which are more than ours have.
        let joined = ["--network", &network.id];
        let (container, other) =
            (engine.run(&joined, &["sleep", "1000"]), engine.run(&joined, &["httpd", "-f", "-p", "8080"]));
        let (guest_api, secret) = (greeter(), greeter());
        let pings = |host: &str| container.busybox(&["ping", "-c", "1", "-W", "2", host]).contains(" 0% packet loss");
        assert!(reaches(&container, &gateway, guest_api) && reaches(&container, &gateway, secret), "without rules");
        assert!(pings(&gateway), "without rules");

        let firewall = Cleaned(Firewall::new(NodeId::random()));
        firewall.0.allow(&bridge, guest_api).await.unwrap();
        assert!(reaches(&container, &gateway, guest_api));
        assert!(!reaches(&container, &gateway, secret), "another port");
        assert!(!reaches(&container, &elsewhere.gateway(), secret), "another address of the host");
        assert!(!pings(&gateway));
        let other = other.address();
        wait_for("the host reaches a container", || TcpStream::connect((other.as_str(), 8080)).ok());
        let neighbour = container.busybox(&["wget", "-T", "2", "-O", "-", &format!("http://{other}:8080/busybox")]);
        assert_eq!(neighbour, "", "another container");
        assert!(!pings(&other), "another container");

        let rules = traces(&firewall.0.chain);
        firewall.0.allow(&bridge, guest_api).await.unwrap();
        assert_eq!(traces(&firewall.0.chain), rules, "once more");
        firewall.0.allow(&bridge, secret).await.unwrap();
        assert_eq!(traces(&firewall.0.chain).len(), rules.len(), "{rules:?}");
        assert!(reaches(&container, &gateway, secret) && !reaches(&container, &gateway, guest_api), "another port");

        firewall.0.remove().await.unwrap();
        assert_eq!(traces(&firewall.0.chain), Vec::<String>::new());
        firewall.0.remove().await.unwrap();
        assert!(reaches(&container, &gateway, guest_api), "the rules are what kept it away");
    }

    /// The link-local address of a device in a `/proc/net/if_inet6`, whose lines are `ADDRESS … DEVICE`.
    fn link_local(text: &str, device: &str) -> Option<Ipv6Addr> {
        let line = text.lines().find(|line| line.starts_with("fe80") && line.ends_with(&format!(" {device}")))?;
        u128::from_str_radix(line.get(..32)?, 16).ok().map(Ipv6Addr::from)
    }

    /// Containers have no IPv6 unless somebody gives it to them, and then the engine does not filter it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_container_that_has_ipv6_reaches_nothing_by_it() {
        if !std::path::Path::new("/proc/net/if_inet6").exists() {
            return; // Nor has the host.
        }
        let Some(engine) = Engine::find() else { return };
        let network = engine.network(&["--internal", "-o", "com.docker.network.bridge.enable_icc=false"]);
        let options = ["--network", &network.id, "--sysctl", "net.ipv6.conf.all.disable_ipv6=0"];
        let (container, other) = (engine.run(&options, &["sleep", "1000"]), engine.run(&options, &["sleep", "1000"]));
        let pings = |host: &Ipv6Addr| {
            let host = format!("{host}%eth0");
            container.busybox(&["ping", "-6", "-c", "1", "-W", "2", &host]).contains(" 0% packet loss")
        };
        let host = wait_for("the host has an address", || {
            link_local(&std::fs::read_to_string("/proc/net/if_inet6").ok()?, &network.bridge())
        });
        let other = wait_for("the other container has an address", || {
            link_local(&other.busybox(&["cat", "/proc/net/if_inet6"]), "eth0")
        });
        wait_for("both answer without rules", || (pings(&host) && pings(&other)).then_some(()));

        let firewall = Cleaned(Firewall::new(NodeId::random()));
        firewall.0.allow(&network.bridge(), 1).await.unwrap();
        assert!(!pings(&host) && !pings(&other));
    }
}
