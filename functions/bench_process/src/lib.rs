//! Works on a part of the data of a map-reduce benchmark: takes processor time and memory.
//!
//! A message is a line that says what the part belongs to, and the part: decimal digits. For each message
//! a Fibonacci number is worked out in full and memory is written and read again. Then every digit of the
//! part goes up by the last digit of that number (after 9 comes 0), so that whoever has the result can
//! check it.
//!
//! - Outputs: `result` gets the same line and the new digits.
//! - Init payload: `fibonacci=N` says which number (default 1000, at most 100000; twice as many take four
//!   times as long), `memory_bytes=N` how much memory (default 0).

mod work;

use edgeless_function::*;

const FIBONACCI_MAX: usize = 100_000;

struct Process {
    fibonacci: usize,
    memory_bytes: usize,
}

impl Function for Process {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        let params = payload.params();
        let fibonacci = params.get_or("fibonacci", 1000);
        assert!(fibonacci <= FIBONACCI_MAX, "init payload: fibonacci={fibonacci} is more than {FIBONACCI_MAX}");
        Process { fibonacci, memory_bytes: params.get_or("memory_bytes", 0) }
    }

    fn handle_cast(&mut self, source: InstanceId, message: Message) {
        let Some((head, digits)) = message.text().ok().and_then(|text| text.split_once('\n')) else {
            return log::error!("what {source} sent is no line with data behind it");
        };
        if let Err(error) = work::touch(self.memory_bytes) {
            return log::error!("there is no room for {} bytes: {error}", self.memory_bytes);
        }
        let shift = work::fibonacci_last_digit(self.fibonacci);
        cast("result", format!("{head}\n{}", work::shifted(digits, shift)));
    }
}

export!(Process);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    #[test]
    fn digits_go_up_and_the_line_stays() {
        // The tenth Fibonacci number is 55.
        let mut process = Process::handle_init("fibonacci=10,memory_bytes=100000".into(), None);
        process.handle_cast(testing::SOURCE, "7 0\n0459".into());
        process.handle_cast(testing::SOURCE, "7 1\n".into());
        process.handle_cast(testing::SOURCE, "no line".into());
        assert_eq!(effects(), [Effect::cast("result", "7 0\n5904"), Effect::cast("result", "7 1\n")]);
    }

    #[test]
    #[should_panic(expected = "fibonacci=100001 is more than 100000")]
    fn what_would_take_for_ever_refuses_the_start() {
        Process::handle_init("fibonacci=100001".into(), None);
    }
}
