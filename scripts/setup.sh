#!/bin/sh
# Makes sure that functions can be compiled: adds the target for WebAssembly where it is missing, and the
# one for containers where it can be had.
set -eu
target=$1
command -v cargo >/dev/null || { echo "cargo is not installed: see https://rustup.rs" >&2; exit 1; }
libraries=$(rustc --print sysroot)/lib/rustlib
containers=$(uname -m)-unknown-linux-musl
if command -v rustup >/dev/null && [ ! -d "$libraries/$containers" ]; then
    rustup target add "$containers" || echo "without the target $containers functions run as WebAssembly only" >&2
fi
if [ -d "$libraries/$target" ]; then exit 0; fi
if command -v rustup >/dev/null; then
    rustup target add "$target"
elif [ -d "$libraries/src/rust/library" ]; then
    # The command line builds functions with cargo's build-std then.
    exit 0
else
    echo "the target $target is missing: install it with your package manager" >&2
    echo "(Debian: rustc-web cargo-web rust-web-src rust-web-llvm; functions are then built with cargo's build-std)" >&2
    exit 1
fi
