//! What users do with the dead letters of the components that run here.

use std::cmp::Reverse;
use std::sync::Arc;

use edgeless_api::Error;
use edgeless_api::dead::{DeadLetter, DeadLetters, LetterId, Letters, Resolved, Treatment};

use crate::delivery::dead::shown;
use crate::host::Hosted;

/// The newest dead letters of these, at most so many.
pub(super) async fn letters(hosted: &[Arc<Hosted>], most: usize) -> Result<DeadLetters, Error> {
    let (mut headings, mut total) = (Vec::new(), 0);
    for component in hosted.iter().map(|hosted| hosted.component()) {
        let Some(custody) = component.outputs.custody() else { continue };
        let (newest, count) = custody.dead(most);
        headings.extend(newest.into_iter().map(|heading| (component, custody, heading)));
        total += count;
    }
    headings.sort_by_key(|(_, _, heading)| Reverse((heading.sent, heading.number)));
    let more = total.saturating_sub(most);
    let mut letters = Vec::new();
    for (component, custody, heading) in headings.into_iter().take(most) {
        // It may have been sent again or dropped meanwhile.
        let Some(event) = custody.dead_letter(heading.number).await? else { continue };
        letters.push(DeadLetter {
            id: LetterId { outbox: custody.outbox_id(), number: heading.number },
            component: component.component,
            name: component.name.clone(),
            workflow: None,
            payload: shown(&event.payload),
            size: u64::try_from(event.payload.len()).map_err(Error::bug)?,
            output: event.output,
            sent: event.sent,
            tries: event.tries,
            reason: event.reason,
        });
    }
    Ok(DeadLetters { letters, more: u64::try_from(more).map_err(Error::bug)?, troubles: Vec::new() })
}

/// Sends dead letters of these again, or drops them.
pub(super) async fn resolve(hosted: &[Arc<Hosted>], letters: Letters, treatment: Treatment) -> Resolved {
    let mut parts = Vec::new();
    for component in hosted.iter().map(|hosted| hosted.component()) {
        parts.push(match component.outputs.resolve_dead(&letters, treatment).await {
            Ok(count) => Resolved { count, troubles: Vec::new() },
            Err((count, error)) => Resolved { count, troubles: vec![format!("'{}': {error}", component.name)] },
        });
    }
    let resolved = Resolved::together(parts);
    if resolved.count > 0 {
        let what = if treatment == Treatment::Retry { "sent again" } else { "dropped" };
        tracing::info!(count = resolved.count, "dead letters {what}");
    }
    resolved
}
