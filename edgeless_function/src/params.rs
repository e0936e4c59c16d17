//! Parameters in an init payload: `key=value,key=value`.
//!
//! A reading of borrowed text, with no table behind it: functions have a handful of parameters and read
//! each once. There is no escape, so a value holds no comma.

use std::fmt::Display;
use std::str::FromStr;

/// The parameters of an init payload; see [`Message::params`](crate::Message::params).
///
/// Blanks around keys and values do not count. A key without `=` has the value `""`, and of a key that
/// is repeated the last value counts.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a>(&'a str);

impl<'a> Params<'a> {
    /// Wraps the text of an init payload.
    pub const fn new(text: &'a str) -> Self {
        Params(text)
    }

    /// All parameters, in the order in which they were written.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = (&'a str, &'a str)> {
        self.0.split(',').map(|entry| entry.split_once('=').unwrap_or((entry, ""))).filter_map(|(key, value)| {
            let key = key.trim();
            (!key.is_empty()).then(|| (key, value.trim()))
        })
    }

    /// The value of `key`, if it is there.
    pub fn get(self, key: &str) -> Option<&'a str> {
        self.iter().rev().find(|(found, _)| *found == key).map(|(_, value)| value)
    }

    /// The value of `key` as a number or the like, or `default` when the key is absent.
    ///
    /// # Panics
    /// When the value cannot be read. Called in `handle_init`, that refuses the start of the workflow
    /// with a sentence that names key and value, which is better than to run with a value nobody chose.
    #[track_caller]
    pub fn get_or<T>(self, key: &str, default: T) -> T
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some(value) = self.get(key) else { return default };
        match value.parse() {
            Ok(value) => value,
            Err(reason) => refuse(key, value, &reason),
        }
    }
}

#[cold]
#[track_caller]
#[expect(clippy::panic, reason = "a trap in init is how a function refuses to start")]
fn refuse(key: &str, value: &str, reason: &dyn Display) -> ! {
    panic!("init payload: {key}={value}: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_found_whatever_the_blanks() {
        let params = Params::new(" min = 1 ,max=10,verbose,, url=http://a/?b=c");
        assert_eq!(params.get("min"), Some("1"));
        assert_eq!(params.get("max"), Some("10"));
        assert_eq!(params.get("verbose"), Some(""));
        assert_eq!(params.get("url"), Some("http://a/?b=c"), "only the first = separates");
        assert_eq!(params.get(""), None, "an empty entry is none");
        assert_eq!(params.iter().count(), 4);
    }

    #[test]
    fn the_last_of_a_repeated_key_counts() {
        assert_eq!(Params::new("a=1,a=2").get("a"), Some("2"));
    }

    #[test]
    fn an_absent_key_has_its_default() {
        assert_eq!(Params::new("").get_or("window", 5), 5);
        assert_eq!(Params::new("window=7").get_or("window", 5), 7);
    }

    /// A typing error must not turn into the default: the workflow would run, and run wrong.
    #[test]
    #[should_panic(expected = "init payload: window=sven: invalid digit found in string")]
    fn a_value_that_cannot_be_read_refuses_the_start() {
        Params::new("window=sven").get_or("window", 5);
    }
}
