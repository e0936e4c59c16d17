//! Where the controller is: from a flag, else the environment, else the configuration file.
//!
//! The file is read whenever it is there, so that a mistake in it is never hidden; it may be absent
//! as long as one of the others says where the controller is.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use edgeless_api::Url;
use serde::Deserialize;

use crate::failure::{Failure, reason};

/// The configuration file, if none is named.
const FILE: &str = "cli.toml";
/// The environment variable that says where the controller is.
pub(crate) const VARIABLE: &str = "EDGELESS_CLI__CONTROLLER_URL";

const TEMPLATE: &str = "\
# Where the controller (edgeless_con_d) takes requests.
controller_url = \"http://127.0.0.1:7001\"
";

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct File {
    controller_url: Option<Url>,
    #[serde(rename = "function_repository")]
    _function_repository: Option<Repository>,
}

/// In files of EDGELESS 1.2; there is no such repository here.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Repository {
    #[serde(rename = "url")]
    _url: Option<String>,
    #[serde(rename = "api_key")]
    _api_key: Option<String>,
}

/// Decides where the controller is.
pub(crate) fn controller_url(file: Option<&Path>, flag: Option<Url>, variable: Option<String>) -> Result<Url, Failure> {
    let variable = match variable.filter(|text| !text.is_empty()) {
        Some(text) => Some(text.parse().map_err(|error| Failure::input(format!("in {VARIABLE}: {error}")))?),
        None => None,
    };
    let given = flag.or(variable);
    let path = file.unwrap_or(Path::new(FILE));
    let shown = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && file.is_none() && given.is_some() => String::new(),
        Err(error) => {
            return Err(Failure::input(format!(
                "cannot read the configuration file {shown}: {}; `edgeless_cli -t {shown}` writes one, \
                 `-c` names another, `--controller-url` does without",
                reason(&error)
            )));
        }
    };
    let config: File = toml::from_str(&text).map_err(|error| {
        let error = error.to_string();
        Failure::input(format!("in the configuration file {shown}: {}", error.trim_end()))
    })?;
    given.or(config.controller_url).ok_or_else(|| {
        Failure::input(format!(
            "in the configuration file {shown}: controller_url is missing, http://127.0.0.1:7001 for example"
        ))
    })
}

/// Writes a configuration file, and never over another.
pub(crate) fn write_template(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    opened.and_then(|mut file| file.write_all(TEMPLATE.as_bytes())).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::Refused(format!("cannot overwrite configuration file: {shown}")),
        _ => Failure::Refused(format!("cannot write the configuration file {shown}: {}", reason(&error))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cli.toml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn the_flag_wins_over_the_environment_and_that_over_the_file() {
        let (_dir, path) = file("controller_url = \"http://file:1\"");
        let variable = || Some("http://variable:1".to_string());
        assert_eq!(controller_url(Some(&path), None, None).unwrap(), url("http://file:1"));
        assert_eq!(controller_url(Some(&path), None, variable()).unwrap(), url("http://variable:1"));
        assert_eq!(controller_url(Some(&path), Some(url("http://flag:1")), variable()).unwrap(), url("http://flag:1"));
        assert_eq!(controller_url(Some(&path), None, Some(String::new())).unwrap(), url("http://file:1"), "not set");
    }

    #[test]
    fn a_file_of_edgeless_1_2_is_accepted() {
        let (_dir, path) = file(
            "controller_url = \"http://a:1\"\n[function_repository]\nurl = \"http://b:2\"\napi_key = \"secret\"\n",
        );
        assert_eq!(controller_url(Some(&path), None, None).unwrap(), url("http://a:1"));
    }

    #[test]
    fn a_mistake_in_the_file_is_never_hidden() {
        let (_dir, path) = file("controller_url = \"http://a:1\"\ncontroler = 1\n");
        let failure = controller_url(Some(&path), Some(url("http://flag:1")), None).unwrap_err();
        let text = failure.lines().concat();
        assert!(text.contains("cli.toml: TOML parse error at line 2") && text.contains("controler"), "{text}");
        assert_eq!(failure.exit_code(), 2);
    }

    #[test]
    fn a_bad_variable_is_named() {
        let text = controller_url(None, None, Some("here".into())).unwrap_err().lines().concat();
        assert!(text.starts_with("in EDGELESS_CLI__CONTROLLER_URL: 'here' is not a URL"), "{text}");
    }
}
