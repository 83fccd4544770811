#!/usr/bin/env bash
# Two tools, one server: NVIDIA's aiperf, which nobody here wrote, and `flotilla bench serve` measure the scripted server, whose
# first token takes 200 ms and each other 20 ms. What both measure must agree within 5 %; how fast anything is, is not asked.
#
# Needs uv or Python's venv with pip, Python from 3.10 to 3.13, and both programs built before:
#   cargo build && cargo build -p flotilla-load --example scripted
# FLOTILLA_BIN and FLOTILLA_SCRIPTED name them, if they are not in target/debug. aiperf, 840 MB, is kept in target/load-tools.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
target="${CARGO_TARGET_DIR:-$root/target}"
flotilla="${FLOTILLA_BIN:-$target/debug/flotilla}"
scripted="${FLOTILLA_SCRIPTED:-$target/debug/examples/scripted}"
folder="${FLOTILLA_LOAD_TOOLS_DIR:-$target/load-tools}"
python="$folder/venv/bin/python"

for program in "$flotilla" "$scripted"; do
    if [ ! -x "$program" ]; then
        echo "error: there is no program at $program" >&2
        echo "hint: cargo build && cargo build -p flotilla-load --example scripted" >&2
        exit 1
    fi
done

mkdir -p "$folder"
if ! cmp -s "$here/requirements.txt" "$folder/venv/.installed"; then
    rm -rf "$folder/venv"
    if command -v uv >/dev/null; then
        uv venv --quiet "$folder/venv"
        uv pip install --quiet --python "$python" -r "$here/requirements.txt"
    else
        python3 -m venv "$folder/venv"
        "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    fi
    cp "$here/requirements.txt" "$folder/venv/.installed"
fi

rm -rf "$folder/out"
mkdir -p "$folder/out"
"$scripted" 127.0.0.1:0 200 20 >"$folder/out/url" &
server=$!
# aiperf leaves folders of its own in the place for temporary files.
TMPDIR="$(mktemp -d)"
export TMPDIR
trap 'kill $server 2>/dev/null || true; rm -rf "$TMPDIR"' EXIT
for _ in $(seq 100); do
    [ -s "$folder/out/url" ] && break
    sleep 0.1
done
url="$(cat "$folder/out/url")"

# A proxy of the machine is not for loopback.
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
theirs() {
    timeout 180 "$folder/venv/bin/aiperf" profile --model scripted --url "$url" --endpoint-type chat --streaming \
        --use-server-token-count --use-legacy-max-tokens --tokenizer "$root/demo/model" "$@" \
        --synthetic-input-tokens-mean 64 --synthetic-input-tokens-stddev 0 \
        --output-tokens-mean 32 --output-tokens-stddev 0 --random-seed 1 --ui none \
        --no-gpu-telemetry --no-server-metrics >"$folder/out/aiperf.log" 2>&1 || {
        tail -40 "$folder/out/aiperf.log" >&2
        return 1
    }
}
ours() {
    timeout 180 "$flotilla" bench serve --url "$url" --prompt-tokens 64 --max-tokens 32 "$@" >/dev/null
}

# What else the machine does can only set the two apart: they agree if they do in one of three tries.
for try in 1 2 3; do
    theirs --concurrency 4 --request-count 40 --output-artifact-dir "$folder/out/closed"
    ours --clients 4 --requests 40 --json "$folder/out/closed.json"
    theirs --request-rate 8 --arrival-pattern constant --request-count 60 --output-artifact-dir "$folder/out/open"
    ours --rate 8 --arrivals constant --requests 60 --json "$folder/out/open.json"
    "$python" "$here/agree.py" "$folder/out" closed open && exit
    echo "try $try: they do not agree" >&2
done
exit 1
