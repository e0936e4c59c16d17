//! The error that crosses the wire, and its few kinds.

use std::fmt;

use crate::binary::Digest;

/// What a caller can do about an error. Mapped once to gRPC codes, in `wire`, and once to exit
/// codes, here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is wrong; the message says how to mend it.
    Rejected,
    /// The request names something that does not exist.
    NotFound,
    /// The request asks for something that this peer does not offer.
    Unimplemented,
    /// A limit was met.
    Exhausted,
    /// The request names code by a digest that this peer does not have; the same request with the code
    /// may succeed.
    NeedsCode,
    /// The peer cannot be reached or cannot answer now; the same request may succeed later.
    Unavailable,
    /// The peer did not answer in time; whether it acted is unknown.
    Timeout,
    /// The fault is ours.
    Bug,
}

impl Code {
    /// Whether the outcome is an answer, as opposed to the lack of one.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Rejected | Self::NotFound | Self::Unimplemented | Self::Exhausted | Self::NeedsCode)
    }

    /// The exit code of a command that ends with this error.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Rejected | Self::NotFound | Self::Unimplemented | Self::Exhausted | Self::NeedsCode => 1,
            Self::Unavailable | Self::Timeout => 3,
            Self::Bug => 70,
        }
    }
}

/// Why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Its kind.
    pub code: Code,
    /// The reason; a refusal ends with what to do.
    pub message: String,
}

impl Error {
    /// A request that the caller can mend.
    pub fn rejected(message: impl fmt::Display) -> Self {
        Self { code: Code::Rejected, message: message.to_string() }
    }

    /// A request about something that is not there.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self { code: Code::NotFound, message: message.to_string() }
    }

    /// A request for something that is not offered.
    pub fn unimplemented(message: impl fmt::Display) -> Self {
        Self { code: Code::Unimplemented, message: message.to_string() }
    }

    /// A request beyond a limit.
    pub fn exhausted(message: impl fmt::Display) -> Self {
        Self { code: Code::Exhausted, message: message.to_string() }
    }

    /// A request that names code which is not known here.
    pub fn needs_code(digest: Digest) -> Self {
        let message = format!("the code {digest} is not known here: send it along");
        Self { code: Code::NeedsCode, message }
    }

    /// A request that may succeed later.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self { code: Code::Unavailable, message: message.to_string() }
    }

    /// A request whose outcome is unknown.
    pub fn timeout(message: impl fmt::Display) -> Self {
        Self { code: Code::Timeout, message: message.to_string() }
    }

    /// A fault of ours.
    pub fn bug(message: impl fmt::Display) -> Self {
        Self { code: Code::Bug, message: message.to_string() }
    }

    /// The same kind of error, with what was attempted in front of the reason.
    #[must_use]
    pub fn context(self, attempt: impl fmt::Display) -> Self {
        Self { code: self.code, message: format!("{attempt}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<crate::id::IdError> for Error {
    fn from(error: crate::id::IdError) -> Self {
        Self::rejected(error)
    }
}

impl From<crate::url::UrlError> for Error {
    fn from(error: crate::url::UrlError) -> Self {
        Self::rejected(error)
    }
}
