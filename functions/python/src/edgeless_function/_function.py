"""What the author of a function writes."""

from __future__ import annotations

import logging

from ._host import CallError, Payload
from ._instance_id import InstanceId

_log = logging.getLogger(__name__.partition(".")[0])


class Function:
    """A function: made when it is initialized, it then handles one event at a time.

    Subclass it and write the handlers that you need. They are all called by one thread, so the fields of an object
    need no lock. An exception in a handler is logged with its traceback.
    """

    def __init__(self, payload: bytes, state: bytes | None) -> None:
        """Makes the function from the `init-payload` annotation and the state last saved with `sync`.

        The payload is empty when there is no annotation. There is no state on a first start, and an empty state counts
        as none. Unless written, both are ignored.

        An exception here refuses the start of the workflow, with its text.
        """

    def handle_cast(self, source: InstanceId, message: bytes) -> None:
        """Handles an event that expects no answer.

        Unless written, a cast is logged as a warning and dropped.

        After an exception here the node takes the function for broken.
        """
        _log.warning("a cast from %s is dropped: this function takes calls only", source)

    def handle_call(self, source: InstanceId, message: bytes) -> Payload | None:
        """Answers an event whose sender waits; `None` is the answer that there is nothing to say.

        Unless written, a call is an error for its sender.

        After an exception here the call is an error for its sender, who learns nothing more than that; the function
        goes on.
        """
        raise CallError(f"a call from {source} is refused: this function takes casts only")

    def handle_stop(self) -> None:
        """Cleans up; no handler of this object is called any more.

        It is called when the node stops the function. When the node starts the function anew without having stopped
        it, since one of the two has restarted, it is called as well, but with the node out of reach.
        """
