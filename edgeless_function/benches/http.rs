//! What the JSON form of HTTP costs a function, beside what serde takes for the same.
//!
//!     cd functions && cargo bench -p edgeless_function --bench http

use std::hint::black_box;
use std::time::Instant;

use edgeless_function::http::{Request, Response};

/// Prints the time of one run, the least of many: whatever else the machine does only adds to it.
fn measure<R>(what: &str, mut run: impl FnMut() -> R) {
    const RUNS: u32 = 20;
    let round = |_| {
        let began = Instant::now();
        for _ in 0..RUNS {
            black_box(run());
        }
        began.elapsed() / RUNS
    };
    let least = (0..1000).map(round).min().unwrap_or_default();
    println!("{what:<46} {least:>12.0?}");
}

fn main() {
    let body: Vec<u8> = (0..=255).cycle().take(4 << 10).collect();
    let small =
        Request::get("demo.edgeless.local/hello?name=Ada").with_header("host", "demo.edgeless.local").with_body("");
    for (what, request) in
        [("request without a body", small.clone()), ("request with 4 KiB", small.with_body(body.clone()))]
    {
        let json = request.to_json();
        measure(&format!("{what}, read"), || Request::parse(black_box(&json)));
        measure(&format!("{what}, read by serde"), || serde_json::from_slice::<Request>(black_box(&json)));
    }
    let small = Response::text("Hello, world!\n");
    for (what, response) in [("response with 14 bytes", small.clone()), ("response with 4 KiB", small.with_body(body))]
    {
        measure(&format!("{what}, written"), || black_box(&response).to_json());
        measure(&format!("{what}, written by serde"), || serde_json::to_vec(black_box(&response)));
    }
}
