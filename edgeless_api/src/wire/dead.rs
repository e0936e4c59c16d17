//! Dead letters, and what is to become of them.

use std::time::{Duration, UNIX_EPOCH};

use uuid::Uuid;

use super::{node, pb, required, uuid};
use crate::dead::{DeadLetter, DeadLetters, LetterId, Letters, MOST, NAMED, Resolved, Scope, Treatment};
use crate::error::Error;
use crate::id::{ComponentId, WorkflowId};

impl From<LetterId> for pb::DeadLetterId {
    fn from(id: LetterId) -> Self {
        let (outbox_high, outbox_low) = id.outbox.as_u64_pair();
        Self { outbox_high, outbox_low, number: id.number }
    }
}

impl From<pb::DeadLetterId> for LetterId {
    fn from(id: pb::DeadLetterId) -> Self {
        Self { outbox: Uuid::from_u64_pair(id.outbox_high, id.outbox_low), number: id.number }
    }
}

impl From<DeadLetter> for pb::DeadLetter {
    fn from(letter: DeadLetter) -> Self {
        Self {
            id: Some(letter.id.into()),
            component_id: letter.component.to_string(),
            name: letter.name,
            workflow_id: letter.workflow.map(|workflow| workflow.to_string()).unwrap_or_default(),
            output: letter.output,
            payload: letter.payload,
            size: letter.size,
            sent_at_ms: node::millis(letter.sent.duration_since(UNIX_EPOCH).unwrap_or_default()),
            tries: letter.tries,
            reason: letter.reason,
        }
    }
}

fn workflow(text: &str) -> Result<Option<WorkflowId>, Error> {
    if text.is_empty() { Ok(None) } else { Ok(Some(WorkflowId(uuid(text, "workflow_id")?))) }
}

impl TryFrom<pb::DeadLetter> for DeadLetter {
    type Error = Error;

    fn try_from(letter: pb::DeadLetter) -> Result<Self, Error> {
        Ok(Self {
            id: required(letter.id, "id")?.into(),
            component: ComponentId(uuid(&letter.component_id, "component_id")?),
            name: letter.name,
            workflow: workflow(&letter.workflow_id)?,
            output: letter.output,
            payload: letter.payload,
            size: letter.size,
            sent: UNIX_EPOCH.checked_add(Duration::from_millis(letter.sent_at_ms)).unwrap_or(UNIX_EPOCH),
            tries: letter.tries,
            reason: letter.reason,
        })
    }
}

impl From<DeadLetters> for pb::DeadLetterList {
    fn from(list: DeadLetters) -> Self {
        let DeadLetters { letters, more, troubles } = list;
        Self { letters: letters.into_iter().map(Into::into).collect(), more, troubles }
    }
}

impl TryFrom<pb::DeadLetterList> for DeadLetters {
    type Error = Error;

    fn try_from(list: pb::DeadLetterList) -> Result<Self, Error> {
        let pb::DeadLetterList { letters, more, troubles } = list;
        Ok(Self { letters: letters.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?, more, troubles })
    }
}

/// How many may be told of.
pub(crate) fn most(asked: u32) -> usize {
    match usize::try_from(asked) {
        Ok(asked) if asked > 0 => asked.min(MOST),
        _ => MOST,
    }
}

/// As it is asked for.
pub(crate) fn asked(most: usize) -> u32 {
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// What is to become of which.
pub(crate) fn choice(letters: Letters, treatment: Treatment) -> pb::DeadLetterChoice {
    let (letters, all) = match letters {
        Letters::All => (Vec::new(), true),
        Letters::Named(ids) => (ids.into_iter().map(Into::into).collect(), false),
    };
    pb::DeadLetterChoice { letters, all, retry: treatment == Treatment::Retry }
}

/// What is to become of which.
pub(crate) fn chosen(choice: Option<pb::DeadLetterChoice>) -> Result<(Letters, Treatment), Error> {
    let choice = required(choice, "choice")?;
    if choice.letters.len() > NAMED {
        let count = choice.letters.len();
        return Err(Error::rejected(format!("{count} dead letters are named: name at most {NAMED} at once")));
    }
    let letters = match choice.all {
        true => Letters::All,
        false => Letters::Named(choice.letters.into_iter().map(Into::into).collect()),
    };
    Ok((letters, if choice.retry { Treatment::Retry } else { Treatment::Drop }))
}

impl From<Resolved> for pb::ResolvedDeadLetters {
    fn from(resolved: Resolved) -> Self {
        let Resolved { count, troubles } = resolved;
        Self { count, troubles }
    }
}

impl From<pb::ResolvedDeadLetters> for Resolved {
    fn from(resolved: pb::ResolvedDeadLetters) -> Self {
        let pb::ResolvedDeadLetters { count, troubles } = resolved;
        Self { count, troubles }
    }
}

impl From<Scope> for pb::DeadLetterScope {
    fn from(scope: Scope) -> Self {
        let workflow_id = scope.workflow.map(|workflow| workflow.to_string()).unwrap_or_default();
        Self { workflow_id, component: scope.component.unwrap_or_default() }
    }
}

/// Whose dead letters are meant; those of all, if nothing is said.
pub(crate) fn scope(scope: Option<pb::DeadLetterScope>) -> Result<Scope, Error> {
    let scope = scope.unwrap_or_default();
    let component = (!scope.component.is_empty()).then_some(scope.component);
    Ok(Scope { workflow: workflow(&scope.workflow_id)?, component })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_choices_come_through() {
        let id = LetterId { outbox: Uuid::from_u128(1 << 70 | 5), number: 9 };
        let letter = DeadLetter {
            id,
            component: ComponentId::random(),
            name: "relay".into(),
            workflow: None,
            output: "out".into(),
            payload: "hel".into(),
            size: 5,
            sent: UNIX_EPOCH + Duration::from_millis(1_234),
            tries: 3,
            reason: "the target has failed".into(),
        };
        let known = DeadLetter { workflow: Some(WorkflowId(Uuid::from_u128(4))), ..letter.clone() };
        let list = DeadLetters { letters: vec![letter, known], more: 7, troubles: vec!["a".into()] };
        assert_eq!(DeadLetters::try_from(pb::DeadLetterList::from(list.clone())), Ok(list));
        for (letters, treatment) in [(Letters::All, Treatment::Drop), (Letters::Named(vec![id]), Treatment::Retry)] {
            assert_eq!(chosen(Some(choice(letters.clone(), treatment))), Ok((letters, treatment)));
        }
        assert!(chosen(Some(choice(Letters::Named(vec![id; NAMED + 1]), Treatment::Drop))).is_err());
        assert!(chosen(None).is_err());
        let one = Scope { workflow: Some(WorkflowId(Uuid::from_u128(4))), component: Some("relay".into()) };
        for known in [one, Scope::default()] {
            assert_eq!(scope(Some(known.clone().into())), Ok(known));
        }
        assert_eq!([0, 5, u32::MAX].map(most), [MOST, 5, MOST]);
    }
}
