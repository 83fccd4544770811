"""The program out of a built image's root, as an engine starts it: read-only, with /tmp in memory, as the image's user, in its
WORKDIR, with its variables and no others. The network is this machine's, so that a test can ask what listens."""

import json
import os
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1] / "pods"), str(HERE.parents[1])]

from node import make_places
from sandbox import START


@dataclass
class Image:
    name: str
    root: Path
    config: dict

    @classmethod
    def of(cls, name: str) -> "Image":
        root = Path(os.environ[f"FLOTILLA_IMAGE_{name.upper()}"])
        told = json.loads((Path(os.environ["FLOTILLA_IMAGE_DIR"]) / f"{name}.json").read_text())
        make_places(root)
        return cls(name, root, told["OCIv1"]["config"])

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.config["Env"])

    def words(self, arguments: list[str], entry: list[str] | None = None) -> list[str]:
        user, group = self.config["User"].split(":")
        command = shlex.join([*(entry or self.config["Entrypoint"]), *arguments])
        mounts = f"mount -t tmpfs -o mode=1777 tmpfs {self.root}/tmp"
        script = START.format(image=self.root, hosts="/etc/hosts", mounts=mounts, user=user, group=group, command=command)
        return ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "sh", "-c", script]

    def start(self, *arguments: str) -> subprocess.Popen:
        environment = {"PATH": os.environ["PATH"]} | self.environment()
        return subprocess.Popen(self.words(list(arguments)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def run(self, *arguments: str, entry: list[str] | None = None) -> subprocess.CompletedProcess:
        environment = {"PATH": os.environ["PATH"]} | self.environment()
        return subprocess.run(self.words(list(arguments), entry), capture_output=True, text=True, timeout=120, env=environment)

    def files(self) -> list[Path]:
        """Everything that lies in it, seen from its root."""
        return [Path("/") / path.relative_to(self.root) for path in self.root.rglob("*")]

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
