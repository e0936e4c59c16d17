//! A node for tests: it remembers what a function asks for, and answers its calls.
//!
//! Only in native builds. There is one such node per thread, and the test harness runs each test on a
//! thread of its own, so tests do not see each other. Nothing is delivered: a cast to `self` is an
//! effect like any other, and the test decides what happens next.
//!
//! ```
//! use edgeless_function::testing::{self, Effect};
//! use edgeless_function::*;
//!
//! # struct Incr;
//! # impl Function for Incr {
//! #     fn handle_init(_: Message, _: Option<Message>) -> Self { Incr }
//! #     fn handle_cast(&mut self, _: InstanceId, message: Message) {
//! #         cast("result", (message.parse::<i64>().unwrap() + 1).to_string());
//! #     }
//! # }
//! let mut incr = Incr::handle_init("".into(), None);
//! incr.handle_cast(testing::SOURCE, "41".into());
//! assert_eq!(testing::effects(), [Effect::cast("result", "42")]);
//! ```

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use crate::{CallRet, EventId, InstanceId, Message, Uuid};

/// The instance under test, as [`slf`](crate::slf) gives it.
pub const SLF: InstanceId = InstanceId { node: Uuid::from_bytes([0xaa; 16]), function: Uuid::from_bytes([0xbb; 16]) };

/// Some other instance, for events that must come from somewhere.
pub const SOURCE: InstanceId =
    InstanceId { node: Uuid::from_bytes([0xcc; 16]), function: Uuid::from_bytes([0xdd; 16]) };

/// Where an event was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To an output, by name.
    Output(String),
    /// To an instance, with `cast_raw` or `call_raw`.
    Instance(InstanceId),
}

/// What a function asked of the node.
#[derive(Clone, PartialEq, Eq)]
pub enum Effect {
    /// An event was sent.
    Cast {
        /// To where.
        target: Target,
        /// With what.
        payload: Vec<u8>,
    },
    /// An event was sent and its answer awaited.
    Call {
        /// To where.
        target: Target,
        /// With what.
        payload: Vec<u8>,
    },
    /// An event is to be sent.
    DelayedCast {
        /// After this time.
        delay: Duration,
        /// To this output.
        output: String,
        /// With what.
        payload: Vec<u8>,
    },
    /// The state was saved.
    Sync {
        /// All of it.
        state: Vec<u8>,
    },
}

/// A line that the function logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How grave.
    pub level: log::Level,
    /// The module that logged, or the target that it gave.
    pub target: String,
    /// The line.
    pub text: String,
}

/// Takes what the function asked for since the last time, in order. Logging is apart, in [`logs`].
pub fn effects() -> Vec<Effect> {
    HOST.with_borrow_mut(|host| std::mem::take(&mut host.effects))
}

/// Takes what the function logged since the last time.
///
/// The logger is one for the process; `init_logger` must have been called.
pub fn logs() -> Vec<LogLine> {
    HOST.with_borrow_mut(|host| std::mem::take(&mut host.logs))
}

/// Says how calls of the function are answered; without it they are errors.
///
/// The closure may not ask anything of the node itself.
pub fn answer_calls(answer: impl FnMut(&Target, Message<'_>) -> CallRet + 'static) {
    HOST.with_borrow_mut(|host| host.answer = Some(Box::new(answer)));
}

impl Effect {
    /// A cast to an output or an instance.
    pub fn cast(target: impl Into<Target>, payload: impl Into<Vec<u8>>) -> Self {
        Effect::Cast { target: target.into(), payload: payload.into() }
    }

    /// A call of an output or an instance.
    pub fn call(target: impl Into<Target>, payload: impl Into<Vec<u8>>) -> Self {
        Effect::Call { target: target.into(), payload: payload.into() }
    }

    /// A cast to an output, later.
    pub fn delayed_cast(delay: Duration, output: &str, payload: impl Into<Vec<u8>>) -> Self {
        Effect::DelayedCast { delay, output: output.to_owned(), payload: payload.into() }
    }

    /// A saved state.
    pub fn sync(state: impl Into<Vec<u8>>) -> Self {
        Effect::Sync { state: state.into() }
    }
}

/// Prints payloads as text, for they mostly are, and a failed assertion should be readable.
impl fmt::Debug for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Cast { target, payload } => write!(f, "cast({target:?}, {:?})", Message::new(payload)),
            Effect::Call { target, payload } => write!(f, "call({target:?}, {:?})", Message::new(payload)),
            Effect::DelayedCast { delay, output, payload } => {
                write!(f, "delayed_cast({delay:?}, {output:?}, {:?})", Message::new(payload))
            }
            Effect::Sync { state } => write!(f, "sync({:?})", Message::new(state)),
        }
    }
}

impl From<&str> for Target {
    fn from(output: &str) -> Self {
        Target::Output(output.to_owned())
    }
}

