//! Passes casts on: the smallest link of a chain or a ring. A call is answered with what it says.
//!
//! - Outputs: `next` gets each cast as it came.
//! - Init payload: none.

use edgeless_function::*;

struct Relay;

impl Function for Relay {
    fn handle_init(_payload: Message, _state: Option<Message>) -> Self {
        Relay
    }

    fn handle_cast(&mut self, _source: InstanceId, message: Message) {
        cast("next", message);
    }

    fn handle_call(&mut self, _source: InstanceId, message: Message) -> CallRet {
        CallRet::reply(message)
    }
}

export!(Relay);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    #[test]
    fn what_comes_is_passed_on_as_it_is() {
        let mut relay = Relay::handle_init("".into(), None);
        relay.handle_cast(testing::SOURCE, "a token".into());
        relay.handle_cast(testing::SOURCE, "".into());
        assert_eq!(effects(), [Effect::cast("next", "a token"), Effect::cast("next", "")]);
    }

    #[test]
    fn a_call_comes_back() {
        let mut relay = Relay::handle_init("".into(), None);
        assert_eq!(relay.handle_call(testing::SOURCE, "a token".into()), CallRet::reply("a token"));
        assert_eq!(effects(), []);
    }
}
