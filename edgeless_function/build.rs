//! With the feature `container`: compiles the protocol between a node and its guests, with a compiler
//! written in Rust, so that no `protoc` is needed.

#[cfg(feature = "container")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const GUEST: &str = "guest.proto";
    println!("cargo::rerun-if-changed=../proto");
    let mut descriptors = protox::compile([GUEST], ["../proto"])?;
    // Of the others only messages are needed.
    for file in &mut descriptors.file {
        if file.name() != GUEST {
            file.service.clear();
        }
    }
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

#[cfg(not(feature = "container"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
