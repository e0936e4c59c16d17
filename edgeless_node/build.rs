//! Compiles the module that stands between the host and its guests.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const ENTRY: &str = "src/runtimes/wasm/entry.wat";
    println!("cargo::rerun-if-changed={ENTRY}");
    let module = wat::parse_file(ENTRY)?;
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("entry.wasm"), module)?;
    Ok(())
}
