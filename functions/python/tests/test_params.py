"""Init payloads."""

from edgeless_function import params


def test_an_init_payload_is_read() -> None:
    assert params(b"") == {}
    assert params(b" a = b ,c,,=x, a=last,d=e=f") == {"a": "last", "c": "", "d": "e=f"}
    assert params("text=\u00e9") == params("text=\u00e9".encode())
    assert params(b"a=\xff") == {"a": "\ufffd"}
