//! The exports of the module: the function's side of the guest ABI.
//!
//! [`export!`] makes the symbols that the node calls, and nothing more: names, parameters and what the
//! node promises about its pointers. What they do is in `rt`. The ABI is that of every EDGELESS node,
//! which calls in this order:
//!
//! ```text
//!   init   edgeless_mem_alloc…  handle_init_asm  edgeless_mem_free…
//!   cast   edgeless_mem_clear  edgeless_mem_alloc…  handle_cast_asm  edgeless_mem_free…
//!   call   edgeless_mem_clear  edgeless_mem_alloc…  handle_call_asm  (the reply is copied)  edgeless_mem_free…
//!   stop   edgeless_mem_clear  handle_stop_asm
//! ```

/// Makes the exports of the module from a type that implements [`Function`](crate::Function) or
/// [`Edgefunction`](crate::Edgefunction).
///
/// One line per module, for there can be one function in it:
///
/// ```
/// # use edgeless_function::*;
/// # struct Noop;
/// # impl Function for Noop {
/// #     fn handle_init(_: Message, _: Option<Message>) -> Self { Noop }
/// # }
/// edgeless_function::export!(Noop);
/// ```
///
/// A type that implements both traits is exported as a `Function`. Compiled natively, it exports nothing,
/// or with the feature `container` a `main` function, so that the line must be at the root of the crate then.
#[macro_export]
macro_rules! export {
    ($function:ty) => {
        $crate::__main!($function);

        #[allow(dead_code, unsafe_code, reason = "called by the node, which speaks in pointers; natively by nobody")]
        const _: () = {
            #[allow(unused_imports, reason = "used when the type has static handlers")]
            use $crate::rt::ByEdgefunction as _;
            use $crate::rt::{Handlers, Instance, Select};

            const HANDLERS: Handlers<$function> = Select::<$function>::HANDLERS;

            ::std::thread_local! {
                static INSTANCE: Instance<$function> = const { Instance::new() };
            }

            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            extern "C" fn edgeless_mem_alloc(len: usize) -> *mut u8 {
                $crate::rt::alloc(len)
            }

            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            unsafe extern "C" fn edgeless_mem_free(buffer: *mut u8, len: usize) {
                // SAFETY: the node frees what it got from `edgeless_mem_alloc`, once, with the same length.
                unsafe { $crate::rt::free(buffer, len) }
            }

            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            extern "C" fn edgeless_mem_clear() {
                INSTANCE.with(Instance::clear);
            }

            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            unsafe extern "C" fn handle_init_asm(
                payload: *const u8,
                payload_len: usize,
                state: *const u8,
                state_len: usize,
            ) {
                // SAFETY: the node passes a buffer that it has written and frees after the handler, or no length.
                let payload = unsafe { $crate::rt::message(payload, payload_len) };
                // SAFETY: as above.
                let state = unsafe { $crate::rt::message(state, state_len) };
                $crate::rt::prepare();
                INSTANCE.with(|instance| instance.init(&HANDLERS, payload, state));
            }

            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            unsafe extern "C" fn handle_cast_asm(
                node_id: *const [u8; 16],
                component_id: *const [u8; 16],
                payload: *const u8,
                payload_len: usize,
            ) {
                // SAFETY: the node passes two ids of 16 bytes that it has written.
                let source = unsafe { $crate::rt::source(node_id, component_id) };
                // SAFETY: the node passes a buffer that it has written and frees after the handler.
                let message = unsafe { $crate::rt::message(payload, payload_len) };
                INSTANCE.with(|instance| instance.cast(&HANDLERS, source, message));
            }

            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            unsafe extern "C" fn handle_call_asm(
                node_id: *const [u8; 16],
                component_id: *const [u8; 16],
                payload: *const u8,
                payload_len: usize,
                out_ptr: *mut *const u8,
                out_len: *mut usize,
            ) -> i32 {
                // SAFETY: the node passes two ids of 16 bytes that it has written.
                let source = unsafe { $crate::rt::source(node_id, component_id) };
                // SAFETY: the node passes a buffer that it has written and frees after the handler.
                let message = unsafe { $crate::rt::message(payload, payload_len) };
                let answer = INSTANCE.with(|instance| instance.call(&HANDLERS, source, message));
                // SAFETY: the node passes two cells of a pointer's size each.
                unsafe { answer.write(out_ptr, out_len) }
            }

            #[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
            extern "C" fn handle_stop_asm() {
                INSTANCE.with(|instance| instance.stop(&HANDLERS));
            }
        };
    };
}

/// Makes the `main` function of an executable.
#[cfg(all(feature = "container", not(target_arch = "wasm32")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __main {
    ($function:ty) => {
        /// Serves the function to its node.
        #[allow(dead_code, unreachable_pub, reason = "entered where the crate is compiled to an executable")]
        pub fn main() {
            #[allow(unused_imports, reason = "used when the type has static handlers")]
            use $crate::rt::ByEdgefunction as _;
            $crate::container::run($crate::rt::Select::<$function>::HANDLERS)
        }
    };
}

/// Makes nothing: a module has no `main`.
#[cfg(not(all(feature = "container", not(target_arch = "wasm32"))))]
#[doc(hidden)]
#[macro_export]
macro_rules! __main {
    ($function:ty) => {};
}
