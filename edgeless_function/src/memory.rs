//! Memory that crosses the border between node and function.
//!
//! The node writes what it delivers into buffers that it gets from [`alloc`]; those of an event it gives
//! back with [`free`], and that of a reply to the function's own call it leaves to the function, which
//! takes it over with [`adopt`]. Buffers are plain allocations of the Rust heap with alignment 1, which
//! is exactly what a `Vec<u8>` of that capacity owns: a reply is adopted without a copy.
#![allow(unsafe_code, reason = "raw memory is shared with the node here")]

use std::alloc::{Layout, alloc as heap_alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Gets a buffer of `len` bytes. A buffer of no bytes is a non-null pointer that needs no release.
pub(crate) fn alloc(len: usize) -> *mut u8 {
    if len == 0 {
        return NonNull::dangling().as_ptr();
    }
    let layout = layout(len);
    // SAFETY: the layout is not of size zero.
    let buffer = unsafe { heap_alloc(layout) };
    if buffer.is_null() { handle_alloc_error(layout) } else { buffer }
}

/// Gives a buffer back.
///
/// # Safety
/// The buffer came from [`alloc`] with this `len`, is not in use, and was neither freed nor adopted.
pub(crate) unsafe fn free(buffer: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: by the contract above, the pointer came from `heap_alloc` with this very layout.
        unsafe { dealloc(buffer, layout(len)) }
    }
}

/// Takes a buffer over.
///
/// # Safety
/// The buffer came from [`alloc`] with this `len`, all of it is written, and nobody frees or uses it any more.
#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "only a node delivers replies in buffers"))]
pub(crate) unsafe fn adopt(buffer: *mut u8, len: usize) -> Vec<u8> {
    if len == 0 {
        return Vec::new();
    }
    // SAFETY: by the contract above, the pointer came from the global allocator with the layout of a
    // `Vec<u8>` of capacity `len`, and its `len` bytes are written.
    unsafe { Vec::from_raw_parts(buffer, len, len) }
}

/// Borrows a buffer; no bytes may have any pointer, a null pointer included.
///
/// # Safety
/// Unless `len` is 0, `buffer` points to `len` written bytes that outlive `'a` and do not change meanwhile.
pub(crate) unsafe fn borrow<'a>(buffer: *const u8, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the contract above is that of `from_raw_parts`.
    unsafe { std::slice::from_raw_parts(buffer, len) }
}

fn layout(len: usize) -> Layout {
    #[expect(clippy::expect_used, reason = "more than half of the address space cannot be asked for")]
    Layout::array::<u8>(len).expect("a buffer larger than the memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The node allocates for empty payloads too and never frees those.
    #[test]
    fn an_empty_buffer_is_not_null_and_costs_nothing() {
        let buffer = alloc(0);
        assert!(!buffer.is_null());
        // SAFETY: the buffer came from `alloc(0)`.
        unsafe {
            free(buffer, 0);
            assert!(adopt(buffer, 0).is_empty());
        }
    }

    /// Init without an annotation delivers a null pointer, which no slice may have.
    #[test]
    fn nothing_at_null_is_an_empty_slice() {
        // SAFETY: the length is 0.
        assert_eq!(unsafe { borrow(std::ptr::null(), 0) }, b"");
    }

    #[test]
    fn a_reply_is_adopted_without_a_copy() {
        let buffer = alloc(5);
        // SAFETY: the buffer came from `alloc(5)`, is written in full, and is not used after `adopt`.
        let reply = unsafe {
            buffer.copy_from(b"reply".as_ptr(), 5);
            adopt(buffer, 5)
        };
        assert_eq!(reply, b"reply");
        assert_eq!(reply.as_ptr(), buffer.cast_const());
    }
}
