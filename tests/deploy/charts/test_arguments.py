"""What the pods would start, the real program takes: every container's command with `--check`, over files such as would be
mounted. And wrong ones are refused with status 2."""

import os
import subprocess

import pytest
from container import command, environment
from manifests import ROOT, VALUES, containers, documents, rendered

FLOTILLA = os.environ["FLOTILLA_BIN"]
POD = {"metadata.name": "flotilla-worker-0", "status.podIP": "10.0.0.7"}
TOKEN = "a-token-of-these-tests"
# The controller of LeaderWorkerSets sets them.
GROUP = {"LWS_LEADER_ADDRESS": "flotilla-0.flotilla.flotilla", "LWS_GROUP_SIZE": "3", "LWS_WORKER_INDEX": "1"}


def run(args, variables=None):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLOTILLA_")}
    return subprocess.run([FLOTILLA, *args], capture_output=True, text=True, timeout=60, env=kept | (variables or {}))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Where a path of a pod lies here. Models are the demo's."""
    folder = tmp_path_factory.mktemp("mounted")
    assert run(["certs", str(folder / "certs"), "--coordinator", "flotilla-fleet", "--worker", "w"]).returncode == 0
    keys = folder / "keys.toml"
    keys.write_text(run(["key", "someone"]).stdout)
    demo = str(ROOT / "demo/model")
    return {
        "/etc/flotilla/keys/keys.toml": str(keys),
        "/etc/flotilla/fleet-tls": str(folder / "certs/coordinator"),
        "/etc/flotilla/api-tls": str(folder / "certs/coordinator"),
        "/opt/flotilla/demo/model": demo,
        "/models/": f"{demo}/../",
        "https://models.example/": f"{demo}/../",
    }


def checked(container, files, *more):
    variables = environment(container, POD, lambda secret, key: TOKEN) | GROUP
    [_, *args] = command(container, variables)
    args = [arg.replace("/models/gpt-oss-120b", "/models/model").replace("/gpt-oss-20b", "/model") for arg in args]
    for path, here in files.items():
        args = [arg.replace(f"={path}", f"={here}") for arg in args]
    return run([*args, *more, "--check"], variables)


ALL = [(values, whose) for values in VALUES for whose, _, _ in containers(documents(rendered(values)))]


@pytest.mark.parametrize("values, whose", ALL)
def test_the_program_takes_what_a_container_says(values, whose, files):
    [container] = [found for at, found, _ in containers(documents(rendered(values))) if at == whose]
    ran = checked(container, files)
    assert ran.returncode == 0 and "nothing was started" in ran.stdout, ran.stderr


WRONG = {
    "coordinator": [
        ("--workers=0", "0 is not in 1..=64"),
        ("--worker=2", "unexpected argument '--worker'"),
        ("--stages=9", "--stages is 9"),
        ("--kv-tokens=16", "holds no chat"),
        ("--step-tokens=1", "--step-tokens is 1"),
        ("--model=/nowhere", "there is no folder /nowhere"),
        ("--api-keys=/nowhere/keys.toml", "/nowhere/keys.toml"),
        ("--worker-tls-ca=/nowhere/ca.crt", "/nowhere/ca.crt"),
        ("--cors-origin=example", "example"),
    ],
    "worker": [
        ("--collective-listen=worker-0", "invalid value 'worker-0'"),
        ("--health-listen=8080", "invalid value '8080'"),
        ("--coordinator=flotilla-fleet:7070", "is not an https address"),
        ("--device=gpu", "expected cpu or cuda:N"),
        ("--weight-cache-bytes=much", "--weight-cache-bytes"),
        ("--tls-ca=/nowhere/ca.crt", "/nowhere/ca.crt"),
        ("--tls-name=", "neither a host's name"),
    ],
}


@pytest.mark.parametrize("command, wrong, words", [(kind, *wrong) for kind, all in WRONG.items() for wrong in all])
def test_what_is_wrong_is_refused(command, wrong, words, files):
    docs = documents(rendered("several-nodes"))
    container = next(container for _, container, _ in containers(docs) if container["args"][0] == command)
    flag = wrong.partition("=")[0]
    container["args"] = [arg for arg in container["args"] if arg.partition("=")[0] != flag] + [wrong]
    ran = checked(container, files)
    assert ran.returncode == 2 and words in ran.stderr, (ran.returncode, ran.stdout, ran.stderr)
    assert ran.stderr.startswith("error: "), ran.stderr


def test_a_worker_without_tls_says_what_a_coordinator_looks_like():
    for coordinator, words in [("http://", "is not a URL"), ("ftp://x:1", "is not a URL"), ("http://a b", "is not a URL")]:
        ran = run(["worker", "--coordinator", coordinator, "--join-token", TOKEN, "--check"])
        assert ran.returncode == 2 and words in ran.stderr and "\nhint: " in ran.stderr, ran.stderr
    ran = run(["worker", "--join-token", "ü\n", "--check"])
    assert ran.returncode == 2 and "join token" in ran.stderr, ran.stderr
