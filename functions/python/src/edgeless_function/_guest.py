"""Serves GuestAPIFunction: what the node asks of the function.

    PreBoot --Boot--> Booted --Init--> Initialized --Stop--> Stopped

Boot is taken in every state and starts over: a node that has restarted adopts a guest that runs. Everything else is
refused where the figure has no arrow; casts and calls are for an initialized function. One thread handles one request
after the other, in the order in which they came.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from . import _host
from ._function import Function
from ._link import SIZES, Link, from_wire, target_of
from ._wire import guest_pb2 as wire

# How the name of the thread of the handlers begins.
THREAD = "edgeless_function"
# Requests that wait; a node has few under way.
MAX_WAITING = 1024
# Characters of an error that go into a status, which is a header of limited size.
MAX_REASON = 1000

_log = logging.getLogger(__name__.partition(".")[0])

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)


class State(Enum):
    """Where a guest is in its life."""

    PRE_BOOT = "has not been booted"
    BOOTED = "is booted, but not initialized"
    INITIALIZED = "is initialized"
    STOPPED = "has been stopped"


class Refused(Exception):
    """A request that is answered with a status."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Guest:
    """A function and its state. Not for several threads at once."""

    def __init__(self, function: type[Function]) -> None:
        self.state = State.PRE_BOOT
        self._class = function
        self._function: Function | None = None
        self._link: Link | None = None

    def boot(self, data: wire.BootData) -> Empty:
        try:
            target = target_of(data.guest_api_host_endpoint)
        except ValueError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        # The node of the object before is out of reach first, lest it write to a state that is no longer its own.
        self._detach()
        if self._function is not None:
            _log.warning("booted again without a stop, as %s", from_wire(data.instance_id))
            self._drop(self._function)
        self._link = Link(target, from_wire(data.instance_id), data.token)
        _host.attach(self._link)
        self.state = State.BOOTED
        return Empty()

    def init(self, data: wire.FunctionInstanceInit) -> Empty:
        if self.state is not State.BOOTED:
            self._refuse("Init")
        try:
            self._function = self._class(data.init_payload.encode(), data.serialized_state or None)
        except BaseException as error:
            raise _failed("__init__", error) from error
        self.state = State.INITIALIZED
        return Empty()

    def cast(self, event: wire.InputEventData) -> Empty:
        function = self._initialized("Cast")
        try:
            function.handle_cast(from_wire(event.src), event.msg)
        except BaseException as error:
            raise _failed("handle_cast", error) from error
        return Empty()

    def call(self, event: wire.InputEventData) -> wire.CallReturn:
        function = self._initialized("Call")
        try:
            reply = function.handle_call(from_wire(event.src), event.msg)
            if reply is None:
                return wire.CallReturn(type=wire.CALL_RET_NO_REPLY)
            return wire.CallReturn(type=wire.CALL_RET_REPLY, msg=_host.to_bytes(reply))
        except BaseException as error:
            _failed("handle_call", error)
            return wire.CallReturn(type=wire.CALL_RET_ERR)

    def stop(self, _: Empty) -> Empty:
        function = self._initialized("Stop")
        try:
            function.handle_stop()
        except BaseException as error:
            raise _failed("handle_stop", error) from error
        finally:
            self._function = None
            self.state = State.STOPPED
            self._detach()
        return Empty()

    def _initialized(self, request: str) -> Function:
        if self._function is None:
            self._refuse(request)
        return self._function

    def _refuse(self, request: str) -> NoReturn:
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"no {request} now: the function {self.state.value}")

    def _drop(self, function: Function) -> None:
        self._function = None
        try:
            function.handle_stop()
        except BaseException as error:
            _failed("handle_stop", error)

    def _detach(self) -> None:
        _host.attach(None)
        if self._link is not None:
            self._link.close()
            self._link = None


class Server:
    """A guest that listens."""

    def __init__(self, function: type[Function], host: str, port: int) -> None:
        """Listens, on a free port if the port is 0. Raises OSError if it cannot."""
        guest = Guest(function)
        # The only thread of the handlers; requests wait for it in the order in which they came.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD)
        # Without SO_REUSEPORT, a port that is taken is an error.
        self._server = grpc.server(
            self._thread, options=(*SIZES, ("grpc.so_reuseport", 0)), maximum_concurrent_rpcs=MAX_WAITING
        )
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Boot": _method(guest.boot, wire.BootData, Empty, (("edgeless-sdk", "2"),)),
            "Init": _method(guest.init, wire.FunctionInstanceInit, Empty),
            "Cast": _method(guest.cast, wire.InputEventData, Empty),
            "Call": _method(guest.call, wire.InputEventData, wire.CallReturn),
            "Stop": _method(guest.stop, Empty, Empty),
        }
        service = grpc.method_handlers_generic_handler("edgeless_api.GuestAPIFunction", handlers)
        self._server.add_generic_rpc_handlers((service,))
        try:
            self.port: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from error
        self._server.start()

    def stop(self, grace: float) -> None:
        """Takes no more requests, and gives the one that is being handled a time (in seconds) to end."""
        # Which ends a moment after the grace, whether the handler ends or not.
        self._server.stop(grace).wait(grace + 0.2)
        self._thread.shutdown(wait=False, cancel_futures=True)


def _method(
    handle: Callable[[Request], Answer],
    request: type[Request],
    answer: type[Answer],
    metadata: tuple[tuple[str, str], ...] = (),
) -> grpc.RpcMethodHandler[Request, Answer]:
    def handled(message: Request, context: grpc.ServicerContext) -> Answer:
        try:
            done = handle(message)
        except Refused as refused:
            code, reason = refused.code, str(refused)
        else:
            context.send_initial_metadata(metadata)
            return done
        context.abort(code, reason)

    return grpc.unary_unary_rpc_method_handler(
        handled, request_deserializer=request.FromString, response_serializer=answer.SerializeToString
    )


def _failed(handler: str, error: BaseException) -> Refused:
    """Logs what a handler raised, and makes a status of it.

    SystemExit and its like end nothing here: they would end the only thread that answers.
    """
    _log.error("%s failed", handler, exc_info=error)
    reason = "".join(traceback.format_exception_only(error)).strip()
    return Refused(grpc.StatusCode.INTERNAL, f"{handler}: {reason}"[:MAX_REASON])
