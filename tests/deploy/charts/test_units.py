"""The systemd units, as far as can be told without a host that runs them."""

import pytest
from manifests import ROOT

UNITS = sorted((ROOT / "deploy").glob("*.service"))


def settings(text: str) -> dict[str, list[str]]:
    """What each setting is given, in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, is_set, value = line.partition("=")
        if is_set and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def complaints(name: str, text: str) -> list[str]:
    unit = settings(text)
    is_template, is_dynamic = "@." in name, unit.get("DynamicUser") == ["yes"]
    found = []
    # Without a name each instance has a user of its own, who cannot open the memory of another.
    if is_template and is_dynamic and not unit.get("User"):
        found.append("instances share no user, and so no memory: User= is missing")
    if not is_dynamic and not unit.get("User"):
        found.append("it runs as root")
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_has_the_user_that_it_needs(unit):
    assert complaints(unit.name, unit.read_text()) == []


def test_what_is_missing_is_found():
    [worker] = [unit for unit in UNITS if "worker@" in unit.name]
    text = worker.read_text()
    assert complaints(worker.name, text.replace("User=flotilla-worker\n", ""))
    assert complaints(worker.name, text.replace("User=flotilla-worker\n", "").replace("DynamicUser=yes\n", ""))
