;; The way into a guest: one call of the host for one event.
;;
;; A handler is several calls into the guest: to clear, to get a buffer, the handler itself, to free the
;; buffer. From the host each would need a stack of its own for the time of the call; from here they are
;; calls from WebAssembly to WebAssembly. So this module stands between the host and every guest, an
;; instance of it for each.
;;
;; All that the guest is passed lies in one buffer:
;;
;;   cast   0 component | 16 node | 32 payload
;;   call   0 component | 16 node | 32 pointer to the reply | 36 its length | 40 payload
(module $edgeless
  ;; Writes the event that is being handled to a buffer of the guest.
  (import "host" "place" (func $place (param $buffer i32)))
  ;; Copies the reply that these two cells tell of: the next call into the guest may free it.
  (import "host" "take" (func $take (param $cells i32)))
  (import "guest" "edgeless_mem_clear" (func $clear))
  (import "guest" "edgeless_mem_alloc" (func $alloc (param i32) (result i32)))
  (import "guest" "edgeless_mem_free" (func $free (param i32 i32)))
  (import "guest" "handle_cast_asm" (func $handle_cast (param i32 i32 i32 i32)))
  (import "guest" "handle_call_asm" (func $handle_call (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "guest" "handle_stop_asm" (func $handle_stop))

  (func $event (param $size i32) (result i32)
    (local $buffer i32)
    (call $clear)
    (local.set $buffer (call $alloc (local.get $size)))
    (call $place (local.get $buffer))
    (local.get $buffer))

  (func $cast (export "cast") (param $payload i32)
    (local $buffer i32)
    (local $size i32)
    (local.set $size (i32.add (local.get $payload) (i32.const 32)))
    (local.set $buffer (call $event (local.get $size)))
    (call $handle_cast
      (i32.add (local.get $buffer) (i32.const 16))
      (local.get $buffer)
      (i32.add (local.get $buffer) (i32.const 32))
      (local.get $payload))
    (call $free (local.get $buffer) (local.get $size)))

  (func $call (export "call") (param $payload i32) (result i32)
    (local $buffer i32)
    (local $size i32)
    (local $result i32)
    (local.set $size (i32.add (local.get $payload) (i32.const 40)))
    (local.set $buffer (call $event (local.get $size)))
    (local.set $result
      (call $handle_call
        (i32.add (local.get $buffer) (i32.const 16))
        (local.get $buffer)
        (i32.add (local.get $buffer) (i32.const 40))
        (local.get $payload)
        (i32.add (local.get $buffer) (i32.const 32))
        (i32.add (local.get $buffer) (i32.const 36))))
    (if (i32.eq (local.get $result) (i32.const 1))
      (then (call $take (i32.add (local.get $buffer) (i32.const 32)))))
    (call $free (local.get $buffer) (local.get $size))
    (local.get $result))

  (func $stop (export "stop")
    (call $clear)
    (call $handle_stop)))
