"""The one node of this world: a bridge that pods hang on, a file of names for all of them, the image's root, and folders
for volumes. It is the network namespace that `unshare` made, and ends with it."""

import itertools
import os
import shutil
import subprocess
import threading
from pathlib import Path

# What the program needs of a system, as Dockerfile's base has it; nothing else is in the image.
LIBRARIES = ["/lib64/ld-linux-x86-64.so.2", *(f"/lib/x86_64-linux-gnu/{name}" for name in ("libc.so.6", "libm.so.6", "libgcc_s.so.1"))]
DEMO = "opt/flotilla/demo/model"


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


def make_root(root: Path, program: str, demo: Path):
    for folder in ("etc", "usr/local/bin", DEMO):
        (root / folder).mkdir(parents=True)
    for library in LIBRARIES:
        place = root / library.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    shutil.copy(program, root / "usr/local/bin/flotilla")
    shutil.copytree(demo, root / DEMO, dirs_exist_ok=True)
    (root / "etc/nsswitch.conf").write_text("hosts: files\n")


def make_places(root: Path):
    """Where an engine mounts what containers have of the machine."""
    for folder in ("proc", "dev/shm", "tmp", "etc"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for file in ("etc/hosts", "dev/null", "dev/zero", "dev/urandom"):
        (root / file).touch()


class Node:
    def __init__(self, folder: Path, program: str, demo: Path):
        self.folder, self.addresses = folder, itertools.count(10)
        # Of one case.
        self.volumes = folder / "volumes"
        self.names: dict[str, list[str]] = {}
        self.lock = threading.Lock()
        self.hosts = folder / "hosts"
        self.tell_names()
        self.network()
        self.image = self.take_image(folder / "image", program, demo)

    def network(self):
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "pods", "type", "bridge")
        run("ip", "address", "add", "10.77.0.1/16", "dev", "pods")
        run("ip", "link", "set", "pods", "up")

    def address(self) -> str:
        return f"10.77.0.{next(self.addresses)}"

    def take_image(self, root: Path, program: str, demo: Path) -> Path:
        """A built image's root if there is one, or one with what the Dockerfile's last stage has of importance."""
        built = os.environ.get("FLOTILLA_DEPLOY_ROOT")
        if built:
            run("cp", "--archive", built, str(root))
        else:
            make_root(root, program, demo)
        make_places(root)
        return root

    def name(self, name: str, addresses: list[str]):
        """What the cluster's DNS says of a name."""
        with self.lock:
            self.names[name] = addresses
            self.tell_names()

    def tell_names(self):
        lines = [f"{address} {name}" for name, addresses in self.names.items() for address in addresses]
        # In place: containers have this file, not its name.
        with open(self.hosts, "w") as file:
            file.write("127.0.0.1 localhost\n" + "\n".join(lines) + "\n")

    def volume(self, name: str, mode: int = 0o2777) -> Path:
        folder = self.volumes / name
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, 0, 65532)
        folder.chmod(mode)
        return folder
