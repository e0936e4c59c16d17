//! How many instances a function shall have, and which of them gets an event: read from its annotations.

use std::fmt;
use std::str::FromStr;

use crate::annotation::AnnotationError;
use crate::component::Annotations;

/// The most instances that a function may be given.
pub const MAX_INSTANCES: u32 = 1000;
/// The longest pointer into a payload, bytes.
const MAX_POINTER: usize = 256;

const MIN: &str = "min_instances";
const MAX: &str = "max_instances";
const PARTITION: &str = "partition_by";

/// The annotations that are read here, with what they mean: the list that docs and checks share.
pub const KEYS: [(&str, &str); 3] = [
    (MIN, "0 to 1000, 1 by default: so many instances are kept; with 0, the first event starts one"),
    (MAX, "1 to 1000, by default as many as `min_instances`, at least 1: more are added while events wait"),
    (PARTITION, "`payload`, `source` or `json:<pointer>`: events that are equal in this go to the same instance"),
];

/// The instances of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// As many are kept even if they are idle.
    pub min: u32,
    /// There are never more.
    pub max: u32,
    /// What keeps events together; `None`: each goes to the next instance.
    pub partition_by: Option<PartitionBy>,
}

impl Default for Scale {
    /// One instance.
    fn default() -> Self {
        Self { min: 1, max: 1, partition_by: None }
    }
}

impl Scale {
    /// Reads the annotations about instances and ignores all others.
    ///
    /// # Errors
    /// A known key has a value that cannot be understood, or the minimum is above the maximum.
    pub fn parse(annotations: &Annotations) -> Result<Self, AnnotationError> {
        let min = number(annotations, MIN, 0)?;
        let max = number(annotations, MAX, 1)?;
        let partition_by = match annotations.get(PARTITION) {
            None => None,
            Some(text) => Some(text.parse().map_err(|reason: String| AnnotationError::value(PARTITION, text, reason))?),
        };
        let scale = Self { min: min.unwrap_or(1), max: max.unwrap_or(min.unwrap_or(1).max(1)), partition_by };
        if scale.min > scale.max {
            let reason =
                format!("is {}, more than {MAX}, which is {}: raise the one or lower the other", scale.min, scale.max);
            return Err(AnnotationError::conflict(MIN, &reason));
        }
        Ok(scale)
    }

    /// Whether there may be several instances at once.
    pub fn is_multiple(&self) -> bool {
        self.max > 1
    }
}

fn number(annotations: &Annotations, key: &'static str, least: u32) -> Result<Option<u32>, AnnotationError> {
    let Some(text) = annotations.get(key) else { return Ok(None) };
    let number = text.trim().parse().ok().filter(|number| (least..=MAX_INSTANCES).contains(number));
    let wrong = || AnnotationError::value(key, text, format!("write a number from {least} to {MAX_INSTANCES}"));
    number.map(Some).ok_or_else(wrong)
}

/// What events to the same instance have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionBy {
    /// Their payload.
    Payload,
    /// The instance that sent them.
    Source,
    /// What is at this place of their payload, which is JSON: a pointer such as `/user/id`; empty: all of it.
    Json(String),
}

impl FromStr for PartitionBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "payload" => return Ok(Self::Payload),
            "source" => return Ok(Self::Source),
            _ => {}
        }
        let pointer =
            text.strip_prefix("json:").ok_or("write payload, source or json:<pointer>, such as json:/user/id")?;
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return Err("a pointer is empty or begins with '/', such as json:/user/id".into());
        }
        if pointer.len() > MAX_POINTER {
            return Err(format!("the pointer is longer than {MAX_POINTER} bytes: name something nearer to the top"));
        }
        Ok(Self::Json(pointer.into()))
    }
}

impl fmt::Display for PartitionBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Payload => f.write_str("payload"),
            Self::Source => f.write_str("source"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Scale, String> {
        let annotations = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Scale::parse(&annotations).map_err(|error| error.to_string())
    }

    #[test]
    fn the_numbers_of_instances_are_read() {
        for (pairs, expected) in [
            (vec![], (1, 1)),
            (vec![(MIN, "0")], (0, 1)),
            (vec![(MIN, "3")], (3, 3)),
            (vec![(MAX, "3")], (1, 3)),
            (vec![(MIN, "2"), (MAX, "1000")], (2, 1000)),
            (vec![(MIN, "0"), (MAX, "1")], (0, 1)),
        ] {
            let scale = parse(&pairs).unwrap();
            assert_eq!((scale.min, scale.max), expected, "{pairs:?}");
            assert_eq!(scale.is_multiple(), scale.max > 1);
        }
    }

    #[test]
    fn a_number_that_is_none_or_too_large_is_refused() {
        for (key, value, range) in [
            (MIN, "-1", "0 to 1000"),
            (MIN, "1001", "0 to 1000"),
            (MIN, "", "0 to 1000"),
            (MAX, "0", "1 to 1000"),
            (MAX, "99999999999999999999", "1 to 1000"),
            (MAX, "many", "1 to 1000"),
        ] {
            let expected = format!("annotation '{key}' has the value '{value}': write a number from {range}");
            assert_eq!(parse(&[(key, value)]).unwrap_err(), expected);
        }
        let error = parse(&[(MIN, "3"), (MAX, "2")]).unwrap_err();
        assert!(error.starts_with("annotation 'min_instances' is 3, more than max_instances, which is 2"), "{error}");
    }

    #[test]
    fn what_keeps_events_together_is_read_and_shown_alike() {
        for text in ["payload", "source", "json:", "json:/user/id"] {
            assert_eq!(parse(&[(PARTITION, text)]).unwrap().partition_by.unwrap().to_string(), text);
        }
        for wrong in ["", "Payload", "json", "json:user", "/user"] {
            let error = parse(&[(PARTITION, wrong)]).unwrap_err();
            assert!(error.contains("'partition_by'") && error.contains("json:/user/id"), "{error}");
        }
        assert!(parse(&[(PARTITION, &format!("json:/{}", "a".repeat(300)))]).unwrap_err().contains("longer than 256"));
    }
}
