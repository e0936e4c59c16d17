"""The way to the node: GuestAPIHost, one unary call for each request.

Every request says who asks (`originator`, and the token given at Boot as metadata) and has a deadline.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from ._host import CallError, Level, NodeError
from ._instance_id import InstanceId
from ._wire import guest_pb2 as wire

HOST_SOCKET = "/run/edgeless/host.sock"
MAX_MESSAGE = 64 * 1024 * 1024
# Seconds; longer than the node itself waits for the answer to a call.
DEADLINE = 30.0
# A function must not hang because its log does.
LOG_DEADLINE = 5.0
# Characters: a traceback, but no data.
MAX_LOG = 64 * 1024

SIZES = (("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE))

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)


def target_of(endpoint: str) -> str:
    """Where gRPC finds the endpoint of a BootData; without one, the socket that a node puts into a container.

    Raises ValueError if that is nowhere.
    """
    if not endpoint:
        if os.path.exists(HOST_SOCKET):
            return f"unix:{HOST_SOCKET}"
        raise ValueError(f"guest_api_host_endpoint is empty, and there is no {HOST_SOCKET}")
    refused = ValueError(f"guest_api_host_endpoint {endpoint!r} is not of the form http://host:port")
    try:
        url = urlsplit(endpoint)
        good = url.scheme == "http" and url.hostname and url.port and url.path in ("", "/")
    except ValueError:
        raise refused from None
    if not good:
        raise refused
    return url.netloc


class Link:
    """The host of a booted function."""

    def __init__(self, target: str, slf: InstanceId, token: str) -> None:
        self.slf = slf
        self._originator = to_wire(slf)
        self._metadata = (("edgeless-token", token),) if token else ()
        # A proxy of the environment is for the outside, not for the node.
        self._channel = grpc.insecure_channel(target, options=(*SIZES, ("grpc.enable_http_proxy", 0)))

        self._cast = self._method("Cast", wire.OutputEventData, Empty)
        self._cast_raw = self._method("CastRaw", wire.OutputEventDataRaw, Empty)
        self._call = self._method("Call", wire.OutputEventData, wire.CallReturn)
        self._call_raw = self._method("CallRaw", wire.OutputEventDataRaw, wire.CallReturn)
        self._delayed_cast = self._method("DelayedCast", wire.DelayedEventData, Empty)
        self._sync = self._method("Sync", wire.SyncData, Empty)
        self._log = self._method("TelemetryLog", wire.TelemetryLogEvent, Empty, LOG_DEADLINE)

    def close(self) -> None:
        """Ends what is under way with a NodeError, and whatever is asked afterwards."""
        self._channel.close()

    def cast(self, output: str, message: bytes) -> None:
        self._cast(wire.OutputEventData(originator=self._originator, alias=output, msg=message))

    def cast_raw(self, target: InstanceId, message: bytes) -> None:
        self._cast_raw(wire.OutputEventDataRaw(originator=self._originator, dst=to_wire(target), msg=message))

    def call(self, output: str, message: bytes) -> bytes | None:
        answer = self._call(wire.OutputEventData(originator=self._originator, alias=output, msg=message))
        return _reply(answer, f"output {output!r}")

    def call_raw(self, target: InstanceId, message: bytes) -> bytes | None:
        answer = self._call_raw(wire.OutputEventDataRaw(originator=self._originator, dst=to_wire(target), msg=message))
        return _reply(answer, str(target))

    def delayed_cast(self, milliseconds: int, output: str, message: bytes) -> None:
        # EDGELESS 1.x refuses an event without metadata; zeros are what a source sends.
        metadata = wire.EventSerializedMetadata(trace_id=bytes(16), span_id=bytes(8))
        event = wire.DelayedEventData(
            originator=self._originator, alias=output, msg=message, delay=milliseconds, metadata=metadata
        )
        self._delayed_cast(event)

    def sync(self, state: bytes) -> None:
        self._sync(wire.SyncData(originator=self._originator, serialized_state=state))

    def log(self, level: Level, target: str, text: str) -> None:
        event = wire.TelemetryLogEvent(originator=self._originator, target=_utf8(target), msg=_utf8(text[:MAX_LOG]))
        event.log_level = _LEVELS[level]
        self._log(event)

    def _method(
        self, name: str, request: type[Request], answer: type[Answer], deadline: float | None = None
    ) -> Callable[[Request], Answer]:
        ask = self._channel.unary_unary(
            f"/edgeless_api.GuestAPIHost/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )

        def asked(message: Request) -> Answer:
            try:
                return ask(message, timeout=deadline or DEADLINE, metadata=self._metadata)
            except grpc.RpcError as error:
                reason = f"{error.details()} ({error.code().name})" if isinstance(error, grpc.Call) else str(error)
            except ValueError as error:
                # The channel is closed.
                reason = str(error)
            raise NodeError(f"the node did not take a {name}: {reason}")

        return asked


_LEVELS = {
    Level.ERROR: wire.LOG_ERROR,
    Level.WARN: wire.LOG_WARN,
    Level.INFO: wire.LOG_INFO,
    Level.DEBUG: wire.LOG_DEBUG,
    Level.TRACE: wire.LOG_TRACE,
}


def to_wire(instance: InstanceId) -> wire.InstanceId:
    """An id as a message."""
    return wire.InstanceId(node_id=instance.node, function_id=instance.function)


def from_wire(instance: wire.InstanceId) -> InstanceId:
    """An id from a message; empty texts where the message has none."""
    return InstanceId(node=instance.node_id, function=instance.function_id)


def _reply(answer: wire.CallReturn, callee: str) -> bytes | None:
    if answer.type == wire.CALL_RET_REPLY:
        return answer.msg
    if answer.type == wire.CALL_RET_NO_REPLY:
        return None
    raise CallError(f"the call of {callee} has failed")


def _utf8(text: str) -> str:
    """The text, with what UTF-8 cannot say replaced."""
    return text.encode(errors="replace").decode()
