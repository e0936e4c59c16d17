//! Errors: between [`Error`] and gRPC codes, and between [`Error`] and the refusals that EDGELESS
//! 1.2 puts into answers that are otherwise fine.

use std::error::Error as _;

use tonic::{Code as Grpc, Status};

use super::pb;
use crate::error::{Code, Error};

const CODES: [(Code, Grpc); 8] = [
    (Code::Rejected, Grpc::InvalidArgument),
    (Code::NotFound, Grpc::NotFound),
    (Code::Unimplemented, Grpc::Unimplemented),
    (Code::Exhausted, Grpc::ResourceExhausted),
    (Code::NeedsCode, Grpc::FailedPrecondition),
    (Code::Unavailable, Grpc::Unavailable),
    (Code::Timeout, Grpc::DeadlineExceeded),
    (Code::Bug, Grpc::Internal),
];

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = CODES.iter().find(|(code, _)| *code == error.code).map_or(Grpc::Internal, |(_, grpc)| *grpc);
        Self::new(code, error.message)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let is_too_large = status.message().contains(TOO_LARGE);
        let code = match status.code() {
            Grpc::OutOfRange if is_too_large => Code::Exhausted,
            Grpc::OutOfRange | Grpc::AlreadyExists => Code::Rejected,
            Grpc::Cancelled if Fault::of(&status) == Fault::Closed => Code::Unavailable,
            // An answer that was cut off.
            Grpc::Unknown if Fault::of(&status) == Fault::NoGrpc => Code::Unavailable,
            // What tonic reports when the deadline of the caller passes.
            Grpc::Cancelled => Code::Timeout,
            // A connection that broke; the source says how.
            Grpc::Unknown if status.source().is_some() => Code::Unavailable,
            grpc => CODES.iter().find(|(_, known)| *known == grpc).map_or(Code::Bug, |(code, _)| *code),
        };
        let message = match root_cause(&status) {
            Some(cause) if code == Code::Unavailable => cause,
            _ if code == Code::Exhausted && is_too_large => too_large(status.message()),
            _ if status.message().is_empty() => format!("the peer answered {:?}", status.code()),
            _ => status.message().to_string(),
        };
        Self { code, message }
    }
}

/// Whose fault it is that a call failed. tonic tells these apart by text alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The peer said so.
    Said,
    /// The peer speaks gRPC and does not have the service.
    NoService,
    /// What answers does not speak gRPC.
    NoGrpc,
    /// The peer closed the connection before it answered: so do servers of HTTP/1.
    Closed,
    /// The peer was not heard.
    Other,
}

impl Fault {
    pub(crate) fn of(status: &Status) -> Self {
        let text = root_cause(status).unwrap_or_else(|| status.message().to_string());
        let says = |texts: &[&str]| texts.iter().any(|part| text.contains(part));
        match status.source() {
            Some(_) if says(&["frame with invalid size"]) => Self::NoGrpc,
            Some(_) if says(&["broken pipe", "connection closed", "connection reset"]) => Self::Closed,
            Some(_) => Self::Other,
            None if says(&["grpc-status header missing", "missing grpc-status trailer"]) => Self::NoGrpc,
            None if status.code() == Grpc::Unimplemented && text.is_empty() => Self::NoService,
            // Its server has let the deadline of the call pass.
            None if status.code() == Grpc::Cancelled => Self::Other,
            None => Self::Said,
        }
    }
}

/// The innermost reason: "connection refused" says more than "transport error".
fn root_cause(status: &Status) -> Option<String> {
    let mut cause = status.source()?;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Some(in_our_wording(&cause.to_string()))
}

/// "Connection refused (os error 111)" without the capital and the number.
fn in_our_wording(cause: &str) -> String {
    let cause = cause.rsplit_once(" (os error ").map_or(cause, |(cause, _)| cause);
    let start = cause.rfind(": ").map_or(0, |colon| colon + 2);
    let (attempt, reason) = cause.split_at(start);
    let mut letters = reason.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_lowercase).collect();
    format!("{attempt}{first}{}", letters.as_str())
}

/// How tonic speaks of a message over the limit of its receiver.
const TOO_LARGE: &str = "message length too large";

fn too_large(message: &str) -> String {
    let sizes = message.split_once("too large: ").map_or(message, |(_, sizes)| sizes);
    format!(
        "a message is too large: {sizes}; send less, or raise 'max_message_size' (of a node: the keys of [limits]) of the daemon that receives it"
    )
}

/// The kinds of refusal, as answers carry them.
const KINDS: [(Code, &str); 5] = [
    (Code::Rejected, "rejected"),
    (Code::NotFound, "not_found"),
    (Code::Unimplemented, "unimplemented"),
    (Code::Exhausted, "exhausted"),
    (Code::NeedsCode, "needs_code"),
];

/// The refusal that goes into an answer. Scripts take any '-' on the first line for a success, so
/// that a summary has none.
pub(crate) fn refusal(summary: &str, error: &Error) -> pb::ResponseError {
    let kind = KINDS.iter().find(|(code, _)| *code == error.code).map_or("", |(_, kind)| kind).to_string();
    pb::ResponseError { summary: summary.replace('-', " "), detail: Some(error.message.clone()), kind }
}

impl From<pb::ResponseError> for Error {
    fn from(error: pb::ResponseError) -> Self {
        let code = KINDS.iter().find(|(_, kind)| *kind == error.kind).map_or(Code::Rejected, |(code, _)| *code);
        let message = error.detail.filter(|detail| !detail.is_empty()).unwrap_or(error.summary);
        Self { code, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_operating_system_are_made_ours() {
        for (said, ours) in [
            ("Connection refused (os error 111)", "connection refused"),
            (
                "failed to lookup address: Name or service not known",
                "failed to lookup address: name or service not known",
            ),
            ("", ""),
        ] {
            assert_eq!(in_our_wording(said), ours);
        }
    }

    #[test]
    fn a_message_over_the_limit_is_told_with_what_to_raise() {
        let said = "Error, decoded message length too large: found 70 bytes, the limit is: 64 bytes";
        let ours = "a message is too large: found 70 bytes, the limit is: 64 bytes; send less, or raise \
                    'max_message_size' (of a node: the keys of [limits]) of the daemon that receives it";
        assert_eq!(Error::from(Status::out_of_range(said)), Error::exhausted(ours));
        assert_eq!(Error::from(Status::resource_exhausted(said)), Error::exhausted(ours));
        assert_eq!(Error::from(Status::out_of_range("no such page")), Error::rejected("no such page"));
    }

    #[test]
    fn every_code_survives_the_wire() {
        for (code, _) in CODES {
            let error = Error { code, message: "why".into() };
            assert_eq!(Error::from(Status::from(error.clone())), error);
            if code.is_refusal() {
                assert_eq!(Error::from(refusal("a-summary", &error)), error);
                assert_eq!(refusal("a-summary", &error).summary, "a summary", "scripts look for a '-'");
            }
        }
    }
}
