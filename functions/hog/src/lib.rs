//! Takes all that it can get, and never ends by itself: what a node must protect its other functions from.
//!
//! A cast sets it off.
//!
//! - Outputs: `out` is flooded with payloads of 100 bytes, in the mode `flood`.
//! - Init payload: `mode=loop` (default) takes the processor, `mode=memory` the memory, `mode=flood` the
//!   way out.

use std::hint::black_box;

use edgeless_function::*;

/// What the output is flooded with.
const PAYLOAD: [u8; 100] = [b'x'; 100];
/// How much memory is taken at a time, bytes.
const BLOCK: usize = 64 << 10;

/// What it takes.
enum Hog {
    Processor { count: u64 },
    Memory { blocks: Vec<Vec<u8>> },
    Output,
}

impl Hog {
    fn take_more(&mut self) {
        match self {
            // The compiler must not see through it, or it would leave the loop out.
            Hog::Processor { count } => *count = black_box(count.wrapping_add(1)),
            Hog::Memory { blocks } => blocks.push(vec![1; BLOCK]),
            Hog::Output => cast("out", PAYLOAD),
        }
    }
}

impl Function for Hog {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        match payload.params().get("mode") {
            Some("memory") => Hog::Memory { blocks: Vec::new() },
            Some("flood") => Hog::Output,
            _ => Hog::Processor { count: 0 },
        }
    }

    fn handle_cast(&mut self, _source: InstanceId, _message: Message) {
        loop {
            self.take_more();
        }
    }
}

export!(Hog);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    /// Nobody waits for a hog to end, so what it does is tried a step at a time.
    fn after_two_steps(init: &str) -> Hog {
        let mut hog = Hog::handle_init(init.into(), None);
        hog.take_more();
        hog.take_more();
        hog
    }

    #[test]
    fn each_mode_takes_something_else() {
        assert!(matches!(after_two_steps(""), Hog::Processor { count: 2 }));
        assert!(matches!(after_two_steps("mode=loop"), Hog::Processor { count: 2 }));
        assert_eq!(effects(), []);
        assert!(matches!(after_two_steps("mode=memory"), Hog::Memory { blocks } if blocks.len() == 2));
        assert_eq!(effects(), []);
        after_two_steps("mode=flood");
        assert_eq!(effects(), [Effect::cast("out", PAYLOAD), Effect::cast("out", PAYLOAD)]);
    }
}
