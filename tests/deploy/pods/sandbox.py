"""A pod's network and host name, and its containers as processes: each with the image's root, read-only, with what is
mounted into it, as the user of the pod, without the means to become another. Not here: seccomp, limits, capabilities of
root (it is none)."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from container import command, environment
from node import Node, run

# Within the container's own mounts: nothing that it mounts is seen outside. It begins in the image's WORKDIR.
START = """
set -eu
mount --make-rprivate /
mount --bind {image} {image}
mount -o remount,bind,ro {image}
mount -t proc proc {image}/proc
for device in null zero urandom; do mount --bind /dev/$device {image}/dev/$device; done
mount --bind {hosts} {image}/etc/hosts
{mounts}
exec setpriv --no-new-privs unshare --root={image} --wd=/opt/flotilla --setgid={group} --setuid={user} -- {command}
"""


class Sandbox:
    """What stays while containers come and go: the network namespace, the address, the volumes."""

    def __init__(self, node: Node, name: str, template: dict, claims: list[dict], secrets: dict[str, Path], given: dict[str, str]):
        self.node, self.name, self.spec, self.given = node, name, template["spec"], given
        self.labels = template["metadata"]["labels"]
        self.secrets, self.address = secrets, node.address()
        spaces = ["--net", "--uts", "--ipc", "--fork", "--kill-child"]
        if self.spec.get("shareProcessNamespace"):
            spaces += ["--pid", "--mount-proc"]
        self.pause = subprocess.Popen(["unshare", *spaces, "sleep", "infinity"])
        self.join_network()
        self.volumes = {volume["name"]: self.volume(volume) for volume in self.spec["volumes"]}
        self.volumes |= {claim["metadata"]["name"]: node.volume(f"{name}-{claim['metadata']['name']}") for claim in claims}

    def join_network(self):
        pid = child_of(self.pause.pid)
        link = f"p{self.address.replace('.', '')[-6:]}"
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        run("ip", "link", "set", link, "master", "pods", "up")
        for words in (["link", "set", "lo", "up"], ["address", "add", f"{self.address}/16", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            run("nsenter", "--target", str(pid), "--net", "ip", *words)
        run("nsenter", "--target", str(pid), "--uts", "hostname", self.name)
        self.link, self.spaces = link, pid

    def unplug(self):
        """As when the node is gone: nobody hears of it, and nothing is closed."""
        run("ip", "link", "set", self.link, "down")

    def volume(self, volume: dict) -> str | Path:
        """A folder here, or how it is mounted."""
        match volume:
            case {"emptyDir": {"medium": "Memory", "sizeLimit": size}}:
                return f"-t tmpfs -o mode=1777,size={size.rstrip('i')} tmpfs"
            case {"emptyDir": _}:
                return self.node.volume(f"{self.name}-{self.address}-{volume['name']}")
            case {"secret": {"secretName": secret}}:
                return self.secrets[secret]
            case {"hostPath": {"path": path}}:
                return self.node.volume(path.replace("/", "-"))
            case {"persistentVolumeClaim": {"claimName": claim}}:
                return self.node.volume(claim)
        raise AssertionError(f"no such volume is known here: {volume}")

    def start(self, container: dict, log: Path) -> subprocess.Popen:
        of_pod = {"metadata.name": self.name, "status.podIP": self.address, "metadata.namespace": "flotilla"}
        variables = environment(container, of_pod, lambda secret, key: (self.secrets[secret] / key).read_text())
        variables |= self.given
        spaces = ["--mount", "--fork", "--kill-child"]
        enter = ["--net", "--uts", "--ipc"]
        if self.spec.get("shareProcessNamespace"):
            enter.append("--pid")
        else:
            spaces += ["--pid"]
        script = self.script(container, command(container, variables))
        words = ["nsenter", "--target", str(self.spaces), *enter, "unshare", *spaces, "sh", "-c", script]
        with open(log, "a") as output:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={"PATH": os.environ["PATH"]} | variables)

    def script(self, container: dict, words: list[str]) -> str:
        image, mounts = self.node.image, []
        for mount in container["volumeMounts"]:
            place, volume = image / mount["mountPath"].lstrip("/"), self.volumes[mount["name"]]
            place.mkdir(parents=True, exist_ok=True)
            how = volume if isinstance(volume, str) else f"--bind {volume}"
            mounts.append(f"mount {how} {place}")
            if mount.get("readOnly"):
                mounts.append(f"mount -o remount,bind,ro {place}")
        user = self.spec["securityContext"]
        return START.format(
            image=image,
            hosts=self.node.hosts,
            mounts="\n".join(mounts),
            user=user["runAsUser"],
            group=user["runAsGroup"],
            command=shlex.join(words),
        )

    def end(self):
        self.pause.send_signal(signal.SIGKILL)
        self.pause.wait()


def child_of(pid: int) -> int:
    """The process that `unshare --fork` started."""
    for _ in range(500):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError(f"process {pid} starts no other")
