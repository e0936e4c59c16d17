//! The imports of the module: the node's side of the guest ABI.
//!
//! Module `env`, and `edgeless` for what EDGELESS 1.x nodes do not have; names and parameters as every EDGELESS node has them. Ids are 16 bytes, the most
//! significant first; lengths and pointers are 32 bit; the result of a call is 0 for no reply, 1 for a
//! reply and anything else for an error. The node copies what it is given before it returns.
#![allow(unsafe_code, reason = "the node is reached through foreign functions")]

use crate::{CallRet, EventId, InstanceId, Uuid, memory};

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn cast_raw_asm(node_id: *const u8, component_id: *const u8, payload: *const u8, payload_len: usize);
    fn cast_asm(target: *const u8, target_len: usize, payload: *const u8, payload_len: usize);
    fn call_raw_asm(
        node_id: *const u8,
        component_id: *const u8,
        payload: *const u8,
        payload_len: usize,
        out_ptr: *mut *mut u8,
        out_len: *mut usize,
    ) -> i32;
    fn call_asm(
        target: *const u8,
        target_len: usize,
        payload: *const u8,
        payload_len: usize,
        out_ptr: *mut *mut u8,
        out_len: *mut usize,
    ) -> i32;
    fn telemetry_log_asm(level: usize, target: *const u8, target_len: usize, text: *const u8, text_len: usize);
    fn slf_asm(out_node_id: *mut u8, out_component_id: *mut u8);
    fn delayed_cast_asm(delay_ms: u64, target: *const u8, target_len: usize, payload: *const u8, payload_len: usize);
    fn sync_asm(state: *const u8, state_len: usize);
}

#[link(wasm_import_module = "edgeless")]
unsafe extern "C" {
    fn event_id_asm(out_outbox: *mut u8, out_number: *mut u64) -> i32;
}

pub(super) fn event_id() -> Option<EventId> {
    let (mut outbox, mut number) = ([0; 16], 0);
    // SAFETY: the node writes 16 bytes and a number of 64 bits, which is what there is room for.
    let has_one = unsafe { event_id_asm(outbox.as_mut_ptr(), &raw mut number) } == 1;
    has_one.then(|| EventId { outbox: Uuid::from_bytes(outbox), number })
}

pub(super) fn cast(output: &str, payload: &[u8]) {
    // SAFETY: pointers and lengths are those of live slices, which the node only reads.
    unsafe { cast_asm(output.as_ptr(), output.len(), payload.as_ptr(), payload.len()) }
}

pub(super) fn cast_raw(target: InstanceId, payload: &[u8]) {
    let (node, component) = (target.node.as_bytes(), target.function.as_bytes());
    // SAFETY: the ids are 16 bytes each, the payload is a live slice, and the node only reads them.
    unsafe { cast_raw_asm(node.as_ptr(), component.as_ptr(), payload.as_ptr(), payload.len()) }
}

pub(super) fn call(output: &str, payload: &[u8]) -> CallRet {
    let mut reply = Reply::EMPTY;
    // SAFETY: pointers and lengths are those of live slices, which the node only reads; it writes only
    // to the reply cells.
    let result = unsafe {
        call_asm(output.as_ptr(), output.len(), payload.as_ptr(), payload.len(), &raw mut reply.ptr, &raw mut reply.len)
    };
    // SAFETY: the cells are as the node left them for this result.
    unsafe { reply.take(result) }
}

pub(super) fn call_raw(target: InstanceId, payload: &[u8]) -> CallRet {
    let (node, component) = (target.node.as_bytes(), target.function.as_bytes());
    let mut reply = Reply::EMPTY;
    // SAFETY: the ids are 16 bytes each, the payload is a live slice, and the node only reads them; it
    // writes only to the reply cells.
    let result = unsafe {
        call_raw_asm(
            node.as_ptr(),
            component.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            &raw mut reply.ptr,
            &raw mut reply.len,
        )
    };
    // SAFETY: the cells are as the node left them for this result.
    unsafe { reply.take(result) }
}

pub(super) fn delayed_cast(delay_ms: u64, output: &str, payload: &[u8]) {
    // SAFETY: pointers and lengths are those of live slices, which the node only reads.
    unsafe { delayed_cast_asm(delay_ms, output.as_ptr(), output.len(), payload.as_ptr(), payload.len()) }
}

pub(super) fn sync(state: &[u8]) {
    // SAFETY: pointer and length are those of a live slice, which the node only reads.
    unsafe { sync_asm(state.as_ptr(), state.len()) }
}

pub(super) fn slf() -> InstanceId {
    let (mut node, mut component) = ([0; 16], [0; 16]);
    // SAFETY: the node writes 16 bytes to each pointer, which is what there is room for.
    unsafe { slf_asm(node.as_mut_ptr(), component.as_mut_ptr()) }
    InstanceId { node: Uuid::from_bytes(node), function: Uuid::from_bytes(component) }
}

pub(super) fn log(level: log::Level, target: &str, text: &str) {
    // The node's levels are those of the `log` crate: 1 is error, 5 is trace.
    // SAFETY: pointers and lengths are those of live slices, which the node only reads.
    unsafe { telemetry_log_asm(level as usize, target.as_ptr(), target.len(), text.as_ptr(), text.len()) }
}

/// The cells into which the node writes where a reply lies.
#[repr(C)]
struct Reply {
    ptr: *mut u8,
    len: usize,
    /// 1.x nodes write the length as 64 bits, and the upper half must land somewhere harmless.
    _spare: usize,
}

impl Reply {
    const EMPTY: Reply = Reply { ptr: std::ptr::null_mut(), len: 0, _spare: 0 };

    /// Reads the outcome of a call, and takes the buffer over if there is a reply.
    ///
    /// # Safety
    /// The cells were filled by the node in the call that gave this `result`.
    unsafe fn take(self, result: i32) -> CallRet {
        match result {
            0 => CallRet::Noreply,
            // SAFETY: with result 1 the node has written a reply of `len` bytes into a buffer that it
            // got from this module's allocator, and leaves it to us.
            1 => CallRet::Reply(unsafe { memory::adopt(self.ptr, self.len) }),
            _ => CallRet::Err,
        }
    }
}
