//! Doubles a number.
//!
//! A cast is passed on, a call is answered, with the result. What is not a whole number of 64 bits, or
//! has a result that is none, is logged and goes no further.
//!
//! - Outputs: `result` gets the result of each cast.
//! - Init payload: none.

use edgeless_function::*;

struct Double;

impl Function for Double {
    fn handle_init(_payload: Message, _state: Option<Message>) -> Self {
        Double
    }

    fn handle_cast(&mut self, _source: InstanceId, message: Message) {
        match double(message) {
            Ok(result) => cast("result", result),
            Err(reason) => log::error!("{reason}"),
        }
    }

    fn handle_call(&mut self, _source: InstanceId, message: Message) -> CallRet {
        match double(message) {
            Ok(result) => CallRet::reply(result),
            Err(reason) => {
                log::error!("{reason}");
                CallRet::Err
            }
        }
    }
}

fn double(message: Message) -> Result<String, String> {
    let value: i64 = message.parse().map_err(|error| error.to_string())?;
    let result = value.checked_mul(2).ok_or_else(|| format!("{value} * 2 is too large"))?;
    Ok(result.to_string())
}

export!(Double);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    #[test]
    fn a_cast_is_passed_on_and_a_call_answered() {
        let mut function = Double::handle_init("".into(), None);
        function.handle_cast(testing::SOURCE, "20".into());
        assert_eq!(effects(), [Effect::cast("result", "40")]);
        assert_eq!(function.handle_call(testing::SOURCE, "-4\n".into()), CallRet::reply("-8"));
        assert_eq!(effects(), []);
    }

    /// A number that wraps around would be worse than none.
    #[test]
    fn what_has_no_result_goes_no_further() {
        let mut function = Double::handle_init("".into(), None);
        for message in ["", "one", "2.5", "9223372036854775807"] {
            function.handle_cast(testing::SOURCE, message.into());
            assert_eq!(function.handle_call(testing::SOURCE, message.into()), CallRet::Err, "{message}");
        }
        assert_eq!(effects(), []);
    }
}
