"""What a function may ask of its node.

The module holds the host of the process: who answers the functions below. A process serves one function, so there is
one, set when the node boots the function.
"""

from __future__ import annotations

import math
from datetime import timedelta
from enum import IntEnum
from typing import Protocol, TypeAlias

from ._instance_id import InstanceId

Payload: TypeAlias = bytes | bytearray | memoryview | str
"""What may be sent: bytes, or text, which is sent as UTF-8."""


class NodeError(Exception):
    """The node could not be asked, or refused: it is gone, it did not answer in time, or the function is not booted."""


class CallError(Exception):
    """A call has failed: the callee answered with an error, or there is no callee. Nothing more is known."""


class Level(IntEnum):
    """The levels of a log, counted as TelemetryLogLevel counts them."""

    ERROR = 0
    WARN = 1
    INFO = 2
    DEBUG = 3
    TRACE = 4


class Host(Protocol):
    """Carries out what the functions below ask. Every method may raise NodeError."""

    @property
    def slf(self) -> InstanceId: ...
    def cast(self, output: str, message: bytes) -> None: ...
    def cast_raw(self, target: InstanceId, message: bytes) -> None: ...
    def call(self, output: str, message: bytes) -> bytes | None: ...
    def call_raw(self, target: InstanceId, message: bytes) -> bytes | None: ...
    def delayed_cast(self, milliseconds: int, output: str, message: bytes) -> None: ...
    def sync(self, state: bytes) -> None: ...
    def log(self, level: Level, target: str, text: str) -> None: ...


_host: Host | None = None


def attach(host: Host | None) -> Host | None:
    """Sets the host of the process, or takes it away, and returns the one before."""
    global _host
    before, _host = _host, host
    return before


def attached() -> Host | None:
    """The host of the process, if there is one."""
    return _host


def cast(output: str, payload: Payload) -> None:
    """Sends an event to wherever the workflow leads the output; `self` is the function itself.

    Where it leads nowhere, the event is dropped. Raises NodeError.
    """
    _node().cast(output, to_bytes(payload))


def cast_raw(instance: InstanceId, payload: Payload) -> None:
    """Sends an event to an instance, such as the source of another event. Raises NodeError."""
    _node().cast_raw(instance, to_bytes(payload))


def call(output: str, payload: Payload) -> bytes | None:
    """Sends an event to wherever the workflow leads the output, and waits for the answer.

    Returns the reply, or `None` when the callee has nothing to say. Raises CallError if the answer is an error, and
    NodeError, also when 30 seconds have passed.
    """
    return _node().call(output, to_bytes(payload))


def call_raw(instance: InstanceId, payload: Payload) -> bytes | None:
    """The same as `call`, to an instance."""
    return _node().call_raw(instance, to_bytes(payload))


def delayed_cast(delay: float | timedelta, output: str, payload: Payload) -> None:
    """Sends an event later; to `self`, it is a timer.

    The delay is a time, or a number of seconds; it is rounded to milliseconds. Raises ValueError if it is negative or
    no number, and NodeError.
    """
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if not 0 <= seconds < math.inf:
        raise ValueError(f"a delay is a time from 0 up, not {delay}")
    _node().delayed_cast(round(seconds * 1000), output, to_bytes(payload))


def sync(state: Payload) -> None:
    """Saves the state that the next object of the function gets, in place of the one saved before. Raises NodeError."""
    _node().sync(to_bytes(state))


def slf() -> InstanceId:
    """Who the function is. Raises NodeError before it is booted."""
    return _node().slf


def to_bytes(payload: Payload) -> bytes:
    """The bytes of a payload. Raises TypeError for anything else."""
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        return payload.encode()
    if isinstance(payload, (bytearray, memoryview)):
        return bytes(payload)
    raise TypeError(f"a payload is bytes or str, not {type(payload).__name__}")


def _node() -> Host:
    if _host is None:
        raise NodeError("there is no node: it has not booted this function, or has stopped it")
    return _host
