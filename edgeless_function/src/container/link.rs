//! What a guest and its node are about to say to each other: the part that both threads use.
//!
//! A [`Session`] is one boot of the function by one node. The thread of the handlers puts messages into
//! its [`Outbox`] and waits for answers; the I/O thread empties the outbox and brings the answers. When
//! the node is lost the session is too: what is put into it is dropped, and whoever waits is woken.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::watch;
use tokio_stream::Stream;

use super::pb::{GuestMessage, guest_message};
use crate::{CallRet, InstanceId, Uuid};

/// How much may wait to be sent; a handler that sends more waits.
const OUTBOX_MESSAGES: usize = 1024;
const OUTBOX_BYTES: usize = 4 << 20;

/// How long the connection has for what was written last, where the node does not end the stream itself.
const LAST_WRITE: Duration = Duration::from_millis(100);

/// Takes a lock. Nothing that is kept behind one here can be half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a node answers to a guest that waits.
pub(super) enum Answer {
    Reply(CallRet),
    Synced,
    Refused(String),
}

/// How far the way to the node is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// All has been handed to the connection, and nothing more will be.
    Written,
    Ended,
}

/// One boot of the function by one node.
pub(super) struct Session {
    outbox: Outbox,
    instance: Mutex<InstanceId>,
    /// The number of the request that is being handled, or 0.
    handled: AtomicU64,
    /// The number of the last request of the guest.
    asked: AtomicU64,
    /// Who waits, by the number of its request; none once the node is lost.
    waiting: Mutex<Option<HashMap<u64, SyncSender<Answer>>>>,
    phase: watch::Sender<Phase>,
}

impl Session {
    pub(super) fn new() -> Self {
        let nobody = InstanceId { node: Uuid::from_bytes([0; 16]), function: Uuid::from_bytes([0; 16]) };
        Self {
            outbox: Outbox::default(),
            instance: Mutex::new(nobody),
            handled: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
            phase: watch::Sender::new(Phase::Running),
        }
    }

    pub(super) fn instance(&self) -> InstanceId {
        *lock(&self.instance)
    }

    pub(super) fn set_instance(&self, instance: InstanceId) {
        *lock(&self.instance) = instance;
    }

    /// What is sent from now on belongs to this request.
    pub(super) fn set_handled(&self, number: u64) {
        self.handled.store(number, Ordering::Relaxed);
    }

    /// Sends, and says whether there is still anybody to send to.
    pub(super) fn send(&self, message: guest_message::Message) -> bool {
        let id = self.handled.load(Ordering::Relaxed);
        self.outbox.push(GuestMessage { id, request: 0, message: Some(message) })
    }

    /// Sends, and waits for the answer; there is none from a node that is lost.
    pub(super) fn ask(&self, message: guest_message::Message) -> Option<Answer> {
        let request = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, answered) = sync_channel(1);
        lock(&self.waiting).as_mut()?.insert(request, answer);
        let id = self.handled.load(Ordering::Relaxed);
        self.outbox.push(GuestMessage { id, request, message: Some(message) });
        answered.recv().ok()
    }

    /// Brings an answer to whoever waits for it.
    pub(super) fn answer(&self, request: u64, answer: Answer) {
        let waiting = lock(&self.waiting).as_mut().and_then(|waiting| waiting.remove(&request));
        if let Some(waiting) = waiting {
            // Whoever waits has room for one, and is there.
            waiting.send(answer).unwrap_or_default();
        }
    }

    /// The node is gone, or has booted the function anew.
    pub(super) fn lose(&self) {
        self.outbox.abandon();
        drop(lock(&self.waiting).take());
        self.phase.send_replace(Phase::Ended);
    }

    pub(super) fn is_lost(&self) -> bool {
        lock(&self.waiting).is_none()
    }

    /// Sends what was put into the outbox, and then nothing more.
    pub(super) async fn finish(&self) {
        self.outbox.close();
        let mut phase = self.phase.subscribe();
        // The sender is part of this session, so waiting cannot fail.
        let reached = phase.wait_for(|phase| *phase != Phase::Running).await.map_or(Phase::Ended, |phase| *phase);
        if reached == Phase::Written {
            let ended = phase.wait_for(|phase| *phase == Phase::Ended);
            tokio::time::timeout(LAST_WRITE, ended).await.map(drop).unwrap_or_default();
        }
    }
}

