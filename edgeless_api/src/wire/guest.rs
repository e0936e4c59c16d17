//! What a node and a guest in a container say to each other.

use std::time::Duration;

use bytes::Bytes;

use super::node::millis;
use super::{pb, required};
use crate::error::Error;
use crate::event::Reply;
use crate::guest::{Ask, Boot, FromGuest, FromGuestKind, Goal, Request, Tell, ToGuest};
use crate::id::InstanceId;
use crate::status::Level;

impl From<Reply> for pb::CallReturn {
    fn from(reply: Reply) -> Self {
        let (kind, msg) = match reply {
            Reply::Empty => (pb::CallRetType::CallRetNoReply, Bytes::new()),
            Reply::Message(payload) => (pb::CallRetType::CallRetReply, payload),
            Reply::Error => (pb::CallRetType::CallRetErr, Bytes::new()),
        };
        Self { r#type: kind.into(), msg }
    }
}

impl From<pb::CallReturn> for Reply {
    fn from(returned: pb::CallReturn) -> Self {
        match pb::CallRetType::try_from(returned.r#type) {
            Ok(pb::CallRetType::CallRetNoReply) => Self::Empty,
            Ok(pb::CallRetType::CallRetReply) => Self::Message(returned.msg),
            Ok(pb::CallRetType::CallRetErr) | Err(_) => Self::Error,
        }
    }
}

/// A level that is not known is an error's, as in the WebAssembly interface.
pub(crate) fn level(number: i32) -> Level {
    match pb::TelemetryLogLevel::try_from(number) {
        Ok(pb::TelemetryLogLevel::LogWarn) => Level::Warn,
        Ok(pb::TelemetryLogLevel::LogInfo) => Level::Info,
        Ok(pb::TelemetryLogLevel::LogDebug) => Level::Debug,
        Ok(pb::TelemetryLogLevel::LogTrace) => Level::Trace,
        Ok(pb::TelemetryLogLevel::LogError) | Err(_) => Level::Error,
    }
}

pub(crate) fn number(level: Level) -> i32 {
    match level {
        Level::Error => pb::TelemetryLogLevel::LogError,
        Level::Warn => pb::TelemetryLogLevel::LogWarn,
        Level::Info => pb::TelemetryLogLevel::LogInfo,
        Level::Debug => pb::TelemetryLogLevel::LogDebug,
        Level::Trace => pb::TelemetryLogLevel::LogTrace,
    }
    .into()
}

impl From<Boot> for pb::BootData {
    fn from(boot: Boot) -> Self {
        Self { guest_api_host_endpoint: boot.host, instance_id: Some(boot.id.into()), token: boot.token }
    }
}

impl TryFrom<pb::BootData> for Boot {
    type Error = Error;

    fn try_from(boot: pb::BootData) -> Result<Self, Error> {
        let id = required(boot.instance_id, "instance_id")?.try_into()?;
        Ok(Self { host: boot.guest_api_host_endpoint, id, token: boot.token })
    }
}

pub(crate) fn input(source: InstanceId, payload: Bytes) -> pb::InputEventData {
    pb::InputEventData { src: Some(source.into()), msg: payload }
}

pub(crate) fn event(input: pb::InputEventData) -> Result<(InstanceId, Bytes), Error> {
    Ok((required(input.src, "src")?.try_into()?, input.msg))
}

impl From<ToGuest> for pb::HostMessage {
    fn from(message: ToGuest) -> Self {
        use pb::host_message::Message;
        let (id, message) = match message {
            ToGuest::Request(id, request) => (id, request.into()),
            ToGuest::Reply(id, reply) => (id, Message::Reply(reply.into())),
            ToGuest::Synced(id) => (id, Message::Synced(())),
            ToGuest::Refused(id, reason) => (id, Message::Refused(reason)),
        };
        Self { id, message: Some(message) }
    }
}

impl From<Request> for pb::host_message::Message {
    fn from(request: Request) -> Self {
        match request {
            Request::Boot(boot) => Self::Boot(boot.into()),
            Request::Init { payload, state } => {
                Self::Init(pb::FunctionInstanceInit { init_payload: payload, serialized_state: state })
            }
            Request::Cast { source, payload } => Self::Cast(input(source, payload)),
            Request::Call { source, payload } => Self::Call(input(source, payload)),
            Request::Stop => Self::Stop(()),
        }
    }
}

impl TryFrom<pb::HostMessage> for ToGuest {
    type Error = Error;

