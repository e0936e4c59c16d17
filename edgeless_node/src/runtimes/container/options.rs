//! What a workflow asks of a container, beside its limits: parsed from annotations, within what the node
//! allows.
//!
//! Pure, and refused here as far as it can be, before anything is created.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use edgeless_api::component::{Annotations, CONTAINER, ENVIRONMENT, FunctionClass, SERVICE, VOLUME, is_of_container};
use edgeless_api::{Error, Url};

use super::limits::Bytes;
use crate::config::ContainerRuntime;

/// What a component is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// An image, by its name.
    Image(String),
    /// An image in an archive that came with the request.
    Archive,
    /// A server that runs already.
    Attached(Url),
}

const IMAGE: &str = "container:";
const ARCHIVE: &str = "archive:";
const ATTACHED: &str = "grpc:";

impl Code {
    /// What the code of a class stands for.
    ///
    /// # Errors
    /// It is none of the forms.
    pub fn of(class: &FunctionClass) -> Result<Self, Error> {
        let code = class.code.as_str();
        if let Some(image) = code.strip_prefix(IMAGE) {
            return match image {
                "" => Err(Error::rejected("code: 'container:' is followed by the name of an image")),
                // Digests and tags are left as they are; without either it is the latest.
                image
                    if image.contains(['@', ' '])
                        || image.rsplit('/').next().is_some_and(|name| name.contains(':')) =>
                {
                    Ok(Self::Image(image.to_string()))
                }
                image => Ok(Self::Image(format!("{image}:latest"))),
            };
        }
        if let Some(url) = code.strip_prefix(ATTACHED) {
            return url.parse().map(Self::Attached).map_err(|error| Error::rejected(format!("code: {error}")));
        }
        if code.starts_with(ARCHIVE) {
            return match class.binary.is_empty() {
                true => Err(Error::rejected(format!("code: the archive of '{code}' did not come along"))),
                false => Ok(Self::Archive),
            };
        }
        Err(Error::rejected(format!(
            "code: '{code}' names no container: write container:<image>[:<tag>], archive:<file> or grpc:http://<host>:<port>"
        )))
    }
}

/// What a container can reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Nothing.
    None,
    /// Its node's guest API, and nothing else.
    Platform,
    /// The containers of its workflow on this node, by name, and whatever the node reaches.
    #[default]
    Full,
}

impl Reach {
    const NAMES: [(Self, &str); 3] = [(Self::None, "none"), (Self::Platform, "platform"), (Self::Full, "full")];
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.iter().find(|(reach, _)| reach == self).map_or("full", |(_, name)| name))
    }
}

impl FromStr for Reach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(reach, _)| *reach).ok_or_else(|| format!("'{text}' is none of none, platform and full"))
    }
}

/// A port of a container that others reach at a port of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// At the node; `None`: any.
    pub host: Option<u16>,
    /// In the container.
    pub container: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a port, such as 8080:80 or 53/udp");
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if !matches!(protocol, "tcp" | "udp") {
            return Err(wrong());
        }
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (host, container) = match ports.split_once(':') {
            Some((host, container)) => (Some(port(host)?), port(container)?),
            None => (None, port(ports)?),
        };
        Ok(Self { host, container, protocol: protocol.to_string() })
    }
}

/// A directory that outlives the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name in the workflow.
    pub name: String,
    /// Where the container sees it.
    pub path: String,
    /// Whether the container may only read it.
    pub is_read_only: bool,
}

/// How to find out whether a service works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The image's own check, or none if it has none.
    Image,
    /// It accepts connections.
    Tcp(u16),
    /// It answers a GET with 2xx or 3xx.
    Http(u16, String),
    /// A command in the container ends with 0.
    Command(Vec<String>),
}

/// What only a shell understands.
const OF_SHELLS: &[char] = &[
    '|', '&', ';', '<', '>', '(', ')', '$', '`', '\\', '"', '\'', '*', '?', '[', ']', '#', '~', '=', '%', '!', '{',
    '}', '\n',
];

