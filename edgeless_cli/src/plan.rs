//! What was decided: options, configuration file and environment made into one thing to do.

use std::path::PathBuf;
use std::time::Duration;

use edgeless_api::Url;
use edgeless_api::client::Options;

use crate::config;
use crate::failure::Failure;
use crate::opts::{self, Cast, Command, Opts};

/// What to do.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Say what can be done.
    Help,
    /// Write a configuration file.
    Template(PathBuf),
    /// Compile a function.
    Build { file: PathBuf, container: bool, force: bool },
    /// Send an event to a node.
    Cast(Cast),
    /// Ask the controller.
    Ask(Question, Controller),
}

/// What to ask the controller for.
#[derive(Debug)]
pub(crate) enum Question {
    Workflow(opts::Workflow),
    Component(opts::Component),
    Domain(opts::Domain),
    Node(opts::Node),
    Events(opts::Events),
    Plan(opts::Plan),
}

/// How long a controller may take to look something up: a little more than it gives its domains.
const LOOK: Duration = Duration::from_secs(6);
/// How long it may take to do something.
const DO: Duration = Duration::from_secs(15);

impl Question {
    fn deadline(&self) -> Duration {
        use opts::Workflow::{Inspect, List, Logs, Migrate, MigrateComponent, Start, Stop};
        match self {
            Self::Workflow(Start(start)) => Duration::from_secs(start.timeout),
            Self::Workflow(Migrate { .. } | MigrateComponent { .. })
            | Self::Component(opts::Component::Move { .. })
            | Self::Node(opts::Node::Drain { .. }) => MOVE,
            Self::Events(opts::Events::Dead(opts::Dead::List { .. })) => LOOK,
            Self::Workflow(Stop { .. }) | Self::Component(_) | Self::Events(_) => DO,
            Self::Workflow(List | Inspect { .. } | Logs { .. }) | Self::Domain(_) | Self::Node(_) | Self::Plan(_) => {
                LOOK
            }
        }
    }
}

/// How long it may take to move something, which may have to be loaded and started there.
const MOVE: Duration = Duration::from_secs(120);

/// Where the controller is, and how long it may think.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) url: Url,
    pub(crate) options: Options,
}

/// Decides. Only what talks to the controller reads the configuration.
pub(crate) fn decide(opts: Opts, url_variable: Option<String>) -> Result<Plan, Failure> {
    let question = match (opts.template, opts.command) {
        (Some(_), Some(_)) => {
            return Err(Failure::input("`--template` writes a file and exits: leave out the command"));
        }
        (Some(path), None) => return Ok(Plan::Template(path)),
        (None, None) => return Ok(Plan::Help),
        (None, Some(Command::Function(opts::Function::Build { file, container, force }))) => {
            return Ok(Plan::Build { file, container, force });
        }
        (None, Some(Command::Function(opts::Function::Invoke(opts::Invoke::Cast(cast))))) => {
            return Ok(Plan::Cast(cast));
        }
        (None, Some(Command::Workflow(workflow))) => Question::Workflow(workflow),
        (None, Some(Command::Component(component))) => Question::Component(component),
        (None, Some(Command::Domain(domain))) => Question::Domain(domain),
        (None, Some(Command::Node(node))) => Question::Node(node),
        (None, Some(Command::Events(events))) => Question::Events(events),
        (None, Some(Command::Plan(plan))) => Question::Plan(plan),
    };
    let options = Options { deadline: question.deadline(), ..Options::default() };
    let url = config::controller_url(opts.config_file.as_deref(), opts.controller_url, url_variable)?;
    Ok(Plan::Ask(question, Controller { url, options }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn decided(args: &[&str]) -> Result<Plan, Failure> {
        decide(Opts::try_parse_from([&["edgeless_cli"], args].concat()).unwrap(), None)
    }

    #[test]
    fn only_questions_to_the_controller_need_a_configuration() {
        let missing = ["-c", "/nonexistent/cli.toml"];
        assert!(matches!(decided(&missing), Ok(Plan::Help)));
        assert!(matches!(decided(&[&missing[..], &["function", "build", "f"]].concat()), Ok(Plan::Build { .. })));
        let error = decided(&[&missing[..], &["node", "list"]].concat()).unwrap_err();
        assert!(error.lines().concat().contains("`edgeless_cli -t /nonexistent/cli.toml` writes one"));
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_start_has_the_time_that_was_asked_for() {
        let args = ["--controller-url", "http://a:1", "workflow", "start", "w.json", "--timeout", "7"];
        let Ok(Plan::Ask(_, controller)) = decided(&args) else { panic!("not a question") };
        assert_eq!(controller.options.deadline, Duration::from_secs(7));
        let Ok(Plan::Ask(_, controller)) = decided(&["--controller-url", "http://a:1", "node", "list"]) else {
            panic!("not a question")
        };
        assert_eq!(controller.options.deadline, LOOK);
    }

    #[test]
    fn a_template_goes_with_no_command() {
        assert!(matches!(decided(&["-t", "cli.toml"]), Ok(Plan::Template(_))));
        assert_eq!(decided(&["-t", "cli.toml", "node", "list"]).unwrap_err().exit_code(), 2);
    }
}
