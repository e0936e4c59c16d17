//! Passes on the numbers within a range, as they were written, and drops the others.
//!
//! - Outputs: `output` gets the numbers within the range; `error` gets a line about each message that is
//!   not a number.
//! - Init payload: `min=X` and `max=X` are the first and the last number of the range; a side that is
//!   left out is open.

use edgeless_function::*;

struct FilterInRange {
    min: f64,
    max: f64,
}

impl Function for FilterInRange {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        let params = payload.params();
        let (min, max) = (params.get_or("min", f64::NEG_INFINITY), params.get_or("max", f64::INFINITY));
        assert!(min <= max, "init payload: no number is between min={min} and max={max}");
        FilterInRange { min, max }
    }

    fn handle_cast(&mut self, _source: InstanceId, message: Message) {
        match message.parse::<f64>() {
            Ok(value) if self.min <= value && value <= self.max => cast("output", message),
            Ok(value) => log::debug!("{value} is not between {} and {}", self.min, self.max),
            Err(error) => cast("error", error.to_string()),
        }
    }
}

export!(FilterInRange);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    fn passed(payload: &str, messages: &[&str]) -> Vec<Effect> {
        let mut filter = FilterInRange::handle_init(payload.into(), None);
        messages.iter().for_each(|message| filter.handle_cast(testing::SOURCE, (*message).into()));
        effects()
    }

    #[test]
    fn both_ends_belong_to_the_range() {
        let expected = [Effect::cast("output", "-1"), Effect::cast("output", "0.50"), Effect::cast("output", "2e0")];
        assert_eq!(passed("min=-1,max=2", &["-1.001", "-1", "0.50", "2e0", "2.001", "nan"]), expected);
    }

    #[test]
    fn a_side_that_is_left_out_is_open() {
        let expected = [Effect::cast("output", "-1e300"), Effect::cast("output", "0")];
        assert_eq!(passed("max=0", &["-1e300", "0", "1"]), expected);
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        assert_eq!(passed("", &["warm"]), [Effect::cast("error", "cannot read \"warm\" as f64")]);
    }

    #[test]
    #[should_panic(expected = "no number is between min=2 and max=1")]
    fn an_empty_range_refuses_the_start() {
        FilterInRange::handle_init("min=2,max=1".into(), None);
    }
}
