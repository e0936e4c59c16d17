//! What was typed.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand};
use edgeless_api::dead::{LetterId, Scope};
use edgeless_api::{ComponentId, NodeId, Url, WorkflowId};
use uuid::Uuid;

use crate::output::Format;

/// Start, watch and stop workflows of functions and resources.
#[derive(Parser, Debug)]
#[command(
    name = "edgeless_cli",
    version,
    propagate_version = false,
    after_help = "\
Examples:
  edgeless_cli -t cli.toml                                  write a configuration file
  edgeless_cli function build functions/noop/function.json  compile a function
  ID=$(edgeless_cli workflow start examples/noop/workflow.json)
  edgeless_cli workflow inspect $ID
  edgeless_cli workflow logs -f $ID
  edgeless_cli workflow stop $ID

Exit codes: 0 done, 1 refused, 2 wrong usage or a wrong file, 3 a daemon cannot be reached,
70 a fault of ours, 130 interrupted."
)]
pub(crate) struct Opts {
    /// Configuration file to read [default: cli.toml].
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// Write a configuration template to FILE and exit.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) template: Option<PathBuf>,
    /// Where the controller is; wins over EDGELESS_CLI__CONTROLLER_URL and the file.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) controller_url: Option<Url>,
    /// How reading commands write what they found.
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: Format,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// The nouns.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Start, stop and look at workflows.
    #[command(subcommand)]
    Workflow(Workflow),
    /// Move components, and look at what they may use and change it while they run.
    #[command(subcommand)]
    Component(Component),
    /// Build functions, and send events to their instances.
    #[command(subcommand)]
    Function(Function),
    /// Look at orchestration domains.
    #[command(subcommand)]
    Domain(Domain),
    /// Look at nodes, and take them out of use.
    #[command(subcommand)]
    Node(Node),
    /// Look at events that were given up, send them again or drop them.
    #[command(subcommand)]
    Events(Events),
    /// Show what would move, and move nothing.
    #[command(after_help = "\
Examples:
  edgeless_cli plan --lose shop-7
  edgeless_cli plan --add-workflow examples/noop/workflow.json")]
    Plan(Plan),
}

/// What could happen.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Plan {
    /// A node is lost: where would its components go? An id, or a host name that one node has.
    #[arg(long, value_name = "NODE")]
    pub(crate) lose: Option<String>,
    /// A workflow is started: where would its components go? The same as `workflow start --dry-run`.
    #[arg(long, value_name = "FILE")]
    pub(crate) add_workflow: Option<PathBuf>,
}

/// What can be done with workflows.
#[derive(Subcommand, Debug)]
pub(crate) enum Workflow {
    /// Start a workflow and print its id.
    ///
    /// The file, and every wasm file that it names, is checked before anything is sent. The workflow starts wholly
    /// or not at all: if it is refused, the reason is on stderr and nothing is on stdout.
    #[command(after_help = "\
Examples:
  ID=$(edgeless_cli workflow start examples/noop/workflow.json)
  edgeless_cli workflow start --dry-run --strict workflow.json")]
    Start(Start),
    /// Stop workflows.
    #[command(after_help = "\
Examples:
  edgeless_cli workflow stop 80b73f39-4ebd-4a69-a1ef-fe561a6fd3dc
  edgeless_cli workflow stop all")]
    Stop {
        /// The id of a workflow, or 'all'.
        #[arg(value_name = "ID|all")]
        which: Which<WorkflowId>,
    },
    /// Print the id of each workflow, one on a line.
    List,
    /// Show what workflows are made of, where their components run and how they fare.
    #[command(after_help = "\
Examples:
  edgeless_cli workflow inspect all
  edgeless_cli workflow inspect $ID | grep ^STATE
  edgeless_cli workflow inspect $ID --output json")]
    Inspect {
        /// The id of a workflow, or 'all'.
        #[arg(value_name = "ID|all")]
        which: Which<WorkflowId>,
    },
    /// Show what the functions of a workflow logged.
    #[command(after_help = "\
Each line is: time, level, component, target, message. Nodes keep the last lines of each component.

Examples:
  edgeless_cli workflow logs $ID
  edgeless_cli workflow logs -f $ID counter")]
    Logs {
        /// Go on with what is logged from now on, until Ctrl-C.
        #[arg(short, long)]
        follow: bool,
        /// The id of a workflow.
        #[arg(value_name = "ID")]
        workflow: WorkflowId,
        /// The name of one component of it.
        component: Option<String>,
    },
    /// Move a workflow to a domain.
    Migrate {
        /// The id of a workflow.
        #[arg(value_name = "ID")]
        workflow: WorkflowId,
        /// The id of a domain.
        domain: String,
    },
    /// Move one component of a workflow to a domain.
    MigrateComponent {
        /// The id of a workflow.
        #[arg(value_name = "ID")]
        workflow: WorkflowId,
        /// The id of a domain.
        domain: String,
        /// The name of the component.
        component: String,
    },
}

