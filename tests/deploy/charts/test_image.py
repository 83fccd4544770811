"""Dockerfile and compose file, as far as can be told without an engine that builds them: what is copied is there, what
pods and containers start is where the image has it, nobody is root, what is fetched is pinned, and the program needs no
more of a system than the image's base has."""

import copy
import fnmatch
import os
import re
import subprocess
import tomllib

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from manifests import ROOT, VALUES, containers, documents, rendered

FLOTILLA = os.environ["FLOTILLA_BIN"]
ADMITTED = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
COMPOSE = ROOT / "deploy/compose.yaml"
# What gcr.io/distroless/cc-debian12 and debian:12-slim have of libraries, and their glibc.
LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
GLIBC = (2, 36)


def stages(text: str, tmp_path) -> dict[str, list[tuple[str, str]]]:
    """Instructions with their values, by the stage's name, in order; those before the first stage by ""."""
    parser = DockerfileParser(fileobj=open(tmp_path / "Dockerfile", "wb+"))
    parser.content = text
    name, found = "", {"": []}
    for instruction in parser.structure:
        if instruction["instruction"] == "FROM":
            base, _, name = instruction["value"].partition(" AS ")
            found[name] = [("FROM", base)]
        elif instruction["instruction"] != "COMMENT":
            found[name].append((instruction["instruction"], instruction["value"]))
    return found


def ignored(path: str) -> bool:
    """As BuildKit reads Dockerfile.dockerignore: the last line that fits it, or a folder that it is in, says."""
    result = False
    for line in ADMITTED:
        if line and not line.startswith("#") and fits(path.split("/"), line.removeprefix("!").split("/")):
            result = not line.startswith("!")
    return result


def fits(path: list[str], pattern: list[str]) -> bool:
    """A star is for one name."""
    return len(path) >= len(pattern) and all(fnmatch.fnmatch(*both) for both in zip(path, pattern))


def mistakes(found: dict) -> list[str]:
    named = {stage: steps for stage, steps in found.items() if stage}
    return [f"{stage}: {finding}" for stage, steps in named.items() for finding in stage_mistakes(named, stage, steps)] + endings(named)


def stage_mistakes(found, stage, steps):
    base = steps[0][1]
    if "." not in base.rpartition("/")[0].split("/")[0]:
        yield f"{base} has no registry, without which only Docker knows where it is"
    if not re.search(r":[a-z]*[0-9.]+|:nonroot$", base) or base.endswith(":latest"):
        yield f"{base} is not pinned to a version"
    for kind, value in steps:
        if kind == "COPY" and value.startswith("--from="):
            source = value.split()[0].removeprefix("--from=")
            if source not in list(found)[: list(found).index(stage)]:
                yield f"it copies from {source}, which is no stage before it"
        elif kind == "COPY":
            *sources, _ = value.split()
            yield from (f"{at} is not in the context" for at in sources if at != "." and (ignored(at) or not (ROOT / at).exists()))
        if kind == "RUN" and "cargo build" in value and not {"--release", "--locked"} <= set(value.split()):
            yield f"it builds what Cargo.lock does not say: {value}"
        if kind == "RUN" and "pip install" in value and "--require-hashes" not in value:
            yield "it installs what is not pinned"


def endings(found):
    """Of the stages that are images."""
    findings = []
    for stage in ("cpu", "cuda"):
        last = dict(found.get(stage, []))
        for kind, wanted in (("USER", "65532:65532"), ("WORKDIR", "/opt/flotilla"), ("ENTRYPOINT", '["/usr/local/bin/flotilla"]')):
            if last.get(kind) != wanted:
                findings.append(f"{stage}: {kind} is {last.get(kind)}, expected {wanted}")
    if list(found)[-1] != "cpu":
        findings.append("the image without a card is not what is built unless another is asked for")
    return findings


@pytest.fixture
def found(tmp_path):
    return stages((ROOT / "deploy/Dockerfile").read_text(), tmp_path)


def test_the_dockerfile_is_right(found):
    assert mistakes(found) == []


