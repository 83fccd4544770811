"""Writes deploy/kubernetes/: what the chart makes of each values file, for those without Helm."""

from manifests import KUBERNETES, RELEASE, VALUES, rendered

HEADER = """\
# Made by `tests/deploy/run.sh render` from deploy/helm/values/{name}.yaml; edit those values, not this.
# For a namespace {release}; deploy/README.md says which Secrets and claims must be there before.
"""


def text(name: str) -> str:
    return HEADER.format(name=name, release=RELEASE) + rendered(name)


if __name__ == "__main__":
    for name in VALUES:
        (KUBERNETES / f"{name}.yaml").write_text(text(name))
        print(f"deploy/kubernetes/{name}.yaml")