/// How to start a workflow.
#[derive(clap::Args, Debug)]
pub(crate) struct Start {
    /// The workflow file (JSON).
    pub(crate) file: PathBuf,
    /// Start nothing; print the domain and the node that each component would go to.
    ///
    /// The workflow is checked as for a real start, short of what only its nodes can tell: whether the code of
    /// its functions runs and the configurations of its resources work.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Refuse what is otherwise a warning.
    ///
    /// Such as an output channel that the class of its function does not list, or a key that has no meaning.
    #[arg(long)]
    pub(crate) strict: bool,
    /// How long one attempt may take; a workflow with large modules may need more.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
}

/// What can be done with components.
#[derive(Subcommand, Debug)]
pub(crate) enum Component {
    /// Show the limits of a component, and change them first if there are changes.
    ///
    /// Changes are in force when the command ends, without a restart, and hold also when the component is started
    /// again or placed elsewhere. All of them are made, or none. Of each limit it shows what was asked for and what the
    /// kernel has, where '-' says that it has nothing: the component does not run at present.
    #[command(after_help = "\
The limits of containers are the annotations cpu, cpu_shares, cpuset, memory, pids, network_bandwidth,
network_bandwidth_up and network_bandwidth_down, with values as in a workflow file.

Examples:
  edgeless_cli component limits $WORKFLOW_ID/resize
  edgeless_cli component limits $ID cpu=0.5 memory=128MiB network_bandwidth=10mbit
  edgeless_cli component limits $ID --output json")]
    Limits {
        /// The id of a component, as `workflow inspect` shows it after MAP, or WORKFLOW_ID/NAME.
        #[arg(value_name = "ID")]
        component: Named,
        /// Limits to change.
        #[arg(value_name = "KEY=VALUE")]
        changes: Vec<Change>,
    },
    /// Show the decision that placed a component: every node of its domain, and the rule that excluded it or its score.
    #[command(after_help = "\
Example:
  edgeless_cli component why $WORKFLOW_ID/resize")]
    Why {
        /// The id of a component, as `workflow inspect` shows it after MAP, or WORKFLOW_ID/NAME.
        #[arg(value_name = "ID")]
        component: Named,
    },
    /// Move a component to a node of its domain, with the state that it saved.
    ///
    /// Done when the component runs there. Where the node cannot run it, the reason is on stderr, and the component
    /// stays where it is.
    #[command(after_help = "\
Examples:
  edgeless_cli component move $WORKFLOW_ID/resize shop-7
  edgeless_cli component move $ID 0b1c4e7a-9f3e-4a52-8d5b-3c6a4b6f1e02")]
    Move {
        /// The id of a component, as `workflow inspect` shows it after MAP, or WORKFLOW_ID/NAME.
        #[arg(value_name = "ID")]
        component: Named,
        /// The id of a node, or a host name that one node has.
        node: String,
    },
}

