"""The parts of a cluster that the documents of a release need: pods for Deployments, StatefulSets and LeaderWorkerSets,
names and addresses for Services, files for Secrets."""

import select
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

from kubelet import Pod, get
from manifests import of_kind
from node import Node, run
from policies import enforce
from sandbox import Sandbox

SPACE = "flotilla"
TOKEN = "a-token-of-these-tests"


class Cluster:
    def __init__(self, node: Node, docs: list[dict], secrets: dict[str, Path], logs: Path):
        self.node, self.docs, self.secrets, self.logs = node, docs, secrets, logs
        self.pods: dict[str, Pod] = {}
        self.lock = threading.Lock()
        self.services = [Service(self, doc) for doc in of_kind(docs, "Service")]
        self.over = threading.Event()
        self.keeper = threading.Thread(target=self.keep_names, daemon=True)
        self.keeper.start()

    def start(self, name: str, template: dict, claims: list[dict] | None = None, given: dict[str, str] | None = None) -> Pod:
        sandbox = Sandbox(self.node, name, template, claims or [], self.secrets, given or {})
        enforce(self.docs, [pod.sandbox for pod in self.pods.values()] + [sandbox])
        pod = Pod(sandbox, self.logs)
        with self.lock:
            self.pods[name] = pod
        self.tell_names()
        return pod

    def start_deployment(self, number: int = 0) -> Pod:
        [doc] = of_kind(self.docs, "Deployment")
        return self.start(f"{doc['metadata']['name']}-{number}", doc["spec"]["template"])

    def start_of_set(self, number: int) -> Pod:
        [doc] = of_kind(self.docs, "StatefulSet")
        return self.start(f"{doc['metadata']['name']}-{number}", doc["spec"]["template"], doc["spec"].get("volumeClaimTemplates"))

    def start_group(self, number: int) -> list[Pod]:
        """As LeaderWorkerSet's controller does: names, and the variables that it sets in each container."""
        [doc] = of_kind(self.docs, "LeaderWorkerSet")
        set_name, group = doc["metadata"]["name"], doc["spec"]["leaderWorkerTemplate"]
        leader = f"{set_name}-{number}"
        pods = []
        for index in range(group["size"]):
            given = {"LWS_LEADER_ADDRESS": f"{leader}.{set_name}.{SPACE}", "LWS_GROUP_SIZE": str(group["size"]), "LWS_WORKER_INDEX": str(index)}
            template = group["workerTemplate"] if index else group["leaderTemplate"]
            pods.append(self.start(f"{leader}-{index}" if index else leader, template, None, given))
        return pods

    def delete(self, pod: Pod):
        pod.delete()
        with self.lock:
            if self.pods.get(pod.name) is pod:
                del self.pods[pod.name]
        self.tell_names()

    def reaches(self, stranger: Sandbox, pod: Pod, port: int) -> bool:
        """Whether a connection is made within a second."""
        words = f"exec 3<>/dev/tcp/{pod.address}/{port}"
        enter = ["nsenter", "--target", str(stranger.spaces), "--net", "timeout", "1", "bash", "-c", words]
        return subprocess.run(enter, stderr=subprocess.DEVNULL, timeout=10).returncode == 0

    def stranger(self) -> Sandbox:
        """A pod that has nothing to do with the release, in the same namespace."""
        return Sandbox(self.node, "stranger", {"metadata": {"labels": {"app": "other"}}, "spec": {"volumes": []}}, [], {}, {})

    def of(self, selector: dict[str, str]) -> list[Pod]:
        with self.lock:
            pods = list(self.pods.values())
        return [pod for pod in pods if selector.items() <= pod.labels.items()]

    def keep_names(self):
        """Readiness changes what a name means."""
        while not self.over.wait(0.1):
            self.tell_names()

    def tell_names(self):
        for service in self.services:
            service.tell_names()
        with self.lock:
            pods = list(self.pods.values())
        for doc in of_kind(self.docs, "LeaderWorkerSet"):
            [self.node.name(f"{pod.name}.{doc['metadata']['name']}.{SPACE}", [pod.address]) for pod in pods]

    def end(self):
        self.over.set()
        self.keeper.join()
        for pod in list(self.pods.values()):
            for container in pod.containers:
                container.kill()
            pod.sandbox.end()
        for service in self.services:
            service.close()

    def said(self) -> str:
        return "\n".join(pod.said() for pod in self.pods.values())


