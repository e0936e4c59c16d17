//! Errors: between [`Error`] and gRPC codes, and between [`Error`] and the refusals that EDGELESS
//! 1.2 puts into answers that are otherwise fine.

use std::error::Error as _;

use tonic::{Code as Grpc, Status};

use super::pb;
use crate::error::{Code, Error};

const CODES: [(Code, Grpc); 7] = [
    (Code::Rejected, Grpc::InvalidArgument),
    (Code::NotFound, Grpc::NotFound),
    (Code::Unimplemented, Grpc::Unimplemented),
    (Code::Exhausted, Grpc::ResourceExhausted),
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
        let code = match status.code() {
            Grpc::FailedPrecondition | Grpc::OutOfRange | Grpc::AlreadyExists => Code::Rejected,
            // What tonic reports when the deadline of the caller passes.
            Grpc::Cancelled => Code::Timeout,
            // A connection that broke; the source says how.
            Grpc::Unknown if status.source().is_some() => Code::Unavailable,
            grpc => CODES.iter().find(|(_, known)| *known == grpc).map_or(Code::Bug, |(code, _)| *code),
        };
        let message = match root_cause(&status) {
            Some(cause) if code == Code::Unavailable => cause,
            _ if status.message().is_empty() => format!("the peer answered {:?}", status.code()),
            _ => status.message().to_string(),
        };
        Self { code, message }
    }
}

/// The innermost reason: "connection refused" says more than "transport error".
fn root_cause(status: &Status) -> Option<String> {
    let mut cause = status.source()?;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Some(cause.to_string())
}

/// The kinds of refusal, as answers carry them.
const KINDS: [(Code, &str); 4] = [
    (Code::Rejected, "rejected"),
    (Code::NotFound, "not_found"),
    (Code::Unimplemented, "unimplemented"),
    (Code::Exhausted, "exhausted"),
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
