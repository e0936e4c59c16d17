#!/bin/sh
# Makes sure that functions can be compiled: adds the target for WebAssembly where it is missing.
set -eu
target=$1
command -v cargo >/dev/null || { echo "cargo is not installed: see https://rustup.rs" >&2; exit 1; }
if [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then exit 0; fi
if command -v rustup >/dev/null; then
    rustup target add "$target"
elif [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ]; then
    # The command line builds functions with cargo's build-std then.
    exit 0
else
    echo "the target $target is missing: install it with your package manager" >&2
    echo "(Debian: rustc-web cargo-web rust-web-src rust-web-llvm; functions are then built with cargo's build-std)" >&2
    exit 1
fi
