#!/usr/bin/env bash
# Builds what run.sh needs on a machine that has a card but no compiler, into one folder that can be carried
# there: the program, the tests and the benchmark of cards, golden sets, the demo model, and the scripts.
#
#   tests/device/pack.sh [--out DIR] [--nvrtc] [--cublas] [--nccl]
#
# Default DIR: <target folder>/carried. The three flags add NVIDIA's libraries from Python wheels, for machines
# that have none: some 100 MB, 700 MB and 300 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."

target="${CARGO_TARGET_DIR:-target}"
out="$target/carried"
wheels=()
fetched=()
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out="$2"; shift ;;
        --nvrtc) wheels+=(libnvrtc) ;;
        --cublas) wheels+=(libcublasLt); fetched+=(nvidia-cublas-cu12) ;;
        --nccl) wheels+=(libnccl); fetched+=(nvidia-nccl-cu12) ;;
        *) echo "error: unknown argument $1" >&2; exit 1 ;;
    esac
    shift
done

# The executable that cargo has made of a target of this name and kind.
built() {
    grep -F "\"name\":\"$2\"" | grep -F "\"kind\":[\"$1\"]" | grep -o '"executable":"[^"]*"' | cut -d'"' -f4 | tail -1
}
build() {
    cargo "$@" --release --message-format=json-render-diagnostics
}
flotilla=$(build build -p flotilla-cli --bin flotilla | built bin flotilla)
tests=$(build test -p flotilla-engine --test cuda --no-run | built test cuda)
ops=$(build test -p flotilla-engine --test ops --no-run | built test ops)
bench=$(build build -p flotilla-engine --bench cuda | built bench cuda)

rm -rf "$out"
mkdir -p "$out/demo" "$out/golden"
for pair in "$flotilla:flotilla" "$tests:cuda-tests" "$ops:ops-tests" "$bench:cuda-bench"; do
    strip -o "$out/${pair##*:}" "${pair%%:*}" 2>/dev/null || cp "${pair%%:*}" "$out/${pair##*:}"
done
cp -R demo/model "$out/demo/"
cp -R tests/golden/smoke tests/golden/long tests/golden/stress "$out/golden/"
cp tests/device/run.sh tests/device/serve.py "$out/"

if [ ${#wheels[@]} -gt 0 ]; then
    folder=$(tests/device/fetch-wheels.sh "${fetched[@]}")
    mkdir -p "$out/libraries"
    for wheel in "${wheels[@]}"; do
        find "$folder/nvidia" -name "$wheel*.so.*" -exec cp -L {} "$out/libraries/" \;
    done
fi
du -sh "$out" | cut -f1
echo "$out"
