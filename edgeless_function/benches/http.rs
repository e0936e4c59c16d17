//! What the JSON form of HTTP costs a function, beside what serde takes for the same.
//!
//!     cd functions && cargo bench -p edgeless_function --bench http
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use divan::{Bencher, black_box};
use edgeless_function::http::{Request, Response};

fn main() {
    divan::main();
}

/// Sizes of bodies, bytes.
const BODIES: [usize; 2] = [14, 4 << 10];

fn body(size: usize) -> Vec<u8> {
    (0..=255).cycle().take(size).collect()
}

fn request(size: usize) -> Vec<u8> {
    let request = Request::get("demo.edgeless.local/hello?name=Ada").with_header("host", "demo.edgeless.local");
    request.with_body(body(size)).to_json()
}

fn response(size: usize) -> Response {
    Response::text("").with_body(body(size))
}

#[divan::bench(args = BODIES)]
fn read(bencher: Bencher, size: usize) {
    let json = request(size);
    bencher.bench_local(|| Request::parse(black_box(&json)).unwrap());
}

#[divan::bench(args = BODIES)]
fn read_by_serde(bencher: Bencher, size: usize) {
    let json = request(size);
    bencher.bench_local(|| serde_json::from_slice::<Request>(black_box(&json)).unwrap());
}

#[divan::bench(args = BODIES)]
fn write(bencher: Bencher, size: usize) {
    let response = response(size);
    bencher.bench_local(|| black_box(&response).to_json());
}

#[divan::bench(args = BODIES)]
fn write_by_serde(bencher: Bencher, size: usize) {
    let response = response(size);
    bencher.bench_local(|| serde_json::to_vec(black_box(&response)).unwrap());
}
