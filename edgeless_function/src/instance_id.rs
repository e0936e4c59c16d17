//! Who sent an event, and whom a raw event is for.
//!
//! An instance is named by its node and by its own id there. Ids are opaque: a function gets them from
//! the node (as a source, or from [`slf`](crate::slf)) and gives them back to it.

use std::fmt;
use std::str::FromStr;

/// A UUID, printed in the usual form `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid([u8; 16]);

/// Says that a text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseUuidError;

/// A running function or resource: the node that hosts it, and its id on that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    /// The node.
    pub node: Uuid,
    /// The function or resource on that node.
    pub function: Uuid,
}

/// What a repeat of an event is known by: no two events have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Of the component that sent it, wherever that runs.
    pub outbox: Uuid,
    /// Which of its events it is; later ones have larger numbers.
    pub number: u64,
}

impl Uuid {
    /// Makes a UUID from its 16 bytes, the most significant first.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Uuid(bytes)
    }

    /// The 16 bytes, the most significant first.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            if matches!(position, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = ParseUuidError;

    /// Reads the usual form, in either case.
    fn from_str(text: &str) -> Result<Self, ParseUuidError> {
        let dashes =
            text.len() == 36 && text.bytes().enumerate().all(|(i, c)| (c == b'-') == matches!(i, 8 | 13 | 18 | 23));
        let mut digits = text.chars().filter_map(|digit| digit.to_digit(16));
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            let (Some(high), Some(low)) = (digits.next(), digits.next()) else { return Err(ParseUuidError) };
            *byte = (high << 4 | low) as u8;
        }
        if dashes { Ok(Uuid(bytes)) } else { Err(ParseUuidError) }
    }
}

impl fmt::Display for ParseUuidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
    }
}

impl std::error::Error for ParseUuidError {}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId(node_id: {}, function_id: {})", self.node, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "fda6ce79-46df-4f96-a0d2-456f720f606c";

    #[test]
    fn a_uuid_is_printed_as_it_is_read() {
        let uuid: Uuid = TEXT.parse().unwrap();
        assert_eq!(uuid.to_string(), TEXT);
        assert_eq!(uuid.as_bytes()[..4], [0xfd, 0xa6, 0xce, 0x79], "the most significant byte comes first");
        assert_eq!(TEXT.to_uppercase().parse(), Ok(uuid));
    }

    #[test]
    fn what_is_not_quite_a_uuid_is_refused() {
        let too_short = &TEXT[..35];
        let no_dashes = TEXT.replace('-', "");
        let dash_moved = "fda6ce794-6df-4f96-a0d2-456f720f606c";
        let no_digit = TEXT.replace('f', "g");
        for text in ["", too_short, &no_dashes, dash_moved, &no_digit] {
            assert_eq!(text.parse::<Uuid>(), Err(ParseUuidError), "{text}");
        }
    }
}
