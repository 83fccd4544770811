#!/usr/bin/env bash
# Everything that can be checked and measured on a machine with a card, in one run, with one table at the end:
# what the machine has, every kernel against its expected values, golden sets by every way of summing, the
# demo model, models of full size with random weights, and the benchmark.
#
#   run.sh [--carried DIR] [--device N] [--only STEP,..] [--emulated] [--quick]
#
# Steps: doctor tests planted verify nccl demo serve bench trial. What fails does not stop the rest; each step has a
# limit of time, and tests of different families run side by side. Logs and JSON go to $OUT (default: <target folder>/device-out). --carried is the folder that
# pack.sh made, by default the one this script lies in. --emulated runs it all on the emulated card with small
# shapes, so that the script itself can be tried (it needs a C++ compiler); no figure means anything then.
set -uo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
carried="$here"
[ -x "$carried/flotilla" ] || carried="${CARGO_TARGET_DIR:-$here/../../target}/carried"
device=0
only=doctor,tests,planted,verify,nccl,demo,serve,bench,trial
emulated=
quick=
while [ $# -gt 0 ]; do
    case "$1" in
        --carried) carried="$2"; shift ;;
        --device) device="$2"; shift ;;
        --only) only="$2"; shift ;;
        --emulated) emulated=1; quick=1 ;;
        --quick) quick=1 ;;
        *) echo "error: unknown argument $1" >&2; exit 1 ;;
    esac
    shift
done
if [ ! -x "$carried/flotilla" ]; then
    echo "error: there is no build in $carried" >&2
    echo "hint: make one with tests/device/pack.sh, and name it with --carried" >&2
    exit 1
fi
carried="$(cd "$carried" && pwd)"
out="${OUT:-${CARGO_TARGET_DIR:-$here/../../target}/device-out}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
table="$out/table.txt"
: >"$table"

# ------------------------------------------------------------------ steps and the table

wanted() { [[ ",$only," == *",$1,"* ]]; }

# note NAME RESULT SECONDS TEXT
note() {
    printf '%-26s %-8s %6s  %s\n' "$1" "$2" "$3" "$4" | tee -a "$table"
}

# step NAME LIMIT CHOOSE COMMAND..: runs it within LIMIT seconds; CHOOSE picks from its log what the table says.
# Limits are several times what a machine with an H200 and 16 cores took; the emulated card has more.
step() {
    local name="$1" limit=$(($2 * (emulated ? 3 : 1))) choose="$3" log="$out/${1// /-}.log" from=$SECONDS result=ok status
    shift 3
    timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null
    status=$?
    [ $status -ne 0 ] && result=FAILED
    { [ $status -eq 124 ] || [ $status -eq 137 ]; } && result=TIMEOUT
    note "$name" "$result" "$((SECONDS - from))" "$($choose "$log" | cut -c1-200)"
    return $status
}

# beside NAME LIMIT CHOOSE COMMAND..: a step in the background, as many at once as there are cores.
beside() {
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
    step "$@" &
}

last_line() { grep -v '^[[:space:]]*$' "$1" | tail -1; }
tests_line() {
    grep -h '^test result' "$1" | tail -1 | sed 's/; 0 ignored; 0 measured//; s/; finished.*//; s/test result: //'
    grep -h '^test .* FAILED' "$1" | awk '{ print $2 }' | paste -sd' '
}
verify_line() {
    # The greatest deviation of the prompts, and the verdict (which warnings may follow); or what it died of.
    awk '$3 ~ /e-?[0-9]+$/ { if ($3 + 0 > worst + 0) worst = $3; n++ } END { if (n) printf "%d prompts, max abs %s: ", n, worst }' "$1"
    grep -m1 -x 'pass\|FAIL' "$1" || error_line "$1"
}
error_line() { grep -h -m1 'error\|FAILED' "$1" || last_line "$1"; }

# ------------------------------------------------------------------ libraries

