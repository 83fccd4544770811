"""Compares what two tools measured: `agree.py FOLDER NAME…`; of each name, FOLDER/NAME is aiperf's, FOLDER/NAME.json ours."""

import json
import sys
from pathlib import Path

# A part of theirs.
TOLERANCE = 0.05

# Ours, and theirs of the same meaning: time to the first token, a request's average between tokens, and to its end.
FIGURES = [
    ("ttft mean", lambda ours: ours["ttft"]["mean_ms"], ("time_to_first_token", "avg")),
    ("ttft p50", lambda ours: ours["ttft"]["p50_ms"], ("time_to_first_token", "p50")),
    ("ttft p90", lambda ours: ours["ttft"]["p90_ms"], ("time_to_first_token", "p90")),
    ("itl mean", lambda ours: ours["itl"]["mean_ms"], ("inter_token_latency", "avg")),
    ("itl p90", lambda ours: ours["itl"]["p90_ms"], ("inter_token_latency", "p90")),
    ("e2e mean", lambda ours: ours["e2e"]["mean_ms"], ("request_latency", "avg")),
    ("e2e p90", lambda ours: ours["e2e"]["p90_ms"], ("request_latency", "p90")),
    ("requests/s", lambda ours: ours["requests_per_s"], ("request_throughput", "avg")),
    ("tokens/s", lambda ours: ours["tokens_per_s"], ("output_token_throughput", "avg")),
]


def disagreements(folder, name):
    ours = json.loads((folder / f"{name}.json").read_text())["summary"]
    theirs = json.loads((folder / name / "profile_export_aiperf.json").read_text())
    assert ours["failed"] == 0 and not ours["violations"], ours
    count = 0
    for figure, of_ours, (metric, statistic) in FIGURES:
        one, other = of_ours(ours), theirs[metric][statistic]
        off = one / other - 1
        count += abs(off) > TOLERANCE
        print(f"{name:7} {figure:11} {one:10.2f} {other:10.2f} {100 * off:+6.2f} %{'  BEYOND' if abs(off) > TOLERANCE else ''}")
    return count


def main():
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    print(f"{'':19} {'flotilla':>10} {'aiperf':>10}")
    beyond = sum(disagreements(folder, name) for name in names)
    print(f"{len(names) * len(FIGURES)} figures, {beyond} of them differ by more than {100 * TOLERANCE:.0f} %")
    sys.exit(1 if beyond else 0)


main()
