//! Does what was decided: one file for each noun.

mod component;
mod domain;
mod events;
mod function;
mod node;
mod plan;
mod workflow;

use clap::CommandFactory;
use edgeless_api::client::{Connection, Operations, Workflows};
use edgeless_api::{Code, Error};

use crate::config;
use crate::failure::Failure;
use crate::opts::Opts;
use crate::output::Console;
use crate::plan::{Controller, Plan, Question};

/// Does it.
pub(crate) fn run(plan: Plan, console: &Console) -> Result<(), Failure> {
    match plan {
        Plan::Help => console.line(Opts::command().render_help().to_string().trim_end()),
        Plan::Template(path) => config::write_template(&path),
        Plan::Build { file, container, force } => function::build(&file, container, force, console),
        Plan::Cast(cast) => in_runtime(function::cast(cast, console)),
        Plan::Ask(question, controller) => in_runtime(ask(question, controller, console)),
    }
}

fn in_runtime(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::Refused(error.to_string()))?.block_on(command)
}

async fn ask(question: Question, controller: Controller, console: &Console) -> Result<(), Failure> {
    let connection = Connection::lazy(&controller.url, controller.options)?;
    let (workflows, operations) = (Workflows::new(connection.clone()), Operations::new(connection));
    let answer = match question {
        Question::Workflow(command) => workflow::run(command, &workflows, console).await,
        Question::Component(command) => component::run(command, &workflows, &operations, console).await,
        Question::Domain(command) => domain::run(command, &workflows, console).await,
        Question::Node(command) => node::run(command, &workflows, &operations, console).await,
        Question::Events(command) => events::run(command, &workflows, console).await,
        Question::Plan(command) => plan::run(command, &workflows, &operations, console).await,
    };
    let hint = "is edgeless_con_d running? cli.toml or --controller-url says where it is";
    answer.map_err(|failure| failure.with_hint(hint))
}

/// Says what is not to be had of a controller that speaks EDGELESS 1.2 only.
fn unless_offered(what: &str) -> impl Fn(Error) -> Error {
    move |error| match error.code {
        Code::Unimplemented => error.context(format!("no {what}")),
        _ => error,
    }
}
