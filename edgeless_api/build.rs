//! Compiles the protocol with a compiler written in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 10] = [
        "common.proto",
        "component.proto",
        "controller.proto",
        "orchestrator.proto",
        "operations.proto",
        "node.proto",
        "guest.proto",
        "records.proto",
        "node_records.proto",
        "orchestrator_records.proto",
    ];
    println!("cargo::rerun-if-changed=../proto");
    let descriptors = protox::compile(FILES, ["../proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .extern_path(".edgeless_api.PeerFrame", "crate::wire::frame::PeerFrame")
        .compile_fds(descriptors)?;
    Ok(())
}
