//! HTTP requests and responses as functions see them: JSON, in which a body is an array of byte
//! numbers.
//!
//! Both HTTP resources speak this form: the ingress writes requests and reads responses, the egress
//! the other way round. The types define it; `http_json` is the quick way to and from it. What frames a message on a connection (its length, its encoding) is the
//! business of that connection: such headers are never taken from a function.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

/// Names and values. What a name has several values for is one value here.
pub(super) type Headers<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) enum Protocol {
    /// Not said.
    Unknown,
    /// Plain HTTP.
    #[serde(rename = "HTTP")]
    Http,
    /// HTTP over TLS.
    #[serde(rename = "HTTPS")]
    Https,
}

/// The methods that functions know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
}

impl Method {
    /// All of them, with their names in HTTP.
    const NAMES: [(Self, &str); 6] = [
        (Self::Get, "GET"),
        (Self::Head, "HEAD"),
        (Self::Post, "POST"),
        (Self::Put, "PUT"),
        (Self::Delete, "DELETE"),
        (Self::Patch, "PATCH"),
    ];

    /// Its name in JSON.
    pub(super) fn in_json(self) -> &'static str {
        match self {
            Self::Get => "Get",
            Self::Head => "Head",
            Self::Post => "Post",
            Self::Put => "Put",
            Self::Delete => "Delete",
            Self::Patch => "Patch",
        }
    }

    /// The method of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(method, _)| *method)
    }

    /// All names, for an error or the header `Allow`.
    pub(super) fn names() -> String {
        Self::NAMES.map(|(_, name)| name).join(", ")
    }
}

impl From<Method> for hyper::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Get => Self::GET,
            Method::Head => Self::HEAD,
            Method::Post => Self::POST,
            Method::Put => Self::PUT,
            Method::Delete => Self::DELETE,
            Method::Patch => Self::PATCH,
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct Request<'a> {
    pub(super) protocol: Protocol,
    /// As in the header `Host`.
    pub(super) host: String,
    pub(super) headers: Headers<'a>,
    pub(super) body: Option<Vec<u8>>,
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(super) struct Response<'a> {
    pub(super) status: u16,
    pub(super) body: Option<Vec<u8>>,
    pub(super) headers: Headers<'a>,
}

/// The headers that a function wants sent, without those that frame the message.
///
/// # Errors
/// The first that cannot be sent.
pub(super) fn to_send(headers: &Headers) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let invalid = |part: &str| format!("the {part} of the header '{}' is not valid", name.escape_debug());
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid("name"))?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid("value"))?;
        if !is_framing(&name) {
            map.append(name, value);
        }
    }
    Ok(map)
}

/// Whether a header is about the connection and not about the message.
fn is_framing(name: &HeaderName) -> bool {
    const OTHERS: [&str; 2] = ["keep-alive", "proxy-connection"];
    let framing = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    framing.contains(name) || OTHERS.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The JSON form is shared with every function, so it is compared letter by letter.
    #[test]
    fn requests_and_responses_have_the_json_form_that_functions_know() {
        let request = Request {
            protocol: Protocol::Unknown,
            host: "example.com:8080".into(),
            headers: [("accept".into(), "*/*".into())].into(),
            body: Some(vec![0, 10, 255]),
            method: Method::Post,
            path: "/a?b=c".into(),
        };
        let json = r#"{"protocol":"Unknown","host":"example.com:8080","headers":{"accept":"*/*"},"body":[0,10,255],"method":"Post","path":"/a?b=c"}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), json);
        assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);

        let response = Response { status: 204, body: None, headers: Headers::new() };
        let json = r#"{"status":204,"body":null,"headers":{}}"#;
        assert_eq!(serde_json::to_string(&response).unwrap(), json);
        assert_eq!(serde_json::from_str::<Response>(json).unwrap(), response);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (part, why) in [
            (r#""method":"GET""#, "methods are not spelled as in HTTP"),
            (r#""method":"Options""#, "not one of the six"),
            (r#""method":"Get","body":[256]"#, "not a byte"),
            (r#""method":"Get","body":"text""#, "not an array"),
        ] {
            let json = format!(r#"{{"protocol":"HTTP","host":"h","headers":{{}},"path":"/",{part}}}"#);
            assert!(serde_json::from_str::<Request>(&json).is_err(), "{why}");
        }
    }

    /// A function that passes on the headers of another message would break the framing of its own.
    #[test]
    fn a_function_has_no_say_in_the_framing() {
        let headers = ["Content-Length", "TRANSFER-ENCODING", "connection", "Keep-Alive", "upgrade", "X-Own"];
        let map = to_send(&headers.map(|name| (name.into(), "7".into())).into()).unwrap();
        assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-own"]);
    }

    #[test]
    fn headers_that_would_split_a_message_are_refused() {
        for (name, value) in [("a b", "c"), ("", "c"), ("a\r\nb", "c"), ("a", "c\r\nd: e"), ("a", "\0")] {
            assert!(to_send(&[(name.into(), value.into())].into()).is_err(), "{name:?}: {value:?}");
        }
    }
}
