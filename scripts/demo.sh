#!/bin/sh
# Brings the whole platform up in one process, starts a workflow (HTTP ingress -> function -> file),
# sends it requests, shows what came of them, and takes everything down again.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
bin=$root/target/debug
work=$(mktemp -d)
platform=
finish() {
    code=$?
    if [ -n "$platform" ] && kill -TERM "$platform" 2>/dev/null; then
        # One that does not end in time is made to.
        (sleep 15; kill -KILL "$platform" 2>/dev/null) & watchdog=$!
        wait "$platform" || true
        kill "$watchdog" 2>/dev/null || true
    fi
    if [ "$code" != 0 ] && [ -s "$work/platform.log" ]; then echo "--- the platform said:" >&2; tail -n 20 "$work/platform.log" >&2; fi
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP
# Whoever reads this has left, as in `make demo | head`: take everything down all the same.
trap 'exit 141' PIPE

bold=; plain=
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$(printf '\033[1m'); plain=$(printf '\033[0m'); fi
say() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
show() { printf '  $ %s\n' "$*"; }

say "1. Compile the function from Rust to WebAssembly"
show edgeless_cli function build functions/http_hello/function.json
"$bin/edgeless_cli" function build functions/http_hello/function.json

say "2. Start the platform: controller, orchestrator and node in one process"
# Ports of its own, so that the demo does not meet a platform that runs already.
first=$((20000 + $$ % 20000))
(cd "$work" && "$bin/edgeless_inabox" -t --initial-port "$first" 2>/dev/null)
show edgeless_inabox
: >"$work/platform.log"
(cd "$work" && exec env RUST_LOG="${RUST_LOG:-info}" "$bin/edgeless_inabox") >"$work/platform.log" 2>&1 &
platform=$!
tries=0
until grep -q 'inabox:.* ready' "$work/platform.log"; do
    kill -0 "$platform" 2>/dev/null || { echo "the platform did not start" >&2; exit 1; }
    tries=$((tries + 1)); [ "$tries" -lt 300 ] || { echo "the platform is not ready" >&2; exit 1; }
    sleep 0.1
done
grep 'inabox:.* ready' "$work/platform.log"
ingress=$(sed -n 's/^http_ingress_url = "\(.*\)"/\1/p' "$work/node.toml")
cli() { (cd "$work" && "$bin/edgeless_cli" "$@"); }

say "3. Start a workflow: http-ingress -> hello (the function) -> file-log"
show 'UUID=$(edgeless_cli workflow start examples/http_ingress/workflow.json)'
uuid=$(cli workflow start "$root/examples/http_ingress/workflow.json")
echo "$uuid"

say "4. Send it HTTP requests"
for name in Ada Grace world; do
    show "curl -H 'Host: demo.edgeless.local' '$ingress/greet?name=$name'"
    curl -sS --fail -H 'Host: demo.edgeless.local' "$ingress/greet?name=$name"
done

say "5. What the function sent to the file"
tries=0
until [ "$(wc -l <"$work/http_hello.log" 2>/dev/null || echo 0)" -ge 3 ]; do
    tries=$((tries + 1)); [ "$tries" -lt 100 ] || { echo "the log file does not fill" >&2; exit 1; }
    sleep 0.1
done
show cat http_hello.log
cat "$work/http_hello.log"

say "6. Where everything runs"
show 'edgeless_cli workflow inspect $UUID | grep STATE'
cli workflow inspect "$uuid" | grep STATE

say "7. Stop the workflow and the platform"
show 'edgeless_cli workflow stop $UUID'
cli workflow stop "$uuid"
kill -TERM "$platform"
wait "$platform"
platform=

cat <<END

That was all of it. What to try next:
  target/debug/edgeless_inabox                    the platform, until Ctrl-C
  target/debug/edgeless_cli -t cli.toml           so that the command line finds it
  docs/getting-started.md                         write a function of your own
  docs/guide.md                                   the daemons one by one
  examples/                                       more workflows
END