/// From now on the events in hand have this id, as [`event_id`](crate::event_id) gives it.
pub fn set_event_id(id: Option<EventId>) {
    HOST.with_borrow_mut(|host| host.event_id = id);
}

impl From<InstanceId> for Target {
    fn from(instance: InstanceId) -> Self {
        Target::Instance(instance)
    }
}

type Answer = Box<dyn FnMut(&Target, Message<'_>) -> CallRet>;

struct Host {
    effects: Vec<Effect>,
    logs: Vec<LogLine>,
    answer: Option<Answer>,
    event_id: Option<EventId>,
}

thread_local! {
    static HOST: RefCell<Host> =
        const { RefCell::new(Host { effects: Vec::new(), logs: Vec::new(), answer: None, event_id: None }) };
}

/// Stands in for the imports of the module.
pub(crate) mod node {
    use super::{Duration, Effect, HOST, LogLine, SLF, Target};
    use crate::{CallRet, EventId, InstanceId, Message};

    pub(crate) fn cast(output: &str, payload: &[u8]) {
        remember(Effect::cast(output, payload));
    }

    pub(crate) fn cast_raw(target: InstanceId, payload: &[u8]) {
        remember(Effect::cast(target, payload));
    }

    pub(crate) fn call(output: &str, payload: &[u8]) -> CallRet {
        answer(output.into(), payload)
    }

    pub(crate) fn call_raw(target: InstanceId, payload: &[u8]) -> CallRet {
        answer(target.into(), payload)
    }

    pub(crate) fn delayed_cast(delay_ms: u64, output: &str, payload: &[u8]) {
        remember(Effect::delayed_cast(Duration::from_millis(delay_ms), output, payload));
    }

    pub(crate) fn sync(state: &[u8]) {
        remember(Effect::sync(state));
    }

    pub(crate) fn slf() -> InstanceId {
        SLF
    }

    pub(crate) fn event_id() -> Option<EventId> {
        HOST.with_borrow(|host| host.event_id)
    }

    pub(crate) fn log(level: log::Level, target: &str, text: &str) {
        let line = LogLine { level, target: target.to_owned(), text: text.to_owned() };
        HOST.with_borrow_mut(|host| host.logs.push(line));
    }

    fn remember(effect: Effect) {
        HOST.with_borrow_mut(|host| host.effects.push(effect));
    }

    fn answer(target: Target, payload: &[u8]) -> CallRet {
        HOST.with_borrow_mut(|host| {
            let answer = match &mut host.answer {
                Some(answer) => answer(&target, Message::new(payload)),
                None => CallRet::Err,
            };
            host.effects.push(Effect::Call { target, payload: payload.to_vec() });
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;

    #[test]
    fn effects_are_remembered_in_order_and_taken_once() {
        cast("output", "a");
        cast_raw(SOURCE, b"\xff");
        delayed_cast(Duration::from_micros(2500), "self", "tick");
        sync("state");
        let expected = [
            Effect::cast("output", "a"),
            Effect::cast(SOURCE, b"\xff"),
            Effect::delayed_cast(Duration::from_millis(2), "self", "tick"),
            Effect::sync("state"),
        ];
        assert_eq!(effects(), expected);
        assert_eq!(effects(), []);
        assert_eq!(slf(), SLF);
        assert_eq!(event_id(), None);
        let id = Some(EventId { outbox: SLF.node, number: 7 });
        set_event_id(id);
        assert_eq!(event_id(), id);
    }

    #[test]
    fn calls_are_answered_by_the_test() {
        assert_eq!(call("nobody", "?"), CallRet::Err);

        answer_calls(|target, message| CallRet::reply(format!("{target:?} {message}")));
        assert_eq!(call("output", "?"), CallRet::reply(r#"Output("output") ?"#));
        let Some(reply) = call_raw(SLF, "!").message().map(|reply| reply.to_string()) else { panic!("no reply") };
        assert!(reply.starts_with("Instance(") && reply.ends_with('!'), "{reply}");
        let expected = [Effect::call("nobody", "?"), Effect::call("output", "?"), Effect::call(SLF, "!")];
        assert_eq!(effects(), expected);
    }

    /// Level, target and text are all that a node shows of a line, so all must get there; and the
    /// level debug is what is promised as the lowest.
    #[test]
    fn lines_are_logged_from_level_debug_upwards() {
        init_logger();
        init_logger();
        log::debug!("plain");
        log::error!(target: "elsewhere", "{}", 42);
        log::trace!("too fine");
        let line = |level, target: &str, text: &str| LogLine { level, target: target.into(), text: text.into() };
        let expected = [line(log::Level::Debug, module_path!(), "plain"), line(log::Level::Error, "elsewhere", "42")];
        assert_eq!(logs(), expected);
    }
}
