"""The program around a function: arguments, signals, exit code."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence

from . import _logging
from ._function import Function
from ._guest import THREAD, Server

PORT = 7101
# Seconds that a handler has to end when the process is to end, and then that threads have.
GRACE = 1.0
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}

EXAMPLE = """\
example:
  python shout.py --host 127.0.0.1 --port 7101
and in the workflow:
  "function_type": "CONTAINER", "code": "grpc:http://127.0.0.1:7101"
"""


def serve(function: type[Function], arguments: Sequence[str] | None = None) -> None:
    """Serves a function until the process gets SIGTERM or SIGINT, and then returns within two seconds.

    The arguments are those of the command line, unless given: `--host` (0.0.0.0), `--port` (the environment variable
    EDGELESS_PORT, or 7101; 0 for a free port), `--log-level` (info). Once it listens, it prints
    `listening on http://127.0.0.1:7101` to the standard output.

    A process serves one instance at a time. A port that is taken ends the process with code 1 and a line about it, a
    wrong argument with code 2.

    Call it once, in the main thread: it takes the two signals. A handler that goes on after a second, or a thread that
    is no daemon, is cut off by the end of the process.
    """
    options = _parse(arguments)
    _logging.install(LEVELS[options.log_level])
    try:
        _probe(options.host, options.port)
        server = Server(function, options.host, options.port)
    except OSError as error:
        raise SystemExit(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}") from None

    # A pipe, since a signal may come at any moment and only this is sure to end the wait for it.
    reader, writer = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(writer, b"."))
    shown = "127.0.0.1" if options.host == "0.0.0.0" else options.host
    print(f"listening on http://{f'[{shown}]' if ':' in shown else shown}:{server.port}", flush=True)
    os.read(reader, 1)

    server.stop(GRACE)
    _end_threads(time.monotonic() + GRACE / 2)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serves a function, for a node to boot.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="0.0.0.0", help="the address to listen on; default: all (0.0.0.0)")
    parser.add_argument(
        "--port",
        type=_port,
        default=os.environ.get("EDGELESS_PORT") or str(PORT),
        help=f"the port to listen on, 0 for a free one; default: $EDGELESS_PORT, or {PORT}",
    )
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        default="info",
        help="what is logged, at least; default: info",
    )
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number up to 65535")


def _probe(host: str, port: int) -> None:
    """Raises OSError if the address cannot be listened on. gRPC would say that, but not why."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()


def _end_threads(deadline: float) -> None:
    """Waits for the threads that Python waits for at its end, and ends the process if that takes too long."""
    for thread in threading.enumerate():
        # The thread of the handlers may be a daemon, but is waited for all the same.
        waited_for = not thread.daemon or thread.name.startswith(THREAD)
        if waited_for and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