/// What can be done with functions.
#[derive(Subcommand, Debug)]
pub(crate) enum Function {
    /// Compile a function, and print the path of the WebAssembly module or of the container's image.
    ///
    /// Writes ID.wasm, or ID.tar, beside function.json, unless it is newer than everything that it is made from. Uses
    /// cargo, and wasm-opt where it is installed. Needs no configuration file and no daemon, nor Docker.
    #[command(after_help = "\
Examples:
  edgeless_cli function build functions/noop/function.json
  edgeless_cli function build --container functions/noop    # functions/noop/noop.tar, for `docker load`
  edgeless_cli function build examples/web_service          # a program that is no function: SERVICE in its function.json

A workflow has a container run from such a file with \"function_type\": \"CONTAINER\", or \"SERVICE\", and \"code\":
\"archive:PATH\".")]
    Build {
        /// The file function.json in the folder of the function, or that folder.
        file: PathBuf,
        /// Make the image of a container: a static executable for Linux on this processor, and nothing else.
        ///
        /// The source stays as it is. Implied by the function_types CONTAINER and SERVICE.
        #[arg(long)]
        container: bool,
        /// Build even if nothing seems to have changed: changes in dependencies are not noticed.
        #[arg(long)]
        force: bool,
    },
    /// Send an event to an instance.
    #[command(subcommand)]
    Invoke(Invoke),
}

/// The kinds of events that can be sent.
#[derive(Subcommand, Debug)]
pub(crate) enum Invoke {
    /// Send an event that needs no answer.
    #[command(after_help = "\
The node and the instance of each component are in `edgeless_cli workflow inspect`.

Example:
  edgeless_cli function invoke cast http://127.0.0.1:7002 $NODE_ID $FUNCTION_ID hello")]
    Cast(Cast),
}

/// An event and where it goes.
#[derive(clap::Args, Debug)]
pub(crate) struct Cast {
    /// The invocation URL of the node.
    pub(crate) url: Url,
    /// The id of the node.
    pub(crate) node_id: NodeId,
    /// The id of the instance on that node.
    pub(crate) function_id: Uuid,
    /// What to say to it.
    pub(crate) payload: String,
}

/// What can be done with domains.
#[derive(Subcommand, Debug)]
pub(crate) enum Domain {
    /// Print each domain and the number of its nodes.
    List,
    /// Show what the nodes of domains have together.
    Inspect {
        /// The id of a domain, or 'all'.
        #[arg(value_name = "ID|all")]
        which: Which<String>,
    },
}

/// What can be done with nodes.
#[derive(Subcommand, Debug)]
pub(crate) enum Node {
    /// Show the nodes of a domain, or of all.
    List {
        /// The id of a domain.
        domain: Option<String>,
    },
    /// Show a node, and what runs on it.
    Inspect {
        /// The id of a node, or a host name that one node has.
        node: String,
    },
    /// Let nothing new be placed on a node. What runs there stays.
    Cordon {
        /// The id of a node, or a host name that one node has.
        node: String,
    },
    /// Let components be placed on a node again.
    Uncordon {
        /// The id of a node, or a host name that one node has.
        node: String,
    },
    /// Let a node that is gone be a new one when it comes back.
    ///
    /// A domain lets a node come back only with the key that it had, and still cordoned if it was. Forget it when its
    /// key is lost, or when another node shall have its id. Refused as long as the node is there.
    Forget {
        /// The id of a node.
        node: NodeId,
    },
    /// Move everything that runs on a node elsewhere, one by one.
    ///
    /// Cordons the node first, and says at the end that it is empty. What can run nowhere else stays and is named: the
    /// exit code is 1 then. After Ctrl-C, what has not moved yet stays, and the node stays cordoned.
    #[command(after_help = "\
Example:
  edgeless_cli node drain shop-7 && ssh shop-7 poweroff")]
    Drain {
        /// The id of a node, or a host name that one node has.
        node: String,
    },
}

/// What can be done with events.
#[derive(Subcommand, Debug)]
pub(crate) enum Events {
    /// Events on outputs that deliver at least once, and that were tried often enough and given up.
    #[command(subcommand)]
    Dead(Dead),
}

