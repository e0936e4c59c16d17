//! Answers HTTP requests with a greeting.
//!
//! Calls come from an `http-ingress`. The name to greet is the parameter `name` of the query, or else
//! the body of the request, or else "world".
//!
//! - Outputs: `log` gets a line about each request.
//! - Init payload: none.

use edgeless_function::*;

struct HttpHello;

impl Function for HttpHello {
    fn handle_init(_payload: Message, _state: Option<Message>) -> Self {
        HttpHello
    }

    fn handle_call(&mut self, source: InstanceId, message: Message) -> CallRet {
        let request = match http::Request::parse(message) {
            Ok(request) => request,
            Err(error) => {
                log::error!("{error}: call from {source}");
                return CallRet::Err;
            }
        };

        let response = http::Response::text(format!("Hello, {}!\n", name_in(&request)));
        cast("log", format!("{} {}{} -> {}", request.method, request.host, request.path, response.status));
        response.into()
    }
}

fn name_in(request: &http::Request) -> String {
    let in_query = request.query("name");
    let in_body = || Message::new(request.body()).to_string();
    let name = in_query.unwrap_or_else(in_body).trim().to_owned();
    if name.is_empty() { "world".to_owned() } else { name }
}

export!(HttpHello);

#[cfg(test)]
mod tests {
    use edgeless_function::http::{Request, Response};
    use edgeless_function::testing::{Effect, effects};

    use super::*;

    fn answer(request: &Request) -> String {
        let mut function = HttpHello::handle_init("".into(), None);
        let reply = function.handle_call(testing::SOURCE, request.to_json().as_slice().into());
        let response = Response::parse(reply.message().unwrap()).unwrap();
        assert_eq!(response.status, 200);
        String::from_utf8(response.body().to_vec()).unwrap()
    }

    #[test]
    fn a_name_is_greeted_wherever_it_stands() {
        assert_eq!(answer(&Request::get("demo.edgeless.local/hello?name=Ada+L.")), "Hello, Ada L.!\n");
        assert_eq!(answer(&Request::post("demo.edgeless.local/hello", "Grace\n")), "Hello, Grace!\n");
        assert_eq!(answer(&Request::get("demo.edgeless.local/")), "Hello, world!\n");
    }

    #[test]
    fn each_request_is_one_line_of_the_log() {
        answer(&Request::get("demo.edgeless.local/hello?name=two%0Alines"));
        assert_eq!(effects(), [Effect::cast("log", "GET demo.edgeless.local/hello?name=two%0Alines -> 200")]);
    }

    #[test]
    fn nonsense_is_an_error_for_the_caller() {
        let mut function = HttpHello::handle_init("".into(), None);
        assert_eq!(function.handle_call(testing::SOURCE, "nonsense".into()), CallRet::Err);
        assert_eq!(effects(), []);
    }
}
