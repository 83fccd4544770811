#!/usr/bin/env bash
# Fuzzes every target, one after the other, with coverage.
#
#   run.sh [SECONDS [TARGET...]]      60 seconds each by default
#
# Needs cargo-fuzz (`cargo install cargo-fuzz --locked`) and a C++ compiler. What is found lies in
# target/fuzz/TARGET, and should become a test. CI runs the same entries over inputs that are nearly right
# (`fuzzing.rs` of each crate), without coverage.
set -euo pipefail
cd "$(dirname "$0")"
seconds="${1:-60}"
[ $# -eq 0 ] || shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(body tokenizer harmony safetensors frame to_worker from_worker weights)

root="$(cd ../.. && pwd)"
found="${CARGO_TARGET_DIR:-$root/target}/fuzz"
# cargo-fuzz asks the compiler for its sanitizers, which a stable one has too.
export RUSTC_BOOTSTRAP=1
for target in "${targets[@]}"; do
    mkdir -p "$found/$target" "$found/corpus/$target"
    case "$target" in
        tokenizer) cp "$root"/demo/model/tokenizer.json "$found/corpus/$target/" ;;
        safetensors) for file in "$root"/tests/golden/*/*.safetensors; do
            head -c 20000 "$file" > "$found/corpus/$target/$(basename "$(dirname "$file")")"; done ;;
    esac
    echo "== $target, $seconds s"
    cargo fuzz run --fuzz-dir . --target-dir "$found/build" "$target" "$found/corpus/$target" -- \
        -max_total_time="$seconds" -artifact_prefix="$found/$target/" -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 -verbosity=0
done
