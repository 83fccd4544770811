"""Adds up what the parts of run.sh reported (JUnit files), and names every failure once more, in one list: the
client, the test, what was said. A part that left no report, or an empty one, counts as one failure."""

import html
import pathlib
import sys
import xml.etree.ElementTree as xml

LINES_MAX = 12
COLUMNS_MAX = 400


def failure_of(case):
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            message, text = found.get("message") or "", found.text or ""
            # Some runners have a word there, and the reason below.
            return (message if " " in message else f"{message}: {text}") or "no reason was given"
    return None


def shorten(text):
    # Node's reporter escapes twice.
    lines = [line[:COLUMNS_MAX] for line in html.unescape(text).strip().splitlines() if line.strip()]
    more = [f"... and {len(lines) - LINES_MAX} lines more"] if len(lines) > LINES_MAX else []
    return "\n    ".join(lines[:LINES_MAX] + more)


def tally(path):
    """Passed, and the failures as (test, reason)."""
    try:
        cases = list(xml.parse(path).getroot().iter("testcase"))
    except (OSError, xml.ParseError) as error:
        return 0, [("the whole part", f"it left no report: {error}")]
    if not cases:
        return 0, [("the whole part", "its report is empty")]
    # Nothing may be passed over: a skipped test is a failure here.
    reasons = [(case, failure_of(case) or ("skipped" if case.find("skipped") is not None else None)) for case in cases]
    failed = [(f"{case.get('classname') or ''} {case.get('name')}".strip(), reason) for case, reason in reasons if reason]
    return len(cases) - len(failed), failed


def main():
    reports, parts = pathlib.Path(sys.argv[1]), sys.argv[2:]
    passed_all = failed_all = 0
    for part in parts:
        passed, failed = tally(reports / f"{part}.xml")
        for test, reason in failed:
            print(f"FAILED {part}: {test}\n    {shorten(reason)}")
        passed_all += passed
        failed_all += len(failed)
    print(f"{passed_all} passed, {failed_all} failed")
    sys.exit(1 if failed_all or not passed_all else 0)


main()
