"""A fake node over the real wire: it serves GuestAPIHost and calls GuestAPIFunction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message_factory import GetMessageClass

from edgeless_function import Function, InstanceId, _host, _logging
from edgeless_function._guest import Server
from edgeless_function._wire import guest_pb2 as wire

ME = InstanceId("6e6f6465-0000-4000-8000-000000000001", "66756e63-0000-4000-8000-000000000002")
SOURCE = InstanceId("6e6f6465-0000-4000-8000-000000000001", "736f7572-0000-4000-8000-000000000003")
LATER = InstanceId("6e6f6465-0000-4000-8000-000000000001", "66756e63-0000-4000-8000-000000000004")
TOKEN = "the-token"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
DEADLINE = 10.0


def to_wire(instance: InstanceId) -> wire.InstanceId:
    return wire.InstanceId(node_id=instance.node, function_id=instance.function)


class FakeHost:
    """Serves GuestAPIHost. What is asked is in `asked`, as (method, request, metadata)."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.asked: list[tuple[str, Any, dict[str, str]]] = []
        self.answer: Callable[[Any], wire.CallReturn] = lambda _: wire.CallReturn(type=wire.CALL_RET_ERR)
        self.refuse: grpc.StatusCode | None = None
        self._server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
        methods = wire.DESCRIPTOR.services_by_name["GuestAPIHost"].methods
        service = grpc.method_handlers_generic_handler(
            "edgeless_api.GuestAPIHost", {method.name: self._handler(method) for method in methods}
        )
        self._server.add_generic_rpc_handlers((service,))
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port(address)}"
        self._server.start()

    def of(self, method: str) -> list[Any]:
        """The requests of a method."""
        return [request for name, request, _ in self.asked if name == method]

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _handler(self, method: Any) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
            self.asked.append((method.name, request, metadata))
            if self.refuse is not None:
                context.abort(self.refuse, "refused by the test")
            return self.answer(request) if method.output_type.name == "CallReturn" else Empty()

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )


class Guest:
    """Calls GuestAPIFunction at a port."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)

    def start(self, name: str, request: Any) -> Any:
        """Begins a request, and returns its future."""
        method = wire.DESCRIPTOR.services_by_name["GuestAPIFunction"].methods_by_name[name]
        ask: Any = self.channel.unary_unary(
            f"/edgeless_api.GuestAPIFunction/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return ask.future(request, timeout=DEADLINE, wait_for_ready=True)

    def ask(self, name: str, request: Any) -> Any:
        return self.start(name, request).result()

    def boot(self, host: FakeHost, instance: InstanceId = ME, token: str = TOKEN) -> Any:
        data = wire.BootData(guest_api_host_endpoint=host.endpoint, instance_id=to_wire(instance), token=token)
        return self.ask("Boot", data)

    def init(self, payload: str = "", state: bytes = b"") -> Any:
        return self.ask("Init", wire.FunctionInstanceInit(init_payload=payload, serialized_state=state))

    def cast(self, message: bytes) -> Any:
        return self.ask("Cast", wire.InputEventData(src=to_wire(SOURCE), msg=message))

    def call(self, message: bytes) -> wire.CallReturn:
        answer: wire.CallReturn = self.ask("Call", wire.InputEventData(src=to_wire(SOURCE), msg=message))
        return answer

    def stop(self) -> Any:
        return self.ask("Stop", Empty())

    def refused(self, name: str, request: Any) -> tuple[grpc.StatusCode, str]:
        """The status with which a request is refused."""
        with pytest.raises(grpc.RpcError) as refused:
            self.ask(name, request)
        error: Any = refused.value
        return error.code(), error.details()


@pytest.fixture
def host() -> Iterator[FakeHost]:
    made = FakeHost()
    yield made
    made.stop()


@pytest.fixture
def guest_of() -> Iterator[Callable[[type[Function]], Guest]]:
    """Serves functions on free ports."""
    served: list[tuple[Server, Guest]] = []

    def make(function: type[Function]) -> Guest:
        server = Server(function, "127.0.0.1", 0)
        served.append((server, Guest(server.port)))
        return served[-1][1]

    yield make
    for server, guest in served:
        guest.channel.close()
        server.stop(0)
    link = _host.attach(None)
    if link is not None:
        link.close()  # type: ignore[attr-defined]


@pytest.fixture
def forwarded() -> Iterator[None]:
    """Forwards logs to the node, from level debug."""
    root = logging.getLogger()
    level, handler = root.level, _logging.NodeHandler()
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield
    root.removeHandler(handler)
    root.setLevel(level)
