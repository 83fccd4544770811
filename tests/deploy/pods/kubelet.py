"""Looks after one pod as the kubelet does: its startup, liveness and readiness probes, restarts of containers that end,
preStop and SIGTERM when it is deleted. Probes are five times as fast, and as impatient, down to 2 s."""

import http.client
import os
import signal
import ssl
import subprocess
import threading
import time
from pathlib import Path

from sandbox import Sandbox, child_of

FASTER = 5
RESTART_PAUSE_S = 0.5


class Container:
    """One of a pod's containers, through its restarts."""

    def __init__(self, sandbox: Sandbox, spec: dict, logs: Path):
        self.sandbox, self.spec = sandbox, spec
        self.log = logs / f"{sandbox.name}-{sandbox.address}-{spec['name']}.log"
        self.ready, self.restarts, self.why, self.deleted = False, 0, "", threading.Event()
        self.start()
        self.thread = threading.Thread(target=self.look_after, daemon=True)
        self.thread.start()

    def start(self):
        self.process, self.started = self.sandbox.start(self.spec, self.log), False

    def signal(self, number: int):
        """To the program itself, which is the first process of its namespace as in a real container."""
        os.kill(child_of(self.process.pid), number)

    def probe(self, kind: str) -> bool:
        ask = self.spec[kind]["httpGet"]
        # One probe after the other: who hangs must not be waited for as long as in a cluster.
        patience_s = max(self.spec[kind]["timeoutSeconds"] / FASTER, 2)
        status, _ = get(self.sandbox.address, self.port(ask["port"]), ask["path"], ask.get("scheme", "HTTP"), patience_s)
        return 200 <= status < 400

    def port(self, name: str) -> int:
        [port] = [port["containerPort"] for port in self.spec["ports"] if port["name"] == name]
        return port

    def look_after(self):
        due, failed = {"livenessProbe": 0.0, "readinessProbe": 0.0, "startupProbe": 0.0}, {}
        while not self.deleted.is_set():
            if self.process.poll() is not None and not self.deleted.is_set():
                self.restart(f"it ended with {self.process.returncode}")
                failed = {}
            kinds = ["livenessProbe", "readinessProbe"] if self.started else ["startupProbe"]
            for kind in kinds:
                if time.monotonic() >= due[kind]:
                    self.judge(kind, failed)
                    due[kind] = time.monotonic() + self.spec[kind]["periodSeconds"] / FASTER
            time.sleep(0.02)

    def judge(self, kind: str, failed: dict):
        passes = self.probe(kind)
        failed[kind] = 0 if passes else failed.get(kind, 0) + 1
        is_over = failed[kind] >= self.spec[kind]["failureThreshold"]
        if kind == "startupProbe" and passes:
            self.started = True
        elif kind == "readinessProbe" and (passes or is_over):
            self.ready = passes
        elif is_over and not self.deleted.is_set():
            self.end()
            self.restart(f"its {kind} failed {failed[kind]} times")
            failed.clear()

    def end(self):
        """By force; its parent, which only waits for it, ends with it."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()

    def kill(self):
        self.deleted.set()
        self.thread.join()
        self.end()

    def restart(self, why: str):
        self.ready, self.why = False, why
        self.process.wait()
        if not self.deleted.wait(RESTART_PAUSE_S):
            self.restarts += 1
            self.start()

    def delete(self, grace_s: float) -> int:
        """The program's status; -9 where it had to be killed."""
        self.deleted.set()
        self.thread.join()
        until = time.monotonic() + grace_s
        pause = self.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        time.sleep(pause / FASTER)
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self.end()
            return -9


def get(address: str, port: int, path: str, scheme: str = "HTTP", timeout_s: float = 5) -> tuple[int, bytes]:
    """Status and body; 0 where there is no answer. Certificates are not looked at, as the kubelet does not."""
    if scheme == "HTTPS":
        connection = http.client.HTTPSConnection(address, port, timeout=timeout_s, context=ssl._create_unverified_context())
    else:
        connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()
    finally:
        connection.close()


class Pod:
    def __init__(self, sandbox: Sandbox, logs: Path):
        self.sandbox, self.name, self.labels = sandbox, sandbox.name, sandbox.labels
        self.address, self.is_going, self.statuses = sandbox.address, False, []
        self.containers = [Container(sandbox, spec, logs) for spec in sandbox.spec["containers"]]

    @property
    def ready(self) -> bool:
        return not self.is_going and all(container.ready for container in self.containers)

    @property
    def restarts(self) -> int:
        return sum(container.restarts for container in self.containers)

    def delete(self):
        """Returns when it is gone; all containers are told at once."""
        self.is_going = True
        grace_s = self.sandbox.spec["terminationGracePeriodSeconds"]
        ends = [threading.Thread(target=lambda at=at: self.statuses.append(at.delete(grace_s))) for at in self.containers]
        [end.start() for end in ends]
        [end.join() for end in ends]
        self.sandbox.end()

    def said(self) -> str:
        logs = [f"-- {at.log.name} (restarts: {at.restarts} {at.why})\n{at.log.read_text()[-1500:]}" for at in self.containers]
        return "\n".join(logs)
