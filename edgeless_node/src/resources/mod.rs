//! Resources: how workflows reach the outside world.
//!
//! A class of resources is one file here, and one line in [`CLASSES`]. From that list follow what a
//! node can offer, the `[resources]` section of its configuration and the documentation.

mod file_log;
mod http;
mod http_egress;
mod http_ingress;
mod http_json;
mod http_proxy;
mod redis;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use edgeless_api::component::Annotations;
use edgeless_api::{Error, Limits};
use edgeless_daemon::Tasks;
use futures_util::future::BoxFuture;
use humantime_serde::re::humantime;
use serde::Serialize;

use crate::backends::Backends;
use crate::instance::Provider;
use crate::metrics::Metrics;

/// All classes that this node knows.
pub static CLASSES: [&Class; 4] = [&http_ingress::CLASS, &http_egress::CLASS, &file_log::CLASS, &redis::CLASS];

/// What is known of a class without opening anything.
#[derive(Serialize)]
pub struct Class {
    /// Its name in workflows.
    pub class_type: &'static str,
    /// Its version.
    pub version: &'static str,
    /// What it does, in a sentence or two.
    pub description: &'static str,
    /// The outputs that it emits on.
    pub outputs: &'static [&'static str],
    /// What a workflow may configure.
    pub configurations: &'static [Key],
    /// What `[resources]` in the node's configuration may set; the first names the provider.
    pub settings: &'static [Key],
    /// How many events one resource handles at once.
    #[serde(skip)]
    pub max_in_flight: usize,
    /// Makes the provider of this node.
    #[serde(skip)]
    pub provide: Provide,
}

/// Makes a provider.
pub type Provide = fn(Surroundings) -> BoxFuture<'static, Result<Arc<dyn Provider>, Error>>;

/// A key, and what it means.
#[derive(Serialize)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What holds where it is not given; `None`: it must be given, or there is nothing without it.
    pub default: Option<&'static str>,
    /// What it means, with its unit.
    pub description: &'static str,
}

/// What a provider is made with.
pub struct Surroundings {
    /// The class's own settings.
    pub settings: Settings,
    /// Where its servers and helpers run.
    pub tasks: Tasks,
    /// What outsiders may send at the most.
    pub limits: Limits,
    /// How long a caller waits for a reply.
    pub call_timeout: Duration,
    /// What the node measures.
    pub metrics: Arc<Metrics>,
    /// The servers that stand behind the HTTP ingress.
    pub backends: Backends,
}

/// The settings of one class: the text of each of its keys that is set, or has a default.
#[derive(Clone, Debug, Default)]
pub struct Settings(pub BTreeMap<&'static str, String>);

impl Settings {
    /// The text of a key; empty if it is not set.
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).map(String::as_str).unwrap_or_default()
    }

    /// A directory.
    pub fn path(&self, key: &str) -> PathBuf {
        PathBuf::from(self.text(key))
    }

    /// A value that has a text form.
    ///
    /// # Errors
    /// The text is none of it.
    pub fn parse<T>(&self, key: &str) -> Result<T, Error>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.text(key);
        text.parse().map_err(|error: T::Err| bad_setting(key, text, error))
    }

    /// A time that is longer than nothing, such as `10s`.
    ///
    /// # Errors
    /// The text is none.
    pub fn duration(&self, key: &str) -> Result<Duration, Error> {
        let duration: humantime::Duration = self.parse(key)?;
        if duration.is_zero() { Err(bad_setting(key, self.text(key), "must be longer")) } else { Ok(*duration) }
    }

    /// A size in bytes, such as `4MiB`.
    ///
    /// # Errors
    /// The text is none, or larger than any memory.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        let size: ByteSize = self.parse(key)?;
        usize::try_from(size.as_u64()).map_err(|error| bad_setting(key, self.text(key), error))
    }
}

fn bad_setting(key: &str, text: &str, reason: impl std::fmt::Display) -> Error {
    Error::rejected(format!("resources.{key}: '{text}': {reason}"))
}

/// Keys that every resource may have, whatever its class: they restrict its placement.
pub fn is_common_key(key: &str) -> bool {
    // A resource has one instance, whatever it is allowed to have.
    key == "max_instances"
        || edgeless_api::delivery::is_known(key)
        || edgeless_api::requirements::KEYS.iter().any(|(known, _)| *known == key)
}

/// Refuses a configuration with keys that the class does not have.
///
/// # Errors
/// The first unknown key, with the known ones.
pub fn check_configuration(class: &Class, configuration: &Annotations) -> Result<(), Error> {
    let known = |key: &String| class.configurations.iter().any(|known| known.name == key) || is_common_key(key);
    match configuration.keys().find(|key| !known(key)) {
        None => Ok(()),
        Some(key) => {
            let names: Vec<_> = class.configurations.iter().map(|key| key.name).collect();
            Err(Error::rejected(format!(
                "a {} has no configuration '{key}'; there are: {}",
                class.class_type,
                names.join(", ")
            )))
        }
    }
}

/// Refuses the value that a workflow configured.
pub fn bad_value(key: &str, value: &str, reason: impl std::fmt::Display) -> Error {
    let shown: String = value.chars().take(80).collect();
    Error::rejected(format!("the configuration '{key}' is '{shown}': {reason}"))
}

/// The value of a key that must be configured.
///
/// # Errors
/// It is not.
pub fn required<'a>(class: &Class, configuration: &'a Annotations, key: &str) -> Result<&'a str, Error> {
    let missing = || Error::rejected(format!("a {} needs the configuration '{key}'", class.class_type));
    configuration.get(key).map(String::as_str).ok_or_else(missing)
}

/// The value of a key that is `true` or `false`; the latter where it is not configured.
///
/// # Errors
/// It is something else.
pub fn flag(configuration: &Annotations, key: &str) -> Result<bool, Error> {
    match configuration.get(key) {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case("true") => Ok(true),
        Some(value) if value.eq_ignore_ascii_case("false") => Ok(false),
        Some(value) => Err(bad_value(key, value, "write true or false")),
    }
}
