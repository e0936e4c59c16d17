//! `events`: shows dead letters, has them sent again, and drops them.

use std::io::{self, BufRead, IsTerminal, Write};

use bytes::Bytes;
use edgeless_api::client::Workflows;
use edgeless_api::dead::{self, DeadLetters, Letters, Resolved, Scope, Treatment};
use edgeless_api::{ComponentId, WorkflowId};
use serde::Serialize;

use super::unless_offered;
use crate::failure::Failure;
use crate::opts::{Dead, DeadChoice, Events};
use crate::output::{Console, Report, Style, fitting_table, one_line, or_dash};

/// The exit code of a list that may not be complete.
const INCOMPLETE: u8 = 3;
/// The characters of a payload that fit into a table.
const PREVIEW: usize = 40;

/// Does it.
pub(crate) async fn run(command: Events, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let Events::Dead(command) = command;
    match command {
        Dead::List { scope, limit } => {
            let scope = scope.map(|scope| scope.0).unwrap_or_default();
            list(scope, usize::from(limit), workflows, console).await
        }
        Dead::Retry(choice) => resolve(choice, Treatment::Retry, workflows, console).await,
        Dead::Drop { choice, yes } => {
            if let Some(scope) = &choice.all
                && !yes
                && !is_sure(scope.as_ref().map(|scope| &scope.0))?
            {
                return Err(Failure::Refused("nothing is dropped".to_string()));
            }
            resolve(choice, Treatment::Drop, workflows, console).await
        }
    }
}

async fn list(scope: Scope, limit: usize, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let found = workflows.dead_letters(scope, limit).await.map_err(unless_offered("dead letters"))?;
    let list = List::from(found);
    console.report(&list)?;
    if list.letters.is_empty() && list.troubles.is_empty() {
        console.hint("there are no dead letters");
    }
    if list.more > 0 {
        console.hint(format!("and {} more: `--limit` shows up to {}", list.more, dead::MOST));
    }
    list.troubles.iter().for_each(|trouble| console.warn(one_line(trouble)));
    if list.troubles.is_empty() { Ok(()) } else { Err(Failure::Said(INCOMPLETE)) }
}

/// Asks whether all shall be dropped, if there is somebody who can be asked.
fn is_sure(scope: Option<&Scope>) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    let whose = match scope {
        Some(Scope { workflow: Some(workflow), component: Some(name) }) => {
            format!("of '{}' in {workflow}", one_line(name))
        }
        Some(Scope { workflow: Some(workflow), component: None }) => format!("of {workflow}"),
        _ => "of all workflows".to_string(),
    };
    let mut stderr = io::stderr().lock();
    write!(stderr, "drop all dead letters {whose}? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn resolve(
    choice: DeadChoice,
    treatment: Treatment,
    workflows: &Workflows,
    console: &Console,
) -> Result<(), Failure> {
    let DeadChoice { mut ids, all } = choice;
    ids.sort_unstable();
    ids.dedup();
    let (scope, letters) = match all {
        Some(scope) => (scope.map(|scope| scope.0).unwrap_or_default(), Letters::All),
        None => (Scope::default(), Letters::Named(ids.clone())),
    };
    let resolved = workflows.resolve_dead(scope, letters.clone(), treatment).await;
    let Resolved { count, troubles } = resolved.map_err(unless_offered("dead letters"))?;
    let letters_are = if count == 1 { "dead letter was" } else { "dead letters were" };
    let done = if treatment == Treatment::Retry { "sent again" } else { "dropped" };
    let is_complete = match &letters {
        Letters::All => troubles.is_empty(),
        Letters::Named(ids) => u64::try_from(ids.len()).is_ok_and(|asked| asked <= count),
    };
    if count > 0 || is_complete {
        console.line(format!("{count} {letters_are} {done}"))?;
    }
    troubles.iter().for_each(|trouble| console.warn(one_line(trouble)));
    match (is_complete, ids.as_slice()) {
        (true, _) => Ok(()),
        (false, []) => Err(Failure::Refused("not all dead letters could be reached: try again".to_string())),
        (false, _) if !troubles.is_empty() => Err(Failure::Refused(
            "not all of these dead letters were found: some could not be reached, try again".to_string(),
        )),
        (false, [id]) => Err(Failure::Refused(format!(
            "there is no dead letter {id}: `edgeless_cli events dead list` shows those there are"
        ))),
        (false, ids) => Err(Failure::Refused(format!(
            "{} of {} dead letters are not there: `edgeless_cli events dead list` shows those there are",
            u64::try_from(ids.len()).unwrap_or(u64::MAX).saturating_sub(count),
            ids.len()
        ))),
    }
}

