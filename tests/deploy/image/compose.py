"""Runs in namespaces of its own (see ../run.sh): the services of compose.yaml as an engine would start them out of the built
image, each with a network, an address and a name; the coordinator is asked, and told to stop."""

import http.client
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import yaml
from inside import Image
from manifests import ROOT
from node import Node, run
from sandbox import Sandbox, child_of

QUESTION = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
LIMIT_S = 120


def template(name: str, service: dict, image: Image) -> dict:
    """As a pod with one container."""
    user, group = (int(number) for number in image.config["User"].split(":"))
    places = service["tmpfs"]
    assert service["read_only"] and not service.get("volumes") and not service.get("entrypoint"), name
    container = {
        "command": image.config["Entrypoint"],
        "args": service["command"],
        "env": [{"name": key, "value": "a-token" if "FLOTILLA_JOIN_TOKEN" in value else value} for key, value in service["environment"].items()],
        "volumeMounts": [{"name": place, "mountPath": place} for place in places],
    }
    volumes = [{"name": place, "emptyDir": {"medium": "Memory", "sizeLimit": "64M"}} for place in places]
    return {
        "metadata": {"labels": {}},
        "spec": {"volumes": volumes, "securityContext": {"runAsUser": user, "runAsGroup": group}, "containers": [container]},
    }


class Services:
    """Of compose.yaml, without those that a profile has to be named for."""

    def __init__(self, folder: Path):
        self.folder, self.image = folder, Image.of("cpu")
        self.node = Node(folder, os.environ["FLOTILLA_BIN"], ROOT / "demo/model")
        self.processes = {}
        told = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
        for name, service in told.items():
            for number in range(service.get("deploy", {}).get("replicas", 1) if "profiles" not in service else 0):
                self.start(name, number, service)

    def start(self, name: str, number: int, service: dict):
        sandbox = Sandbox(self.node, f"{name}-{number}", template(name, service, self.image), [], {}, self.image.environment())
        if number == 0:
            self.node.name(name, [sandbox.address])
        # Containers know each other by the names that they have.
        self.node.name(sandbox.name, [sandbox.address])
        process = sandbox.start(sandbox.spec["containers"][0], self.log(sandbox.name))
        self.processes[sandbox.name] = (sandbox, process)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def address(self, name: str) -> str:
        return self.processes[name][0].address

    def stop(self, name: str) -> int:
        """The program's status."""
        sandbox, process = self.processes[name]
        os.kill(child_of(process.pid), signal.SIGTERM)
        return process.wait(45)

    def said(self) -> str:
        return "\n".join(f"-- {name}\n{self.log(name).read_text()[-3000:]}" for name in self.processes)


def asked(address: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, 8000, timeout=30)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(QUESTION), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def answers(services: Services) -> dict:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        status, body = asked(services.address("coordinator-0"))
        if status == 200:
            return json.loads(body)
        time.sleep(0.2)
    raise AssertionError(f"no answer comes, the last was {status} {body!r}")


def tell(services: Services):
    answer = answers(services)
    content = answer["choices"][0]["message"]["content"]
    assert content, answer
    print(f"ok      compose: {len(services.processes)} services answer out of the image: {content!r}")
    status = services.stop("coordinator-0")
    assert status == 0, f"the coordinator ended with {status}"
    print("ok      compose: the coordinator ends when it is told to, with status 0")


def main() -> int:
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"it takes longer than {LIMIT_S} s"))
    signal.alarm(LIMIT_S)
    run("mount", "--make-rprivate", "/")
    with tempfile.TemporaryDirectory(prefix="flotilla-compose-") as folder:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
        services = Services(Path(folder))
        try:
            tell(services)
        except AssertionError as error:
            print(f"FAILED  compose: {error}\n{services.said()}")
            return 1
        finally:
            run("umount", "--lazy", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
