"""The JSON form of HTTP, and what is read from it."""

from __future__ import annotations

import pytest

from edgeless_function import CallError, http, testing
from edgeless_function.http import MalformedError, Method, Protocol, Request, Response


def test_a_request_has_the_json_form_of_the_resources() -> None:
    """The JSON form is shared with every EDGELESS node, so it is compared letter by letter."""
    request = Request.to("https://example.com:8443/a?b=c", Method.POST, "hi", {"accept": "*/*"})
    json = (
        b'{"protocol":"HTTPS","host":"example.com:8443","headers":{"accept":"*/*"},"body":[104,105],'
        b'"method":"Post","path":"/a?b=c"}'
    )
    assert request.to_json() == json
    assert Request.parse(json) == request


def test_a_response_has_the_json_form_of_the_resources() -> None:
    json = b'{"status":204,"body":null,"headers":{}}'
    assert Response(204).to_json() == json
    assert Response.parse(json) == Response(204)
    assert Response.parse(b'{"status":204,"headers":{}}') == Response(204)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"GET / HTTP/1.1",
        b"[" * 100_000,
        b'{"protocol":"HTTP","host":"h","headers":{},"body":null,"method":"GET","path":"/"}',
        b'{"protocol":"HTTP","host":"h","headers":{},"body":"hi","method":"Get","path":"/"}',
        b'{"protocol":"HTTP","host":"h","headers":{},"body":5,"method":"Get","path":"/"}',
        b'{"protocol":"HTTP","host":"h","headers":{},"body":[256],"method":"Get","path":"/"}',
        b'{"protocol":"HTTP","host":"h","headers":{"a":1},"body":null,"method":"Get","path":"/"}',
        b'{"protocol":{},"host":"h","headers":{},"body":null,"method":"Get","path":"/"}',
        b'{"protocol":"HTTP","headers":{},"body":null,"method":"Get","path":"/"}',
    ],
)
def test_what_is_no_request_is_refused(message: bytes) -> None:
    with pytest.raises(MalformedError):
        Request.parse(message)


@pytest.mark.parametrize("status", [b"true", b"-1", b"65536", b"2.5", b'"200"', b"null"])
def test_what_is_no_status_is_refused(status: bytes) -> None:
    with pytest.raises(MalformedError, match="'status'"):
        Response.parse(b'{"headers":{},"status":' + status + b"}")


def test_a_url_is_taken_apart() -> None:
    def parts(url: str) -> tuple[Protocol, str, str]:
        request = Request.to(url)
        return request.protocol, request.host, request.path

    assert parts("http://a:80/b/c?d=e#f") == (Protocol.HTTP, "a:80", "/b/c?d=e")
    assert parts("https://a") == (Protocol.HTTPS, "a", "/")
    assert parts("https://a?b=c/d") == (Protocol.HTTPS, "a", "/?b=c/d")
    assert parts("a/b?u=http://c") == (Protocol.UNKNOWN, "a", "/b?u=http://c")


def test_a_query_is_decoded() -> None:
    request = Request.to("http://a/greet?name=Ada+L%C3%B6ve&flag&odd=100%&e=%2&n%61me2=%41&name=second")
    assert request.route == "/greet"
    assert request.query("name") == "Ada L\u00f6ve"
    assert request.query("flag") == ""
    assert request.query("odd") == "100%", "what is no escape stands for itself"
    assert request.query("e") == "%2"
    assert request.query("name2") == "A"
    assert request.query("greet") is None
    assert Request.to("http://a/name=b").query("name") is None, "a path is no query"


def test_a_header_is_found_in_any_case() -> None:
    request = Request.to("http://a", headers={"Content-Type": "text/plain"})
    assert request.header("content-type") == "text/plain"
    assert request.header("accept") is None
    assert Response.json({"a": "\u00e9"}).header("Content-Type") == "application/json"
    assert Response.json({"a": "\u00e9"}, 404) == Response(
        404, {"content-type": "application/json"}, '{"a":"\u00e9"}'.encode()
    )


def test_a_request_is_sent_through_an_output() -> None:
    request = Request.to("http://a")
    with testing.node() as node:
        with pytest.raises(CallError):
            request.send("egress")
        node.answer = lambda target, message: None
        with pytest.raises(CallError):
            request.send("egress")
        node.answer = lambda target, message: Response.text("hi").to_json()
        assert request.send("egress") == http.Response.text("hi")
        node.answer = lambda target, message: "nonsense"
        with pytest.raises(MalformedError):
            request.send("egress")
    assert node.effects[0] == testing.Call("egress", request.to_json())
