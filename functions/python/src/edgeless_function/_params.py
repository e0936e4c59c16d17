"""Parameters in an init payload."""

from __future__ import annotations


def params(payload: bytes | str) -> dict[str, str]:
    """Reads an init payload such as `period_ms=500,message=hi`.

    Blanks around keys and values do not count. A key without `=` has the value `""`, and of a key that is repeated
    the last value counts. There is no escape, so a value holds no comma.
    """
    text = payload if isinstance(payload, str) else payload.decode(errors="replace")
    entries = (entry.partition("=") for entry in text.split(","))
    return {key.strip(): value.strip() for key, _, value in entries if key.strip()}
