//! Whether a workflow is moved when a domain is merely out of reach: read from its annotations.

use std::time::Duration;

use crate::component::Annotations;

/// The annotation of a workflow that is read here, with what it means: what docs and checks share.
pub const KEY: (&str, &str) =
    ("relocate", "`after:<time>`: components in a domain that is out of reach for this long are started elsewhere");
const AFTER: &str = "after:";
/// The longest time: a year.
const MOST: u64 = 365 * 24 * 3600 * 1000;

/// After how long components leave a domain that is out of reach; `None`: not before it is known to be gone.
///
/// # Errors
/// The annotation has a value that cannot be understood.
pub fn parse(annotations: &Annotations) -> Result<Option<Duration>, String> {
    let Some(text) = annotations.get(KEY.0) else { return Ok(None) };
    let time = text.trim().strip_prefix(AFTER).and_then(|time| time_of(time.trim()));
    time.map(Some).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        format!(
            "annotation '{}' has the value '{shown}': write after:<time>, such as after:30s, after:5m or after:1h",
            KEY.0
        )
    })
}

fn time_of(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let factor = match unit.trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => return None,
    };
    let time = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=MOST).contains(&time).then_some(Duration::from_millis(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Option<Duration>, String> {
        parse(&Annotations::from([(KEY.0.to_string(), value.to_string())]))
    }

    #[test]
    fn a_time_is_read() {
        assert_eq!(parse(&Annotations::new()), Ok(None));
        for (value, seconds) in [("after:30s", 30), ("after: 5m", 300), ("after:1h", 3600), ("after:2000ms", 2)] {
            assert_eq!(read(value), Ok(Some(Duration::from_secs(seconds))), "{value}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for value in [
            "",
            "30s",
            "after:",
            "after:30",
            "after:s",
            "after:-1s",
            "after:0s",
            "after:99999999999999999h",
            "after:1y",
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains("'relocate'") && error.contains("after:30s"), "{error}");
        }
    }
}
