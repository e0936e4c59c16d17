//! Multiplies two matrices for each event: a link of a chain that measures transactions.
//!
//! The first of a chain begins transactions, and logs the number of each under the target `tbegin`.
//! Every one multiplies and passes the number on. The last logs it under the target `tend`: the time
//! between the two is the latency of the transaction, and one without an end was lost.
//!
//! - Outputs: `output` gets the number of the transaction. In a closed loop the last leads to the first.
//! - Init payload: `matrix_size=N` is the number of rows and columns (default 100, at most 2000), `seed=N`
//!   what the matrices are made from (default 42); `first=true` and `last=true` say where in the chain it
//!   is; `interval_ms=N` is the time between two transactions. With 0, the default, it is a closed loop: the
//!   next transaction begins when the last one has ended, or was not heard of for `timeout_ms=N` (default
//!   10000).

mod matrix;

use std::time::Duration;

use edgeless_function::*;

use crate::matrix::Matrix;

/// What the first function sends to itself when it is time to begin a transaction, or to look after one.
const TICK: &str = "tick";
const SIZE_MAX: usize = 2000;

struct MatrixMul {
    left: Matrix,
    right: Matrix,
    product: Matrix,
    first: Option<First>,
    is_last: bool,
    is_loop: bool,
}

/// What the first function of a chain knows of the transactions.
struct First {
    period: Duration,
    transaction: u64,
    /// The transaction at the last tick: one that is still the same is lost.
    at_last_tick: u64,
}

impl Function for MatrixMul {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        let params = payload.params();
        let size = params.get_or("matrix_size", 100);
        assert!((1..=SIZE_MAX).contains(&size), "init payload: matrix_size={size} is not from 1 to {SIZE_MAX}");
        let mut random = Random::new(params.get_or("seed", 42));
        let interval = params.get_or("interval_ms", 0);
        let period = if interval > 0 { interval } else { params.get_or("timeout_ms", 10_000) };
        let first = params.get_or("first", false).then(|| {
            cast("self", TICK);
            First { period: Duration::from_millis(period), transaction: 0, at_last_tick: 0 }
        });
        MatrixMul {
            left: Matrix::random(size, &mut random),
            right: Matrix::random(size, &mut random),
            product: Matrix::zero(size),
            first,
            is_last: params.get_or("last", false),
            is_loop: interval == 0,
        }
    }

    fn handle_cast(&mut self, _source: InstanceId, message: Message) {
        let transaction = match &mut self.first {
            Some(first) if message == TICK => first.tick(self.is_loop),
            Some(first) => first.ended(message),
            None => message.parse().inspect_err(|error| log::error!("{error}")).ok(),
        };
        if let Some(transaction) = transaction {
            self.work(transaction);
        }
    }
}

impl First {
    fn tick(&mut self, is_loop: bool) -> Option<u64> {
        delayed_cast(self.period, "self", TICK);
        let is_under_way = is_loop && self.transaction != self.at_last_tick;
        if !is_under_way {
            self.begin();
        }
        self.at_last_tick = self.transaction;
        (!is_under_way).then_some(self.transaction)
    }

    /// What comes round in a closed loop. Any other but the present transaction was given up.
    fn ended(&mut self, message: Message) -> Option<u64> {
        let is_present = message.parse() == Ok(self.transaction);
        is_present.then(|| self.begin())
    }

    fn begin(&mut self) -> u64 {
        self.transaction += 1;
        log::info!(target: "tbegin", "{}", self.transaction);
        self.transaction
    }
}

impl MatrixMul {
    fn work(&mut self, transaction: u64) {
        self.product.set_product(&self.left, &self.right);
        // Nobody reads the product, and it must be worked out all the same.
        std::hint::black_box(&self.product);
        if self.is_last {
            log::info!(target: "tend", "{transaction}");
        }
        if !self.is_last || self.is_loop {
            cast("output", transaction.to_string());
        }
    }
}

export!(MatrixMul);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects, logs};

    use super::*;

    fn start(payload: &str) -> MatrixMul {
        init_logger();
        MatrixMul::handle_init(format!("matrix_size=3,{payload}").as_str().into(), None)
    }

    fn logged() -> Vec<String> {
        logs().into_iter().map(|line| format!("{} {}", line.target, line.text)).collect()
    }

    fn tick_after(ms: u64) -> Effect {
        Effect::delayed_cast(Duration::from_millis(ms), "self", TICK)
    }

    #[test]
    fn an_open_chain_begins_at_intervals_and_ends_at_the_last() {
        let (mut first, mut last) = (start("first=true,interval_ms=20"), start("last=true,interval_ms=20"));
        assert_eq!(effects(), [Effect::cast("self", TICK)]);
        for number in ["1", "2"] {
            first.handle_cast(testing::SLF, TICK.into());
            assert_eq!(effects(), [tick_after(20), Effect::cast("output", number)]);
            last.handle_cast(testing::SOURCE, number.into());
            assert_eq!(effects(), [], "an open chain leads nowhere");
            assert_eq!(logged(), [format!("tbegin {number}"), format!("tend {number}")]);
        }
    }

    #[test]
    fn a_loop_of_one_begins_when_it_has_ended() {
        let mut only = start("first=true,last=true");
        only.handle_cast(testing::SLF, TICK.into());
        let first = [Effect::cast("self", TICK), tick_after(10_000), Effect::cast("output", "1")];
        assert_eq!(effects(), first);
        only.handle_cast(testing::SLF, "1".into());
        assert_eq!(effects(), [Effect::cast("output", "2")]);
        assert_eq!(logged(), ["tbegin 1", "tend 1", "tbegin 2", "tend 2"]);
    }

    /// A lost event would otherwise end a closed loop for ever, and a late one would make it two.
    #[test]
    fn a_lost_transaction_is_given_up() {
        let mut first = start("first=true,timeout_ms=50");
        effects();
        first.handle_cast(testing::SLF, TICK.into());
        first.handle_cast(testing::SOURCE, "1".into());
        first.handle_cast(testing::SLF, TICK.into());
        let on_the_way = [tick_after(50), Effect::cast("output", "1"), Effect::cast("output", "2"), tick_after(50)];
        assert_eq!(effects(), on_the_way, "2 has begun since the last tick");
        first.handle_cast(testing::SLF, TICK.into());
        assert_eq!(effects(), [tick_after(50), Effect::cast("output", "3")]);
        first.handle_cast(testing::SOURCE, "2".into());
        assert_eq!(effects(), []);
    }

    #[test]
    fn each_event_is_a_multiplication() {
        let mut link = start("");
        let expected = {
            let mut product = Matrix::zero(3);
            product.set_product(&link.left, &link.right);
            product
        };
        link.handle_cast(testing::SOURCE, "no number".into());
        assert_eq!(effects(), []);
        link.handle_cast(testing::SOURCE, "5".into());
        assert_eq!(effects(), [Effect::cast("output", "5")]);
        assert_eq!(link.product, expected);
    }

    #[test]
    #[should_panic(expected = "matrix_size=0 is not from 1 to 2000")]
    fn a_matrix_without_a_size_refuses_the_start() {
        MatrixMul::handle_init("matrix_size=0".into(), None);
    }
}
