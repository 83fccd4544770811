#!/usr/bin/env bash
# The web pages in headless Chromium. Needs node 20, npm, and Chromium: Debian's, or CHROMIUM_BIN.
#
#     FLOTILLA_BIN=target/release/flotilla tests/web/run.sh [WORD]
#     FLOTILLA_URL=http://127.0.0.1:8000 tests/web/run.sh
set -euo pipefail
[ -z "${FLOTILLA_BIN:-}" ] || FLOTILLA_BIN=$(realpath "$FLOTILLA_BIN")
export FLOTILLA_BIN
cd "$(dirname "$0")"

chromium=${CHROMIUM_BIN:-/usr/bin/chromium}
if [ ! -x "$chromium" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && apt-get install -qy chromium
    else
        echo "there is no $chromium: install it (apt-get install chromium), or set CHROMIUM_BIN" >&2
        exit 1
    fi
fi
# The package alone; its own browsers are not fetched.
export PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1
[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --ignore-scripts --no-audit --no-fund --silent
exec node main.js "$@"
