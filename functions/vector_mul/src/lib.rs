//! Multiplies a vector by a matrix: a link of a loop that measures transactions.
//!
//! One function of the loop is the client. It makes a vector, logs the number of the transaction under
//! the target `tbegin`, and sends both off; when they come back it logs the number under the target
//! `tend` and begins the next. Every other function multiplies the vector by a matrix of its own. A
//! message is the number of the transaction and the elements of the vector, separated by blanks.
//!
//! - Outputs: `output` gets the message; the last one leads back to the client.
//! - Init payload: `input_size=N` is the size of the vector (default 100, at most 3000), `seed=N` what
//!   vectors and matrix are made from (default 42); `client=true` makes it the client. A client gives up a
//!   transaction that it has not heard of for `timeout_ms=N` (default 10000): such a one has no end.

mod matrix;

use std::fmt::Write;
use std::time::Duration;

use edgeless_function::*;

use crate::matrix::Matrix;

/// What the client sends to itself when it is time to look after a transaction.
const TICK: &str = "tick";
const SIZE_MAX: usize = 3000;

enum VectorMul {
    Client(Client),
    Link(Matrix),
}

struct Client {
    size: usize,
    random: Random,
    timeout: Duration,
    transaction: u64,
    /// The transaction at the last tick: one that is still the same is lost.
    at_last_tick: u64,
}

impl Function for VectorMul {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        let params = payload.params();
        let size = params.get_or("input_size", 100);
        assert!((1..=SIZE_MAX).contains(&size), "init payload: input_size={size} is not from 1 to {SIZE_MAX}");
        let mut random = Random::new(params.get_or("seed", 42));
        if !params.get_or("client", false) {
            return VectorMul::Link(Matrix::random(size, &mut random));
        }
        let timeout = Duration::from_millis(params.get_or("timeout_ms", 10_000));
        cast("self", TICK);
        VectorMul::Client(Client { size, random, timeout, transaction: 0, at_last_tick: 0 })
    }

    fn handle_cast(&mut self, source: InstanceId, message: Message) {
        match self {
            VectorMul::Client(client) if message == TICK => client.tick(),
            VectorMul::Client(client) => client.take(message),
            VectorMul::Link(matrix) => match multiply(matrix, message) {
                Some(product) => cast("output", product),
                None => log::error!("what {source} sent is no number and vector of this size"),
            },
        }
    }
}

impl Client {
    fn tick(&mut self) {
        delayed_cast(self.timeout, "self", TICK);
        if self.transaction == self.at_last_tick {
            self.begin();
        }
        self.at_last_tick = self.transaction;
    }

    /// What came round. Any other but the present transaction was given up.
    fn take(&mut self, message: Message) {
        let Some((transaction, vector)) = parse(message) else { return log::error!("this is no transaction") };
        if transaction != self.transaction {
            return log::warn!("transaction {transaction} is late");
        }
        if vector.len() != self.size {
            return log::error!("the vector of transaction {transaction} has {} elements", vector.len());
        }
        log::info!(target: "tend", "{transaction}");
        self.begin();
    }

    fn begin(&mut self) {
        self.transaction += 1;
        let vector: Vec<f64> = (0..self.size).map(|_| self.random.fraction()).collect();
        log::info!(target: "tbegin", "{}", self.transaction);
        cast("output", text(self.transaction, &vector));
    }
}

fn multiply(matrix: &Matrix, message: Message) -> Option<String> {
    let (transaction, vector) = parse(message)?;
    Some(text(transaction, &matrix.by(&vector)?))
}

fn parse(message: Message) -> Option<(u64, Vec<f64>)> {
    let mut words = message.text().ok()?.split(' ');
    let transaction = words.next()?.parse().ok()?;
    Some((transaction, words.map(|word| word.parse().ok()).collect::<Option<_>>()?))
}

fn text(transaction: u64, vector: &[f64]) -> String {
    let mut text = transaction.to_string();
    for value in vector {
        // A String never fails to be written to.
        write!(text, " {value}").ok();
    }
    text
}

export!(VectorMul);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, Target, effects, logs};

    use super::*;

    fn sent(effect: &Effect) -> String {
        let Effect::Cast { target: Target::Output(output), payload } = effect else { panic!("{effect:?}") };
        assert_eq!(output, "output");
        String::from_utf8(payload.clone()).unwrap()
    }

    fn logged() -> Vec<String> {
        logs().into_iter().map(|line| format!("{} {}", line.target, line.text)).collect()
    }

    #[test]
    fn a_transaction_comes_round_and_the_next_begins() {
        init_logger();
        let mut client = VectorMul::handle_init("client=true,input_size=4".into(), None);
        let mut link = VectorMul::handle_init("input_size=4,seed=7".into(), None);
        assert_eq!(effects(), [Effect::cast("self", TICK)]);
        client.handle_cast(testing::SLF, TICK.into());
        let began = effects();
        assert_eq!(began[0], Effect::delayed_cast(Duration::from_secs(10), "self", TICK));
        let (number, vector) = parse(sent(&began[1]).as_str().into()).unwrap();
        assert_eq!((number, vector.len(), logged()), (1, 4, vec!["tbegin 1".to_string()]));

        link.handle_cast(testing::SOURCE, sent(&began[1]).as_str().into());
        let product = sent(&effects()[0]);
        let matrix = Matrix::random(4, &mut Random::new(7));
        assert_eq!(parse(product.as_str().into()), Some((1, matrix.by(&vector).unwrap())), "text loses no digit");

        client.handle_cast(testing::SOURCE, product.as_str().into());
        assert!(sent(&effects()[0]).starts_with("2 "));
        assert_eq!(logged(), ["tend 1", "tbegin 2"]);
    }

    /// A lost event would otherwise end the loop for ever, and a late one would make it two.
    #[test]
    fn a_lost_transaction_is_given_up() {
        let mut client = VectorMul::handle_init("client=true,input_size=1".into(), None);
        client.handle_cast(testing::SLF, TICK.into());
        effects();
        client.handle_cast(testing::SLF, TICK.into());
        assert!(sent(&effects()[1]).starts_with("2 "));
        client.handle_cast(testing::SOURCE, "1 0.5".into());
        assert_eq!(effects(), []);
    }

    #[test]
    fn what_is_no_vector_of_the_size_goes_no_further() {
        let mut link = VectorMul::handle_init("input_size=2".into(), None);
        for message in ["", "1", "1 0.5", "1 0.5 0.5 0.5", "1 0.5 half", "one 0.5 0.5"] {
            link.handle_cast(testing::SOURCE, message.into());
        }
        assert_eq!(effects(), []);
    }
}
