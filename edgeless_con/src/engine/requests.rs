//! What became of the requests that carried an id, so that a repeat is answered and not carried out.
//!
//! Bounded: the oldest results are forgotten first, and a request that failed for want of an answer
//! is not remembered at all, because its repeat is the very thing that should be tried.

use std::collections::{HashMap, VecDeque};

use edgeless_api::error::Error;
use edgeless_api::id::WorkflowId;
use uuid::Uuid;

/// The most results that are remembered.
const REMEMBERED: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is being carried out.
    Pending(WorkflowId),
    /// It started this workflow.
    Started(WorkflowId),
    /// It was refused.
    Refused(Error),
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    known: HashMap<Uuid, Known>,
    /// Those that are no longer pending, oldest first.
    finished: VecDeque<Uuid>,
}

impl Requests {
    pub(super) fn get(&self, request: Uuid) -> Option<&Known> {
        self.known.get(&request)
    }

    pub(super) fn pending(&mut self, request: Uuid, workflow: WorkflowId) {
        self.known.insert(request, Known::Pending(workflow));
    }

    pub(super) fn finished(&mut self, request: Uuid, result: Result<WorkflowId, Error>) {
        let known = match result {
            Ok(workflow) => Known::Started(workflow),
            Err(error) if error.code.is_refusal() => Known::Refused(error),
            Err(_) => {
                self.known.remove(&request);
                return;
            }
        };
        self.known.insert(request, known);
        self.finished.push_back(request);
        if self.finished.len() > REMEMBERED
            && let Some(oldest) = self.finished.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn the_oldest_results_are_forgotten_and_pending_requests_never() {
        let mut requests = Requests::default();
        requests.pending(id(0), WorkflowId(id(0)));
        for n in 1..=REMEMBERED as u128 + 1 {
            requests.finished(id(n), Ok(WorkflowId(id(n))));
        }
        assert_eq!(requests.get(id(0)), Some(&Known::Pending(WorkflowId(id(0)))));
        assert_eq!(requests.get(id(1)), None, "the oldest");
        assert_eq!(requests.get(id(2)), Some(&Known::Started(WorkflowId(id(2)))));
        assert_eq!(requests.known.len(), REMEMBERED + 1);
    }

    #[test]
    fn only_answers_are_remembered() {
        let mut requests = Requests::default();
        requests.pending(id(1), WorkflowId(id(1)));
        requests.finished(id(1), Err(Error::unavailable("later")));
        assert_eq!(requests.get(id(1)), None);
        requests.finished(id(2), Err(Error::rejected("never")));
        assert_eq!(requests.get(id(2)), Some(&Known::Refused(Error::rejected("never"))));
    }
}
