"""The commands of deploy/README.md work, as far as they can without a cluster and an engine: helm renders with what it is
told there, kubectl makes what it is told to without sending it, flotilla does what stands there."""

import os
import re
import shlex
import subprocess

import pytest
from manifests import ROOT, VALUES, documents

FLOTILLA = os.environ["FLOTILLA_BIN"]
# What needs a cluster, an engine, or the machine itself.
PASSED_OVER = ("docker", "sudo", "journalctl", "curl", "export", "cargo", "kubectl -n flotilla rollout", "kubectl -n flotilla port-forward",
               "kubectl -n flotilla scale", "kubectl delete", "flotilla chat", "-d ", "#")


def commands() -> list[str]:
    text = (ROOT / "deploy/README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [line for line in found if line and not re.match(r"[A-Z_]+=", line)]


RUN = [line for line in commands() if not line.startswith(PASSED_OVER)]


def as_here(line: str) -> str:
    """The same, without a cluster."""
    line = line.replace("VALUES", str(VALUES["cpu-demo"])).replace("kubectl apply -f -", "cat")
    if line.startswith("kubectl"):
        return f"{line} --dry-run=client --output yaml"
    line = re.sub(r"^helm (install|upgrade)", "helm template", line)
    return re.sub(r"^flotilla", shlex.quote(FLOTILLA), line)


@pytest.mark.parametrize("line", RUN)
def test_a_command_works(line, tmp_path):
    for folder in ("deploy", "demo"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "keys.toml").touch()
    ran = subprocess.run(["bash", "-c", as_here(line)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    if not line.startswith("flotilla"):
        assert documents(ran.stdout), "it makes nothing"


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("docker run")])
def test_the_program_takes_what_docker_gives_it(line, tmp_path):
    words = shlex.split(re.sub(r"--model \S+", f"--model {ROOT / 'demo/model'}", line))
    [image] = [word for word in words if "flotilla:" in word]
    ran = subprocess.run([FLOTILLA, *words[words.index(image) + 1 :], "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert image.endswith("-cuda") == ("--gpus" in words)


def test_some_commands_are_run():
    assert len(RUN) >= 7 and sum(line.startswith("docker run") for line in commands()) >= 2 and any(line.startswith("helm install") for line in RUN), RUN


def test_links_lead_somewhere():
    for file in (ROOT / "deploy/README.md", ROOT / "tests/deploy/README.md"):
        for link in re.findall(r"\]\(([^)#]+)", file.read_text()):
            assert (file.parent / link).exists(), f"{file.name}: {link}"


def test_values_that_are_named_are_there():
    values = (ROOT / "deploy/helm/flotilla/values.yaml").read_text()
    for word in re.findall(r"`([a-z][A-Za-z]+(?:\.[A-Za-z]+)+)(?:: [a-z]+)?`", (ROOT / "deploy/README.md").read_text()):
        if word.split(".")[0] in ("workers", "serving", "gpu", "model", "certManager"):
            assert re.search(rf"^\s*{word.split('.')[-1]}:", values, re.M), word
