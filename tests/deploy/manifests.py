"""What the chart makes of each values file, as documents, and how to walk through them."""

import functools
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/flotilla"
KUBERNETES = ROOT / "deploy/kubernetes"
VALUES = {path.stem: path for path in sorted((ROOT / "deploy/helm/values").glob("*.yaml"))}
# Release and namespace of the files in deploy/kubernetes/.
RELEASE = "flotilla"


class Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, as the server does when it is strict."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"twice: {', '.join(twice)}, {node.start_mark}")
        return super().construct_mapping(node, deep)


def helm(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(["helm", *args], capture_output=True, text=True, timeout=120)


@functools.cache
def rendered(values: str, *settings: str, version: str = "1.37.0") -> str:
    """What `helm template` writes; `settings` are as of --set."""
    sets = [part for setting in settings for part in ("--set", setting)]
    ran = helm("template", RELEASE, str(CHART), "-n", RELEASE, "-f", str(VALUES[values]), "--kube-version", version, *sets)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def documents(text: str) -> list[dict]:
    return [document for document in yaml.load_all(text, Loader) if document]


def of_kind(docs: list[dict], *kinds: str) -> list[dict]:
    return [doc for doc in docs if doc["kind"] in kinds]


def name(doc: dict) -> str:
    return f"{doc['kind']}/{doc['metadata']['name']}"


def templates(docs: list[dict]) -> list[tuple[str, dict]]:
    """The pods' templates, each with whose it is."""
    found = []
    for doc in docs:
        if doc["kind"] in ("Deployment", "StatefulSet"):
            found.append((name(doc), doc["spec"]["template"]))
        if doc["kind"] == "LeaderWorkerSet":
            group = doc["spec"]["leaderWorkerTemplate"]
            found.append((f"{name(doc)} leader", group["leaderTemplate"]))
            found.append((f"{name(doc)} worker", group["workerTemplate"]))
    return found


def containers(docs: list[dict]) -> list[tuple[str, dict, dict]]:
    """Each with what it is called in messages, and with its pod's specification."""
    return [
        (f"{owner}: {container['name']}", container, template["spec"])
        for owner, template in templates(docs)
        for container in template["spec"]["containers"]
    ]


def selects(selector: dict | None, labels: dict) -> bool:
    """As a label selector does; an empty one selects everything."""
    return all(labels.get(key) == value for key, value in ((selector or {}).get("matchLabels") or {}).items())


def flag(container: dict, flag: str) -> str | None:
    """Of `--flag=value`."""
    values = [arg.split("=", 1)[1] for arg in container["args"] if arg.startswith(f"--{flag}=")]
    assert len(values) <= 1, f"--{flag} is there {len(values)} times"
    return values[0] if values else None
