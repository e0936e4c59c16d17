//! The code of a function as a value: named by its digest, with its bytes or without.
//!
//! Whoever has the bytes computed the digest from them, so that a [`Binary`] with bytes is never the
//! wrong one. Where both travel together, the receiver checks one by the other.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// The SHA-256 of some code: its name, wherever it is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The code of a function. Clones share its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Binary {
    digest: Digest,
    bytes: Option<Bytes>,
}

impl Binary {
    /// Code whose bytes are kept elsewhere.
    pub fn named(digest: Digest) -> Self {
        Self { digest, bytes: None }
    }

    /// Its name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its bytes, if they came along.
    pub fn bytes(&self) -> Option<&Bytes> {
        self.bytes.as_ref()
    }

    /// Whether there is no code: what the function is made of is named otherwise, or not at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.as_ref().is_some_and(Bytes::is_empty)
    }

    /// The same code in a copy of its own: what arrived is a part of a message, and keeps the whole of
    /// it in memory.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { digest: self.digest, bytes: self.bytes.as_deref().map(Bytes::copy_from_slice) }
    }

    /// Whether others hold the same bytes.
    pub fn is_shared(&self) -> bool {
        self.bytes.as_ref().is_some_and(|bytes| !bytes.is_unique())
    }

    /// The same code by its name alone.
    #[must_use]
    pub fn without_bytes(&self) -> Self {
        if self.is_empty() { self.clone() } else { Self::named(self.digest) }
    }
}

impl Default for Binary {
    /// No code.
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl From<Bytes> for Binary {
    fn from(bytes: Bytes) -> Self {
        Self { digest: Digest::of(&bytes), bytes: Some(bytes) }
    }
}

impl From<Vec<u8>> for Binary {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl fmt::Debug for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bytes {
            Some(bytes) => write!(f, "Binary({}, {} bytes)", self.digest, bytes.len()),
            None => write!(f, "Binary({})", self.digest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_named_by_its_content() {
        let abc = Binary::from(Bytes::from_static(b"abc"));
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(abc.digest().to_string(), known);
        let named = abc.without_bytes();
        assert_eq!((named.digest(), named.bytes(), named.is_empty()), (abc.digest(), None, false));
        assert!(Binary::default().is_empty() && Binary::default().without_bytes().is_empty());
    }
}