FAULTS = {
    "a floating base": (lambda s: s["cuda"].__setitem__(0, ("FROM", "docker.io/library/debian:latest")), "not pinned"),
    "a base without a tag": (lambda s: s["build"].__setitem__(0, ("FROM", "docker.io/library/rust")), "not pinned"),
    "a base without a registry": (lambda s: s["build"].__setitem__(0, ("FROM", "rust:1.95-bookworm")), "no registry"),
    "root": (lambda s: s["cpu"].append(("USER", "root")), "USER is root"),
    "no lock": (lambda s: s["build"].append(("RUN", "cargo build --release")), "Cargo.lock"),
    "no hashes": (lambda s: s["libraries"].append(("RUN", "pip install nvidia-nccl-cu12")), "not pinned"),
    "a stage that is not there": (lambda s: s["cpu"].append(("COPY", "--from=builder /x /x")), "no stage before it"),
    "a file that is not there": (lambda s: s["libraries"].append(("COPY", "deploy/none.txt /")), "not in the context"),
    "a file that is left out": (lambda s: s["libraries"].append(("COPY", "README.md /")), "not in the context"),
    "another door": (lambda s: s["cpu"].append(("ENTRYPOINT", '["/flotilla"]')), "ENTRYPOINT"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_is_found(found, fault):
    plant, words = FAULTS[fault]
    spoilt = copy.deepcopy(found)
    plant(spoilt)
    assert any(words in finding for finding in mistakes(spoilt)), mistakes(spoilt)


def test_the_compiler_is_new_enough(found):
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    version = re.search(r"rust:([0-9.]+)", found["build"][0][1])[1]
    assert [int(part) for part in version.split(".")] >= [int(part) for part in workspace["rust-version"].split(".")]


def test_a_build_has_all_that_it_needs(tmp_path):
    """Of what git has and the context does not leave out, cargo can read all manifests, with the lock as it is."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    kept = [file for file in files if not ignored(file)]
    for file in kept:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(ROOT / file, tmp_path / file)
    ran = subprocess.run(["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert not any(file.startswith(("docs/", "deploy/helm", ".ci", "tests/golden", "engine/tests")) for file in kept)


def members_left_out() -> list[str]:
    """Packages of the workspace of which the context has no manifest, no source, or no program or benchmark that the
    manifest names: without those Cargo reads none of it."""
    members = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["members"]
    return [member for member in members if any(ignored(os.path.normpath(f"{member}/{file}")) for file in files_of(member))]


def files_of(member):
    manifest = tomllib.loads((ROOT / member / "Cargo.toml").read_text())
    programs = [target["path"] for target in manifest.get("bin", []) if "path" in target]
    benches = [target.get("path", f"benches/{target['name']}.rs") for target in manifest.get("bench", [])]
    return ["Cargo.toml", "src", *programs, *benches]


def test_every_package_of_the_workspace_is_in_the_context():
    assert members_left_out() == []


@pytest.mark.parametrize("line, member", [("!load", "load"), ("!tests/emulator", "tests/emulator")])
def test_a_package_that_is_left_out_is_found(line, member, monkeypatch):
    monkeypatch.setitem(globals(), "ADMITTED", [admitted for admitted in ADMITTED if admitted != line])
    assert member in members_left_out()


def test_the_program_needs_no_more_than_the_base_has():
    told = subprocess.run(["objdump", "-p", FLOTILLA], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"NEEDED\s+(\S+)", told)) <= LIBRARIES
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", told)
    assert versions and max((int(major), int(minor)) for major, minor in versions) <= GLIBC


@pytest.mark.parametrize("values", VALUES)
def test_pods_start_what_the_image_has(values, found):
    places = [value.split()[-1] for stage in ("cpu", "cuda") for kind, value in found[stage] if kind == "COPY"]
    for owner, container, spec in containers(documents(rendered(values))):
        assert container["command"] == ["/usr/local/bin/flotilla"] and places.count("/usr/local/bin/flotilla") == 2
        assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == dict(found["cpu"])["USER"]
        demo = [arg for arg in container["args"] if arg.startswith("--model=/opt")]
        assert all(arg.removeprefix("--model=") in places for arg in demo), demo
        assert container["image"].endswith("-cuda") == ("nvidia.com/gpu" in container["resources"]["limits"])


def test_the_labels_name_the_version(found):
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert ("ARG", f"VERSION={version}") in found[""]
    for stage in ("cpu", "cuda"):
        labels = dict(found[stage])["LABEL"]
        assert "org.opencontainers.image.version=$VERSION" in labels and ("ARG", "VERSION") in found[stage], stage


def services():
    return yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.mark.parametrize("service", ["coordinator", "worker", "card"])
def test_the_program_takes_what_compose_says(service):
    told = services()[service]
    # A cluster by hand: no card is looked for.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOTILLA_")}
    ran = subprocess.run([FLOTILLA, *told["command"], "--check"], capture_output=True, text=True, cwd=ROOT, env=environment | {"FLOTILLA_JOIN_TOKEN": "x"})
    assert ran.returncode == 0, ran.stderr


def test_compose_is_locked_down_and_reached_from_this_machine_only(found):
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    for name, service in services().items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["image"].startswith(f"flotilla:{version}"), name
        if "build" in service:
            assert service["build"]["target"] in found and (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    workers = services()["worker"]["deploy"]["replicas"]
    assert f"--workers={workers}" in services()["coordinator"]["command"]
