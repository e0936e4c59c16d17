//! Sends a message at regular intervals.
//!
//! - Outputs: `message` gets the message.
//! - Init payload: `period_ms=N` is the time between two messages, and before the first (default 1000);
//!   `message=TEXT` is the message (default `hello {n}`), in which `{n}` stands for its number, from 1.

use std::time::Duration;

use edgeless_function::*;

/// What the function sends to itself when it is time for the next message.
const TICK: &str = "tick";

struct MessageGenerator {
    period: Duration,
    message: String,
    count: u64,
}

impl Function for MessageGenerator {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        let params = payload.params();
        let period = Duration::from_millis(params.get_or("period_ms", 1000));
        let message = params.get("message").unwrap_or("hello {n}").to_owned();
        delayed_cast(period, "self", TICK);
        MessageGenerator { period, message, count: 0 }
    }

    fn handle_cast(&mut self, source: InstanceId, message: Message) {
        if message != TICK {
            log::warn!("a cast from {source} is dropped: {message}");
            return;
        }
        delayed_cast(self.period, "self", TICK);

        self.count += 1;
        cast("message", self.message.replace("{n}", &self.count.to_string()));
    }
}

export!(MessageGenerator);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    #[test]
    fn each_tick_sets_the_next_and_sends() {
        let period = Duration::from_millis(50);
        let mut generator = MessageGenerator::handle_init("period_ms=50,message={n} of {n}".into(), None);
        assert_eq!(effects(), [Effect::delayed_cast(period, "self", TICK)]);
        for message in ["1 of 1", "2 of 2"] {
            generator.handle_cast(testing::SLF, TICK.into());
            let expected = [Effect::delayed_cast(period, "self", TICK), Effect::cast("message", message)];
            assert_eq!(effects(), expected);
        }
    }

    /// Otherwise every stray cast would start a second train of ticks.
    #[test]
    fn only_a_tick_makes_it_tick() {
        let mut generator = MessageGenerator::handle_init("".into(), None);
        effects();
        generator.handle_cast(testing::SOURCE, "tock".into());
        assert_eq!(effects(), []);
    }
}
