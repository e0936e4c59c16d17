//! `workflow logs`: what the functions of a workflow log, as lines that follow each other.

use edgeless_api::client::Workflows;
use edgeless_api::status::{Level, LogLine};
use edgeless_api::{Error, WorkflowId};
use futures_util::StreamExt;
use serde::Serialize;

use super::unless_offered;
use crate::failure::{Failure, INTERRUPTED};
use crate::output::{Console, DIM, GREEN, RED, Report, Style, YELLOW, indented, one_line};

pub(super) async fn run(
    workflow: WorkflowId,
    component: Option<String>,
    follow: bool,
    workflows: &Workflows,
    console: &Console,
) -> Result<(), Failure> {
    let interrupted = tokio::signal::ctrl_c();
    let printed = async {
        let opened = workflows.logs(workflow, component, follow).await;
        let mut lines = opened.map_err(unless_offered("log"))?;
        while let Some(line) = lines.next().await {
            console.report_line(&Line::from(line.map_err(lost)?))?;
        }
        if follow { ended(workflow, workflows).await } else { Ok(()) }
    };
    tokio::select! {
        printed = printed => printed,
        _ = interrupted => Err(Failure::Said(INTERRUPTED)),
    }
}

/// A log that is followed ends with its workflow; any other end is an error.
async fn ended(workflow: WorkflowId, workflows: &Workflows) -> Result<(), Failure> {
    match workflows.list().await?.contains(&workflow) {
        false => Ok(()),
        true => Err(Error::unavailable("the log ends here although the workflow runs: follow it again").into()),
    }
}

fn lost(error: Error) -> Error {
    error.context("the log ends here")
}

/// A line, with its time as text.
#[derive(Serialize)]
pub(super) struct Line {
    time: String,
    level: Level,
    component: String,
    target: String,
    message: String,
}

impl From<LogLine> for Line {
    fn from(line: LogLine) -> Self {
        Self {
            time: humantime::format_rfc3339_micros(line.at).to_string(),
            level: line.level,
            component: line.component,
            target: line.target,
            message: line.message,
        }
    }
}

impl Line {
    /// For where it is clear whose line it is.
    pub(super) fn without_component(&self, style: Style) -> String {
        self.formatted(style, "")
    }

    fn formatted(&self, style: Style, component: &str) -> String {
        let colour = match self.level {
            Level::Error => RED,
            Level::Warn => YELLOW,
            Level::Info => GREEN,
            Level::Debug | Level::Trace => DIM,
        };
        let (time, level) = (style.paint(DIM, &self.time), style.paint(colour, self.level));
        format!("{time} {level} {component}{}: {}", one_line(&self.target), indented(&self.message))
    }
}

impl Report for Line {
    fn text(&self, style: Style) -> String {
        let component = style.bold(one_line(&self.component));
        format!("{}\n", self.formatted(style, &format!("{component} ")))
    }
}
