//! What the JSON form of HTTP costs the node: from the head of a request to the payload of its call,
//! and from the reply to the response, beside what serde takes for the latter.
//!
//!     cargo bench -p edgeless_node --bench http
#![allow(dead_code, unused_imports, reason = "the modules are the node's own, of which this uses a part")]
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use divan::{Bencher, black_box};
use edgeless_node::instance;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

#[path = "../src/resources/http.rs"]
mod http;
#[path = "../src/resources/http_json.rs"]
mod http_json;

fn main() {
    divan::main();
}

const BROWSER: [(&str, &str); 6] = [
    ("host", "demo.edgeless.local:7035"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br"),
    ("connection", "keep-alive"),
];

/// Sizes of bodies, bytes.
const BODIES: [usize; 2] = [14, 64 << 10];

fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = headers.iter().copied();
    pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn body(size: usize) -> Vec<u8> {
    (0..=255).cycle().take(size).collect()
}

fn request(bencher: Bencher, headers: &[(&'static str, &'static str)], body: &[u8]) {
    let headers = map(headers);
    let host = "demo.edgeless.local";
    bencher.bench_local(|| http_json::request(black_box(host), &headers, body, http::Method::Get, "/hello?name=Ada"));
}

#[divan::bench(args = [1, 6])]
fn request_with_headers(bencher: Bencher, count: usize) {
    request(bencher, BROWSER.split_at(count).0, b"");
}

#[divan::bench(args = BODIES)]
fn request_with_a_body(bencher: Bencher, size: usize) {
    request(bencher, BROWSER.split_at(1).0, &body(size));
}

fn reply(size: usize) -> instance::Payload {
    http_json::response(200, &map(&[("content-type", "text/plain; charset=utf-8")]), &body(size))
}

#[divan::bench(args = BODIES)]
fn response(bencher: Bencher, size: usize) {
    let json = reply(size);
    bencher.bench_local(|| {
        let response = http_json::read_response(black_box(&json)).unwrap();
        (http::to_send(&response.headers).unwrap(), response.body)
    });
}

#[divan::bench(args = BODIES)]
fn response_by_serde(bencher: Bencher, size: usize) {
    let json = reply(size);
    bencher.bench_local(|| {
        let response: http::Response<'_> = serde_json::from_slice(black_box(&json)).unwrap();
        (http::to_send(&response.headers).unwrap(), response.body)
    });
}
