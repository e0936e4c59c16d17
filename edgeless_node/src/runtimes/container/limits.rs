//! What a container may use: parsed from annotations, within what the node allows.
//!
//! Pure: text in, numbers out, and both ways alike, so that what is shown can be written.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use edgeless_api::Error;
use edgeless_api::amount::parse;
pub use edgeless_api::amount::{Bytes, Cpu};
use edgeless_api::component::Annotations;
use serde::de::{Deserialize, Deserializer, Error as _};

/// What both directions have at once.
const BOTH: &str = "network_bandwidth";

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

impl Rate {
    const UNITS: [(u64, &str); 4] = [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit"), (1, "bit")];
    /// Below this, a single packet takes seconds.
    const LEAST: u64 = 8_000;
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a rate, such as 10mbit");
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
        let (number, unit) = lower.split_at(digits);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.trim();
        let (unit, _) = Self::UNITS.into_iter().find(|(_, name)| *name == unit).ok_or_else(wrong)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "clamped"
        )]
        let rate = (number * unit as f64).clamp(0.0, 1e15).round() as u64;
        if rate < Self::LEAST {
            return Err(format!("'{text}' is too slow: 8kbit is the least"));
        }
        Ok(Self(rate))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::UNITS.into_iter().find(|(unit, _)| self.0.is_multiple_of(*unit));
        let (unit, name) = found.unwrap_or((1, "bit"));
        write!(f, "{}{name}", self.0 / unit)
    }
}

/// A relative weight, as Docker counts it: 1024 is normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shares(pub u64);

impl FromStr for Shares {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(shares @ 2..=262_144) => Ok(Self(shares)),
            _ => Err(format!("'{text}' is not a weight from 2 to 262144; 1024 is normal")),
        }
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of processes and threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pids(pub u64);

impl FromStr for Pids {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(pids @ 1..=4_194_304) => Ok(Self(pids)),
            _ => Err(format!("'{text}' is not a number of processes from 1 to 4194304")),
        }
    }
}

