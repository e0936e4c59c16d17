//! What the JSON form of HTTP costs the node: from the head of a request to the payload of its call,
//! and from the reply to the response, beside what serde takes for the latter.
//!
//!     cargo bench -p edgeless_node --bench http

#![allow(dead_code, unused_imports, reason = "the modules are the node's own, of which this uses a part")]

use std::hint::black_box;
use std::time::Instant;

use edgeless_node::instance;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

#[path = "../src/resources/http.rs"]
mod http;
#[path = "../src/resources/http_json.rs"]
mod http_json;

/// Prints the time of one run, the least of many: whatever else the machine does only adds to it.
fn measure<R>(what: &str, runs: u32, mut run: impl FnMut() -> R) {
    let round = |_| {
        let began = Instant::now();
        for _ in 0..runs {
            black_box(run());
        }
        began.elapsed() / runs
    };
    let least = (0..50).map(round).min().unwrap_or_default();
    println!("{what:<46} {least:>12.0?}");
}

fn main() {
    let browser = [
        ("host", "demo.edgeless.local:7035"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br"),
        ("connection", "keep-alive"),
    ];
    let map = |headers: &[(&'static str, &'static str)]| -> HeaderMap {
        let pairs = headers.iter().copied();
        pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    };
    let body: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();

    for (what, headers, body, runs) in [
        ("request with one header", map(browser.split_at(1).0), b"".as_slice(), 2000),
        ("request with six headers", map(&browser), b"".as_slice(), 2000),
        ("request with 64 KiB", map(browser.split_at(1).0), body.as_slice(), 10),
    ] {
        measure(what, runs, || {
            http_json::request(black_box("demo.edgeless.local"), &headers, body, http::Method::Get, "/hello?name=Ada")
        });
    }

    let content_type = map(&[("content-type", "text/plain; charset=utf-8")]);
    for (what, body, runs) in
        [("response with 14 bytes", b"Hello, world!\n".as_slice(), 2000), ("response with 64 KiB", &body, 10)]
    {
        let json = http_json::response(200, &content_type, body);
        measure(what, runs, || {
            let response = http_json::read_response(black_box(&json)).ok()?;
            Some((http::to_send(&response.headers).ok()?, response.body))
        });
        measure(&format!("{what}, by serde"), runs, || {
            let response: http::Response<'_> = serde_json::from_slice(black_box(&json)).ok()?;
            Some((http::to_send(&response.headers).ok()?, response.body))
        });
    }
}
