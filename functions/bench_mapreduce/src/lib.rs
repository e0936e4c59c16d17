//! A stage of a map-reduce benchmark, or what sets its stages going.
//!
//! The trigger makes data, decimal digits, at regular intervals, and logs the number of each transaction
//! under the target `tbegin`. A stage splits data into parts, one for each of its workers, and puts the
//! results together again in the same order. The last stage logs the number of the transaction under the
//! target `tend`: the time between the two is its latency, and one without an end was lost.
//!
//! A message begins with a line: the number of the transaction, and for a part also its place. Behind it
//! are the digits.
//!
//! - Outputs: `next` gets the data, to the next stage; `part-0`, `part-1` and so on get the parts, to the
//!   workers, which send back the line and what they made of the part; `result` gets the digits alone.
//! - Init payload: `trigger=true` makes it the trigger, which knows `interval_ms=N` (default 1000),
//!   `input_size=N` (digits, default 100, at most 1000000) and `seed=N` (default 42). A stage knows
//!   `fan_out=N` (workers, default 1, at most 1000), `last=true`, and `result=true` if the last stage shall
//!   send its result.

mod stage;

use std::time::Duration;

use edgeless_function::*;

use crate::stage::Stage;

/// What the trigger sends to itself when it is time for the next transaction.
const TICK: &str = "tick";
const INPUT_MAX: usize = 1_000_000;
const FAN_OUT_MAX: usize = 1000;

enum MapReduce {
    Trigger(Trigger),
    Stage { stage: Stage, is_last: bool, has_result: bool },
}

struct Trigger {
    interval: Duration,
    input_size: usize,
    random: Random,
    transaction: u64,
}

impl Function for MapReduce {
    fn handle_init(payload: Message, _state: Option<Message>) -> Self {
        let params = payload.params();
        if !params.get_or("trigger", false) {
            let fan_out = params.get_or("fan_out", 1);
            assert!(
                (1..=FAN_OUT_MAX).contains(&fan_out),
                "init payload: fan_out={fan_out} is not from 1 to {FAN_OUT_MAX}"
            );
            let (is_last, has_result) = (params.get_or("last", false), params.get_or("result", false));
            return MapReduce::Stage { stage: Stage::new(fan_out), is_last, has_result };
        }
        let interval = Duration::from_millis(params.get_or("interval_ms", 1000));
        assert!(!interval.is_zero(), "init payload: interval_ms=0 is no interval");
        let input_size = params.get_or("input_size", 100);
        assert!(input_size <= INPUT_MAX, "init payload: input_size={input_size} is more than {INPUT_MAX}");
        cast("self", TICK);
        let random = Random::new(params.get_or("seed", 42));
        MapReduce::Trigger(Trigger { interval, input_size, random, transaction: 0 })
    }

    fn handle_cast(&mut self, source: InstanceId, message: Message) {
        match self {
            MapReduce::Trigger(trigger) if message == TICK => trigger.tick(),
            MapReduce::Trigger(_) => log::warn!("a cast from {source} is dropped: nothing leads to a trigger"),
            MapReduce::Stage { stage, is_last, has_result } => {
                let taken = message.text().map_err(|error| error.to_string()).and_then(|text| stage.take(text));
                match taken {
                    Ok(stage::Taken::Split(parts)) => {
                        parts.iter().for_each(|(output, part)| cast(output, part));
                    }
                    Ok(stage::Taken::Part) => {}
                    Ok(stage::Taken::Joined { transaction, digits }) if *is_last => {
                        log::info!(target: "tend", "{transaction}");
                        if *has_result {
                            cast("result", digits);
                        }
                    }
                    Ok(stage::Taken::Joined { transaction, digits }) => {
                        cast("next", format!("{transaction}\n{digits}"));
                    }
                    Err(reason) => log::warn!("a cast from {source} is dropped: {reason}"),
                }
            }
        }
    }
}

impl Trigger {
    fn tick(&mut self) {
        delayed_cast(self.interval, "self", TICK);
        self.transaction += 1;
        // The upper bits: the lowest ones of this sequence take turns.
        let digit = |number: u32| char::from_digit((number >> 16) % 10, 10).unwrap_or('0');
        let digits: String = (0..self.input_size).map(|_| digit(self.random.number())).collect();
        log::info!(target: "tbegin", "{}", self.transaction);
        cast("next", format!("{}\n{digits}", self.transaction));
    }
}

export!(MapReduce);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{Effect, Target, effects, logs};

    use super::*;

    fn logged() -> Vec<String> {
        logs().into_iter().map(|line| format!("{} {}", line.target, line.text)).collect()
    }

    #[test]
    fn a_trigger_makes_data_at_intervals() {
        init_logger();
        let mut trigger = MapReduce::handle_init("trigger=true,interval_ms=20,input_size=30".into(), None);
        assert_eq!(effects(), [Effect::cast("self", TICK)]);
        trigger.handle_cast(testing::SLF, TICK.into());
        let sent = effects();
        assert_eq!(sent[0], Effect::delayed_cast(Duration::from_millis(20), "self", TICK));
        let Effect::Cast { target: Target::Output(output), payload } = &sent[1] else { panic!("{sent:?}") };
        let digits = std::str::from_utf8(payload).unwrap().strip_prefix("1\n").unwrap();
        assert!(output == "next" && digits.len() == 30 && digits.bytes().all(|byte| byte.is_ascii_digit()));
        assert_eq!(logged(), ["tbegin 1"]);
        trigger.handle_cast(testing::SOURCE, "tock".into());
        assert_eq!(effects(), []);
    }

    #[test]
    fn a_stage_maps_to_its_workers_and_reduces_to_the_next() {
        let mut stage = MapReduce::handle_init("fan_out=2".into(), None);
        stage.handle_cast(testing::SOURCE, "7\n12345".into());
        assert_eq!(effects(), [Effect::cast("part-0", "7 0\n123"), Effect::cast("part-1", "7 1\n45")]);
        stage.handle_cast(testing::SOURCE, "7 1\nB".into());
        stage.handle_cast(testing::SOURCE, "7 0\nA".into());
        assert_eq!(effects(), [Effect::cast("next", "7\nAB")]);
    }

    #[test]
    fn the_last_stage_ends_the_transaction() {
        init_logger();
        for (payload, result) in [("last=true,result=true", vec![Effect::cast("result", "9")]), ("last=true", vec![])] {
            let mut stage = MapReduce::handle_init(payload.into(), None);
            stage.handle_cast(testing::SOURCE, "3\n8".into());
            effects();
            stage.handle_cast(testing::SOURCE, "3 0\n9".into());
            assert_eq!((effects(), logged()), (result, vec!["tend 3".to_string()]));
        }
    }
}
