"""A function as a program: the example, started as a user would."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import SOURCE, FakeHost, Guest, to_wire

from edgeless_function import http
from edgeless_function._wire import guest_pb2 as wire

HERE = Path(__file__).resolve().parent
SHOUT = HERE.parents[2] / "examples/container_python/shout.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def program(*arguments: str, code: str | None = None) -> Iterator[tuple[subprocess.Popen[str], Guest]]:
    """Starts the example, or other code, on a free port."""
    command = [sys.executable, str(SHOUT)] if code is None else [sys.executable, "-c", code]
    process = subprocess.Popen(
        [*command, "--port", "0", *arguments],
        env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        listening = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)
        if listening is None:
            process.kill()
            pytest.fail(f"{line!r}, and on stderr: {process.communicate()[1]}")
        guest = Guest(int(listening[1]))
        yield process, guest
        guest.channel.close()
    finally:
        process.kill()
        process.communicate()


def ends(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Sends a signal; returns the exit code and what was printed as an error."""
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert time.monotonic() - began < 4, "two seconds, and as much again for a machine with other work"
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_example_shouts_and_ends(host: FakeHost, number: signal.Signals) -> None:
    with program("--host", "127.0.0.1") as (process, guest):
        guest.boot(host)
        guest.init("mark=?!", b"41")
        reply = guest.call(http.Request.to("http://demo/?text=hello+there").to_json())
        assert http.Response.parse(reply.msg) == http.Response.text("HELLO THERE?!\n")
        reply = guest.call(http.Request.to("http://demo/", http.Method.POST, "body\n").to_json())
        assert http.Response.parse(reply.msg) == http.Response.text("BODY?!\n")
        assert guest.call(b"nonsense").type == wire.CALL_RET_ERR

        assert [cast.msg for cast in host.of("Cast")] == [b"42: HELLO THERE?!", b"43: BODY?!"]
        assert [sync.serialized_state for sync in host.of("Sync")] == [b"42", b"43"]
        assert host.of("TelemetryLog")[0].msg == "shouting with ?!, 41 so far"
        code, errors = ends(process, number)
        assert code == 0
        assert "INFO root: shouting with ?!, 41 so far" in errors


BUSY = """
import threading, time
from edgeless_function import Function, serve
class Busy(Function):
    def handle_cast(self, source, message):
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("busy", flush=True)
        time.sleep(60)
serve(Busy)
"""


def test_a_busy_function_ends_as_well(host: FakeHost) -> None:
    with program(code=BUSY) as (process, guest):
        guest.boot(host)
        guest.init()
        # Kept, since a request that nobody waits for is cancelled.
        pending = guest.start("Cast", wire.InputEventData(src=to_wire(SOURCE), msg=b""))
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
        assert ends(process, signal.SIGTERM)[0] == 0
        assert pending.exception() is not None




def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SHOUT), *arguments],
        env={**ENVIRONMENT, **environment}, text=True, capture_output=True, timeout=30,
    )  # fmt: skip


def test_a_port_that_is_taken_is_said_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--host", "127.0.0.1", EDGELESS_PORT=str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_wrong_argument_is_said_in_a_line() -> None:
    for done in (run("--port", "65536"), run(EDGELESS_PORT="http")):
        assert done.returncode == 2
        assert "is not a port: a number up to 65535" in done.stderr.splitlines()[-1]


def test_the_help_has_an_example() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "python shout.py --host 127.0.0.1 --port 7101" in done.stdout
    assert "grpc:http://127.0.0.1:7101" in done.stdout
