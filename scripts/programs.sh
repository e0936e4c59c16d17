#!/bin/sh
# Installs the programs that are named, each a Debian package of the same name or of that after the colon, where
# this machine can: as root on Debian. Elsewhere what needs them says so.
set -eu
missing=""
for wanted in "$@"; do
    command -v "${wanted%%:*}" >/dev/null || missing="$missing ${wanted##*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing"
    # shellcheck disable=SC2086
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing) >/dev/null
else
    echo "not installed:$missing; what needs them is skipped or fails" >&2
fi
