#!/bin/sh
# Tests the Python package: pytest and mypy, in an environment of their own in target/python, which is made
# anew when pyproject.toml or the version of Python has changed.
set -eu
cd "$(dirname "$0")/.."
environment=$PWD/target/python

# Says why it cannot run here, which is no failure unless Python is required.
skip() {
    case ",${EDGELESS_REQUIRE:-}," in
        *,python,*) echo "$1, and EDGELESS_REQUIRE names python" >&2; exit 1 ;;
    esac
    echo "skipped: python: the Python package: $1"
    exit 0
}

if ! python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    skip "python3 (3.10 or newer, with venv) is not installed"
fi

made_for=$(python3 -c 'import sys; print(sys.version, sys.prefix)'; echo "$PWD"; cat functions/python/pyproject.toml)
if [ "$(cat "$environment/made_for" 2>/dev/null)" != "$made_for" ]; then
    echo "installing the Python package and what its tests need in target/python"
    python3 -m venv --clear "$environment"
    "$environment/bin/pip" --quiet --disable-pip-version-check install --editable 'functions/python[dev]' ||
        skip "what its tests need cannot be installed"
    printf '%s\n' "$made_for" >"$environment/made_for"
fi

cd functions/python
"$environment/bin/pytest" --quiet
"$environment/bin/mypy" --cache-dir "$environment/mypy"
echo "the Python package: all tests passed"