if [ -n "$emulated" ]; then
    # The tests compile the emulated card; where they lie, that is in the folder for temporary files.
    "$carried/cuda-tests" --exact device::a_card_opens_and_tells_its_facts >"$out/emulated.log" 2>&1
    FLOTILLA_CUDA_PATH="$(dirname "$(ls -t "${TMPDIR:-/tmp}"/flotilla/emulator/*/libcuda.so.1 | head -1)")"
    export FLOTILLA_CUDA_PATH
    # Nobody wants what was compiled for this card kept among his own.
    export FLOTILLA_CACHE="${FLOTILLA_CACHE:-$out/cache}"
else
    # What was carried, then the wheels of the Python at hand, of a virtual environment too.
    paths="${FLOTILLA_CUDA_PATH:-}"
    [ -d "$carried/libraries" ] && paths="$paths:$carried/libraries"
    if command -v python3 >/dev/null; then
        paths="$paths:$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
    fi
    export FLOTILLA_CUDA_PATH="${paths#:}"
    export FLOTILLA_TEST_DEVICE=cuda
    [ "$device" = 0 ] || echo "note: the tests run on the first card, whatever --device says" >&2
fi

flotilla="$carried/flotilla"
cuda="cuda:$device"

# ------------------------------------------------------------------ doctor

if wanted doctor; then
    command -v nvidia-smi >/dev/null && nvidia-smi >"$out/nvidia-smi.log" 2>&1
    doctor_line() { grep -h -m1 "$cuda" "$1" | tr -s ' '; }
    step doctor 90 doctor_line "$flotilla" doctor
fi
read_rate=
if wanted doctor || wanted serve; then
    timeout 90 "$flotilla" doctor --json >"$out/doctor.json" 2>/dev/null
    read_rate=$(grep -m1 -o '"read_bytes_per_second": [0-9.e+]*' "$out/doctor.json" | cut -d' ' -f2)
fi

# ------------------------------------------------------------------ tests

# A kernel that goes wrong may take its process's card with it: a process for each family, and for each fault.
# Ranks that wait for each other need the card to themselves: their tests come last, alone.
if wanted tests; then
    modules=$("$carried/cuda-tests" --list 2>/dev/null | sed -n 's/: test$//p' | cut -d: -f1 | sort -u)
    for module in $modules; do
        case "$module" in
            planted) continue ;;
            # Plays machines without a card, which the emulated card's own run has shown; it needs a compiler.
            missing) continue ;;
            collective) continue ;;
        esac
        beside "tests $module" 90 tests_line "$carried/cuda-tests" --test-threads=1 "$module::"
    done
    # Op by op through the backend, beside the processor's: the same test bodies.
    for module in $("$carried/ops-tests" --list 2>/dev/null | sed -n 's/: test$//p' | cut -d: -f1 | sort -u); do
        [ "$module" = planted ] && continue
        [ -n "$emulated" ] && [ "$module" != route ] && continue
        beside "ops $module" 90 tests_line "$carried/ops-tests" --test-threads=1 "$module::"
    done
    wait
    step "tests collective" 150 tests_line "$carried/cuda-tests" --test-threads=1 collective::
fi
if wanted planted; then
    if [ -n "$emulated" ]; then
        step "planted norms" 60 tests_line "$carried/cuda-tests" --exact planted::norms
    else
        for test in $("$carried/cuda-tests" --list 2>/dev/null | sed -n 's/^\(planted::.*\): test$/\1/p'); do
            beside "planted ${test#planted::}" 60 tests_line "$carried/cuda-tests" --exact "$test"
        done
        beside "planted ops" 120 tests_line "$carried/ops-tests" --test-threads=1 planted::
        wait
    fi
fi

# ------------------------------------------------------------------ golden sets

verify() { # NAME SET MORE..
    local name="$1" set="$2"
    shift 2
    step "$name" 60 verify_line "$flotilla" verify "$carried/golden/$set" --device "$cuda" "$@"
}
if wanted verify; then
    sets="smoke long stress"
    [ -n "$quick" ] && sets=smoke
    for set in $sets; do
        verify "verify $set 1" $set
    done
    for set in ${sets/ long/}; do
        for sum in shared host staged; do
            for ranks in 2 4; do
                verify "verify $set $ranks $sum" $set --ranks $ranks --sum $sum
            done
        done
    done
    verify "verify processes 2 host" smoke --ranks 2 --sum host --processes
fi
if wanted nccl; then
    # Two ranks on one card: NCCL does that from 2.30 on, when it is told to. What happens is told, not judged.
    export NCCL_MULTI_RANK_GPU_ENABLE=1 NCCL_NVLS_ENABLE=0
    if ! verify "nccl 2 ranks, 1 card" smoke --ranks 2 --sum nccl; then
        note "nccl, why" told - "$(error_line "$out/nccl-2-ranks,-1-card.log" | cut -c1-160)"
    fi
    step "nccl sums" 120 last_line "$carried/cuda-bench" --device "$device" --only sum ${quick:+--quick} \
        --json "$out/sums-nccl.json"
    unset NCCL_MULTI_RANK_GPU_ENABLE NCCL_NVLS_ENABLE
fi

# ------------------------------------------------------------------ through the server

serve() { # NAME LIMIT ARGUMENTS..
    local name="$1" limit="$2"
    shift 2
    step "$name" "$limit" last_line python3 "$carried/serve.py" --flotilla "$flotilla" --device "$cuda" \
        --json "$out/${name// /-}.json" ${read_rate:+--read-rate "$read_rate"} "$@"
}
if wanted demo; then
    serve demo 120 --model "$carried/demo/model" --streams "" --ask "What is 27 + 48?" --expect 75
fi
if wanted serve; then
    if [ -n "$quick" ]; then
        serve "serve synthetic" 180 --model "$carried/demo/model" --weights synthetic:1 --streams 1,3 --tokens 8 \
            --kv-tokens 1024
    else
        serve "serve gpt-oss-20b" 200 --model gpt-oss-20b --weights synthetic:1
        serve "serve gpt-oss-120b" 420 --model gpt-oss-120b --weights synthetic:1 --ready-seconds 360
    fi
fi

# ------------------------------------------------------------------ benchmark

if wanted bench; then
    step bench 420 last_line "$carried/cuda-bench" --device "$device" ${quick:+--quick} --json "$out/bench.json"
    # The short table of targets.
    sed -n '/^target /,$p' "$out/bench.log" >"$out/targets.txt"
fi

# ------------------------------------------------------------------ ways that no card has shown to be right yet

# What `FLOTILLA_CUDA_TRY` names: is it right, and what does it make of whole steps? Beside the figures of `bench`.
if wanted trial; then
    step_line() { sed -n '/^target /,$p' "$1" | awk '/^(decode|prompt)/ { printf "%s; ", $0 }' | tr -s ' '; }
    [ -n "$emulated" ] && export FLOTILLA_EMULATED_CAPABILITY=9.0
    for trial in early warpgroups all; do
        export FLOTILLA_CUDA_TRY=$trial
        verify "trial $trial smoke 1" smoke
        verify "trial $trial smoke 4 shared" smoke --ranks 4 --sum shared
        [ -n "$emulated" ] || step "trial $trial ops" 90 tests_line "$carried/ops-tests" --test-threads=4 --skip planted
        step "trial $trial steps" 60 step_line "$carried/cuda-bench" --device "$device" --only experts,step \
            ${quick:+--quick} --json "$out/trial-$trial.json"
    done
    unset FLOTILLA_CUDA_TRY
fi

echo
echo "== $(date -u +%FT%TZ)${emulated:+, on the emulated card: no figure means anything}"
cat "$table"
[ -s "$out/targets.txt" ] && echo && cat "$out/targets.txt"
! grep -q 'FAILED\|TIMEOUT' <(grep -v '^nccl' "$table")