/// The words of a command: of a JSON array, or of plain text. A shell is asked only for what needs one, for
/// many images have none.
fn words(command: &str) -> Result<Vec<String>, String> {
    let command = command.trim();
    let words = match command {
        array if array.starts_with('[') => serde_json::from_str(array)
            .map_err(|_| format!("'{array}' is not a JSON array of texts, such as [\"/app\", \"check\"]"))?,
        text if text.contains(OF_SHELLS) => ["/bin/sh", "-c", text].map(ToString::to_string).to_vec(),
        text => text.split_whitespace().map(ToString::to_string).collect::<Vec<_>>(),
    };
    match words.is_empty() {
        true => Err("there is no command after 'cmd:'".to_string()),
        false => Ok(words),
    }
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a check, such as tcp:5432, http:80/healthz, cmd:pg_isready or image");
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        match text.split_once(':') {
            None if text == "image" => Ok(Self::Image),
            Some(("tcp", number)) => Ok(Self::Tcp(port(number)?)),
            Some(("http", rest)) => {
                let (number, path) = rest.split_once('/').unwrap_or((rest, ""));
                Ok(Self::Http(port(number)?, format!("/{path}")))
            }
            Some(("cmd", command)) => words(command).map(Self::Command),
            _ => Err(wrong()),
        }
    }
}

/// Where the node's HTTP ingress leads to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// The host of the requests; `None`: any.
    pub host: Option<String>,
    /// What their path begins with; `None`: anything.
    pub path: Option<String>,
    /// The port of the service.
    pub port: u16,
}

/// What a workflow asks of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What it can reach.
    pub reach: Reach,
    /// Whether its root is read-only; `/tmp` never is.
    pub is_read_only: bool,
    /// The size of its `/tmp`, which counts as memory.
    pub tmp: Bytes,
    /// Who it runs as; `None`: whoever the image says, unless that is root.
    pub user: Option<String>,
    /// Devices of the node.
    pub devices: Vec<String>,
    /// Capabilities that it keeps.
    pub capabilities: Vec<String>,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// What it runs instead of the image's command.
    pub command: Option<Vec<String>>,
    /// The port of a function's server, if the image has several.
    pub port: Option<u16>,
    /// Of a service.
    pub service: Service,
}

/// What a workflow asks of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Directories that outlive it.
    pub volumes: Vec<Volume>,
    /// Ports that others reach at the node.
    pub published: Vec<Published>,
    /// Whether it works.
    pub check: Check,
    /// How often that is looked at; `None`: as the image says, or as usual.
    pub interval: Option<Duration>,
    /// How long one look may take; likewise.
    pub timeout: Option<Duration>,
    /// Its place behind the node's ingress.
    pub ingress: Option<Ingress>,
}

/// Whether a component takes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It does.
    Function,
    /// It does not.
    Service,
}

fn rejected(key: &str) -> impl Fn(String) -> Error {
    move |why| Error::rejected(format!("{key}: {why}"))
}

fn parsed<T: FromStr<Err = String>>(annotations: &Annotations, key: &str, default: T) -> Result<T, Error> {
    annotations.get(key).map_or(Ok(default), |text| text.trim().parse().map_err(rejected(key)))
}

fn list<'a>(annotations: &'a Annotations, key: &str) -> impl Iterator<Item = &'a str> {
    annotations.get(key).into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

fn truth(annotations: &Annotations, key: &str, default: bool) -> Result<bool, Error> {
    match annotations.get(key).map(String::as_str) {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(rejected(key)(format!("'{other}' is neither true nor false"))),
    }
}

fn duration(annotations: &Annotations, key: &str) -> Result<Option<Duration>, Error> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    let time = humantime_serde::re::humantime::parse_duration(text)
        .map_err(|_| rejected(key)(format!("'{text}' is not a time, such as 2s")))?;
    match (Duration::from_millis(10)..=Duration::from_secs(24 * 3600)).contains(&time) {
        true => Ok(Some(time)),
        false => Err(rejected(key)(format!("'{text}' is not between 10ms and a day"))),
    }
}

