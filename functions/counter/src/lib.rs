//! Counts events, and remembers the count.
//!
//! Every event counts one, whatever it says. A call is answered with the count. The count is saved after
//! each event, so it goes on where it was when the function is started again.
//!
//! - Outputs: `output` gets the count after each event.
//! - Init payload: `start=N` is the count to begin with when none was saved (default 0).

use edgeless_function::*;

struct Counter {
    count: u64,
}

impl Function for Counter {
    fn handle_init(payload: Message, state: Option<Message>) -> Self {
        let start = payload.params().get_or("start", 0);
        let saved = state.and_then(|state| {
            let count = state.parse().inspect_err(|error| log::error!("the saved count is lost: {error}"));
            count.ok()
        });
        Counter { count: saved.unwrap_or(start) }
    }

    fn handle_cast(&mut self, _source: InstanceId, _message: Message) {
        self.count_one();
    }

    fn handle_call(&mut self, _source: InstanceId, _message: Message) -> CallRet {
        CallRet::reply(self.count_one())
    }
}

impl Counter {
    fn count_one(&mut self) -> String {
        self.count = self.count.saturating_add(1);
        let count = self.count.to_string();
        sync(&count);
        cast("output", &count);
        count
    }
}

export!(Counter);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    #[test]
    fn casts_and_calls_count_alike() {
        let mut counter = Counter::handle_init("".into(), None);
        counter.handle_cast(testing::SOURCE, "anything".into());
        assert_eq!(counter.handle_call(testing::SOURCE, "".into()), CallRet::reply("2"));
        let expected = [Effect::sync("1"), Effect::cast("output", "1"), Effect::sync("2"), Effect::cast("output", "2")];
        assert_eq!(effects(), expected);
    }

    /// A restart must not begin at `start` again: that is where a first life begins.
    #[test]
    fn a_saved_count_goes_on() {
        let count =
            |payload: &str, state: Option<&str>| Counter::handle_init(payload.into(), state.map(Into::into)).count;
        assert_eq!(count("start=10", None), 10);
        assert_eq!(count("start=10", Some("41")), 41);
        assert_eq!(count("start=10", Some("damaged")), 10);
    }
}
