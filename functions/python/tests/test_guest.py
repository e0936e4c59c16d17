"""A function over the real wire, from Boot to Stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from conftest import LATER, ME, SOURCE, TOKEN, FakeHost, Guest, to_wire
from google.protobuf.empty_pb2 import Empty

import edgeless_function as edgeless
from edgeless_function import CallError, Function, InstanceId, NodeError, Payload, _link, testing
from edgeless_function._wire import guest_pb2 as wire

Serve = Callable[[type[Function]], Guest]


class Recorder(Function):
    """Notes what happens to it."""

    events: list[object]

    def __init__(self, payload: bytes, state: bytes | None) -> None:
        Recorder.events = [("init", payload, state)]

    def handle_cast(self, source: InstanceId, message: bytes) -> None:
        self.events.append(("cast", source, message))

    def handle_call(self, source: InstanceId, message: bytes) -> Payload | None:
        self.events.append(("call", source, message))
        return None if message == b"nothing" else message.upper()

    def handle_stop(self) -> None:
        self.events.append("stop")


def test_a_function_lives_from_boot_to_stop(guest_of: Serve, host: FakeHost) -> None:
    guest = guest_of(Recorder)
    guest.boot(host)
    guest.init("a=b", b"\x00\xff")
    guest.cast(b"one")
    assert guest.call(b"two") == wire.CallReturn(type=wire.CALL_RET_REPLY, msg=b"TWO")
    assert guest.call(b"") == wire.CallReturn(type=wire.CALL_RET_REPLY), "an empty reply is a reply"
    assert guest.call(b"nothing") == wire.CallReturn(type=wire.CALL_RET_NO_REPLY)
    guest.stop()

    assert Recorder.events == [
        ("init", b"a=b", b"\x00\xff"),
        ("cast", SOURCE, b"one"),
        ("call", SOURCE, b"two"),
        ("call", SOURCE, b""),
        ("call", SOURCE, b"nothing"),
        "stop",
    ]


def test_an_empty_state_is_none(guest_of: Serve, host: FakeHost) -> None:
    guest = guest_of(Recorder)
    guest.boot(host)
    guest.init()
    assert Recorder.events == [("init", b"", None)]


def test_boot_is_answered_with_what_the_sdk_understands(guest_of: Serve, host: FakeHost) -> None:
    data = wire.BootData(guest_api_host_endpoint=host.endpoint, instance_id=to_wire(ME))
    boot = guest_of(Recorder).start("Boot", data)
    boot.result()
    assert ("edgeless-sdk", "2") in boot.initial_metadata()


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:7", "https://127.0.0.1:7", "http://127.0.0.1", "http://[:1"])
def test_a_boot_that_leads_nowhere_is_refused(guest_of: Serve, endpoint: str) -> None:
    guest = guest_of(Recorder)
    code, reason = guest.refused("Boot", wire.BootData(guest_api_host_endpoint=endpoint, instance_id=to_wire(ME)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "guest_api_host_endpoint" in reason
    assert guest.refused("Init", wire.FunctionInstanceInit())[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_a_node_is_found_at_its_socket_in_a_container(
    guest_of: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_link, "HOST_SOCKET", str(tmp_path / "host.sock"))
    host = FakeHost(f"unix:{tmp_path}/host.sock")
    try:
        guest = guest_of(Sender)
        guest.ask("Boot", wire.BootData(instance_id=to_wire(ME), token=TOKEN))
        guest.init()
        guest.call(b"hi")
        assert host.of("Call") == [wire.OutputEventData(originator=to_wire(ME), alias="peer", msg=b"hi")]
    finally:
        host.stop()


def test_an_endpoint_may_be_an_ipv6_address() -> None:
    assert _link.target_of("http://[::1]:7002/") == "[::1]:7002"


def test_what_is_out_of_order_is_refused(guest_of: Serve, host: FakeHost) -> None:
    guest = guest_of(Recorder)
    init, event = wire.FunctionInstanceInit(), wire.InputEventData(src=to_wire(SOURCE))

    def refused(*names: str) -> set[str]:
        requests = {"Init": init, "Cast": event, "Call": event, "Stop": Empty()}
        answers = [guest.refused(name, requests[name]) for name in names]
        assert {code for code, _ in answers} == {grpc.StatusCode.FAILED_PRECONDITION}
        return {reason.partition(": ")[2] for _, reason in answers}

    assert refused("Init", "Cast", "Call", "Stop") == {"the function has not been booted"}
    guest.boot(host)
    assert refused("Cast", "Call", "Stop") == {"the function is booted, but not initialized"}
    guest.init()
    assert refused("Init") == {"the function is initialized"}
    guest.stop()
    assert refused("Init", "Cast", "Call", "Stop") == {"the function has been stopped"}
    assert Recorder.events == [("init", b"", None), "stop"]

    guest.boot(host)
    guest.init("again")
    assert Recorder.events == [("init", b"again", None)], "a stopped guest can be booted again"


class Sender(Function):
    """Asks everything that can be asked."""

    def handle_cast(self, source: InstanceId, message: bytes) -> None:
        edgeless.cast("out", "text \u00e9")
        edgeless.cast("out", bytearray(b"\x00\xff"))
        edgeless.cast_raw(source, memoryview(message))
        edgeless.delayed_cast(1.2345, "self", b"later")
        edgeless.delayed_cast(timedelta(minutes=1), "self", b"much later")
        edgeless.sync(b"state")

    def handle_call(self, source: InstanceId, message: bytes) -> Payload | None:
        if message == b"raw":
            return edgeless.call_raw(source, b"who")
        if message == b"slf":
            return str(edgeless.slf())
        return edgeless.call("peer", message)


def test_a_function_asks_its_node(guest_of: Serve, host: FakeHost) -> None:
    guest = guest_of(Sender)
    guest.boot(host)
    guest.init()
    guest.cast(b"hi")

    me, metadata = to_wire(ME), wire.EventSerializedMetadata(trace_id=bytes(16), span_id=bytes(8))

    def later(message: bytes, delay: int) -> wire.DelayedEventData:
        return wire.DelayedEventData(originator=me, alias="self", msg=message, delay=delay, metadata=metadata)

    assert [(method, request) for method, request, _ in host.asked] == [
        ("Cast", wire.OutputEventData(originator=me, alias="out", msg="text \u00e9".encode())),
        ("Cast", wire.OutputEventData(originator=me, alias="out", msg=b"\x00\xff")),
        ("CastRaw", wire.OutputEventDataRaw(originator=me, dst=to_wire(SOURCE), msg=b"hi")),
        ("DelayedCast", later(b"later", 1234)),
        ("DelayedCast", later(b"much later", 60_000)),
        ("Sync", wire.SyncData(originator=me, serialized_state=b"state")),
    ]
    assert guest.call(b"slf").msg == str(ME).encode(), "who it is, it knows without asking"


def test_a_call_has_three_outcomes(guest_of: Serve, host: FakeHost) -> None:
    guest = guest_of(Sender)
    guest.boot(host)
    guest.init()

    host.answer = lambda request: wire.CallReturn(type=wire.CALL_RET_REPLY, msg=request.msg + b"!")
    assert guest.call(b"hi") == wire.CallReturn(type=wire.CALL_RET_REPLY, msg=b"hi!")
    assert guest.call(b"raw") == wire.CallReturn(type=wire.CALL_RET_REPLY, msg=b"who!")
    assert host.of("CallRaw") == [wire.OutputEventDataRaw(originator=to_wire(ME), dst=to_wire(SOURCE), msg=b"who")]

    host.answer = lambda _: wire.CallReturn(type=wire.CALL_RET_NO_REPLY)
    assert guest.call(b"hi") == wire.CallReturn(type=wire.CALL_RET_NO_REPLY)

    host.answer = lambda _: wire.CallReturn(type=wire.CALL_RET_ERR)
    assert guest.call(b"hi") == wire.CallReturn(type=wire.CALL_RET_ERR)
    with pytest.raises(CallError, match="'peer'"):
        edgeless.call("peer", b"hi")


def test_large_messages_pass(guest_of: Serve, host: FakeHost) -> None:
    guest = guest_of(Sender)
    guest.boot(host)
    guest.init()
    host.answer = lambda request: wire.CallReturn(type=wire.CALL_RET_REPLY, msg=request.msg)
    large = bytes(20 * 1024 * 1024)
    assert guest.call(large).msg == large


def test_every_request_shows_the_token(guest_of: Serve, host: FakeHost, forwarded: None) -> None:
    class Chatty(Sender):
        def handle_cast(self, source: InstanceId, message: bytes) -> None:
            super().handle_cast(source, message)
            logging.info("done")

    guest = guest_of(Chatty)
    guest.boot(host)
    guest.init()
    guest.cast(b"hi")
    guest.call(b"hi")
    guest.call(b"raw")
    assert {method for method, _, _ in host.asked} == {
        "Cast", "CastRaw", "Call", "CallRaw", "DelayedCast", "Sync", "TelemetryLog",
    }  # fmt: skip
    assert {metadata.get("edgeless-token") for _, _, metadata in host.asked} == {TOKEN}

    # A node of EDGELESS 1.x gives none.
    guest.boot(host, token="")
    host.asked.clear()
    edgeless.cast("out", b"")
    assert "edgeless-token" not in host.asked[0][2]


def test_a_node_that_does_not_answer_is_an_error(guest_of: Serve, host: FakeHost) -> None:
    with pytest.raises(NodeError, match="has not booted"):
        edgeless.cast("out", b"")

    guest = guest_of(Sender)
    guest.boot(host)
    guest.init()
    host.refuse = grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(NodeError, match="refused by the test .RESOURCE_EXHAUSTED"):
        edgeless.cast("out", b"")
    assert guest.call(b"hi") == wire.CallReturn(type=wire.CALL_RET_ERR)

    host.stop()
    with pytest.raises(NodeError, match="UNAVAILABLE"):
        edgeless.sync(b"")

    guest.stop()
    with pytest.raises(NodeError, match="has stopped it"):
        edgeless.slf()


def test_a_slow_node_is_an_error(guest_of: Serve, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def late(_: object) -> wire.CallReturn:
        released.wait(10)
        return wire.CallReturn()

    host.answer = late
    monkeypatch.setattr(_link, "DEADLINE", 0.05)
    guest_of(Sender).boot(host)
    with pytest.raises(NodeError, match="DEADLINE_EXCEEDED"):
        edgeless.call("peer", b"")
    released.set()


def test_what_cannot_be_sent_is_an_error() -> None:
    with testing.node() as node:
        for nonsense in (None, 5, {"a": 1}):
            with pytest.raises(TypeError, match="a payload is bytes or str, not"):
                edgeless.cast("out", nonsense)  # type: ignore[arg-type]
        for delay in (-1.0, float("nan"), float("inf"), timedelta(seconds=-1)):
            with pytest.raises(ValueError, match="a delay is a time from 0 up"):
                edgeless.delayed_cast(delay, "out", b"")
    assert node.effects == []


class Broken(Function):
    """Fails in every handler, when told to."""

    def __init__(self, payload: bytes, state: bytes | None) -> None:
        if payload == b"bad":
            raise ValueError("init payload: bad is bad\nfor two reasons")
        if payload == b"exit":
            raise SystemExit(3)

    def handle_cast(self, source: InstanceId, message: bytes) -> None:
        raise KeyError("cast")

    def handle_call(self, source: InstanceId, message: bytes) -> Payload | None:
        if message == b"type":
            return 5  # type: ignore[return-value]
        if message == b"call":
            return edgeless.call("peer", b"")
        raise RuntimeError("call")

    def handle_stop(self) -> None:
        raise RuntimeError("stop")


def test_an_exception_is_an_answer_and_a_log(guest_of: Serve, host: FakeHost, forwarded: None) -> None:
    guest = guest_of(Broken)
    guest.boot(host)
    event = wire.InputEventData(src=to_wire(SOURCE))

    def logged() -> str:
        errors = [log for log in host.of("TelemetryLog") if log.log_level == wire.LOG_ERROR]
        host.asked.clear()
        assert len(errors) == 1 and errors[0].originator == to_wire(ME) and errors[0].target == "edgeless_function"
        assert "Traceback (most recent call last)" in errors[0].msg
        return str(errors[0].msg.splitlines()[-1])

    bad = guest.refused("Init", wire.FunctionInstanceInit(init_payload="bad"))
    assert bad == (grpc.StatusCode.INTERNAL, "__init__: ValueError: init payload: bad is bad\nfor two reasons")
    assert logged() == "for two reasons"
    assert guest.refused("Init", wire.FunctionInstanceInit(init_payload="exit"))[0] is grpc.StatusCode.INTERNAL
    assert logged() == "SystemExit: 3"

    guest.init()
    assert guest.refused("Cast", event) == (grpc.StatusCode.INTERNAL, "handle_cast: KeyError: 'cast'")
    assert logged() == "KeyError: 'cast'"
    assert guest.call(b"") == wire.CallReturn(type=wire.CALL_RET_ERR)
    assert logged() == "RuntimeError: call"
    assert guest.call(b"type") == wire.CallReturn(type=wire.CALL_RET_ERR)
    assert logged() == "TypeError: a payload is bytes or str, not int"
    assert guest.call(b"call") == wire.CallReturn(type=wire.CALL_RET_ERR)
    assert logged() == "edgeless_function.CallError: the call of output 'peer' has failed"
    assert guest.refused("Stop", Empty()) == (grpc.StatusCode.INTERNAL, "handle_stop: RuntimeError: stop")
    assert logged() == "RuntimeError: stop"


def test_handlers_need_not_be_written(guest_of: Serve, host: FakeHost, forwarded: None) -> None:
    guest = guest_of(Function)
    guest.boot(host)
    guest.init("ignored")
    guest.cast(b"hi")
    assert [log.log_level for log in host.of("TelemetryLog")] == [wire.LOG_WARN]
    assert guest.call(b"hi") == wire.CallReturn(type=wire.CALL_RET_ERR)
    guest.stop()


def test_one_event_is_handled_at_a_time_and_in_order(guest_of: Serve, host: FakeHost) -> None:
    class Slow(Function):
        handled: list[int] = []
        threads: set[int] = set()
        inside = 0
        most = 0

        def handle_cast(self, source: InstanceId, message: bytes) -> None:
            Slow.inside += 1
            Slow.most = max(Slow.most, Slow.inside)
            time.sleep(0.01)
            self.threads.add(threading.get_ident())
            self.handled.append(int(message))
            Slow.inside -= 1

        def handle_call(self, source: InstanceId, message: bytes) -> Payload | None:
            self.handle_cast(source, message)
            return message

    guest = guest_of(Slow)
    guest.boot(host)
    guest.init()
    events = [wire.InputEventData(src=to_wire(SOURCE), msg=str(number).encode()) for number in range(32)]
    pending = [guest.start("Call" if number % 2 else "Cast", event) for number, event in enumerate(events)]
    for request in pending:
        request.result()
    assert Slow.most == 1
    assert len(Slow.threads) == 1
    assert Slow.handled == list(range(32))


def test_events_of_several_connections_are_handled_one_at_a_time(guest_of: Serve, host: FakeHost) -> None:
    class Counter(Function):
        count = 0

        def handle_call(self, source: InstanceId, message: bytes) -> Payload | None:
            before = self.count
            time.sleep(0.005)
            self.count = before + 1
            return str(self.count)

    guest = guest_of(Counter)
    guest.boot(host)
    guest.init()
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.extend(guest.call(b"").msg for _ in range(5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, answers)) == list(range(1, 41))


def test_a_state_goes_around(guest_of: Serve, host: FakeHost) -> None:
    class Sum(Function):
        def __init__(self, payload: bytes, state: bytes | None) -> None:
            self.sum = int(state or 0)

        def handle_cast(self, source: InstanceId, message: bytes) -> None:
            self.sum += int(message)
            edgeless.sync(str(self.sum))

    guest = guest_of(Sum)
    for _ in range(3):
        saved = host.of("Sync")
        guest.boot(host)
        guest.init(state=saved[-1].serialized_state if saved else b"")
        guest.cast(b"14")
        guest.stop()
    assert [sync.serialized_state for sync in host.of("Sync")] == [b"14", b"28", b"42"]


def test_a_second_boot_starts_over(guest_of: Serve, host: FakeHost) -> None:
    class Resource(Recorder):
        def handle_cast(self, source: InstanceId, message: bytes) -> None:
            edgeless.cast("out", message)

        def handle_stop(self) -> None:
            super().handle_stop()
            # What is saved now must not replace what the next object has saved.
            edgeless.sync(b"stale")

    guest = guest_of(Resource)
    guest.boot(host)
    guest.boot(host)
    guest.init("first")
    events = Recorder.events
    other = FakeHost()
    try:
        guest.boot(other, LATER, "other-token")
        assert events == [("init", b"first", None), "stop"]
        assert guest.refused("Cast", wire.InputEventData())[0] is grpc.StatusCode.FAILED_PRECONDITION
        guest.init("second", b"saved")
        assert Recorder.events == [("init", b"second", b"saved")]
        guest.cast(b"hi")
        [(method, request, metadata)] = other.asked
        assert (method, request) == ("Cast", wire.OutputEventData(originator=to_wire(LATER), alias="out", msg=b"hi"))
        assert metadata["edgeless-token"] == "other-token"
        assert host.asked == []
    finally:
        other.stop()


def test_logs_go_to_the_node(guest_of: Serve, host: FakeHost, forwarded: None) -> None:
    class Logger(Function):
        def handle_cast(self, source: InstanceId, message: bytes) -> None:
            log = logging.getLogger("my.module")
            log.critical("critical")
            log.error("error")
            log.warning("warning")
            log.info("%s and %d", "info", 1)
            log.debug("debug")
            logging.getLogger().setLevel(1)
            log.log(5, "trace")
            log.info("a lone surrogate: \ud800")
            log.info("x" * 100_000)
            logging.getLogger("grpc._server").info("not for the node")

    guest = guest_of(Logger)
    guest.boot(host)
    guest.init()
    guest.cast(b"")
    logs = host.of("TelemetryLog")
    assert {log.target for log in logs} == {"my.module"}
    assert {str(log.originator) for log in logs} == {str(to_wire(ME))}
    # Counted from 0.
    assert [(log.log_level, log.msg) for log in logs[:-1]] == [
        (0, "critical"),
        (0, "error"),
        (1, "warning"),
        (2, "info and 1"),
        (3, "debug"),
        (4, "trace"),
        (2, "a lone surrogate: ?"),
    ]
    assert len(logs[-1].msg) == 64 * 1024


def test_a_log_that_the_node_does_not_take_breaks_nothing(guest_of: Serve, host: FakeHost, forwarded: None) -> None:
    class Logger(Function):
        def handle_call(self, source: InstanceId, message: bytes) -> Payload | None:
            logging.info("hi")
            return message

    logging.info("there is no node yet")
    guest = guest_of(Logger)
    guest.boot(host)
    guest.init()
    host.refuse = grpc.StatusCode.PERMISSION_DENIED
    assert guest.call(b"hi").msg == b"hi"
    host.stop()
    assert guest.call(b"hi").msg == b"hi"
