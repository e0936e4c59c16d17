//! Configuration files: TOML, strict, with a template that works as it stands.
//!
//! Defaults, then the file, then the environment: a variable `EDGELESS_NODE__GENERAL__AGENT_URL`
//! sets `agent_url` in `[general]` of the daemon whose prefix is `EDGELESS_NODE`. An unknown key, a
//! wrong type or an impossible value is an error that names file, line, key and reason.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// What a daemon is configured by.
pub trait Config: DeserializeOwned {
    /// The file that is read where none is named.
    const FILE: &'static str;
    /// What the names of environment variables begin with.
    const ENVIRONMENT: &'static str;

    /// A commented file that works as it stands.
    fn template() -> String;

    /// Refuses values that are well formed and yet impossible.
    ///
    /// # Errors
    /// The key and the reason.
    fn check(&self) -> Result<(), String>;
}

/// A configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration file {file}: {reason}; `-t {file}` writes a template, `-c` names another file"
    )]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        reason: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("in the configuration file {file}: {reason}")]
    Invalid {
        /// The file.
        file: String,
        /// Line, key and reason.
        reason: String,
    },
    /// There is such a file.
    #[error("cannot overwrite configuration file: {0}")]
    Exists(String),
    /// The file cannot be written.
    #[error("cannot write the configuration file {file}: {reason}")]
    Unwritable {
        /// The file.
        file: String,
        /// Why.
        reason: std::io::Error,
    },
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The file cannot be read, or something in it is wrong.
pub fn load<C: Config>(path: &Path) -> Result<C, ConfigError> {
    let file = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(reason) => return Err(ConfigError::Unreadable { file, reason }),
    };
    parse(&text, environment()).map_err(|reason| ConfigError::Invalid { file, reason })
}

/// The environment of this process, as far as it is text.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Reads and checks the text of a configuration, with the environment over it.
///
/// # Errors
/// Line, key and reason.
pub fn parse<C: Config>(text: &str, environment: impl Iterator<Item = (String, String)>) -> Result<C, String> {
    // The text alone first: only its errors can name a line.
    let config: C = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_string())?;
    let overrides: Vec<_> = environment.filter_map(|(name, value)| Some((key_of::<C>(&name)?, name, value))).collect();
    if overrides.is_empty() {
        config.check()?;
        return Ok(config);
    }
    let mut table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
    for (key, name, value) in overrides {
        set(&mut table, &key, value).map_err(|reason| format!("environment variable {name}: {reason}"))?;
    }
    let config: C = table.try_into().map_err(|error| format!("with the environment: {error}"))?;
    config.check()?;
    Ok(config)
}

/// The key that an environment variable sets, as a path.
fn key_of<C: Config>(name: &str) -> Option<Vec<String>> {
    let path = name.strip_prefix(C::ENVIRONMENT)?.strip_prefix("__")?;
    Some(path.split("__").map(str::to_lowercase).collect())
}

fn set(table: &mut Table, path: &[String], text: String) -> Result<(), String> {
    let Some((key, sections)) = path.split_last() else { return Ok(()) };
    let mut table = table;
    for section in sections {
        let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(|| format!("'{section}' is not a section"))?;
    }
    // A number, a truth value or a list as TOML writes it; anything else is a text.
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    let value = match table.get(key) {
        Some(Value::String(_)) => Value::String(text),
        _ => parsed.unwrap_or(Value::String(text)),
    };
    table.insert(key.clone(), value);
    Ok(())
}

/// Writes a template, and never over another file.
///
/// # Errors
/// There is such a file, or it cannot be written.
pub fn write_template(path: &Path, text: &str) -> Result<(), ConfigError> {
    let file = path.display().to_string();
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    match opened.and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(ConfigError::Exists(file)),
        Err(reason) => Err(ConfigError::Unwritable { file, reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        section: Section,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Section {
        count: u32,
    }

    impl Config for Sample {
        const FILE: &'static str = "sample.toml";
        const ENVIRONMENT: &'static str = "SAMPLE";
        fn template() -> String {
            "name = \"a\"\n[section]\ncount = 1\n".into()
        }
        fn check(&self) -> Result<(), String> {
            if self.section.count == 0 { Err("section.count: must not be 0".into()) } else { Ok(()) }
        }
    }

    fn parse_with(text: &str, environment: &[(&str, &str)]) -> Result<Sample, String> {
        parse(text, environment.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let text = Sample::template();
        let config = parse_with(&text, &[("SAMPLE__SECTION__COUNT", "7"), ("SAMPLE__NAME", "9"), ("OTHER", "x")]);
        assert_eq!(config.unwrap(), Sample { name: "9".into(), section: Section { count: 7 } });
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let error = parse_with("name = \"a\"\nnme = 1\n[section]\ncount = 1\n", &[]).unwrap_err();
        assert!(error.contains("line 2") && error.contains("nme"), "{error}");
        let error = parse_with("name = \"a\"\n[section]\ncount = 0\n", &[]).unwrap_err();
        assert!(error.contains("section.count"), "{error}");
        let error = parse_with(&Sample::template(), &[("SAMPLE__SECTION__KOUNT", "1")]).unwrap_err();
        assert!(error.contains("kount"), "{error}");
    }

    #[test]
    fn a_template_is_never_written_over_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.toml");
        write_template(&path, "a").unwrap();
        let error = write_template(&path, "b").unwrap_err().to_string();
        assert!(error.starts_with("cannot overwrite configuration file: "), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a");
    }
}