impl fmt::Display for Pids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Processors, such as `0-1,3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuSet(pub String);

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = |text: &str| text.parse::<u32>().is_ok();
        let is_range = |part: &str| part.split_once('-').map_or(is_number(part), |(a, b)| is_number(a) && is_number(b));
        match text.split(',').all(is_range) {
            true => Ok(Self(text.to_string())),
            false => Err(format!("'{text}' is not a list of processors, such as 0-1,3")),
        }
    }
}

impl CpuSet {
    /// Whether all its processors are among those of another.
    fn is_within(&self, other: &Self) -> bool {
        let ranges = |set: &Self| -> Vec<(u32, u32)> {
            let number = |text: &str| text.parse().unwrap_or(u32::MAX);
            let range = |part: &str| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                (number(first), number(last))
            };
            set.0.split(',').map(range).collect()
        };
        let other = ranges(other);
        // Lists are short, and ranges of a maximum that touch are one for nobody who writes it.
        ranges(self).iter().all(|(first, last)| other.iter().any(|(from, to)| from <= first && last <= to))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a container may use; `None`: as much as there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// A hard quota, in cores.
    pub cpu: Option<Cpu>,
    /// A weight beside other containers.
    pub cpu_shares: Option<Shares>,
    /// The processors that it may run on.
    pub cpuset: Option<CpuSet>,
    /// Memory; there is no swap beside it.
    pub memory: Option<Bytes>,
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// What it may write into its root.
    pub disk: Option<Bytes>,
    /// What it may send.
    pub network_bandwidth_up: Option<Rate>,
    /// What it may receive.
    pub network_bandwidth_down: Option<Rate>,
}

/// The names of all limits, as annotations and as arguments.
pub const NAMES: [&str; 9] =
    ["cpu", "cpu_shares", "cpuset", "memory", "pids", "disk", BOTH, "network_bandwidth_up", "network_bandwidth_down"];

/// The least memory that an engine takes: what it needs itself to start a process.
const LEAST_MEMORY: Bytes = Bytes(6 << 20);

fn enough(memory: Bytes) -> Result<Bytes, String> {
    match memory >= LEAST_MEMORY {
        true => Ok(memory),
        false => Err(format!("{memory} are too little for a container: {LEAST_MEMORY} are the least")),
    }
}

impl Limits {
    /// What holds for containers that say nothing, on a node that says nothing.
    pub fn usual() -> Self {
        Self {
            memory: Some(Bytes(256 << 20)),
            pids: Some(Pids(256)),
            cpu_shares: Some(Shares(1024)),
            ..Self::default()
        }
    }

    /// Reads those of a file: what is not there is as usual.
    ///
    /// # Errors
    /// What the file says is no limit.
    pub fn defaults<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::usual().read(deserializer)
    }

    /// Reads those of a file: what is not there is not limited.
    ///
    /// # Errors
    /// What the file says is no limit.
    pub fn maxima<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::default().read(deserializer)
    }

    fn read<'de, D: Deserializer<'de>>(&self, deserializer: D) -> Result<Self, D::Error> {
        let table = BTreeMap::<String, toml::Value>::deserialize(deserializer)?;
        let text = |value: toml::Value| value.as_str().map_or_else(|| value.to_string(), ToString::to_string);
        let said: Annotations = table.into_iter().map(|(key, value)| (key, text(value))).collect();
        Self::known(&said).and_then(|()| self.with(&said)).map_err(D::Error::custom)
    }

    fn known(said: &Annotations) -> Result<(), Error> {
        let Some(name) = said.keys().find(|name| !NAMES.contains(&name.as_str())) else { return Ok(()) };
        Err(Error::rejected(format!("{name}: there is no such limit; there are: {}", NAMES.join(", "))))
    }

    /// These limits with what annotations say of them.
    ///
    /// # Errors
    /// A value that is none; names the annotation.
    pub fn with(&self, annotations: &Annotations) -> Result<Self, Error> {
        let mut limits = self.clone();
        // In this order, so that one direction can be said after both.
        for name in NAMES {
            let Some(text) = annotations.get(name) else { continue };
            limits.set(name, text).map_err(|why| Error::rejected(format!("{name}: {why}")))?;
        }
        Ok(limits)
    }

    fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        match name {
            "cpu" => self.cpu = parse(text)?,
            "cpu_shares" => self.cpu_shares = parse(text)?,
            "cpuset" => self.cpuset = parse(text)?,
            "memory" => self.memory = parse(text)?.map(enough).transpose()?,
            "pids" => self.pids = parse(text)?,
            "disk" => self.disk = parse(text)?,
            BOTH => {
                self.network_bandwidth_up = parse(text)?;
                self.network_bandwidth_down = self.network_bandwidth_up;
            }
            "network_bandwidth_up" => self.network_bandwidth_up = parse(text)?,
            "network_bandwidth_down" => self.network_bandwidth_down = parse(text)?,
            _ => {}
        }
        Ok(())
    }

    /// These limits with changes to a container that runs.
    ///
    /// # Errors
    /// A limit that does not exist, that cannot be changed, or a value that is none.
    pub fn changed(&self, changes: &Annotations) -> Result<Self, Error> {
        Self::known(changes)?;
        let limits = self.with(changes)?;
        if limits.disk != self.disk {
            return Err(Error::rejected(
                "disk: cannot be changed while the container runs: stop the workflow and start it with the new value",
            ));
        }
        Ok(limits)
    }

    /// These limits within what the node allows: what is not limited gets the maximum.
    ///
    /// # Errors
    /// A limit above its maximum.
    pub fn within(self, maxima: &Self) -> Result<Self, Error> {
        Ok(Self {
            cpu: at_most("cpu", self.cpu, maxima.cpu)?,
            cpu_shares: at_most("cpu_shares", self.cpu_shares, maxima.cpu_shares)?,
            cpuset: match (self.cpuset, &maxima.cpuset) {
                (Some(set), Some(maximum)) if !set.is_within(maximum) => {
                    return Err(Error::rejected(format!(
                        "cpuset: {set} is not within {maximum}, which this node allows (container_runtime.maxima.cpuset)"
                    )));
                }
                (set, maximum) => set.or_else(|| maximum.clone()),
            },
            memory: at_most("memory", self.memory, maxima.memory)?,
            pids: at_most("pids", self.pids, maxima.pids)?,
            disk: at_most("disk", self.disk, maxima.disk)?,
            network_bandwidth_up: at_most(
                "network_bandwidth_up",
                self.network_bandwidth_up,
                maxima.network_bandwidth_up,
            )?,
            network_bandwidth_down: at_most(
                "network_bandwidth_down",
                self.network_bandwidth_down,
                maxima.network_bandwidth_down,
            )?,
        })
    }

    /// These limits, lowered to the maxima: what nobody asked for is never too much.
    #[must_use]
    pub fn lowered_to(self, maxima: &Self) -> Self {
        fn lower<T: Ord + Clone>(value: Option<T>, maximum: &Option<T>) -> Option<T> {
            match maximum {
                Some(maximum) => value.map(|value| value.min(maximum.clone())),
                None => value,
            }
        }
        Self {
            cpu: lower(self.cpu, &maxima.cpu),
            cpu_shares: lower(self.cpu_shares, &maxima.cpu_shares),
            cpuset: match (self.cpuset, &maxima.cpuset) {
                (Some(set), Some(maximum)) if !set.is_within(maximum) => Some(maximum.clone()),
                (set, _) => set,
            },
            memory: lower(self.memory, &maxima.memory),
            pids: lower(self.pids, &maxima.pids),
            disk: lower(self.disk, &maxima.disk),
            network_bandwidth_up: lower(self.network_bandwidth_up, &maxima.network_bandwidth_up),
            network_bandwidth_down: lower(self.network_bandwidth_down, &maxima.network_bandwidth_down),
        }
    }

    /// These limits where there is no network: what was not said of it but holds for others means nothing.
    #[must_use]
    pub fn without_network(mut self, said: &Annotations) -> Self {
        if !said.keys().any(|key| key.starts_with(BOTH)) {
            (self.network_bandwidth_up, self.network_bandwidth_down) = (None, None);
        }
        self
    }

    /// Each limit that there may be, by name, as text; `None`: not limited.
    pub fn values(&self) -> [(&'static str, Option<String>); 8] {
        fn text<T: fmt::Display>(value: Option<&T>) -> Option<String> {
            value.map(ToString::to_string)
        }
        [
            ("cpu", text(self.cpu.as_ref())),
            ("cpu_shares", text(self.cpu_shares.as_ref())),
            ("cpuset", text(self.cpuset.as_ref())),
            ("memory", text(self.memory.as_ref())),
            ("pids", text(self.pids.as_ref())),
            ("disk", text(self.disk.as_ref())),
            ("network_bandwidth_up", text(self.network_bandwidth_up.as_ref())),
            ("network_bandwidth_down", text(self.network_bandwidth_down.as_ref())),
        ]
    }
}

fn at_most<T: PartialOrd + fmt::Display>(name: &str, value: Option<T>, maximum: Option<T>) -> Result<Option<T>, Error> {
    match (value, maximum) {
        (Some(value), Some(maximum)) if value > maximum => Err(Error::rejected(format!(
            "{name}: {value} is more than the {maximum} that this node allows (container_runtime.maxima.{name}): ask for less"
        ))),
        (value, maximum) => Ok(value.or(maximum)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
    }

    #[test]
    fn what_is_shown_can_be_written() {
        for (name, written, shown) in [
            ("cpu", "0.5", "0.5"),
            ("cpu", "2", "2"),
            ("cpu_shares", "512", "512"),
            ("cpuset", "0-1,3", "0-1,3"),
            ("memory", "128MiB", "128MiB"),
            ("memory", "128 mib", "128MiB"),
            ("disk", "1000", "1000B"),
            ("memory", "2GiB", "2GiB"),
            ("pids", "64", "64"),
            ("disk", "1536KiB", "1536KiB"),
            ("network_bandwidth_up", "10mbit", "10mbit"),
            ("network_bandwidth_up", "1.5Mbit", "1500kbit"),
            ("network_bandwidth_down", "1gbit", "1gbit"),
        ] {
            let limits = Limits::default().with(&annotations(&[(name, written)])).unwrap();
            let values = limits.values();
            let (_, value) = values.iter().find(|(known, _)| *known == name).unwrap();
            assert_eq!(value.as_deref(), Some(shown), "{name}={written}");
            assert_eq!(Limits::default().with(&annotations(&[(name, shown)])).unwrap(), limits, "{name}={shown}");
            assert_eq!(values.iter().filter(|(_, value)| value.is_some()).count(), 1, "{name} alone");
        }
    }

    #[test]
    fn a_value_that_is_none_is_refused_by_name() {
        for (name, value, why) in [
            ("cpu", "much", "cpu: 'much' is not a number of cores, such as 0.5"),
            ("cpu", "-1", "cpu: '-1' cores are too few: 0.01 are the least"),
            ("cpu", "NaN", "cpu: 'NaN' cores are too few: 0.01 are the least"),
            ("cpu_shares", "1", "cpu_shares: '1' is not a weight from 2 to 262144; 1024 is normal"),
            ("memory", "lots", "memory: 'lots' is not a size, such as 128MiB"),
            ("memory", "0", "memory: '0' is nothing: 'none' takes a limit away"),
            ("memory", "1MiB", "memory: 1MiB are too little for a container: 6MiB are the least"),
            ("disk", "0KiB", "disk: '0KiB' is nothing: 'none' takes a limit away"),
            ("pids", "0", "pids: '0' is not a number of processes from 1 to 4194304"),
            ("cpuset", "a", "cpuset: 'a' is not a list of processors, such as 0-1,3"),
            ("network_bandwidth", "10", "network_bandwidth: '10' is not a rate, such as 10mbit"),
            ("network_bandwidth_up", "1bit", "network_bandwidth_up: '1bit' is too slow: 8kbit is the least"),
        ] {
            assert_eq!(Limits::default().with(&annotations(&[(name, value)])).unwrap_err().message, why);
        }
    }

    #[test]
    fn one_direction_is_said_after_both() {
        let limits = Limits::default()
            .with(&annotations(&[("network_bandwidth_up", "1mbit"), ("network_bandwidth", "10mbit")]))
            .unwrap();
        assert_eq!(limits.network_bandwidth_up, Some(Rate(1_000_000)));
        assert_eq!(limits.network_bandwidth_down, Some(Rate(10_000_000)));
        let none = limits.with(&annotations(&[("network_bandwidth_down", "none")])).unwrap();
        assert_eq!((none.network_bandwidth_up, none.network_bandwidth_down), (limits.network_bandwidth_up, None));
    }

    #[test]
    fn a_maximum_holds_for_what_is_asked_and_for_what_is_not() {
        let maxima = Limits { memory: Some(Bytes(1 << 30)), pids: Some(Pids(100)), ..Limits::default() };
        let asked = Limits { memory: Some(Bytes(2 << 30)), ..Limits::default() };
        assert_eq!(
            asked.within(&maxima).unwrap_err().message,
            "memory: 2GiB is more than the 1GiB that this node allows (container_runtime.maxima.memory): ask for less"
        );
        let asked = Limits { memory: Some(Bytes(5)), ..Limits::default() };
        let within = asked.within(&maxima).unwrap();
        assert_eq!((within.memory, within.pids, within.cpu), (Some(Bytes(5)), Some(Pids(100)), None));
        let usual = Limits::usual().lowered_to(&maxima);
        assert_eq!((usual.memory, usual.pids), (Limits::usual().memory, Some(Pids(100))));
    }

    #[test]
    fn processors_are_among_those_of_the_node() {
        let of = |set: &str| Limits { cpuset: Some(CpuSet(set.into())), ..Limits::default() };
        let maxima = of("0-3,8");
        for (set, is_allowed) in [("0", true), ("1-2,8", true), ("4", false), ("2-4", false), ("0-8", false)] {
            assert_eq!(of(set).within(&maxima).is_ok(), is_allowed, "{set}");
        }
        assert_eq!(Limits::default().within(&maxima).unwrap(), maxima);
    }

    #[test]
    fn a_running_container_keeps_its_disk_and_is_asked_for_nothing_unknown() {
        let limits = Limits { disk: Some(Bytes(1 << 20)), ..Limits::default() };
        assert!(limits.changed(&annotations(&[("cpu", "1"), ("disk", "1MiB")])).is_ok());
        let error = limits.changed(&annotations(&[("disk", "2MiB")])).unwrap_err();
        assert!(error.message.starts_with("disk: cannot be changed while the container runs"), "{error}");
        let error = limits.changed(&annotations(&[("ram", "2MiB")])).unwrap_err();
        assert!(error.message.starts_with("ram: there is no such limit; there are: cpu, "), "{error}");
    }

    #[test]
    fn limits_in_a_file_are_text_or_numbers() {
        let read = |text: &str| Limits::defaults(toml::Deserializer::parse(text).unwrap());
        let limits = read("cpu = 0.5\npids = 64\nmemory = \"none\"").unwrap();
        assert_eq!((limits.cpu, limits.pids, limits.memory), (Some(Cpu::cores(0.5)), Some(Pids(64)), None));
        assert_eq!(limits.cpu_shares, Some(Shares(1024)), "as usual");
        assert!(read("cpu = \"much\"").unwrap_err().to_string().contains("number of cores"));
        assert!(read("ram = 1").unwrap_err().to_string().contains("ram: there is no such limit"));
    }
}
