//! The host functions in a native build: they go to the node that has booted this process, or, where
//! there is no such process, to the node for tests.

use bytes::Bytes;

use super::link::Answer;
use super::pb::{CallRetType, GuestDelayed, GuestLog, GuestOutput, GuestOutputRaw, guest_message::Message};
use super::{Guest, wire_id};
use crate::testing::node as testing;
use crate::{CallRet, EventId, InstanceId, Uuid};

pub(crate) fn cast(output: &str, payload: &[u8]) {
    match Guest::get() {
        Some(guest) => guest.send(Message::Cast(named(output, payload))),
        None => testing::cast(output, payload),
    }
}

pub(crate) fn cast_raw(target: InstanceId, payload: &[u8]) {
    match Guest::get() {
        Some(guest) => guest.send(Message::CastRaw(raw(target, payload))),
        None => testing::cast_raw(target, payload),
    }
}

pub(crate) fn call(output: &str, payload: &[u8]) -> CallRet {
    match Guest::get() {
        Some(guest) => reply(guest.ask(Message::Call(named(output, payload)))),
        None => testing::call(output, payload),
    }
}

pub(crate) fn call_raw(target: InstanceId, payload: &[u8]) -> CallRet {
    match Guest::get() {
        Some(guest) => reply(guest.ask(Message::CallRaw(raw(target, payload)))),
        None => testing::call_raw(target, payload),
    }
}

pub(crate) fn delayed_cast(delay: u64, output: &str, payload: &[u8]) {
    match Guest::get() {
        Some(guest) => {
            let GuestOutput { alias, msg } = named(output, payload);
            guest.send(Message::DelayedCast(GuestDelayed { alias, msg, delay }));
        }
        None => testing::delayed_cast(delay, output, payload),
    }
}

pub(crate) fn sync(state: &[u8]) {
    match Guest::get() {
        // Nothing is to be done about a node that is lost.
        Some(guest) => drop(unless_refused(guest.ask(Message::Sync(Bytes::copy_from_slice(state))))),
        None => testing::sync(state),
    }
}

pub(crate) fn slf() -> InstanceId {
    let nobody = InstanceId { node: Uuid::from_bytes([0; 16]), function: Uuid::from_bytes([0; 16]) };
    match Guest::get() {
        Some(guest) => guest.session().map_or(nobody, |session| session.instance()),
        None => testing::slf(),
    }
}

pub(crate) fn event_id() -> Option<EventId> {
    match Guest::get() {
        Some(_) => None,
        None => testing::event_id(),
    }
}

pub(crate) fn log(level: log::Level, target: &str, text: &str) {
    let Some(guest) = Guest::get() else { return testing::log(level, target, text) };
    // The node's levels are those of the `log` crate, from 0.
    let line = GuestLog { level: level as i32 - 1, target: target.to_owned(), msg: text.to_owned() };
    let is_sent = guest.session().is_some_and(|session| session.send(Message::Log(line)));
    if !is_sent {
        super::say(&format!("{level} {target}: {text}"));
    }
}

fn named(output: &str, payload: &[u8]) -> GuestOutput {
    GuestOutput { alias: output.to_owned(), msg: Bytes::copy_from_slice(payload) }
}

fn raw(target: InstanceId, payload: &[u8]) -> GuestOutputRaw {
    GuestOutputRaw { dst: Some(wire_id(target)), msg: Bytes::copy_from_slice(payload) }
}

fn reply(answer: Option<Answer>) -> CallRet {
    match unless_refused(answer) {
        Some(Answer::Reply(reply)) => reply,
        Some(Answer::Synced | Answer::Refused(_)) | None => CallRet::Err,
    }
}

#[expect(clippy::panic, reason = "what a node refuses ends the handler, as in a WebAssembly module")]
fn unless_refused(answer: Option<Answer>) -> Option<Answer> {
    match answer {
        Some(Answer::Refused(reason)) => panic!("{reason}"),
        answer => answer,
    }
}

/// The answer to a call, from the wire.
pub(super) fn from_wire(reply: super::pb::CallReturn) -> CallRet {
    match reply.r#type() {
        CallRetType::CallRetNoReply => CallRet::Noreply,
        CallRetType::CallRetReply => CallRet::Reply(reply.msg.into()),
        CallRetType::CallRetErr => CallRet::Err,
    }
}

/// The answer to a call, for the wire.
pub(super) fn to_wire(reply: CallRet) -> super::pb::CallReturn {
    let (kind, msg) = match reply {
        CallRet::Noreply => (CallRetType::CallRetNoReply, Bytes::new()),
        CallRet::Reply(payload) => (CallRetType::CallRetReply, payload.into()),
        CallRet::Err => (CallRetType::CallRetErr, Bytes::new()),
    };
    super::pb::CallReturn { r#type: kind.into(), msg }
}
