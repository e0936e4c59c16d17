"""The SDK for EDGELESS functions in Python.

A function is a class with four handlers. Its process listens; a node boots it, hands it events one at a time, and
carries the events that it sends.

    from edgeless_function import Function, InstanceId, cast, serve

    class Shout(Function):
        def handle_cast(self, source: InstanceId, message: bytes) -> None:
            cast("output", message.upper())

    if __name__ == "__main__":
        serve(Shout)

Messages are bytes. Log with the standard module `logging`: records go to the node. `edgeless_function.http` has what
`http-ingress` and `http-egress` exchange with functions, and `edgeless_function.testing` a node for tests.
"""

from ._function import Function
from ._host import (
    CallError,
    NodeError,
    Payload,
    call,
    call_raw,
    cast,
    cast_raw,
    delayed_cast,
    slf,
    sync,
)
from ._instance_id import InstanceId
from ._params import params
from ._serve import serve

__all__ = [
    "CallError",
    "Function",
    "InstanceId",
    "NodeError",
    "Payload",
    "call",
    "call_raw",
    "cast",
    "cast_raw",
    "delayed_cast",
    "params",
    "serve",
    "slf",
    "sync",
]

# Errors and the like are called what users call them.
for _public in (CallError, Function, InstanceId, NodeError):
    _public.__module__ = __name__