class Service:
    """Names of pods, or an address of its own from which connections go to one that is ready."""

    def __init__(self, cluster: Cluster, doc: dict):
        self.cluster, self.name, self.spec = cluster, doc["metadata"]["name"], doc["spec"]
        self.is_headless = self.spec.get("clusterIP") == "None"
        self.address, self.turn, self.listeners = cluster.node.address(), 0, []
        if not self.is_headless:
            run("ip", "address", "replace", f"{self.address}/32", "dev", "lo")
            for port in self.spec["ports"]:
                listener = socket.create_server((self.address, port["port"]), backlog=64)
                thread = threading.Thread(target=self.forward_all, args=(listener, port), daemon=True)
                thread.start()
                self.listeners.append((listener, thread))

    def endpoints(self) -> list[Pod]:
        pods = self.cluster.of(self.spec["selector"])
        return [pod for pod in pods if pod.ready or (self.spec.get("publishNotReadyAddresses") and not pod.is_going)]

    def tell_names(self):
        addresses = [pod.address for pod in self.endpoints()] if self.is_headless else [self.address]
        for name in (self.name, f"{self.name}.{SPACE}", f"{self.name}.{SPACE}.svc"):
            self.cluster.node.name(name, addresses)

    def forward_all(self, listener: socket.socket, port: dict):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.forward, args=(client, port), daemon=True).start()

    def forward(self, client: socket.socket, port: dict):
        pods = self.endpoints()
        self.turn += 1
        with client:
            if not pods:
                return
            pod = pods[self.turn % len(pods)]
            target = pod.containers[0].port(port["targetPort"])
            try:
                with socket.create_connection((pod.address, target), 5) as server:
                    pump(client, server)
            except OSError:
                return

    def close(self):
        for listener, thread in self.listeners:
            # A thread that waits for a connection is woken by this alone.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            listener.close()


def pump(client: socket.socket, server: socket.socket):
    """Both ways, until one side ends."""
    other = {client: server, server: client}
    while True:
        readable, _, _ = select.select(list(other), [], [], 120)
        for end in readable:
            data = end.recv(65536)
            if not data:
                return
            other[end].sendall(data)
        if not readable:
            return


def make_secrets(folder: Path, program: str) -> dict[str, Path]:
    """What users and cert-manager make, as files that the pod's group may read."""

    def ran(*words: str) -> str:
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout + "\n---\n" + done.stderr

    ran("certs", str(folder / "certs"), "--coordinator", "flotilla-fleet", "--worker", "w")
    entry, words = ran("key", "someone").split("\n---\n")
    made = {
        "flotilla-coordinator-tls": folder / "certs/coordinator",
        "flotilla-worker-tls": folder / "certs/workers/w",
        "flotilla-keys": folder / "keys",
        "flotilla-join": folder / "join",
    }
    (folder / "keys").mkdir()
    (folder / "keys/keys.toml").write_text(entry)
    (folder / "join").mkdir()
    (folder / "join/token").write_text(TOKEN)
    (folder / "api-key").write_text(words.strip().splitlines()[-1])
    for secret in made.values():
        shutil.chown(secret, 0, 65532)
        secret.chmod(0o750)
        for file in secret.iterdir():
            shutil.chown(file, 0, 65532)
            file.chmod(0o440)
    return made


def until(what: str, holds, patience_s: float = 60):
    """Waits; only what hangs is waited for to the end."""
    end = time.monotonic() + patience_s
    while not (found := holds()):
        assert time.monotonic() < end, f"it does not come: {what}"
        time.sleep(0.05)
    return found


__all__ = ["Cluster", "Pod", "get", "make_secrets", "until"]