fn number(annotations: &Annotations, key: &str) -> Result<Option<u16>, Error> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    match text.trim().parse() {
        Ok(port @ 1..) => Ok(Some(port)),
        _ => Err(rejected(key)(format!("'{text}' is not a port"))),
    }
}

/// Names of capabilities are written in any case of letters, and with or without their prefix.
fn upper(names: Vec<String>) -> Vec<String> {
    let plain = |name: String| name.to_ascii_uppercase().trim_start_matches("CAP_").to_string();
    names.into_iter().map(plain).collect()
}

/// Whether this is root, by name or number.
pub fn is_root(user: &str) -> bool {
    let name = user.split(':').next().unwrap_or_default();
    name.is_empty() || name == "root" || name.parse::<u32>() == Ok(0)
}

impl Options {
    /// What annotations ask for.
    ///
    /// # Errors
    /// A value that is none, or something that this node does not allow; names the annotation.
    pub fn of(annotations: &Annotations, kind: Kind, node: &ContainerRuntime) -> Result<Self, Error> {
        if kind == Kind::Function {
            let is_of_service = |key: &&String| is_of_container(SERVICE, key) && !is_of_container(CONTAINER, key);
            if let Some(key) = annotations.keys().find(is_of_service) {
                return Err(rejected(key)("only a SERVICE has this: leave it out".into()));
            }
        }
        let user = annotations.get("user").map(|user| user.trim().to_string());
        if user.as_deref().is_some_and(is_root) && !node.allow_root {
            return Err(rejected("user")(
                "this node runs no container as root (container_runtime.allow_root): use another user".into(),
            ));
        }
        let allowed =
            |key: &str, asked: Vec<String>, allowed: &[String]| match asked.iter().find(|item| !allowed.contains(item))
            {
                Some(item) => Err(rejected(key)(format!(
                    "'{item}' is not allowed on this node (container_runtime.{key}): leave it out"
                ))),
                None => Ok(asked),
            };
        let owned = |key: &str| list(annotations, key).map(ToString::to_string).collect::<Vec<_>>();
        let mut environment = BTreeMap::new();
        for (key, value) in annotations {
            let Some(name) = key.strip_prefix(ENVIRONMENT) else { continue };
            if name.is_empty() || name.contains('=') {
                return Err(rejected(key)("this is not the name of a variable".into()));
            }
            environment.insert(name.to_string(), value.clone());
        }
        let command =
            match annotations.get("command") {
                None => None,
                Some(text) => Some(serde_json::from_str::<Vec<String>>(text).map_err(|_| {
                    rejected("command")("write a JSON array of texts, such as [\"serve\", \"-v\"]".into())
                })?),
            };
        Ok(Self {
            reach: parsed(annotations, "network", node.network)?,
            is_read_only: truth(annotations, "read_only", true)?,
            tmp: parsed(annotations, "tmp", Bytes(64 << 20))?,
            user,
            devices: allowed("devices", owned("devices"), &node.devices)?,
            capabilities: allowed("capabilities", upper(owned("capabilities")), &upper(node.capabilities.clone()))?,
            environment,
            command,
            port: number(annotations, "port")?,
            service: Service::of(annotations, node)?,
        })
    }
}

