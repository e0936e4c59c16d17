//! The payload of an event, as a handler sees it.
//!
//! A message is bytes, borrowed from the buffer in which the node delivered them, so handling one costs
//! no copy. What the bytes mean is between sender and receiver; the methods here are for the usual case
//! of text.

use std::fmt;
use std::str::{FromStr, Utf8Error};

use crate::Params;

/// The payload of an event: bytes, with text at hand.
///
/// As text for people, print it with `{}`: what is not UTF-8 becomes `�`. As text for programs, take
/// [`text`](Message::text) or [`parse`](Message::parse), which refuse what is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message<'a>(&'a [u8]);

/// Says that a message could not be read as the type that was wanted, and quotes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    text: String,
    wanted: &'static str,
}

impl<'a> Message<'a> {
    /// Wraps bytes.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Message(bytes)
    }

    /// The bytes.
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether there are no bytes at all.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The message as text, if it is UTF-8.
    pub fn text(self) -> Result<&'a str, Utf8Error> {
        std::str::from_utf8(self.0)
    }

    /// Reads the message as a number, or as anything else that is written as text.
    ///
    /// Blanks around it do not count.
    pub fn parse<T: FromStr>(self) -> Result<T, ParseError> {
        let value = self.text().ok().and_then(|text| text.trim().parse().ok());
        value.ok_or_else(|| ParseError { text: self.to_string(), wanted: std::any::type_name::<T>() })
    }

    /// Reads an init payload of the form `key=value,key=value`.
    ///
    /// A message that is not UTF-8 has no parameters.
    pub fn params(self) -> Params<'a> {
        Params::new(self.text().unwrap_or_default())
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Message(bytes)
    }
}

impl<'a> From<&'a str> for Message<'a> {
    fn from(text: &'a str) -> Self {
        Message(text.as_bytes())
    }
}

impl<'a> From<Message<'a>> for Vec<u8> {
    fn from(message: Message<'a>) -> Self {
        message.0.to_vec()
    }
}

impl AsRef<[u8]> for Message<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0
    }
}

impl PartialEq<&str> for Message<'_> {
    fn eq(&self, text: &&str) -> bool {
        self.0 == text.as_bytes()
    }
}

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0))
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.0))
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read {:?} as {}", self.text, self.wanted)
    }
}

impl std::error::Error for ParseError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages are often typed at a shell or echoed with a line end; those are still numbers.
    #[test]
    fn numbers_may_have_blanks_around_them() {
        assert_eq!(Message::from(" 42\n").parse::<i64>(), Ok(42));
        assert_eq!(Message::from("-0.5").parse::<f64>(), Ok(-0.5));
    }

    /// The error is often all that the author of a workflow sees, so it must show the culprit.
    #[test]
    fn what_is_no_number_is_quoted() {
        let error = Message::from("four").parse::<i64>().unwrap_err();
        assert_eq!(error.to_string(), "cannot read \"four\" as i64");
        let error = Message::new(b"4\xff").parse::<i64>().unwrap_err();
        assert_eq!(error.to_string(), "cannot read \"4\u{fffd}\" as i64");
    }

    /// Payloads are bytes on our nodes: text must be refused where it is none, not repaired in silence.
    #[test]
    fn text_is_strict_and_printing_is_not() {
        let message = Message::new(b"caf\xe9");
        assert!(message.text().is_err());
        assert_eq!(message.to_string(), "caf\u{fffd}");
        assert_eq!(message.bytes(), b"caf\xe9");
    }
}
