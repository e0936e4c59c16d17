//! Answers calls: `ping 7` with `pong 7`, and so on.
//!
//! - Outputs: none.
//! - Init payload: none.

use edgeless_function::*;

struct Pong;

impl Function for Pong {
    fn handle_init(_payload: Message, _state: Option<Message>) -> Self {
        Pong
    }

    fn handle_call(&mut self, _source: InstanceId, message: Message) -> CallRet {
        CallRet::reply(message.to_string().replace("ping", "pong"))
    }
}

export!(Pong);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_answered_with_its_pong() {
        let mut pong = Pong::handle_init("".into(), None);
        assert_eq!(pong.handle_call(testing::SOURCE, "ping 7".into()), CallRet::reply("pong 7"));
    }
}
