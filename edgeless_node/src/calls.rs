//! The calls that wait for a reply from another node.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use edgeless_api::event::Reply;
use edgeless_api::{InstanceId, NodeId};
use tokio::sync::oneshot;

use crate::metrics::Dropped;

/// The calls of one node, by the numbers that their replies carry.
#[derive(Debug)]
pub struct Calls {
    pending: Mutex<HashMap<u64, Pending>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Pending {
    caller: InstanceId,
    callee: InstanceId,
    reply: oneshot::Sender<Answer>,
}

/// What a call comes to: the reply of the target, or why there is none.
pub type Answer = Result<Reply, Dropped>;

/// What became of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Its caller has it, or gave up before.
    Settled,
    /// It came from somebody who was not called, or was for somebody who did not call.
    Forged,
}

impl Default for Calls {
    /// No calls. EDGELESS 1.2 nodes count theirs from 1 and take a call for a reply if its number is
    /// one of theirs: ours begin far away.
    fn default() -> Self {
        Self { pending: Mutex::default(), next: AtomicU64::new(rand::random::<u64>() >> 2 | 1 << 61) }
    }
}

impl Calls {
    fn with<R>(&self, act: impl FnOnce(&mut HashMap<u64, Pending>) -> R) -> R {
        act(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Expects a reply for as long as the result lives.
    pub fn expect(&self, caller: InstanceId, callee: InstanceId, reply: oneshot::Sender<Answer>) -> Expected<'_> {
        Expected { calls: self, stream: self.expect_until(caller, callee, reply) }
    }

    /// Expects a reply until it comes or is [forgotten](Self::forget); returns the number that it carries.
    pub fn expect_until(&self, caller: InstanceId, callee: InstanceId, reply: oneshot::Sender<Answer>) -> u64 {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        self.with(|pending| pending.insert(stream, Pending { caller, callee, reply }));
        stream
    }

    /// Expects a reply no more.
    pub fn forget(&self, stream: u64) {
        self.with(|pending| pending.remove(&stream));
    }

    /// Gives a reply to its caller. It counts only if it comes from whom the call went to, and goes to
    /// who made it.
    pub fn take(&self, callee: InstanceId, caller: InstanceId, stream: u64, reply: Reply) -> Taken {
        self.with(|pending| match pending.get(&stream) {
            Some(call) if call.callee != callee || call.caller != caller => Taken::Forged,
            _ => {
                if let Some(call) = pending.remove(&stream) {
                    // Fails if the caller gave up.
                    call.reply.send(Ok(reply)).ok();
                }
                Taken::Settled
            }
        })
    }

    /// Ends a call: its event was lost.
    pub fn fail(&self, stream: u64, cause: Dropped) {
        if let Some(call) = self.with(|pending| pending.remove(&stream)) {
            // Fails if the caller gave up.
            call.reply.send(Err(cause)).ok();
        }
    }

    /// Ends all calls to a node with an error: it is gone.
    pub fn fail_all(&self, node: NodeId) {
        self.with(|pending| pending.retain(|_, call| call.callee.node != node));
    }
}

/// A call whose reply is expected; forgotten when this is dropped.
#[derive(Debug)]
pub struct Expected<'c> {
    calls: &'c Calls,
    stream: u64,
}

impl Expected<'_> {
    /// The number that the reply carries.
    pub fn stream(&self) -> u64 {
        self.stream
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.calls.forget(self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_counts_only_between_those_who_called_and_were_called() {
        let calls = Calls::default();
        let (caller, callee) = (InstanceId::random(NodeId::random()), InstanceId::random(NodeId::random()));
        let (sender, mut reply) = oneshot::channel();
        let expected = calls.expect(caller, callee, sender);
        let stream = expected.stream();
        let other = InstanceId::random(callee.node);
        assert_eq!(calls.take(other, caller, stream, Reply::Empty), Taken::Forged);
        assert_eq!(calls.take(callee, other, stream, Reply::Empty), Taken::Forged);
        assert!(reply.try_recv().is_err(), "nobody may answer in the place of another");
        assert_eq!(calls.take(callee, caller, stream, Reply::Empty), Taken::Settled);
        assert_eq!(reply.try_recv(), Ok(Ok(Reply::Empty)));
        assert_eq!(calls.take(callee, caller, stream, Reply::Empty), Taken::Settled, "too late is no offence");
    }

    #[test]
    fn a_lost_node_ends_its_calls_and_no_others() {
        let calls = Calls::default();
        let (lost, kept) = (InstanceId::random(NodeId::random()), InstanceId::random(NodeId::random()));
        let (one, mut from_lost) = oneshot::channel();
        let (two, mut from_kept) = oneshot::channel();
        let _expected = (calls.expect(kept, lost, one), calls.expect(lost, kept, two));
        calls.fail_all(lost.node);
        assert_eq!(from_lost.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(from_kept.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }
}
