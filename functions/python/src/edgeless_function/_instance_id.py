"""Who sent an event, and whom a raw event is for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class InstanceId:
    """A running function or resource: the node that hosts it, and its id on that node.

    Ids are opaque: a function gets them from the node (as a source, or from `slf`) and gives them back to it.
    """

    node: str
    """The node, as the text of a UUID."""
    function: str
    """The function or resource on that node, as the text of a UUID."""

    def __str__(self) -> str:
        return f"InstanceId(node_id: {self.node}, function_id: {self.function})"
