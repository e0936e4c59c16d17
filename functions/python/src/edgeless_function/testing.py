"""A node for the tests of functions: it records what they ask, and carries nothing.

    from edgeless_function import testing

    def test_shout() -> None:
        with testing.node() as node:
            Shout(b"", None).handle_cast(testing.SOURCE, b"hi")
        assert node.effects == [testing.Cast("output", b"HI")]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import _host
from ._host import Level, Payload
from ._instance_id import InstanceId

__all__ = ["SELF", "SOURCE", "Call", "Cast", "DelayedCast", "Effect", "Node", "Sync", "node"]

SELF = InstanceId("00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002")
"""Who a function is in a test."""
SOURCE = InstanceId("00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000003")
"""A source for the events of a test."""


@dataclass(frozen=True)
class Cast:
    """An event sent by `cast` or `cast_raw`."""

    target: str | InstanceId
    """The output, or the instance."""
    message: bytes
    """What was sent."""


@dataclass(frozen=True)
class Call:
    """An event sent by `call` or `call_raw`."""

    target: str | InstanceId
    """The output, or the instance."""
    message: bytes
    """What was sent."""


@dataclass(frozen=True)
class DelayedCast:
    """An event sent by `delayed_cast`."""

    milliseconds: int
    """How much later."""
    output: str
    """The output."""
    message: bytes
    """What is to be sent."""


@dataclass(frozen=True)
class Sync:
    """A state saved by `sync`."""

    state: bytes
    """What was saved."""


Effect = Cast | Call | DelayedCast | Sync
"""What a function has asked of its node."""


def _no_callee(target: str | InstanceId, message: bytes) -> Payload | None:
    raise _host.CallError(f"the call of {target} has failed: this test answers none")


@dataclass
class Node:
    """The node of a test."""

    effects: list[Effect] = field(default_factory=list)
    """What was asked, in order."""
    answer: Callable[[str | InstanceId, bytes], Payload | None] = _no_callee
    """Answers calls, given the output or instance and the message. Unless set, every call raises CallError."""

    @property
    def slf(self) -> InstanceId:
        """Who the function is."""
        return SELF

    def cast(self, output: str, message: bytes) -> None:
        """Records a cast."""
        self.effects.append(Cast(output, message))

    def cast_raw(self, target: InstanceId, message: bytes) -> None:
        """Records a cast to an instance."""
        self.effects.append(Cast(target, message))

    def call(self, output: str, message: bytes) -> bytes | None:
        """Records a call, and answers it."""
        return self._call(output, message)

    def call_raw(self, target: InstanceId, message: bytes) -> bytes | None:
        """Records a call of an instance, and answers it."""
        return self._call(target, message)

    def delayed_cast(self, milliseconds: int, output: str, message: bytes) -> None:
        """Records a delayed cast."""
        self.effects.append(DelayedCast(milliseconds, output, message))

    def sync(self, state: bytes) -> None:
        """Records a state."""
        self.effects.append(Sync(state))

    def log(self, level: Level, target: str, text: str) -> None:
        """Drops a record: the tests of Python have means of their own."""

    def _call(self, target: str | InstanceId, message: bytes) -> bytes | None:
        self.effects.append(Call(target, message))
        reply = self.answer(target, message)
        return None if reply is None else _host.to_bytes(reply)


@contextmanager
def node() -> Iterator[Node]:
    """Makes a node that functions ask until the end of the `with` statement."""
    made = Node()
    before = _host.attach(made)
    try:
        yield made
    finally:
        _host.attach(before)