    fn try_from(message: pb::HostMessage) -> Result<Self, Error> {
        use pb::host_message::Message;
        let id = message.id;
        Ok(match required(message.message, "message")? {
            Message::Reply(reply) => Self::Reply(id, reply.into()),
            Message::Synced(()) => Self::Synced(id),
            Message::Refused(reason) => Self::Refused(id, reason),
            Message::Boot(boot) => Self::Request(id, Request::Boot(boot.try_into()?)),
            Message::Init(init) => {
                Self::Request(id, Request::Init { payload: init.init_payload, state: init.serialized_state })
            }
            Message::Cast(input) => {
                let (source, payload) = event(input)?;
                Self::Request(id, Request::Cast { source, payload })
            }
            Message::Call(input) => {
                let (source, payload) = event(input)?;
                Self::Request(id, Request::Call { source, payload })
            }
            Message::Stop(()) => Self::Request(id, Request::Stop),
        })
    }
}

fn output(goal: Goal, msg: Bytes) -> Result<pb::GuestOutput, pb::GuestOutputRaw> {
    match goal {
        Goal::Output(alias) => Ok(pb::GuestOutput { alias, msg }),
        Goal::Instance(id) => Err(pb::GuestOutputRaw { dst: Some(id.into()), msg }),
    }
}

impl From<FromGuest> for pb::GuestMessage {
    fn from(message: FromGuest) -> Self {
        use pb::guest_message::Message;
        let (request, said) = match message.said {
            FromGuestKind::Done => (0, Message::Done(())),
            FromGuestKind::Returned(reply) => (0, Message::Returned(reply.into())),
            FromGuestKind::Failed(reason) => (0, Message::Failed(reason)),
            FromGuestKind::Tell(Tell::Cast(goal, payload)) => {
                (0, output(goal, payload).map_or_else(Message::CastRaw, Message::Cast))
            }
            FromGuestKind::Tell(Tell::DelayedCast(delay, alias, msg)) => {
                (0, Message::DelayedCast(pb::GuestDelayed { alias, msg, delay: millis(delay) }))
            }
            FromGuestKind::Tell(Tell::Log(level, target, msg)) => {
                (0, Message::Log(pb::GuestLog { level: number(level), target, msg }))
            }
            FromGuestKind::Ask(request, Ask::Call(goal, payload)) => {
                (request, output(goal, payload).map_or_else(Message::CallRaw, Message::Call))
            }
            FromGuestKind::Ask(request, Ask::Sync(state)) => (request, Message::Sync(state)),
        };
        Self { id: message.id, request, message: Some(said) }
    }
}

impl TryFrom<pb::GuestMessage> for FromGuest {
    type Error = Error;

    fn try_from(message: pb::GuestMessage) -> Result<Self, Error> {
        use pb::guest_message::Message;
        let request = message.request;
        let raw = |raw: pb::GuestOutputRaw| -> Result<_, Error> {
            Ok((Goal::Instance(required(raw.dst, "dst")?.try_into()?), raw.msg))
        };
        let said = match required(message.message, "message")? {
            Message::Done(()) => FromGuestKind::Done,
            Message::Returned(reply) => FromGuestKind::Returned(reply.into()),
            Message::Failed(reason) => FromGuestKind::Failed(reason),
            Message::Cast(output) => FromGuestKind::Tell(Tell::Cast(Goal::Output(output.alias), output.msg)),
            Message::CastRaw(output) => {
                let (goal, payload) = raw(output)?;
                FromGuestKind::Tell(Tell::Cast(goal, payload))
            }
            Message::Call(output) => FromGuestKind::Ask(request, Ask::Call(Goal::Output(output.alias), output.msg)),
            Message::CallRaw(output) => {
                let (goal, payload) = raw(output)?;
                FromGuestKind::Ask(request, Ask::Call(goal, payload))
            }
            Message::DelayedCast(pb::GuestDelayed { alias, msg, delay }) => {
                FromGuestKind::Tell(Tell::DelayedCast(Duration::from_millis(delay), alias, msg))
            }
            Message::Log(pb::GuestLog { level: number, target, msg }) => {
                FromGuestKind::Tell(Tell::Log(level(number), target, msg))
            }
            Message::Sync(state) => FromGuestKind::Ask(request, Ask::Sync(state)),
        };
        Ok(Self { id: message.id, said })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    /// Each word both ways: one that changes on its way would be another.
    #[test]
    fn what_is_said_arrives_as_it_was_said() {
        let id = InstanceId::random(NodeId::random());
        let payload = Bytes::from_static(&[0, 0xff]);
        let boot = Boot { host: "http://10.0.0.1:7100".into(), id, token: "secret".into() };
        for message in [
            ToGuest::Request(1, Request::Boot(boot)),
            ToGuest::Request(2, Request::Init { payload: "a=b".into(), state: payload.clone() }),
            ToGuest::Request(3, Request::Cast { source: id, payload: payload.clone() }),
            ToGuest::Request(4, Request::Call { source: id, payload: payload.clone() }),
            ToGuest::Request(5, Request::Stop),
            ToGuest::Reply(1, Reply::Empty),
            ToGuest::Reply(2, Reply::Error),
            ToGuest::Reply(3, Reply::Message(payload.clone())),
            ToGuest::Synced(4),
            ToGuest::Refused(5, "no such output".into()),
        ] {
            assert_eq!(ToGuest::try_from(pb::HostMessage::from(message.clone())).unwrap(), message);
        }
        let (out, raw) = (Goal::Output("out".into()), Goal::Instance(id));
        for said in [
            FromGuestKind::Done,
            FromGuestKind::Returned(Reply::Message(payload.clone())),
            FromGuestKind::Failed("panicked".into()),
            FromGuestKind::Tell(Tell::Cast(out.clone(), payload.clone())),
            FromGuestKind::Tell(Tell::Cast(raw.clone(), payload.clone())),
            FromGuestKind::Tell(Tell::DelayedCast(Duration::from_millis(7), "self".into(), payload.clone())),
            FromGuestKind::Tell(Tell::Log(Level::Error, "t".into(), "m".into())),
            FromGuestKind::Tell(Tell::Log(Level::Trace, "t".into(), "m".into())),
            FromGuestKind::Ask(1, Ask::Call(out, payload.clone())),
            FromGuestKind::Ask(2, Ask::Call(raw, payload.clone())),
            FromGuestKind::Ask(3, Ask::Sync(payload)),
        ] {
            let message = FromGuest { id: 9, said };
            assert_eq!(FromGuest::try_from(pb::GuestMessage::from(message.clone())).unwrap(), message);
        }
        assert!(FromGuest::try_from(pb::GuestMessage::default()).is_err(), "a message without a word");
    }
}
