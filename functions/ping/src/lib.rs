//! Calls another function at regular intervals, and logs what it answers.
//!
//! - Outputs: `pong` is called.
//! - Init payload: `period_ms=N` is the time between two calls (default 1000).

use std::time::Duration;

use edgeless_function::*;

/// What the function sends to itself when it is time for the next call.
const TICK: &str = "tick";

struct Ping {
    period: Duration,
    count: u64,
}

impl Function for Ping {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        let period = Duration::from_millis(payload.params().get_or("period_ms", 1000));
        delayed_cast(period, "self", TICK);
        Ping { period, count: 0 }
    }

    fn handle_cast(&mut self, source: InstanceId, message: Message) {
        if message != TICK {
            log::warn!("a cast from {source} is dropped: {message}");
            return;
        }
        delayed_cast(self.period, "self", TICK);

        self.count += 1;
        match call("pong", format!("ping {}", self.count)) {
            CallRet::Reply(reply) => log::info!("ping {} was answered: {}", self.count, Message::new(&reply)),
            CallRet::Noreply => log::warn!("ping {} was taken without an answer", self.count),
            CallRet::Err => log::error!("ping {} failed", self.count),
        }
    }
}

export!(Ping);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects, logs};

    use super::*;

    const PERIOD: Duration = Duration::from_millis(50);

    #[test]
    fn each_tick_sets_the_next_and_calls() {
        init_logger();
        let mut ping = Ping::handle_init("period_ms=50".into(), None);
        assert_eq!(effects(), [Effect::delayed_cast(PERIOD, "self", TICK)]);

        testing::answer_calls(|_, message| CallRet::reply(format!("{message}, indeed")));
        ping.handle_cast(testing::SLF, TICK.into());
        assert_eq!(effects(), [Effect::delayed_cast(PERIOD, "self", TICK), Effect::call("pong", "ping 1")]);
        assert_eq!(logs().pop().unwrap().text, "ping 1 was answered: ping 1, indeed");
    }

    /// Otherwise every stray cast would start a second train of ticks.
    #[test]
    fn only_a_tick_makes_it_tick() {
        let mut ping = Ping::handle_init("".into(), None);
        effects();
        ping.handle_cast(testing::SOURCE, "tock".into());
        assert_eq!(effects(), []);
    }
}
