//! Casts as many small payloads as it is told, and takes what others cast: both ends of a flood.
//!
//! - Outputs: `out` gets a payload of 100 bytes, N times for a cast with the number N.
//! - Init payload: none.
//!
//! Whatever is no number is taken and forgotten, so that a second instance is where a flood ends.

use edgeless_function::*;

/// What a flood is made of.
const PAYLOAD: [u8; 100] = [b'x'; 100];

struct Flood;

impl Function for Flood {
    fn handle_init(_payload: Message, _state: Option<Message>) -> Self {
        Flood
    }

    fn handle_cast(&mut self, _source: InstanceId, message: Message) {
        let count: u64 = message.parse().unwrap_or(0);
        for _ in 0..count {
            cast("out", PAYLOAD);
        }
    }
}

export!(Flood);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    #[test]
    fn it_casts_as_often_as_it_is_told() {
        let mut flood = Flood::handle_init("".into(), None);
        flood.handle_cast(testing::SOURCE, "3".into());
        let expected: Vec<_> = (0..3).map(|_| Effect::cast("out", "x".repeat(100))).collect();
        assert_eq!(effects(), expected);
    }

    /// Otherwise the end of a flood could not be another of its kind.
    #[test]
    fn what_others_flood_ends_here() {
        let mut flood = Flood::handle_init("".into(), None);
        flood.handle_cast(testing::SOURCE, Message::new(&PAYLOAD));
        assert_eq!(effects(), []);
    }
}
