//! The JSON form of HTTP messages, written and read without detours.
//!
//! The form is that of the types in [`http`](super::http) as serde derives it: serde stays the judge
//! of what is valid. What is written here is the same, letter by letter, from what the connection
//! received to the payload in one go. What is read here is the form as the SDK writes it: without
//! blanks and escapes, fields in order. Whatever else it may be is left to serde.

use std::borrow::Cow;

use hyper::header::{self, HeaderMap};

use super::http::{Headers, Method, Response};
use crate::instance::Payload;

/// Writes what a function is called with.
pub(super) fn request(host: &str, headers: &HeaderMap, body: &[u8], method: Method, path: &str) -> Payload {
    let headers = Received::new(headers);
    let mut json = Vec::with_capacity(96 + host.len() + headers.size + size_of_bytes(body) + path.len());
    json.extend_from_slice(br#"{"protocol":"Unknown","host":""#);
    push_escaped(&mut json, host);
    json.extend_from_slice(br#"","headers":"#);
    headers.push_to(&mut json);
    json.extend_from_slice(br#","body":"#);
    push_bytes(&mut json, body);
    json.extend_from_slice(br#","method":""#);
    json.extend_from_slice(method.in_json().as_bytes());
    json.extend_from_slice(br#"","path":""#);
    push_escaped(&mut json, path);
    json.extend_from_slice(br#""}"#);
    json.into()
}

/// Writes what a call of an egress is answered with.
pub(super) fn response(status: u16, headers: &HeaderMap, body: &[u8]) -> Payload {
    let headers = Received::new(headers);
    let mut json = Vec::with_capacity(48 + size_of_bytes(body) + headers.size);
    json.extend_from_slice(br#"{"status":"#);
    json.extend_from_slice(status.to_string().as_bytes());
    json.extend_from_slice(br#","body":"#);
    push_bytes(&mut json, body);
    json.extend_from_slice(br#","headers":"#);
    headers.push_to(&mut json);
    json.push(b'}');
    json.into()
}

/// The headers of a message that was received, by name. Values that are not text are left out.
struct Received<'a> {
    headers: Vec<(&'a str, &'a str)>,
    /// What they take as JSON, unless there are escapes.
    size: usize,
}

impl<'a> Received<'a> {
    fn new(map: &'a HeaderMap) -> Self {
        let mut headers = Vec::with_capacity(map.len());
        headers.extend(map.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))));
        // Stable: the values of one name stay in their order.
        headers.sort_by_key(|(name, _)| *name);
        let size = headers.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
        Self { headers, size }
    }

    /// What a name has several values for is one value in JSON.
    fn push_to(&self, json: &mut Vec<u8>) {
        let mut last = None;
        json.push(b'{');
        for &(name, value) in &self.headers {
            if last == Some(name) {
                let separator = if name == header::COOKIE.as_str() { "; " } else { ", " };
                json.extend_from_slice(separator.as_bytes());
            } else {
                json.extend_from_slice(if last.is_some() { br#"",""# } else { br#"""# });
                // A name has nothing to escape.
                json.extend_from_slice(name.as_bytes());
                json.extend_from_slice(br#"":""#);
            }
            push_escaped(json, value);
            last = Some(name);
        }
        json.extend_from_slice(if last.is_some() { br#""}"# } else { b"}" });
    }
}

fn push_escaped(json: &mut Vec<u8>, text: &str) {
    if !text.bytes().any(is_special) {
        json.extend_from_slice(text.as_bytes());
        return;
    }
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => json.extend_from_slice(&[b'\\', byte]),
            b'\t' => json.extend_from_slice(br"\t"),
            b'\n' => json.extend_from_slice(br"\n"),
            b'\r' => json.extend_from_slice(br"\r"),
            b'\x08' => json.extend_from_slice(br"\b"),
            b'\x0c' => json.extend_from_slice(br"\f"),
            control @ ..b' ' => json.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
            _ => json.push(byte),
        }
    }
}

/// Whether JSON text cannot have this byte as it is.
fn is_special(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

/// Each byte as a number with a comma, and how long that is.
static NUMBERS: [([u8; 4], u8); 256] = numbers();

#[allow(clippy::indexing_slicing, reason = "computed by the compiler, which refuses an index beyond the end")]
const fn numbers() -> [([u8; 4], u8); 256] {
    let mut numbers = [([b','; 4], 0); 256];
    let mut byte = 0;
    while byte < numbers.len() {
        let [hundreds, tens, ones] = [byte / 100, byte / 10 % 10, byte % 10];
        let digit = [b'0' + hundreds as u8, b'0' + tens as u8, b'0' + ones as u8];
        numbers[byte] = match byte {
            0..10 => ([digit[2], b',', 0, 0], 2),
            10..100 => ([digit[1], digit[2], b',', 0], 3),
            _ => ([digit[0], digit[1], digit[2], b','], 4),
        };
        byte += 1;
    }
    numbers
}

/// The most that [`push_bytes`] appends.
fn size_of_bytes(bytes: &[u8]) -> usize {
    let numbers = bytes.iter().map(|byte| 2 + usize::from(*byte >= 10) + usize::from(*byte >= 100));
    numbers.sum::<usize>() + 5
}

fn push_bytes(json: &mut Vec<u8>, bytes: &[u8]) {
    json.push(b'[');
    let mut end = json.len();
    // Every number is copied as if it had three digits, which is quicker than to ask.
    json.resize(end + size_of_bytes(bytes), 0);
    for byte in bytes {
        if let Some((number, len)) = NUMBERS.get(usize::from(*byte))
            && let Some(place) = json.get_mut(end..).and_then(|rest| rest.first_chunk_mut())
        {
            *place = *number;
            end += usize::from(*len);
        }
    }
    json.truncate(end);
    // The comma after the last one.
    json.pop_if(|last| *last == b',');
    json.push(b']');
}

/// Reads what a call of an ingress was answered with.
///
/// # Errors
/// It is no response.
pub(super) fn read_response(json: &[u8]) -> Result<Response<'_>, serde_json::Error> {
    match plain_response(json) {
        Some(response) => Ok(response),
        None => serde_json::from_slice(json),
    }
}

/// The response, if it is written in the plainest way.
fn plain_response(json: &[u8]) -> Option<Response<'_>> {
    let mut json = Plain(json);
    json.skip(br#"{"status":"#)?;
    let status = json.number()?;
    json.skip(br#","body":"#)?;
    let body = if json.skip(b"null").is_some() { None } else { Some(json.bytes()?) };
    json.skip(br#","headers":"#)?;
    let headers = json.headers()?;
    (json.0 == b"}").then_some(Response { status, body, headers })
}

/// What is left of a text of plain JSON. Each method takes something from its beginning, or says that
/// there is no such thing in its plainest form.
struct Plain<'a>(&'a [u8]);

impl<'a> Plain<'a> {
    fn skip(&mut self, token: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(token)?;
        Some(())
    }

    /// A number of three digits, as every status is.
    fn number(&mut self) -> Option<u16> {
        let (&[hundreds @ b'1'..=b'9', tens @ b'0'..=b'9', ones @ b'0'..=b'9'], rest) = self.0.split_first_chunk()?
        else {
            return None;
        };
        self.0 = rest;
        let [hundreds, tens, ones] = [hundreds, tens, ones].map(|digit| u16::from(digit - b'0'));
        Some(100 * hundreds + 10 * tens + ones)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        self.skip(b"[")?;
        if self.skip(b"]").is_some() {
            return Some(Vec::new());
        }
        let end = self.0.iter().position(|byte| *byte == b']')?;
        let commas = self.0.get(..end)?.iter().filter(|byte| **byte == b',').count();
        let mut bytes = Vec::with_capacity(commas + 1);
        loop {
            bytes.push(self.byte()?);
            match self.0.split_first()? {
                (b',', rest) => self.0 = rest,
                (b']', rest) => {
                    self.0 = rest;
                    return Some(bytes);
                }
                _ => return None,
            }
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let digit = |digit: u8| u16::from(digit - b'0');
        let (value, rest) = match self.0 {
            [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] => {
                (100 * digit(*a) + 10 * digit(*b) + digit(*c), rest)
            }
            [a @ b'1'..=b'9', b @ b'0'..=b'9', rest @ ..] => (10 * digit(*a) + digit(*b), rest),
            [a @ b'0'..=b'9', rest @ ..] => (digit(*a), rest),
            _ => return None,
        };
        self.0 = rest;
        u8::try_from(value).ok()
    }

    fn headers(&mut self) -> Option<Headers<'a>> {
        let mut headers = Headers::new();
        self.skip(b"{")?;
        if self.skip(b"}").is_some() {
            return Some(headers);
        }
        loop {
            let name = self.text()?;
            self.skip(b":")?;
            headers.insert(Cow::Borrowed(name), Cow::Borrowed(self.text()?));
            if self.skip(b",").is_none() {
                self.skip(b"}")?;
                return Some(headers);
            }
        }
    }

    fn text(&mut self) -> Option<&'a str> {
        self.skip(br#"""#)?;
        let end = self.0.iter().position(|byte| is_special(*byte))?;
        let (text, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        self.skip(br#"""#)?;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};
    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{RngExt, SeedableRng};

    use super::super::http::{Protocol, Request};
    use super::*;

    /// What a connection may bring in the value of a header or in a path, with all that JSON escapes.
    const TEXTS: [&str; 8] =
        ["", "*/*", "a \"quoted\" \\ text", "\ttab\t", "caf\u{e9} \u{1f600}", "nul \0 \x1f", "\r\n\x08\x0c", "a\x7f/b"];

    fn text(random: &mut StdRng) -> String {
        (0..random.random_range(0..3)).filter_map(|_| TEXTS.choose(random)).copied().collect()
    }

    fn bytes(random: &mut StdRng) -> Vec<u8> {
        (0..random.random_range(0..300)).map(|_| random.random()).collect()
    }

    fn map(random: &mut StdRng) -> HeaderMap {
        let names = ["host", "accept", "cookie", "x-b", "x-a", "x-c"];
        let pair = |random: &mut StdRng| {
            let name = HeaderName::from_static(names.choose(random)?);
            Some((name, HeaderValue::from_bytes(text(random).as_bytes()).ok()?))
        };
        let mut map = HeaderMap::new();
        (0..random.random_range(0..12)).filter_map(|_| pair(random)).for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    /// The plain definition of what [`Received`] does in place.
    fn received(map: &HeaderMap) -> Headers<'static> {
        let text = |name: &HeaderName| {
            let values: Vec<_> = map.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            let separator = if name == header::COOKIE { "; " } else { ", " };
            (!values.is_empty()).then(|| (name.to_string().into(), values.join(separator).into()))
        };
        map.keys().filter_map(text).collect()
    }

    #[test]
    fn what_is_written_is_what_serde_writes() {
        let random = &mut StdRng::seed_from_u64(1);
        for _ in 0..2000 {
            let methods = [Method::Get, Method::Head, Method::Post, Method::Put, Method::Delete, Method::Patch];
            let (host, path, map, body) = (text(random), text(random), map(random), bytes(random));
            let method = *methods.choose(random).unwrap();
            let json = request(&host, &map, &body, method, &path);
            let (protocol, headers) = (Protocol::Unknown, received(&map));
            let expected = Request { protocol, host, headers, body: Some(body), method, path };
            assert_eq!(json, serde_json::to_string(&expected).unwrap());

            let (status, body) = (random.random_range(100..1000), expected.body);
            let json = response(status, &map, body.as_deref().unwrap());
            let expected = Response { status, body, headers: expected.headers };
            assert_eq!(json, serde_json::to_string(&expected).unwrap());
        }
    }

    #[test]
    fn repeated_headers_become_one_and_those_that_are_not_text_are_left_out() {
        let mut map = HeaderMap::new();
        for (name, value) in [("cookie", "c=1"), ("accept", "a"), ("cookie", "d=2"), ("accept", "b")] {
            map.append(name, HeaderValue::from_static(value));
        }
        map.append("x-binary", HeaderValue::from_bytes(b"\xff").unwrap());
        map.append("x-text", HeaderValue::from_bytes("caf\u{e9}".as_bytes()).unwrap());
        let json = r#"{"status":200,"body":[],"headers":{"accept":"a, b","cookie":"c=1; d=2"}}"#;
        assert_eq!(response(200, &map, b""), json);
    }

    /// A payload lives until the function has it: what it does not need is not allocated.
    #[test]
    fn a_payload_is_allocated_once() {
        let body: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let size = size_of_bytes(&body);
        let mut json = Vec::with_capacity(size);
        push_bytes(&mut json, &body);
        assert!(json.len() <= size && json.len() + 5 > size, "{} of {size}", json.len());
    }

    #[test]
    fn what_is_read_is_what_serde_reads() {
        let random = &mut StdRng::seed_from_u64(2);
        for _ in 0..2000 {
            let body = random.random_bool(0.9).then(|| bytes(random));
            let names = ["content-type", "X-A", "x-a", "caf\u{e9}", "a b"];
            let mut headers = Headers::new();
            for _ in 0..random.random_range(0..4) {
                headers.insert((*names.choose(random).unwrap()).into(), text(random).into());
            }
            let expected = Response { status: random.random(), body, headers };
            let json = serde_json::to_string(&expected).unwrap();
            assert_eq!(read_response(json.as_bytes()).unwrap(), expected);
            let pretty = serde_json::to_string_pretty(&expected).unwrap();
            assert_eq!(read_response(pretty.as_bytes()).unwrap(), expected);
        }
    }

    /// Whatever the quick way accepts, serde accepts too, as the same.
    #[test]
    fn a_damaged_response_is_what_serde_makes_of_it() {
        let random = &mut StdRng::seed_from_u64(3);
        let sound: &[u8] = br#"{"status":200,"body":[0,10,255],"headers":{"a":"b","c":"d e"}}"#;
        let mut accepted = 0;
        for _ in 0..50_000 {
            let mut json = sound.to_vec();
            for _ in 0..random.random_range(1..4) {
                let (at, with) = (random.random_range(0..json.len()), random.random_range(0..json.len()));
                match random.random_range(0..4) {
                    0 => json[at] = json[with],
                    1 => json.insert(at, json[with]),
                    2 => json[at] = random.random(),
                    _ => drop(json.remove(at)),
                }
            }
            let judged = serde_json::from_slice::<Response>(&json).ok();
            accepted += u32::from(plain_response(&json).is_some());
            assert_eq!(read_response(&json).ok(), judged, "{}", json.escape_ascii());
        }
        assert!(accepted > 1000, "{accepted}: the damage is too great to show anything");
    }

    #[test]
    fn the_form_that_the_sdk_writes_is_read_the_quick_way() {
        for json in [
            r#"{"status":200,"body":[72,105],"headers":{"content-type":"text/plain; charset=utf-8","x":"caf\u00e9"}}"#,
            r#"{"status":204,"body":null,"headers":{}}"#,
            r#"{"status":404,"body":[],"headers":{"b":"1","a":"2","b":"3"}}"#,
        ] {
            let json = json.replace("\\u00e9", "\u{e9}");
            assert_eq!(plain_response(json.as_bytes()).unwrap(), serde_json::from_str(&json).unwrap());
        }
    }

    /// They are valid, or are not: serde says so.
    #[test]
    fn what_is_not_plain_is_left_to_serde() {
        for json in [
            r#"{ "status":200,"body":null,"headers":{}}"#,
            r#"{"body":null,"status":200,"headers":{}}"#,
            r#"{"status":0200,"body":null,"headers":{}}"#,
            r#"{"status":99,"body":null,"headers":{}}"#,
            r#"{"status":2000,"body":null,"headers":{}}"#,
            r#"{"status":200,"body":[01],"headers":{}}"#,
            r#"{"status":200,"body":[256],"headers":{}}"#,
            r#"{"status":200,"body":[1000],"headers":{}}"#,
            r#"{"status":200,"body":[1,],"headers":{}}"#,
            r#"{"status":200,"body":[1 ],"headers":{}}"#,
            r#"{"status":200,"body":[-1],"headers":{}}"#,
            r#"{"status":200,"body":[1"#,
            r#"{"status":200,"body":null,"headers":{"a":"\n"}}"#,
            r#"{"status":200,"body":null,"headers":{"a":"b",}}"#,
            r#"{"status":200,"body":null,"headers":{"a":"b"}"#,
            r#"{"status":200,"body":null,"headers":{"a":"b"}}}"#,
            r#"{"status":200,"body":null,"headers":{"a":"b"}} "#,
            "",
        ] {
            assert_eq!(plain_response(json.as_bytes()), None, "{json}");
        }
        assert_eq!(plain_response(b"{\"status\":200,\"body\":null,\"headers\":{\"a\":\"\xff\"}}"), None);
    }
}
