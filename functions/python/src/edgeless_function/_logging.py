"""Brings the records of the standard module `logging` to the node."""

from __future__ import annotations

import logging
import threading

from . import _host
from ._host import Level, NodeError


class NodeHandler(logging.Handler):
    """Sends records to the node, once there is one. The target is the name of the logger.

    It is a copy for the node: a record that the node does not take is not worth an error, since the record is in the
    output of the process as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sending = threading.local()

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock of Handler, which would have all threads, and the end of the process, wait for the node.
        passed = self.filter(record)
        if passed:
            # From Python 3.12, a filter may pass on another record.
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        host = _host.attached()
        # What sending logs must not be sent.
        if host is None or getattr(self._sending, "now", False) or record.name.partition(".")[0] == "grpc":
            return
        self._sending.now = True
        try:
            host.log(level_of(record.levelno), record.name, self.format(record))
        except NodeError:
            pass
        except Exception:
            # A record whose arguments do not fit its text, for instance.
            self.handleError(record)
        finally:
            self._sending.now = False


def level_of(number: int) -> Level:
    """The level of a record; what is less than DEBUG is a trace."""
    if number >= logging.ERROR:
        return Level.ERROR
    if number >= logging.WARNING:
        return Level.WARN
    if number >= logging.INFO:
        return Level.INFO
    return Level.DEBUG if number >= logging.DEBUG else Level.TRACE


def install(level: int) -> None:
    """Has all records of a level or above printed and sent to the node.

    Where the program has handlers of its own, these do the printing.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger().setLevel(level)
    logging.getLogger().addHandler(NodeHandler())