impl Service {
    fn of(annotations: &Annotations, node: &ContainerRuntime) -> Result<Self, Error> {
        let mut volumes = Vec::new();
        for (key, value) in annotations {
            let Some(name) = key.strip_prefix(VOLUME) else { continue };
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
                return Err(rejected(key)("the name of a volume has letters, digits, '_', '.' and '-'".into()));
            }
            let (path, is_read_only) = value.strip_suffix(":ro").map_or((value.as_str(), false), |path| (path, true));
            if !path.starts_with('/')
                || path == "/"
                || path.contains([':', ','])
                || path.split('/').any(|part| part == "..")
            {
                return Err(rejected(key)(format!("'{path}' is not a place in the container, such as /data")));
            }
            volumes.push(Volume { name: name.to_string(), path: path.to_string(), is_read_only });
        }
        let mut published = Vec::new();
        for text in list(annotations, "publish") {
            let port: Published = text.parse().map_err(rejected("publish"))?;
            if node.publish_ports.is_none() {
                let why = "this node lets services publish no ports (container_runtime.publish_ports): leave it out";
                return Err(rejected("publish")(why.into()));
            }
            if let Some(host) = port.host
                && !node.publish_ports.contains(host)
            {
                return Err(rejected("publish")(format!(
                    "{host} is not among the ports that this node lets services publish: {} (container_runtime.publish_ports)",
                    node.publish_ports
                )));
            }
            published.push(port);
        }
        let host = annotations.get("http_host").map(|host| host.trim().to_string());
        let path = annotations.get("http_path").map(|path| path.trim().to_string());
        if let Some(path) = path.as_ref().filter(|path| !path.starts_with('/')) {
            return Err(rejected("http_path")(format!("'{path}' does not begin with '/'")));
        }
        let ingress = match (host, path, number(annotations, "http_port")?) {
            (None, None, None) => None,
            (None, None, Some(_)) => {
                return Err(rejected("http_port")("say which requests are meant with http_host or http_path".into()));
            }
            (host, path, port) => Some(Ingress { host, path, port: port.unwrap_or(80) }),
        };
        Ok(Self {
            volumes,
            published,
            check: parsed(annotations, "health", Check::Image)?,
            interval: duration(annotations, "health_interval")?,
            timeout: duration(annotations, "health_timeout")?,
            ingress,
        })
    }
}

/// Ports from a first to a last, such as `8000-8999`; empty: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(Option<(u16, u16)>);

impl Ports {
    /// All ports that need no privilege.
    pub const UNPRIVILEGED: Self = Self(Some((1024, u16::MAX)));

    /// Whether there are none.
    pub fn is_none(self) -> bool {
        self.0.is_none()
    }

    /// Whether a port is among them.
    pub fn contains(self, port: u16) -> bool {
        self.0.is_some_and(|(first, last)| (first..=last).contains(&port))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((first, last)) => write!(f, "{first}-{last}"),
            None => f.write_str("none"),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Ports {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || text == "none" {
            return Ok(Self(None));
        }
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self(Some((first, last)))),
            _ => Err(serde::de::Error::custom(format!("'{text}' is not a range of ports, such as 8000-8999"))),
        }
    }
}

/// A range of IPv4 addresses, such as `10.231.0.0/16`, that networks are carved from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    base: u32,
    bits: u32,
}

impl Subnet {
    /// Where networks are carved from unless the node says otherwise.
    pub const DEFAULT: Self = Self { base: 0x0ae7_0000, bits: 16 };

    /// Whether an address is one of it.
    pub fn contains(self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => u32::from(address) >> (32 - self.bits) == self.base >> (32 - self.bits),
            IpAddr::V6(_) => false,
        }
    }

    /// How many networks with this prefix length it has.
    pub fn count(self, bits: u32) -> u32 {
        bits.checked_sub(self.bits).and_then(|free| 1_u32.checked_shl(free)).unwrap_or(0)
    }

    /// One of them: the network and its gateway.
    pub fn carve(self, bits: u32, index: u32) -> (String, IpAddr) {
        let base = self.base | (index % self.count(bits).max(1)) << (32 - bits);
        let text = |address: u32| std::net::Ipv4Addr::from(address);
        (format!("{}/{bits}", text(base)), IpAddr::V4(text(base | 1)))
    }
}

