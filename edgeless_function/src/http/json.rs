//! The JSON form of requests and responses, written and read without detours.
//!
//! The form is what serde derives for the two types, letter by letter when written. Most of what a
//! small function does with a request is to read it, and this takes a fraction of the time and of the
//! module's size that a general reader takes.

use std::borrow::Cow;

use serde::de::Error as _;

use super::{Headers, Method, Protocol, Request, Response};

/// Reads a request.
pub(super) fn read_request(json: &[u8]) -> Result<Request, serde_json::Error> {
    request(&mut Reader(json)).map_err(serde_json::Error::custom)
}

/// Reads a response.
pub(super) fn read_response(json: &[u8]) -> Result<Response, serde_json::Error> {
    response(&mut Reader(json)).map_err(serde_json::Error::custom)
}

/// Writes a request.
pub(super) fn write_request(request: &Request) -> Vec<u8> {
    let Request { protocol, host, headers, body, method, path } = request;
    let mut json = Vec::with_capacity(96 + host.len() + path.len() + size_of_content(headers, body));
    let protocol = match protocol {
        Protocol::Unknown => "Unknown",
        Protocol::Http => "HTTP",
        Protocol::Https => "HTTPS",
    };
    json.extend_from_slice(br#"{"protocol":""#);
    json.extend_from_slice(protocol.as_bytes());
    json.extend_from_slice(br#"","host":"#);
    push_text(&mut json, host);
    json.extend_from_slice(br#","headers":"#);
    push_headers(&mut json, headers);
    json.extend_from_slice(br#","body":"#);
    push_body(&mut json, body);
    json.extend_from_slice(br#","method":""#);
    json.extend_from_slice(name(*method).as_bytes());
    json.extend_from_slice(br#"","path":"#);
    push_text(&mut json, path);
    json.push(b'}');
    json
}

/// Writes a response.
pub(super) fn write_response(response: &Response) -> Vec<u8> {
    let Response { status, body, headers } = response;
    let mut json = Vec::with_capacity(48 + size_of_content(headers, body));
    json.extend_from_slice(br#"{"status":"#);
    let mut unit = 10_000;
    while unit > 1 && *status < unit {
        unit /= 10;
    }
    while unit > 0 {
        json.push(digit(status / unit % 10));
        unit /= 10;
    }
    json.extend_from_slice(br#","body":"#);
    push_body(&mut json, body);
    json.extend_from_slice(br#","headers":"#);
    push_headers(&mut json, headers);
    json.push(b'}');
    json
}

const fn name(method: Method) -> &'static str {
    match method {
        Method::Get => "Get",
        Method::Head => "Head",
        Method::Post => "Post",
        Method::Put => "Put",
        Method::Delete => "Delete",
        Method::Patch => "Patch",
    }
}

/// What headers and body take as JSON at the most, unless there are escapes.
fn size_of_content(headers: &Headers, body: &Option<Vec<u8>>) -> usize {
    let headers = headers.iter().map(|(name, value)| name.len() + value.len() + 6);
    // A byte and its comma take four bytes at the most, and in most texts nearly as much.
    headers.sum::<usize>() + 4 * body.as_ref().map_or(0, Vec::len)
}

fn push_headers(json: &mut Vec<u8>, headers: &Headers) {
    let mut before = b'{';
    for (name, value) in headers {
        json.push(before);
        push_text(json, name);
        json.push(b':');
        push_text(json, value);
        before = b',';
    }
    json.extend_from_slice(if before == b'{' { b"{}" } else { b"}" });
}

fn push_body(json: &mut Vec<u8>, body: &Option<Vec<u8>>) {
    let Some(body) = body else { return json.extend_from_slice(b"null") };
    json.push(b'[');
    let mut end = json.len();
    json.resize(end + 4 * body.len(), 0);
    for byte in body {
        // Four bytes are copied, whatever is needed: quicker than to copy as many as there are.
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

/// Each byte as a number with a comma, and how long that is.
static NUMBERS: [([u8; 4], u8); 256] = numbers();

#[expect(clippy::indexing_slicing, reason = "computed by the compiler, which refuses an index beyond the end")]
const fn numbers() -> [([u8; 4], u8); 256] {
    let mut numbers = [([b','; 4], 0); 256];
    let mut byte = 0;
    while byte < numbers.len() {
        let value = byte as u16;
        let [hundreds, tens, ones] = [digit(value / 100), digit(value / 10 % 10), digit(value % 10)];
        numbers[byte] = match byte {
            0..10 => ([ones, b',', 0, 0], 2),
            10..100 => ([tens, ones, b',', 0], 3),
            _ => ([hundreds, tens, ones, b','], 4),
        };
        byte += 1;
    }
    numbers
}

fn push_text(json: &mut Vec<u8>, text: &str) {
    json.push(b'"');
    let mut rest = text.as_bytes();
    while let Some((plain, special, after)) = split_at_special(rest) {
        json.extend_from_slice(plain);
        match special {
            b'"' | b'\\' => json.extend_from_slice(&[b'\\', special]),
            b'\n' => json.extend_from_slice(br"\n"),
            b'\r' => json.extend_from_slice(br"\r"),
            b'\t' => json.extend_from_slice(br"\t"),
            b'\x08' => json.extend_from_slice(br"\b"),
            b'\x0c' => json.extend_from_slice(br"\f"),
            _ => {
                let low = special % 16;
                let low = if low < 10 { b'0' + low } else { b'a' + low - 10 };
                json.extend_from_slice(br"\u00");
                json.extend_from_slice(&[b'0' + special / 16, low]);
            }
        }
        rest = after;
    }
    json.extend_from_slice(rest);
    json.push(b'"');
}

/// Splits text before and after the first byte that JSON text cannot have as it is.
fn split_at_special(text: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let (plain, rest) = text.split_at_checked(find_special(text)?)?;
    let (special, after) = rest.split_first()?;
    Some((plain, *special, after))
}

fn find_special(text: &[u8]) -> Option<usize> {
    let (words, rest) = text.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let specials = specials(u64::from_le_bytes(*word));
        if specials != 0 {
            return Some(8 * index + specials.trailing_zeros() as usize / 8);
        }
    }
    let in_rest = rest.iter().position(|byte| *byte < b' ' || *byte == b'"' || *byte == b'\\')?;
    Some(8 * words.len() + in_rest)
}

/// Looks at eight bytes at once: the top bit of each says whether it is special. Those above the first
/// that is may say so wrongly, because of a borrow.
const fn specials(word: u64) -> u64 {
    const EACH: u64 = u64::from_le_bytes([1; 8]);
    const TOP: u64 = u64::from_le_bytes([0x80; 8]);
    const fn below(word: u64, limit: u8) -> u64 {
        word.wrapping_sub(EACH * limit as u64) & !word
    }
    const fn equal(word: u64, byte: u8) -> u64 {
        below(word ^ (EACH * byte as u64), 1)
    }
    (below(word, b' ') | equal(word, b'"') | equal(word, b'\\')) & TOP
}

const fn digit(value: u16) -> u8 {
    b'0' + (value % 10) as u8
}

/// What is wrong with a text.
type Reason = &'static str;

fn request(json: &mut Reader<'_>) -> Result<Request, Reason> {
    let (mut protocol, mut host, mut headers, mut body, mut method, mut path) = (None, None, None, None, None, None);
    json.object(|json, key| match key {
        "protocol" => set(&mut protocol, json.protocol()?),
        "host" => set(&mut host, json.text()?.into_owned()),
        "headers" => set(&mut headers, json.headers()?),
        "body" => set(&mut body, json.body()?),
        "method" => set(&mut method, json.method()?),
        "path" => set(&mut path, json.text()?.into_owned()),
        _ => json.ignore(),
    })?;
    json.end()?;
    Ok(Request {
        protocol: protocol.ok_or("there is no protocol")?,
        host: host.ok_or("there is no host")?,
        headers: headers.ok_or("there are no headers")?,
        body: body.flatten(),
        method: method.ok_or("there is no method")?,
        path: path.ok_or("there is no path")?,
    })
}

fn response(json: &mut Reader<'_>) -> Result<Response, Reason> {
    let (mut status, mut body, mut headers) = (None, None, None);
    json.object(|json, key| match key {
        "status" => set(&mut status, json.number()?),
        "body" => set(&mut body, json.body()?),
        "headers" => set(&mut headers, json.headers()?),
        _ => json.ignore(),
    })?;
    json.end()?;
    Ok(Response {
        status: status.ok_or("there is no status")?,
        body: body.flatten(),
        headers: headers.ok_or("there are no headers")?,
    })
}

fn set<T>(field: &mut Option<T>, value: T) -> Result<(), Reason> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err("a field stands there twice"),
    }
}

/// How deep the values of unknown fields may be nested: each level takes from the stack.
const DEPTH: usize = 100;

/// What is left of a JSON text. Each method takes something from its beginning.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn blanks(&mut self) {
        while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }

    /// Takes blanks, and then a byte if it is this one.
    fn eat(&mut self, wanted: u8) -> bool {
        self.blanks();
        match self.0 {
            [byte, rest @ ..] if *byte == wanted => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, wanted: u8, otherwise: Reason) -> Result<(), Reason> {
        if self.eat(wanted) { Ok(()) } else { Err(otherwise) }
    }

    /// Takes blanks, and then a word if it is this one.
    fn eat_word(&mut self, word: &str) -> bool {
        self.blanks();
        let rest = self.0.strip_prefix(word.as_bytes());
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn end(&mut self) -> Result<(), Reason> {
        self.blanks();
        if self.0.is_empty() { Ok(()) } else { Err("there is something after the end") }
    }

    fn object(&mut self, mut field: impl FnMut(&mut Self, &str) -> Result<(), Reason>) -> Result<(), Reason> {
        self.expect(b'{', "not an object")?;
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            let key = self.text()?;
            self.expect(b':', "a name without a value")?;
            field(self, &key)?;
            if !self.eat(b',') {
                return self.expect(b'}', "an object without an end");
            }
        }
    }

    fn array(&mut self, mut element: impl FnMut(&mut Self) -> Result<(), Reason>) -> Result<(), Reason> {
        self.expect(b'[', "not an array")?;
        if self.eat(b']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if !self.eat(b',') {
                return self.expect(b']', "an array without an end");
            }
        }
    }

    fn text(&mut self) -> Result<Cow<'a, str>, Reason> {
        const ENDLESS: Reason = "a text without an end";
        self.expect(b'"', "not a text")?;
        let (plain, mut special, mut rest) = split_at_special(self.0).ok_or(ENDLESS)?;
        let mut text = Cow::Borrowed(utf8(plain)?);
        while special == b'\\' {
            self.0 = rest;
            let character = self.escaped()?;
            text.to_mut().push(character);
            let plain;
            (plain, special, rest) = split_at_special(self.0).ok_or(ENDLESS)?;
            text.to_mut().push_str(utf8(plain)?);
        }
        self.0 = rest;
        if special == b'"' { Ok(text) } else { Err("a control character in a text") }
    }

    /// What stands for a character, after the backslash.
    fn escaped(&mut self) -> Result<char, Reason> {
        let (escape, rest) = self.0.split_first().ok_or("an escape without an end")?;
        self.0 = rest;
        Ok(match escape {
            b'"' | b'\\' | b'/' => char::from(*escape),
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'b' => '\x08',
            b'f' => '\x0c',
            b'u' => {
                let mut code = self.hex()?;
                // What does not fit into four digits is written as two escapes.
                if let (0xd800..0xdc00, [b'\\', b'u', rest @ ..]) = (code, self.0) {
                    self.0 = rest;
                    let low = self.hex()?.checked_sub(0xdc00).filter(|low| *low < 0x400);
                    code = 0x10000 + ((code - 0xd800) << 10) + low.ok_or("half a character")?;
                }
                char::from_u32(code).ok_or("half a character")?
            }
            _ => return Err("an unknown escape"),
        })
    }

    fn hex(&mut self) -> Result<u32, Reason> {
        let (digits, rest) = self.0.split_first_chunk::<4>().ok_or("an escape without an end")?;
        self.0 = rest;
        digits.iter().try_fold(0, |code, digit| {
            Ok(code << 4 | char::from(*digit).to_digit(16).ok_or("an escape that is no number")?)
        })
    }

    fn number(&mut self) -> Result<u16, Reason> {
        const NO_NUMBER: Reason = "not a number of this range";
        self.blanks();
        let mut value: Option<u16> = None;
        while let [byte @ b'0'..=b'9', rest @ ..] = self.0 {
            value = match value {
                None => Some(0),
                Some(0) => None,
                Some(value) => value.checked_mul(10),
            };
            let shifted = value.ok_or(NO_NUMBER)?;
            value = Some(shifted.checked_add(u16::from(byte - b'0')).ok_or(NO_NUMBER)?);
            self.0 = rest;
        }
        // What else a number may have, none of these has.
        if let [b'.' | b'e' | b'E', ..] = self.0 {
            return Err(NO_NUMBER);
        }
        value.ok_or(NO_NUMBER)
    }

    fn body(&mut self) -> Result<Option<Vec<u8>>, Reason> {
        if self.eat_word("null") {
            return Ok(None);
        }
        let mut body = Vec::new();
        self.array(|json| {
            body.push(u8::try_from(json.number()?).map_err(|_| "not a byte")?);
            Ok(())
        })?;
        Ok(Some(body))
    }

    fn headers(&mut self) -> Result<Headers, Reason> {
        let mut headers = Headers::new();
        self.object(|json, name| {
            headers.insert(name.to_owned(), json.text()?.into_owned());
            Ok(())
        })?;
        Ok(headers)
    }

    fn protocol(&mut self) -> Result<Protocol, Reason> {
        match &*self.text()? {
            "Unknown" => Ok(Protocol::Unknown),
            "HTTP" => Ok(Protocol::Http),
            "HTTPS" => Ok(Protocol::Https),
            _ => Err("an unknown protocol"),
        }
    }

    fn method(&mut self) -> Result<Method, Reason> {
        let text = self.text()?;
        let methods = [Method::Get, Method::Head, Method::Post, Method::Put, Method::Delete, Method::Patch];
        methods.into_iter().find(|method| name(*method) == text).ok_or("an unknown method")
    }

    /// Takes any value.
    fn ignore(&mut self) -> Result<(), Reason> {
        self.ignore_to(DEPTH)
    }

    fn ignore_to(&mut self, depth: usize) -> Result<(), Reason> {
        let inner = depth.checked_sub(1).ok_or("nested too deep")?;
        self.blanks();
        let rest = self.0;
        match rest {
            [b'"', ..] => self.text().map(drop),
            [b'{', ..] => self.object(|json, _| json.ignore_to(inner)),
            [b'[', ..] => self.array(|json| json.ignore_to(inner)),
            [b'-' | b'0'..=b'9', ..] => self.ignore_number(),
            _ if ["null", "true", "false"].iter().any(|word| self.eat_word(word)) => Ok(()),
            _ => Err("not a value"),
        }
    }

    fn ignore_number(&mut self) -> Result<(), Reason> {
        self.0 = self.0.strip_prefix(b"-").unwrap_or(self.0);
        match self.0.strip_prefix(b"0") {
            Some(rest) => self.0 = rest,
            None => self.digits()?,
        }
        if let [b'.', rest @ ..] = self.0 {
            self.0 = rest;
            self.digits()?;
        }
        if let [b'e' | b'E', b'+' | b'-', rest @ ..] | [b'e' | b'E', rest @ ..] = self.0 {
            self.0 = rest;
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Reason> {
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.0 = self.0.get(count..).unwrap_or_default();
        if count > 0 { Ok(()) } else { Err("not a value") }
    }
}

fn utf8(text: &[u8]) -> Result<&str, Reason> {
    std::str::from_utf8(text).map_err(|_| "a text that is not UTF-8")
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;

    /// Numbers that look random and are always the same.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % end
        }

        fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
            values[self.below(values.len())]
        }

        fn text(&mut self) -> String {
            const PARTS: [&str; 9] = [
                "",
                "*/*",
                "a \"quoted\" \\ text",
                "\ttab\t",
                "caf\u{e9}",
                "\u{1f600}",
                "\0 \x1f",
                "\r\n\x08\x0c",
                "/\x7f",
            ];
            (0..self.below(3)).map(|_| self.one_of(&PARTS)).collect()
        }

        fn headers(&mut self) -> Headers {
            (0..self.below(4)).map(|_| (self.text(), self.text())).collect()
        }

        fn body(&mut self) -> Option<Vec<u8>> {
            (self.below(10) > 0).then(|| (0..self.below(300)).map(|_| self.below(256) as u8).collect())
        }

        fn request(&mut self) -> Request {
            Request {
                protocol: self.one_of(&[Protocol::Unknown, Protocol::Http, Protocol::Https]),
                host: self.text(),
                headers: self.headers(),
                body: self.body(),
                method: self.one_of(&[
                    Method::Get,
                    Method::Head,
                    Method::Post,
                    Method::Put,
                    Method::Delete,
                    Method::Patch,
                ]),
                path: self.text(),
            }
        }

        fn response(&mut self) -> Response {
            let status = self.one_of(&[0, 7, 42, 200, 204, 999, 1000, 10_000, u16::MAX]);
            Response { status, body: self.body(), headers: self.headers() }
        }

        fn damage(&mut self, json: &[u8]) -> Vec<u8> {
            let mut json = json.to_vec();
            for _ in 0..=self.below(3) {
                let (at, from) = (self.below(json.len()), self.below(json.len()));
                match self.below(4) {
                    0 => json[at] = json[from],
                    1 => json.insert(at, json[from]),
                    // ASCII: serde does not look whether a text that it ignores is UTF-8.
                    2 => json[at] = self.below(128) as u8,
                    _ => drop(json.remove(at)),
                }
            }
            json
        }
    }

    fn is_that_of_serde<T: Serialize + DeserializeOwned + PartialEq + Debug>(
        value: &T,
        written: &[u8],
        read: impl Fn(&[u8]) -> Result<T, serde_json::Error>,
    ) {
        assert_eq!(String::from_utf8_lossy(written), serde_json::to_string(value).unwrap());
        assert_eq!(&read(written).unwrap(), value);
        let pretty = serde_json::to_string_pretty(value).unwrap();
        assert_eq!(&read(pretty.as_bytes()).unwrap(), value);
        let ascii: String = pretty.encode_utf16().fold(String::new(), |text, unit| match unit {
            0x80.. => text + &format!("\\u{unit:04X}"),
            _ => text + &char::from(unit as u8).to_string(),
        });
        assert_eq!(&read(ascii.as_bytes()).unwrap(), value);
    }

    #[test]
    fn the_form_is_that_of_serde() {
        let mut numbers = Numbers(1);
        for _ in 0..1000 {
            let request = numbers.request();
            is_that_of_serde(&request, &write_request(&request), read_request);
            let response = numbers.response();
            is_that_of_serde(&response, &write_response(&response), read_response);
        }
    }

    /// A function is trapped or deceived by nothing that arrives: serde's judgement is the measure.
    #[test]
    fn what_is_damaged_is_what_serde_makes_of_it() {
        let sound = r#"{"protocol":"HTTP", "host":"h\\\u00e9\"","headers":{"a":"b","c":""},"x":[1,-0.5e+3,{"y":null},true,false],
            "body":[0,10,255],"method":"Get","path":"/\ud83d\ude00"}"#;
        let mut numbers = Numbers(2);
        let mut accepted = 0;
        for _ in 0..50_000 {
            let json = numbers.damage(sound.as_bytes());
            let judged = serde_json::from_slice::<Request>(&json).ok();
            accepted += u32::from(judged.is_some());
            assert_eq!(read_request(&json).ok(), judged, "{}", json.escape_ascii());
        }
        assert!(accepted > 1000, "{accepted}: the damage is too great to show anything");
    }

    #[test]
    fn fields_may_be_in_any_order_or_unknown_but_not_missing_or_repeated() {
        let status = |json: &str| read_response(json.as_bytes()).map(|response| response.status).ok();
        assert_eq!(status(r#"{"headers":{},"new":{"a":[{}]},"status":200}"#), Some(200));
        assert_eq!(status(r#"{"headers":{},"body":null}"#), None);
        assert_eq!(status(r#"{"headers":{},"status":200,"status":200}"#), None);
        assert_eq!(status(r#"{"headers":{},"status":65536}"#), None);
        assert_eq!(status(r#"{"headers":{},"status":200} x"#), None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let reason = |json: &str| read_response(json.as_bytes()).unwrap_err().to_string();
        assert_eq!(reason(r#"{"status":200}"#), "there are no headers");
        assert_eq!(reason(r#"{"status":200,"body":[256]}"#), "not a byte");
        assert_eq!(reason("hello"), "not an object");
        let latin = read_response(b"{\"status\":200,\"headers\":{\"a\":\"\xe9\"}}").unwrap_err();
        assert_eq!(latin.to_string(), "a text that is not UTF-8");
    }

    #[test]
    fn a_special_byte_is_found_wherever_it_stands() {
        for special in (0..b' ').chain([b'"', b'\\']) {
            for at in 0..40 {
                let mut text = "caf\u{e9} !#[]\x7f~".repeat(4).into_bytes();
                assert_eq!(find_special(&text), None);
                text[at] = special;
                assert_eq!(find_special(&text), Some(at), "{special} at {at}");
                text[at + 1] = b'"';
                assert_eq!(find_special(&text), Some(at), "{special} at {at}");
            }
        }
    }

    /// The stack of a function is small, and its end is a trap.
    #[test]
    fn nesting_has_a_limit() {
        let nested = |depth| {
            let json = format!(r#"{{"status":200,"headers":{{}},"x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
            read_response(json.as_bytes()).is_ok()
        };
        assert!(nested(DEPTH));
        assert!(!nested(DEPTH + 1));
        assert!(!nested(1_000_000));
    }

    #[test]
    fn a_large_body_is_read_and_written() {
        let body: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let response = Response::new(200).with_body(body);
        let json = write_response(&response);
        assert!(json.capacity() <= 48 + 4 * response.body().len(), "allocated once");
        assert_eq!(read_response(&json).unwrap(), response);
    }
}
