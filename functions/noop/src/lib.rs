//! Logs what happens to it, and does nothing else: the smallest function, with static handlers.
//!
//! - Outputs: none.
//! - Init payload: any text, which is logged.

use edgeless_function::*;

struct NoopFunction;

impl Edgefunction for NoopFunction {
    fn handle_cast(src: InstanceId, encoded_message: String) {
        log::info!("Noop casted, node {}, function {}, MSG: {}", src.node, src.function, encoded_message);
    }

    fn handle_call(src: InstanceId, encoded_message: String) -> CallRet {
        log::info!("Noop called, node {}, function {}, MSG: {}", src.node, src.function, encoded_message);
        CallRet::Noreply
    }

    fn handle_init(payload: String, _serialized_state: Option<String>) {
        edgeless_function::init_logger();
        log::info!("Noop initialized, payload: {}", payload);
    }

    fn handle_stop() {
        log::info!("Noop stopped");
    }
}

edgeless_function::export!(NoopFunction);

#[cfg(test)]
mod tests {
    use edgeless_function::testing::{effects, logs};

    use super::*;

    #[test]
    fn every_event_is_logged_and_none_is_sent() {
        NoopFunction::handle_init("nothing interesting".into(), None);
        NoopFunction::handle_cast(testing::SOURCE, "a".into());
        assert_eq!(NoopFunction::handle_call(testing::SOURCE, "b".into()), CallRet::Noreply);
        NoopFunction::handle_stop();

        let lines: Vec<_> = logs().into_iter().map(|line| line.text).collect();
        let (node, function) = (testing::SOURCE.node, testing::SOURCE.function);
        let expected = [
            "Noop initialized, payload: nothing interesting",
            &format!("Noop casted, node {node}, function {function}, MSG: a"),
            &format!("Noop called, node {node}, function {function}, MSG: b"),
            "Noop stopped",
        ];
        assert_eq!(lines, expected);
        assert_eq!(effects(), []);
    }
}
