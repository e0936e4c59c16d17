"""The generated modules are what proto/ says."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


def test_the_generated_modules_are_up_to_date() -> None:
    tools = pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    assert tools is not None
    folder = Path(__file__).resolve().parents[1]
    pinned = f'"grpcio-tools=={version("grpcio-tools")}"'
    if pinned not in (folder / "pyproject.toml").read_text():
        pytest.skip(f"another version of grpcio-tools is wanted: {pinned} is installed")
    done = subprocess.run([sys.executable, "generate.py", "--check"], cwd=folder, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
