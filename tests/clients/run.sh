#!/usr/bin/env bash
# Clients that nobody here wrote, against the real program with the demo model: OpenAI's packages for Python and
# for JavaScript, an agents library over them, and schemathesis against /openapi.json. This script installs them
# (pinned, into target/clients), starts the servers that they need, ends them, and adds up.
#
#   run.sh [python] [js] [fuzz]      all three by default
#
# FLOTILLA_BIN is the program, target/debug/flotilla by default. FLOTILLA_CLIENTS_DIR is the folder for what is
# installed and written. It does not build the program, and nothing but the installation leaves the machine.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
target="${CARGO_TARGET_DIR:-$root/target}"
flotilla="${FLOTILLA_BIN:-$target/debug/flotilla}"
folder="${FLOTILLA_CLIENTS_DIR:-$target/clients}"
parts=("$@")
[ $# -gt 0 ] || parts=(python js fuzz)

if [ ! -x "$flotilla" ]; then
    echo "error: there is no program at $flotilla" >&2
    echo "hint: cargo build, or name one with FLOTILLA_BIN" >&2
    exit 1
fi
flotilla="$(realpath "$flotilla")"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
reports="$folder/reports"
logs="$folder/logs"
rm -rf "$reports" "$logs"
mkdir -p "$reports" "$logs"
# A proxy of the machine is not for loopback, and a client must not find somebody's real key.
export PYTHONDONTWRITEBYTECODE=1 NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 OPENAI_API_KEY=none OPENAI_AGENTS_DISABLE_TRACING=1

# shellcheck source=install.sh
source "$here/install.sh"
# shellcheck source=servers.sh
source "$here/servers.sh"
trap stop_servers EXIT

run_python() {
    timeout 400 "$folder/venv/bin/python" -m pytest -q -p no:cacheprovider --tb=native -c "$here/python/pytest.ini" \
        --rootdir "$here/python" --junitxml "$reports/python.xml" "$here/python"
}

run_js() {
    (cd "$folder/js" && timeout 180 node --test --test-concurrency=1 \
        --test-reporter=spec --test-reporter-destination=stdout \
        --test-reporter=junit --test-reporter-destination="$reports/js.xml" ./*.test.mjs)
}

# A context of 512 tokens and a limit of time: whatever is asked for ends soon. See README.md for what is
# checked and what is not. A body that is shown may have megabytes.
run_fuzz() {
    (cd "$folder" && SCHEMATHESIS_HOOKS=fuzz_hooks PYTHONPATH="$here" timeout 420 "$folder/venv/bin/st" \
        --config-file "$here/schemathesis.toml" run "$FLOTILLA_SMALL_URL/openapi.json" \
        --report junit --report-junit-path "$reports/fuzz.xml" | cut -c -600)
}

for part in "${parts[@]}"; do
    case "$part" in
        python | fuzz) install_python ;;
        js) install_js ;;
        *) echo "error: there is no part $part; there are python, js and fuzz" >&2; exit 1 ;;
    esac
done
start_servers
for part in "${parts[@]}"; do
    echo "== $part"
    "run_$part" || echo "$part ended with $?"
done
"${PYTHON:-python3}" "$here/tally.py" "$reports" "${parts[@]}"
