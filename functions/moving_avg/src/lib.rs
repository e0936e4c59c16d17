//! Averages the last few numbers.
//!
//! Until there are enough of them, it averages those that there are. What is not a finite number is
//! logged and does not count.
//!
//! - Outputs: `output` gets the new average after each number.
//! - Init payload: `window=N` is how many numbers are averaged (default 5, at most 100000).

use std::collections::VecDeque;

use edgeless_function::*;

const WINDOW_MAX: usize = 100_000;

struct MovingAvg {
    window: usize,
    values: VecDeque<f64>,
}

impl Function for MovingAvg {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        let window = payload.params().get_or("window", 5);
        assert!((1..=WINDOW_MAX).contains(&window), "init payload: window={window} is not from 1 to {WINDOW_MAX}");
        MovingAvg { window, values: VecDeque::new() }
    }

    fn handle_cast(&mut self, _source: InstanceId, message: Message) {
        match message.parse::<f64>() {
            Ok(value) if value.is_finite() => cast("output", self.average_with(value).to_string()),
            Ok(value) => log::error!("{value} has no average"),
            Err(error) => log::error!("{error}"),
        }
    }
}

impl MovingAvg {
    fn average_with(&mut self, value: f64) -> f64 {
        if self.values.len() == self.window {
            self.values.pop_front();
        }
        self.values.push_back(value);
        // Summed afresh each time: a sum that is carried along drifts away from the truth.
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }
}

export!(MovingAvg);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    #[test]
    fn the_oldest_number_leaves_the_window() {
        let mut average = MovingAvg::handle_init("window=2".into(), None);
        for message in ["1", "2", "warm", "inf", "4"] {
            average.handle_cast(testing::SOURCE, message.into());
        }
        let averages = ["1", "1.5", "3"].map(|average| Effect::cast("output", average));
        assert_eq!(effects(), averages, "what is no number takes no place");
    }

    #[test]
    #[should_panic(expected = "window=0 is not from 1 to 100000")]
    fn an_empty_window_refuses_the_start() {
        MovingAvg::handle_init("window=0".into(), None);
    }
}