/// Dead letters, as they are shown.
#[derive(Serialize)]
struct List {
    letters: Vec<Letter>,
    /// How many there are besides.
    more: u64,
    /// Who could not be asked.
    troubles: Vec<String>,
}

#[derive(Serialize)]
struct Letter {
    id: String,
    workflow: Option<WorkflowId>,
    component: ComponentId,
    name: String,
    output: String,
    tries: u32,
    reason: String,
    sent: String,
    /// Of the whole payload, bytes.
    size: u64,
    /// The beginning of it, if it is text.
    payload: Option<String>,
    /// The same, if it is not.
    payload_hex: Option<String>,
}

impl From<DeadLetters> for List {
    fn from(found: DeadLetters) -> Self {
        let DeadLetters { letters, more, troubles } = found;
        Self { letters: letters.into_iter().map(Letter::from).collect(), more, troubles }
    }
}

/// The text that a payload begins with; `None` if it is something else.
fn text(payload: &Bytes, is_whole: bool) -> Option<&str> {
    match std::str::from_utf8(payload) {
        Ok(text) => Some(text),
        // The last character was cut in two.
        Err(error) if !is_whole && error.error_len().is_none() => {
            std::str::from_utf8(payload.get(..error.valid_up_to())?).ok()
        }
        Err(_) => None,
    }
}

fn hex(payload: &Bytes) -> String {
    payload.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<dead::DeadLetter> for Letter {
    fn from(letter: dead::DeadLetter) -> Self {
        let is_whole = u64::try_from(letter.payload.len()).is_ok_and(|shown| shown >= letter.size);
        let payload = text(&letter.payload, is_whole).map(str::to_string);
        Self {
            id: letter.id.to_string(),
            workflow: letter.workflow,
            component: letter.component,
            name: letter.name,
            output: letter.output,
            tries: letter.tries,
            reason: letter.reason,
            sent: humantime::format_rfc3339_millis(letter.sent).to_string(),
            size: letter.size,
            payload_hex: payload.is_none().then(|| hex(&letter.payload)),
            payload,
        }
    }
}

impl Letter {
    /// What fits into a table.
    fn preview(&self) -> String {
        let (prefix, all) = match (&self.payload, &self.payload_hex) {
            (Some(text), _) => ("", one_line(text)),
            (None, hex) => ("0x", hex.as_deref().unwrap_or_default().into()),
        };
        let short: String = all.chars().take(PREVIEW).collect();
        let is_cut = short.len() < all.len();
        if short.is_empty() { "-".to_string() } else { format!("{prefix}{short}{}", if is_cut { "…" } else { "" }) }
    }
}

impl Report for List {
    fn text(&self, style: Style) -> String {
        if self.letters.is_empty() {
            return String::new();
        }
        let row = |letter: &Letter| {
            vec![
                letter.id.clone(),
                letter.workflow.map_or_else(|| "-".to_string(), |workflow| workflow.to_string()),
                or_dash(&letter.name),
                or_dash(&letter.output),
                letter.sent.clone(),
                letter.tries.to_string(),
                or_dash(&letter.reason),
                letter.size.to_string(),
                letter.preview(),
            ]
        };
        let header = ["ID", "WORKFLOW", "COMPONENT", "OUTPUT", "SENT", "TRIES", "REASON", "SIZE", "PAYLOAD"];
        let rows = self.letters.iter().map(row).collect();
        fitting_table(style, &header, rows, &["WORKFLOW", "SENT", "SIZE", "OUTPUT", "TRIES"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_text_unless_it_is_something_else() {
        let bytes = Bytes::from("grün".to_string());
        assert_eq!(text(&bytes, true), Some("grün"));
        assert_eq!(text(&bytes.slice(..3), false), Some("gr"), "the ü was cut in two");
        assert_eq!(text(&bytes.slice(..3), true), None);
        assert_eq!(text(&Bytes::from_static(b"a\xff"), false), None);
        assert_eq!(hex(&Bytes::from_static(b"a\xff")), "61ff");
    }
}
