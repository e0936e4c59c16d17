"""The code in the README does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import edgeless_function
from edgeless_function import testing


def test_the_function_of_the_readme_adds_up() -> None:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    function, test = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(function + test, names)
    names["test_sum"]()
    with testing.node() as node:
        names["Sum"](b"", None).handle_cast(testing.SOURCE, b"nonsense")
    assert node.effects == []


def test_the_readme_names_all_there_is() -> None:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    missing = {name for name in edgeless_function.__all__ if name not in text}
    assert missing == {"Payload"}, "which is the type of a payload"