/// Messages on their way to the node, in order and bounded.
///
/// Any thread may put messages into it, but only the I/O thread takes them out, and must never put any in.
#[derive(Default)]
struct Outbox {
    queue: Mutex<Queue>,
    room: Condvar,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<GuestMessage>,
    bytes: usize,
    reader: Option<Waker>,
    closed: bool,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.messages.len() >= OUTBOX_MESSAGES || self.bytes >= OUTBOX_BYTES
    }
}

impl Outbox {
    fn push(&self, message: GuestMessage) -> bool {
        let mut queue = lock(&self.queue);
        while queue.is_full() && !queue.closed {
            queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.closed {
            return false;
        }
        queue.bytes += size(&message);
        queue.messages.push_back(message);
        let reader = queue.reader.take();
        drop(queue);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    /// Takes nothing more; what is in it is still sent.
    fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        let reader = queue.reader.take();
        drop(queue);
        self.room.notify_all();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Takes nothing more, and drops what is in it.
    fn abandon(&self) {
        let mut queue = lock(&self.queue);
        queue.bytes = 0;
        drop(std::mem::take(&mut queue.messages));
        drop(queue);
        self.close();
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Option<GuestMessage>> {
        let mut queue = lock(&self.queue);
        let was_full = queue.is_full();
        match queue.messages.pop_front() {
            Some(message) => {
                queue.bytes = queue.bytes.saturating_sub(size(&message));
                let has_room = was_full && !queue.is_full();
                drop(queue);
                if has_room {
                    self.room.notify_all();
                }
                Poll::Ready(Some(message))
            }
            None if queue.closed => Poll::Ready(None),
            None => {
                queue.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn size(message: &GuestMessage) -> usize {
    use guest_message::Message::{
        Call, CallRaw, Cast, CastRaw, DelayedCast, Done, Failed, Log, Returned, Sync as Synced,
    };
    match &message.message {
        Some(Cast(output) | Call(output)) => output.msg.len(),
        Some(CastRaw(output) | CallRaw(output)) => output.msg.len(),
        Some(DelayedCast(output)) => output.msg.len(),
        Some(Returned(reply)) => reply.msg.len(),
        Some(Synced(state)) => state.len(),
        Some(Failed(text)) => text.len(),
        Some(Log(line)) => line.msg.len(),
        Some(Done(())) | None => 0,
    }
}

/// The reading end of the outbox of a session. When it is dropped, nothing more can be sent.
pub(super) struct Outgoing(pub(super) Arc<Session>);

impl Stream for Outgoing {
    type Item = GuestMessage;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<GuestMessage>> {
        let next = self.0.outbox.poll(context);
        if let Poll::Ready(None) = next {
            self.0.phase.send_if_modified(|phase| {
                let first = *phase == Phase::Running;
                if first {
                    *phase = Phase::Written;
                }
                first
            });
        }
        next
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.0.outbox.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(bytes: usize) -> guest_message::Message {
        let msg = vec![0; bytes].into();
        guest_message::Message::Cast(super::super::pb::GuestOutput { alias: "out".into(), msg })
    }

    fn take(session: &Session) -> Poll<Option<GuestMessage>> {
        session.outbox.poll(&Context::from_waker(Waker::noop()))
    }

    /// A handler that sends without end must not fill the memory of its container.
    #[test]
    fn a_full_outbox_makes_its_sender_wait_until_there_is_room() {
        for (messages, bytes) in [(OUTBOX_MESSAGES, 0), (2, OUTBOX_BYTES / 2)] {
            let session = Arc::new(Session::new());
            assert!((0..messages).all(|_| session.send(cast(bytes))));
            let sender = std::thread::spawn({
                let session = session.clone();
                move || session.send(cast(bytes))
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!sender.is_finished());
            assert!(matches!(take(&session), Poll::Ready(Some(_))));
            assert!(sender.join().unwrap());
        }
    }

    /// Or a function whose node is gone would never end, and no other node could boot it.
    #[test]
    fn a_lost_node_wakes_whoever_waits() {
        let session = Arc::new(Session::new());
        let caller = std::thread::spawn({
            let session = session.clone();
            move || session.ask(cast(1)).is_none()
        });
        while !matches!(take(&session), Poll::Ready(Some(_))) {
            std::thread::yield_now();
        }
        assert!((0..OUTBOX_MESSAGES).all(|_| session.send(cast(0))));
        let sender = std::thread::spawn({
            let session = session.clone();
            move || session.send(cast(0))
        });
        session.lose();
        assert!(caller.join().unwrap());
        assert!(!sender.join().unwrap());
        assert!(session.is_lost() && session.ask(cast(1)).is_none() && !session.send(cast(1)));
        assert!(matches!(take(&session), Poll::Ready(None)));
    }
}
