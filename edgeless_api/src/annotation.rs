//! What is wrong with the value of an annotation that has a meaning.

/// The longest part of a value that a refusal repeats, characters.
const SHOWN: usize = 80;

/// An annotation has a value that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation '{key}'{reason}")]
pub struct AnnotationError {
    key: &'static str,
    /// What follows the key.
    reason: String,
}

impl AnnotationError {
    /// The value is none of those that the annotation may have.
    pub(crate) fn value(key: &'static str, value: &str, reason: impl std::fmt::Display) -> Self {
        Self { key, reason: format!(" has the value '{}': {reason}", shown(value)) }
    }

    /// The value is no amount; the reason repeats it.
    pub(crate) fn amount(key: &'static str, reason: &str) -> Self {
        Self { key, reason: format!(": {reason}") }
    }

    /// The value does not go with that of another annotation.
    pub(crate) fn conflict(key: &'static str, reason: &str) -> Self {
        Self { key, reason: format!(" {reason}") }
    }
}

/// So much of a value as a refusal repeats.
pub(crate) fn shown(value: &str) -> String {
    value.chars().take(SHOWN).collect()
}