impl<'de> serde::Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parts = text.split_once('/').and_then(|(base, bits)| {
            Some((u32::from(base.parse::<std::net::Ipv4Addr>().ok()?), bits.parse::<u32>().ok()?))
        });
        match parts {
            Some((base, bits @ 8..=22)) if base & (u32::MAX >> bits) == 0 => Ok(Self { base, bits }),
            _ => Err(serde::de::Error::custom(format!(
                "'{text}' is not a range of IPv4 addresses of at least 1024, such as 10.231.0.0/16"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
    }

    fn options(pairs: &[(&str, &str)], kind: Kind) -> Result<Options, String> {
        let node = ContainerRuntime {
            devices: vec!["/dev/tpm0".into()],
            capabilities: vec!["NET_BIND_SERVICE".into()],
            ..ContainerRuntime::default()
        };
        Options::of(&annotations(pairs), kind, &node).map_err(|error| error.message)
    }

    #[test]
    fn the_forms_of_code() {
        let class = |code: &str| FunctionClass { code: code.into(), ..FunctionClass::default() };
        let image = |name: &str| Ok(Code::Image(name.to_string()));
        assert_eq!(Code::of(&class("container:hello")), image("hello:latest"));
        assert_eq!(Code::of(&class("container:hello:1")), image("hello:1"));
        assert_eq!(Code::of(&class("container:host:5000/hello")), image("host:5000/hello:latest"));
        assert_eq!(Code::of(&class("container:a/b@sha256:00")), image("a/b@sha256:00"));
        assert_eq!(
            Code::of(&class("grpc:http://127.0.0.1:7101")),
            Ok(Code::Attached("http://127.0.0.1:7101".parse().unwrap()))
        );
        let archive = FunctionClass { binary: vec![1].into(), ..class("archive:a.tar") };
        assert_eq!(Code::of(&archive), Ok(Code::Archive));
        for (code, why) in [
            ("container:", "code: 'container:' is followed by the name of an image"),
            ("grpc:hello", "code: 'hello' is not a URL of the form http://<host>:<port>"),
            ("archive:a.tar", "code: the archive of 'archive:a.tar' did not come along"),
            (
                "a.wasm",
                "code: 'a.wasm' names no container: write container:<image>[:<tag>], archive:<file> or grpc:http://<host>:<port>",
            ),
        ] {
            assert_eq!(Code::of(&class(code)).unwrap_err().message, why);
        }
    }

    #[test]
    fn what_is_not_asked_for_is_the_safer_choice() {
        let options = options(&[], Kind::Function).unwrap();
        assert!(options.is_read_only && options.devices.is_empty() && options.capabilities.is_empty());
        assert_eq!((options.user, options.reach, options.service.ingress), (None, Reach::Full, None));
    }

    #[test]
    fn what_a_node_does_not_allow_is_refused_by_name() {
        for (key, value, why) in [
            (
                "user",
                "0:0",
                "user: this node runs no container as root (container_runtime.allow_root): use another user",
            ),
            (
                "user",
                "root",
                "user: this node runs no container as root (container_runtime.allow_root): use another user",
            ),
            (
                "devices",
                "/dev/tpm0,/dev/mem",
                "devices: '/dev/mem' is not allowed on this node (container_runtime.devices): leave it out",
            ),
            (
                "capabilities",
                "sys_admin",
                "capabilities: 'SYS_ADMIN' is not allowed on this node (container_runtime.capabilities): leave it out",
            ),
            ("network", "host", "network: 'host' is none of none, platform and full"),
            ("read_only", "no", "read_only: 'no' is neither true nor false"),
            ("command", "ls", "command: write a JSON array of texts, such as [\"serve\", \"-v\"]"),
            (
                "publish",
                "80:80",
                "publish: 80 is not among the ports that this node lets services publish: 1024-65535 (container_runtime.publish_ports)",
            ),
            ("publish", "http", "publish: 'http' is not a port, such as 8080:80 or 53/udp"),
            ("volume:a/b", "/data", "volume:a/b: the name of a volume has letters, digits, '_', '.' and '-'"),
            ("volume:a", "/../etc", "volume:a: '/../etc' is not a place in the container, such as /data"),
            (
                "health",
                "ping",
                "health: 'ping' is not a check, such as tcp:5432, http:80/healthz, cmd:pg_isready or image",
            ),
            ("health_interval", "often", "health_interval: 'often' is not a time, such as 2s"),
            ("http_port", "80", "http_port: say which requests are meant with http_host or http_path"),
            ("http_path", "shop", "http_path: 'shop' does not begin with '/'"),
            ("env:A=B", "c", "env:A=B: this is not the name of a variable"),
        ] {
            assert_eq!(options(&[(key, value)], Kind::Service).unwrap_err(), why);
        }
        assert!(options(&[("capabilities", "net_bind_service"), ("devices", "/dev/tpm0")], Kind::Service).is_ok());
    }

    #[test]
    fn a_service_is_described_in_full() {
        let options = options(
            &[
                ("env:PGDATA", "/data/pg"),
                ("volume:data", "/data"),
                ("volume:conf", "/etc/app:ro"),
                ("publish", "8080:80, 53/udp"),
                ("health", "http:80/up?deep=1"),
                ("health_interval", "500ms"),
                ("http_host", "shop.local"),
                ("http_path", "/shop"),
            ],
            Kind::Service,
        )
        .unwrap();
        let volume =
            |name: &str, path: &str, is_read_only| Volume { name: name.into(), path: path.into(), is_read_only };
        let port = |host, container, protocol: &str| Published { host, container, protocol: protocol.into() };
        assert_eq!(options.environment["PGDATA"], "/data/pg");
        let expected = Service {
            volumes: vec![volume("conf", "/etc/app", true), volume("data", "/data", false)],
            published: vec![port(Some(8080), 80, "tcp"), port(None, 53, "udp")],
            check: Check::Http(80, "/up?deep=1".into()),
            interval: Some(Duration::from_millis(500)),
            timeout: None,
            ingress: Some(Ingress { host: Some("shop.local".into()), path: Some("/shop".into()), port: 80 }),
        };
        assert_eq!(options.service, expected);
    }

    #[test]
    fn a_check_needs_a_shell_only_for_what_a_shell_understands() {
        let check = |text: &str| text.parse::<Check>();
        let command = |words: &[&str]| Ok(Check::Command(words.iter().map(ToString::to_string).collect()));
        assert_eq!(check("cmd:/app check  -v"), command(&["/app", "check", "-v"]));
        assert_eq!(check("cmd:[\"/app\", \"a b\"]"), command(&["/app", "a b"]));
        assert_eq!(check("cmd:test -f /up && true"), command(&["/bin/sh", "-c", "test -f /up && true"]));
        assert!(check("cmd: ").is_err() && check("cmd:[]").is_err() && check("cmd:[1]").is_err());
    }

    #[test]
    fn a_node_may_let_nothing_be_published() {
        let node = ContainerRuntime { publish_ports: Ports(None), ..ContainerRuntime::default() };
        for port in ["8080", "8080:80"] {
            let refused = Options::of(&annotations(&[("publish", port)]), Kind::Service, &node);
            assert!(refused.unwrap_err().message.starts_with("publish: this node lets services publish no ports"));
        }
    }

    #[test]
    fn a_function_has_nothing_of_a_service() {
        for key in ["publish", "health", "http_host", "volume:data"] {
            let error = options(&[(key, "1")], Kind::Function).unwrap_err();
            assert_eq!(error, format!("{key}: only a SERVICE has this: leave it out"));
        }
    }

    #[test]
    fn networks_are_carved_from_one_range() {
        let subnet = Subnet::DEFAULT;
        assert_eq!(subnet.count(26), 1024);
        assert_eq!(subnet.carve(26, 0), ("10.231.0.0/26".into(), "10.231.0.1".parse().unwrap()));
        assert_eq!(subnet.carve(26, 1023), ("10.231.255.192/26".into(), "10.231.255.193".parse().unwrap()));
        assert_eq!(subnet.carve(26, 1024), subnet.carve(26, 0));
        for (address, is_of_it) in
            [("10.231.9.9", true), ("::ffff:10.231.9.9", true), ("10.232.0.1", false), ("::1", false)]
        {
            assert_eq!(subnet.contains(address.parse().unwrap()), is_of_it, "{address}");
        }
    }
}
