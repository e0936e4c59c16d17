//! The two ways to write a function, and the answer to a call.
//!
//! Both forms have the same four handlers. [`Function`] is a value that lives from init to stop, so its
//! fields are its memory; [`Edgefunction`] has static handlers and leaves memory to its author. Only
//! the traits live here: what calls them is made by [`export!`](crate::export!).

use std::fmt;

use crate::{InstanceId, Message};

/// A function as a value: made by [`handle_init`](Function::handle_init), it then handles one event at a time.
pub trait Function: Sized + 'static {
    /// Makes the function from the `init-payload` annotation and the state last saved with [`sync`](crate::sync).
    ///
    /// The payload is empty when there is no annotation. There is no state on a first start, and an
    /// empty state counts as none. A panic here refuses the start of the workflow, with its message.
    fn handle_init(payload: Message, state: Option<Message>) -> Self;

    /// Handles an event that expects no answer.
    ///
    /// Unless implemented, a cast is logged as a warning and dropped.
    fn handle_cast(&mut self, source: InstanceId, message: Message) {
        let _ = message;
        log::warn!("a cast from {source} is dropped: this function takes calls only");
    }

    /// Answers an event whose sender waits.
    ///
    /// Unless implemented, a call is an error for its caller.
    fn handle_call(&mut self, source: InstanceId, message: Message) -> CallRet {
        let _ = message;
        log::warn!("a call from {source} is refused: this function takes casts only");
        CallRet::Err
    }

    /// Cleans up; the function is dropped afterwards and no handler is called any more.
    fn handle_stop(&mut self) {}
}

/// A function as four static handlers, with text for messages.
///
/// A message that is not UTF-8 never reaches the handlers: a cast is dropped with a warning, a call is
/// an error for its caller. Where messages are not text, or the function has memory, use [`Function`].
pub trait Edgefunction: 'static {
    /// Handles an event that expects no answer.
    fn handle_cast(src: InstanceId, encoded_message: String);

    /// Answers an event whose sender waits.
    fn handle_call(src: InstanceId, encoded_message: String) -> CallRet;

    /// Starts the function, with the `init-payload` annotation (or `""`) and the state last saved, if any.
    ///
    /// A panic here refuses the start of the workflow, with its message.
    fn handle_init(payload: String, serialized_state: Option<String>);

    /// Cleans up; no handler is called any more.
    fn handle_stop();
}

/// The answer to a call.
#[derive(Clone, PartialEq, Eq)]
pub enum CallRet {
    /// The call was handled and there is nothing to say.
    Noreply,
    /// The reply; [`CallRet::reply`] takes text as well as bytes.
    Reply(Vec<u8>),
    /// The call failed; the caller learns nothing more than that.
    Err,
}

impl CallRet {
    /// Replies with `payload`, which may be text or bytes.
    pub fn reply(payload: impl Into<Vec<u8>>) -> Self {
        CallRet::Reply(payload.into())
    }

    /// The reply as a message, or `None` when there was no reply or an error.
    pub fn message(&self) -> Option<Message<'_>> {
        match self {
            CallRet::Reply(payload) => Some(Message::new(payload)),
            CallRet::Noreply | CallRet::Err => None,
        }
    }
}

/// Prints a reply as text, which it mostly is.
impl fmt::Debug for CallRet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallRet::Noreply => f.write_str("Noreply"),
            CallRet::Reply(payload) => write!(f, "Reply({:?})", Message::new(payload)),
            CallRet::Err => f.write_str("Err"),
        }
    }
}
