//! HTTP as functions see it: what `http-ingress` calls them with, and what they call `http-egress` with.
//!
//! A request or response travels as JSON in the payload of an event; bodies are arrays of byte numbers
//! there and plain bytes here. This module has the two types and their JSON form. It moves nothing
//! itself: sockets, TLS and limits are the business of the resources.
//!
//! ```
//! use edgeless_function::{CallRet, InstanceId, Message, http};
//!
//! fn handle_call(source: InstanceId, message: Message) -> CallRet {
//!     let Ok(request) = http::Request::parse(message) else { return CallRet::Err };
//!     let name = request.query("name").unwrap_or("world".into());
//!     http::Response::text(format!("Hello, {name}!")).into()
//! }
//! ```

mod json;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CallRet, call};

/// The names and values of headers; what comes from `http-ingress` has names in lower case.
pub type Headers = BTreeMap<String, String>;

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the methods of HTTP")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
}

/// How a request is to travel, or has travelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// Not said, as in every request that comes from `http-ingress`; `http-egress` sends it as HTTP.
    #[default]
    Unknown,
    /// Plain HTTP.
    #[serde(rename = "HTTP")]
    Http,
    /// HTTP over TLS.
    #[serde(rename = "HTTPS")]
    Https,
}

/// An HTTP request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// How it travels.
    pub protocol: Protocol,
    /// The server, as in the header `Host`: with its port unless that is the usual one.
    pub host: String,
    /// The headers.
    pub headers: Headers,
    /// The body, if there is one.
    #[serde(default)]
    pub body: Option<Vec<u8>>,
    /// What is wanted.
    pub method: Method,
    /// Of what: path and query, as they stand in the request.
    pub path: String,
}

/// An HTTP response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The status, such as 200 or 404.
    pub status: u16,
    /// The body, if there is one.
    #[serde(default)]
    pub body: Option<Vec<u8>>,
    /// The headers.
    pub headers: Headers,
}

/// Says why there is no request or no response.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The message is not the JSON of a request or response.
    Malformed(serde_json::Error),
    /// `http-egress` could not send the request, or nobody answered it.
    Failed,
}

impl Method {
    /// The method as HTTP spells it: `GET`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Patch => "PATCH",
        }
    }
}

impl Request {
    /// Makes a request for a URL, such as `https://example.com/items?limit=5`.
    ///
    /// Without `http://` or `https://` the protocol is unknown, which `http-egress` takes as HTTP. A
    /// fragment (from `#`) is left out, for servers never see it.
    pub fn new(method: Method, url: &str) -> Self {
        let url = url.split('#').next().unwrap_or_default();
        let (protocol, rest) = match url.split_once("://") {
            Some(("https", rest)) => (Protocol::Https, rest),
            Some(("http", rest)) => (Protocol::Http, rest),
            _ => (Protocol::Unknown, url),
        };
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Request { protocol, host: host.to_owned(), headers: Headers::new(), body: None, method, path }
    }

    /// Makes a GET request for a URL.
    pub fn get(url: &str) -> Self {
        Request::new(Method::Get, url)
    }

    /// Makes a POST request for a URL, with a body.
    pub fn post(url: &str, body: impl Into<Vec<u8>>) -> Self {
        Request::new(Method::Post, url).with_body(body)
    }

    /// Adds a header, or replaces it.
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.insert(name.to_owned(), value.into());
        self
    }

    /// Sets the body.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Reads a request from the message of a call.
    pub fn parse(message: impl AsRef<[u8]>) -> Result<Self, Error> {
        json::read_request(message.as_ref()).map_err(Error::Malformed)
    }

    /// The request as a message.
    pub fn to_json(&self) -> Vec<u8> {
        json::write_request(self)
    }

    /// Has the request sent by the `http-egress` to which `output` leads, and waits for the response.
    pub fn send(&self, output: &str) -> Result<Response, Error> {
        match call(output, self.to_json()) {
            CallRet::Reply(reply) => Response::parse(reply),
            CallRet::Noreply | CallRet::Err => Err(Error::Failed),
        }
    }

    /// The value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The path without the query, such as `/items`.
    pub fn route(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    /// The value of a parameter of the query, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.path.split_once('?')?;
        let parameters = query.split('&').map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")));
        let mut values = parameters.filter(|(key, _)| decode(key) == name).map(|(_, value)| decode(value));
        values.next().map(Cow::into_owned)
    }

    /// The body as bytes, of which there may be none.
    pub fn body(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }
}

impl Response {
    /// Makes a response without a body.
    pub fn new(status: u16) -> Self {
        Response { status, body: None, headers: Headers::new() }
    }

    /// Makes a response of status 200 with plain text.
    pub fn text(text: impl Into<String>) -> Self {
        let response = Response::new(200).with_header("content-type", "text/plain; charset=utf-8");
        response.with_body(text.into())
    }

