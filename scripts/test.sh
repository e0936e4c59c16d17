#!/bin/sh
# Runs all tests, of the platform and of the functions, and repeats on the last lines what was skipped.
set -u
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Through a pipe and a file, since the exit code of the first program is the one that counts.
run() {
    { "$@" 2>&1; echo $? >"$log.code"; } | tee -a "$log"
    code=$(cat "$log.code"); rm -f "$log.code"
    if [ "$code" != 0 ]; then echo "failed: $*" >&2; exit "$code"; fi
}
# First, because an example in Python is run by the tests of the platform.
run ./scripts/python.sh
run cargo test --workspace
(cd functions && cargo test) || exit $?
(cd functions && cargo test -p edgeless_function --features container) || exit $?
grep -h '^skipped: ' "$log" | sort -u
echo "all tests passed"
