"""HTTP as functions see it: what `http-ingress` calls them with, and what they call `http-egress` with.

A request or response travels as JSON in the payload of an event; bodies are arrays of byte numbers there and plain
bytes here. This module has the two types and their JSON form. It moves nothing itself: sockets, TLS and limits are
the business of the resources.

    def handle_call(self, source: InstanceId, message: bytes) -> bytes:
        request = http.Request.parse(message)
        name = request.query("name") or "world"
        return http.Response.text(f"Hello, {name}!").to_json()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from ._host import CallError, Payload, call, to_bytes

__all__ = ["MalformedError", "Method", "Protocol", "Request", "Response"]


class MalformedError(ValueError):
    """A message is not the JSON of a request or response."""


class Method(Enum):
    """What a request wants done. Its text is that of HTTP, such as `GET`."""

    GET = "Get"
    HEAD = "Head"
    POST = "Post"
    PUT = "Put"
    DELETE = "Delete"
    PATCH = "Patch"

    def __str__(self) -> str:
        return self.name


class Protocol(Enum):
    """How a request is to travel, or has travelled."""

    UNKNOWN = "Unknown"
    """Not said, as in every request that comes from `http-ingress`; `http-egress` sends it as HTTP."""
    HTTP = "HTTP"
    """Plain HTTP."""
    HTTPS = "HTTPS"
    """HTTP over TLS."""


@dataclass
class Request:
    """An HTTP request."""

    method: Method
    """What is wanted."""
    host: str
    """The server, as in the header `Host`: with its port unless that is the usual one."""
    path: str
    """Of what: path and query, as they stand in the request."""
    protocol: Protocol = Protocol.UNKNOWN
    """How it travels."""
    headers: dict[str, str] = field(default_factory=dict)
    """The headers; in what comes from `http-ingress`, names are in lower case."""
    body: bytes = b""
    """The body; empty if there is none."""

    @classmethod
    def to(
        cls, url: str, method: Method = Method.GET, body: Payload = b"", headers: Mapping[str, str] | None = None
    ) -> Request:
        """Makes a request for a URL, such as `https://example.com/items?limit=5`.

        Without `http://` or `https://` the protocol is unknown, which `http-egress` takes as HTTP. A fragment (from
        `#`) is left out, for servers never see it.
        """
        url = url.partition("#")[0]
        protocol, rest = Protocol.UNKNOWN, url
        for start, meant in (("http://", Protocol.HTTP), ("https://", Protocol.HTTPS)):
            if url.startswith(start):
                protocol, rest = meant, url[len(start) :]
        end = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
        host, path = rest[:end], rest[end:]
        path = path if path.startswith("/") else f"/{path}"
        return cls(method, host, path, protocol, dict(headers or {}), to_bytes(body))

    @classmethod
    def parse(cls, message: bytes) -> Request:
        """Reads a request from the message of a call. Raises MalformedError."""
        fields = _fields(message)
        return cls(
            method=_read(fields, "method", Method),
            host=_read(fields, "host", _text),
            path=_read(fields, "path", _text),
            protocol=_read(fields, "protocol", Protocol),
            headers=_read(fields, "headers", _headers),
            body=_read(fields, "body", _body),
        )

    def to_json(self) -> bytes:
        """The request as a message."""
        return _json(
            {
                "protocol": self.protocol.value,
                "host": self.host,
                "headers": self.headers,
                "body": list(self.body) if self.body else None,
                "method": self.method.value,
                "path": self.path,
            }
        )

    def send(self, output: str) -> Response:
        """Has the request sent by the `http-egress` to which the output leads, and waits for the response.

        Raises CallError if it could not be sent or nobody answered, MalformedError if what answered is no
        `http-egress`, and NodeError.
        """
        reply = call(output, self.to_json())
        if reply is None:
            raise CallError(f"the HTTP request through output {output!r} had no response")
        return Response.parse(reply)

    def header(self, name: str) -> str | None:
        """The value of a header, whatever the case of its name."""
        return _header(self.headers, name)

    @property
    def route(self) -> str:
        """The path without the query, such as `/items`."""
        return self.path.partition("?")[0]

    def query(self, name: str) -> str | None:
        """The value of a parameter of the query, decoded; of one that is repeated, the first."""
        pairs = parse_qsl(self.path.partition("?")[2], keep_blank_values=True)
        return next((value for key, value in pairs if key == name), None)


@dataclass
class Response:
    """An HTTP response."""

    status: int
    """The status, such as 200 or 404."""
    headers: dict[str, str] = field(default_factory=dict)
    """The headers."""
    body: bytes = b""
    """The body; empty if there is none."""

    @classmethod
    def text(cls, text: str, status: int = 200) -> Response:
        """Makes a response with plain text."""
        return cls(status, {"content-type": "text/plain; charset=utf-8"}, text.encode())

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        """Makes a response with a value as JSON. Raises TypeError or ValueError if it has no JSON form."""
        return cls(status, {"content-type": "application/json"}, _json(value))

    @classmethod
    def parse(cls, message: bytes) -> Response:
        """Reads a response from the reply to a call. Raises MalformedError."""
        fields = _fields(message)
        return cls(_read(fields, "status", _status), _read(fields, "headers", _headers), _read(fields, "body", _body))

    def to_json(self) -> bytes:
        """The response as a message."""
        body = list(self.body) if self.body else None
        return _json({"status": self.status, "body": body, "headers": self.headers})

    def header(self, name: str) -> str | None:
        """The value of a header, whatever the case of its name."""
        return _header(self.headers, name)


Read = TypeVar("Read")


def _fields(message: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the message is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise MalformedError("the message is not a JSON object")
    return fields


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for found, value in headers.items() if found.lower() == name.lower()), None)


def _read(fields: dict[str, Any], name: str, reader: Callable[[Any], Read]) -> Read:
    try:
        return reader(fields.get(name))
    except (TypeError, ValueError):
        raise MalformedError(f"the message has no good {name!r}: {str(fields.get(name))[:100]}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _status(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 65536:
        raise TypeError
    return value


def _headers(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError
    return {name: _text(text) for name, text in value.items()}


def _body(value: Any) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, list):
        raise TypeError
    return bytes(value)