    /// Makes a response of status 200 with a value as JSON, or of status 500 when it has no JSON form.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Response::new(200).with_header("content-type", "application/json").with_body(body),
            Err(reason) => Response::text(reason.to_string()).with_status(500),
        }
    }

    /// Sets the status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header, or replaces it.
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.insert(name.to_owned(), value.into());
        self
    }

    /// Sets the body.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Reads a response from the reply to a call.
    pub fn parse(message: impl AsRef<[u8]>) -> Result<Self, Error> {
        json::read_response(message.as_ref()).map_err(Error::Malformed)
    }

    /// The response as a message.
    pub fn to_json(&self) -> Vec<u8> {
        json::write_response(self)
    }

    /// The value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The body as bytes, of which there may be none.
    pub fn body(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }
}

/// Answers a call of `http-ingress` with a response.
impl From<Response> for CallRet {
    fn from(response: Response) -> Self {
        CallRet::Reply(response.to_json())
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Malformed(_) => "the message is not an HTTP request or response",
            Error::Failed => "the HTTP request had no response",
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Malformed(reason) => Some(reason),
            Error::Failed => None,
        }
    }
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Decodes what a form or a browser puts in a query: `+` is a blank and `%41` is `A`.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return Cow::Borrowed(text);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let (byte, after) = match (byte, after) {
            (b'+', _) => (b' ', after),
            (b'%', [high, low, beyond @ ..]) => match escaped(*high, *low) {
                Some(byte) => (byte, beyond),
                None => (b'%', after),
            },
            _ => (*byte, after),
        };
        decoded.push(byte);
        rest = after;
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

fn escaped(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Effect};

    /// The JSON form is shared with every EDGELESS node, so it is compared letter by letter.
    #[test]
    fn a_request_has_the_json_form_of_the_resources() {
        let request = Request::post("https://example.com:8443/a?b=c", "hi").with_header("accept", "*/*");
        let json = r#"{"protocol":"HTTPS","host":"example.com:8443","headers":{"accept":"*/*"},"body":[104,105],"method":"Post","path":"/a?b=c"}"#;
        assert_eq!(String::from_utf8(request.to_json()).unwrap(), json);
        assert_eq!(Request::parse(json).unwrap(), request);
    }

    #[test]
    fn a_response_has_the_json_form_of_the_resources() {
        let json = r#"{"status":204,"body":null,"headers":{}}"#;
        assert_eq!(String::from_utf8(Response::new(204).to_json()).unwrap(), json);
        assert_eq!(Response::parse(json).unwrap(), Response::new(204));
        assert_eq!(CallRet::from(Response::new(204)), CallRet::reply(json));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let upper_case = r#"{"protocol":"HTTP","host":"h","headers":{},"body":null,"method":"GET","path":"/"}"#;
        let body_as_text = r#"{"protocol":"HTTP","host":"h","headers":{},"body":"hi","method":"Get","path":"/"}"#;
        for message in ["", "GET / HTTP/1.1", "{}", upper_case, body_as_text] {
            assert!(matches!(Request::parse(message), Err(Error::Malformed(_))), "{message}");
        }
    }

    #[test]
    fn a_url_is_taken_apart() {
        let parts = |url| {
            let request = Request::get(url);
            (request.protocol, request.host, request.path)
        };
        let expect = |protocol, host: &str, path: &str| (protocol, host.to_owned(), path.to_owned());
        assert_eq!(parts("http://a:80/b/c?d=e#f"), expect(Protocol::Http, "a:80", "/b/c?d=e"));
        assert_eq!(parts("https://a"), expect(Protocol::Https, "a", "/"));
        assert_eq!(parts("https://a?b=c/d"), expect(Protocol::Https, "a", "/?b=c/d"));
        assert_eq!(parts("a/b?u=http://c"), expect(Protocol::Unknown, "a", "/b?u=http://c"));
    }

    #[test]
    fn a_query_is_decoded() {
        let request = Request::get("http://a/greet?name=Ada+L%C3%B6ve&flag&odd=100%&e=%2&n%61me2=%41");
        assert_eq!(request.route(), "/greet");
        assert_eq!(request.query("name").as_deref(), Some("Ada L\u{f6}ve"));
        assert_eq!(request.query("flag").as_deref(), Some(""));
        assert_eq!(request.query("odd").as_deref(), Some("100%"), "what is no escape stands for itself");
        assert_eq!(request.query("e").as_deref(), Some("%2"));
        assert_eq!(request.query("name2").as_deref(), Some("A"));
        assert_eq!(request.query("greet"), None);
        assert_eq!(Request::get("http://a/name=b").query("name"), None, "a path is no query");
    }

    #[test]
    fn a_header_is_found_in_any_case() {
        let request = Request::get("http://a").with_header("Content-Type", "text/plain");
        assert_eq!(request.header("content-type"), Some("text/plain"));
        assert_eq!(request.header("accept"), None);
    }

    #[test]
    fn a_request_is_sent_through_an_output() {
        let request = Request::get("http://a");
        assert!(matches!(request.send("egress"), Err(Error::Failed)));

        testing::answer_calls(|_, _| Response::text("hi").into());
        assert_eq!(request.send("egress").unwrap().body(), b"hi");
        assert_eq!(testing::effects()[1], Effect::call("egress", request.to_json()));

        testing::answer_calls(|_, _| CallRet::reply("nonsense"));
        assert!(matches!(request.send("egress"), Err(Error::Malformed(_))));
    }
}