/// What can be done with dead letters.
#[derive(Subcommand, Debug)]
pub(crate) enum Dead {
    /// Show dead letters, those sent last first.
    ///
    /// Of each payload the beginning is shown. Where a domain or a node cannot be asked, a warning says so, and the exit
    /// code is 3: there may be more.
    #[command(after_help = "\
Examples:
  edgeless_cli events dead list
  edgeless_cli events dead list $WORKFLOW_ID
  edgeless_cli events dead list $WORKFLOW_ID/resize --output json")]
    List {
        /// The id of a workflow, or WORKFLOW_ID/NAME for one component of it; those of all if it is left out.
        #[arg(value_name = "WORKFLOW")]
        scope: Option<DeadScope>,
        /// The most to show.
        #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Send dead letters again: they are tried as often as the first time.
    ///
    /// They get a new number, and their targets do not know them as repeats. If something cannot be done, the exit code is 1;
    /// what could be done is done then.
    #[command(after_help = "\
Examples:
  edgeless_cli events dead retry 3b0c4e7a-9f3e-4a52-8d5b-3c6a4b6f1e02/17
  edgeless_cli events dead retry --all $WORKFLOW_ID
  edgeless_cli events dead retry --all")]
    Retry(DeadChoice),
    /// Drop dead letters for good.
    ///
    /// On a terminal, `--all` asks first. If something cannot be done, the exit code is 1; what could be done is done then.
    #[command(after_help = "\
Examples:
  edgeless_cli events dead drop 3b0c4e7a-9f3e-4a52-8d5b-3c6a4b6f1e02/17
  edgeless_cli events dead drop --all $WORKFLOW_ID/resize --yes")]
    Drop {
        #[command(flatten)]
        choice: DeadChoice,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct DeadChoice {
    /// The ids of dead letters, as `events dead list` shows them.
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<LetterId>,
    /// All of them, or all of a workflow, or of WORKFLOW_ID/NAME.
    #[arg(long, value_name = "WORKFLOW", num_args = 0..=1)]
    pub(crate) all: Option<Option<DeadScope>>,
}

/// A workflow, or a component by its workflow and its name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadScope(pub(crate) Scope);

impl FromStr for DeadScope {
    type Err = edgeless_api::id::IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (workflow, component) = match text.split_once('/') {
            Some((workflow, name)) => (workflow, Some(name.to_string())),
            None => (text, None),
        };
        Ok(Self(Scope { workflow: Some(workflow.parse()?), component }))
    }
}

/// One, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which<T> {
    All,
    One(T),
}

impl<T: FromStr> FromStr for Which<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::One) }
    }
}

/// A component, by its id or by its workflow and its name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Id(ComponentId),
    InWorkflow(WorkflowId, String),
}

impl FromStr for Named {
    type Err = edgeless_api::id::IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((workflow, name)) => Ok(Self::InWorkflow(workflow.parse()?, name.to_string())),
            None => text.parse().map(Self::Id),
        }
    }
}

/// A key and its new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok(Self { key: key.to_string(), value: value.to_string() })
            }
            _ => Err("expected KEY=VALUE, such as cpu=0.5".to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_are_consistent() {
        Opts::command().debug_assert();
    }

    #[test]
    fn a_bad_id_is_refused_as_usage() {
        let error = Opts::try_parse_from(["edgeless_cli", "workflow", "stop", "al"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("'al' is not a workflow id"), "{error}");
    }

    #[test]
    fn a_component_is_named_in_two_ways_and_its_limits_in_one() {
        let id = "00000000-0000-0000-0000-000000000001";
        assert_eq!(id.parse(), Ok(Named::Id(id.parse().unwrap())));
        let in_workflow = Named::InWorkflow(id.parse().unwrap(), "a/b".to_string());
        assert_eq!(format!("{id}/a/b").parse(), Ok(in_workflow));
        assert!("x".parse::<Named>().unwrap_err().to_string().contains("'x' is not a component id"));
        assert!("x/y".parse::<Named>().unwrap_err().to_string().contains("'x' is not a workflow id"));
        let change = Change { key: "cpu".to_string(), value: "1=2".to_string() };
        assert_eq!("cpu=1=2".parse(), Ok(change));
        for wrong in ["cpu", "=1", "cpu="] {
            assert!(wrong.parse::<Change>().is_err(), "{wrong}");
        }
    }
}
