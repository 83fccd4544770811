"""Runs in namespaces of its own (see ../run.sh): the documents that the chart makes become pods, as processes, and stories
happen to them. Nothing of it is left behind, since the first process of the namespaces is this one."""

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from client import Client
from cluster import Cluster, make_secrets
from manifests import ROOT, documents, rendered
from node import Node, run
from stories import Groups, OneNode, SeveralInAPod, SeveralNodes

LIMIT_S = 420
# The files of values as they are, with what this machine lacks taken out: cards, the model, 20 cores. Dense weights are
# int8, with which a row has the same bits in any batch, and a lost worker is waited for: so a stream that was disturbed
# can be compared, to the last letter, with one that was not.
HERE = [
    "gpu.enabled=false",
    "model.source=demo",
    "workers.threads=1",
    "workers.sharedMemory=64Mi",
    "workers.args={--dense=int8,--bandwidth=1,--memory-bytes=200000000,--collective-timeout=10}",
    "serving.kvTokens=4096",
    "serving.drainSeconds=60",
]
WAITS = "serving.args={--regroup-grace=50}"
CASES = [
    (SeveralNodes, "several-nodes", [WAITS, "workers.count=2", "workers.perPod=1"]),
    (Groups, "groups", [WAITS]),
    (OneNode, "one-node", ["workers.perPod=2", "workers.args=null"]),
    (SeveralInAPod, "several-nodes", [WAITS, "workers.count=2", "networkPolicy.enabled=false"]),
]


def stories(kind: type) -> list[str]:
    return [name for name, story in vars(kind).items() if callable(story) and name not in ("members", "__init__")]


def tell(node: Node, folder: Path, kind: type, values: str, settings: list[str]) -> list[tuple[str, bool]]:
    """All of one cluster; after one that fails there is no other."""
    docs = documents(rendered(values, *HERE, *settings))
    node.volumes = folder / "volumes"
    secrets = make_secrets(folder, os.environ["FLOTILLA_BIN"])
    logs = folder / "logs"
    logs.mkdir()
    cluster = Cluster(node, docs, secrets, logs)
    [service] = [service for service in cluster.services if not service.is_headless]
    story = kind(cluster, Client(service.address, (folder / "api-key").read_text()))
    told = []
    try:
        for name in stories(kind):
            begun = time.monotonic()
            getattr(story, name)()
            told.append((name, True))
            print(f"ok      {values}: {name.replace('_', ' ')} ({time.monotonic() - begun:.1f} s)", flush=True)
    except Exception:
        told.append((name, False))
        print(f"FAILED  {values}: {name.replace('_', ' ')}\n{traceback.format_exc()}\n{cluster.said()}", flush=True)
    finally:
        cluster.end()
    return told


@contextlib.contextmanager
def memory(folder: str):
    """What is written goes with this process."""
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    try:
        yield
    finally:
        run("umount", "--lazy", folder)


def main() -> int:
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"the stories take longer than {LIMIT_S} s"))
    signal.alarm(LIMIT_S)
    wanted = sys.argv[1:]
    run("mount", "--make-rprivate", "/")
    with tempfile.TemporaryDirectory(prefix="flotilla-pods-") as folder, memory(folder):
        node = Node(Path(folder), os.environ["FLOTILLA_BIN"], ROOT / "demo/model")
        told = []
        for number, (kind, values, settings) in enumerate(CASES):
            if not wanted or kind.__name__ in wanted:
                own = Path(folder) / str(number)
                own.mkdir()
                told += tell(node, own, kind, values, settings)
    failed = sum(not passed for _, passed in told)
    print(f"{len(told) - failed} passed, {failed} failed")
    return 1 if failed or not told else 0


if __name__ == "__main__":
    sys.exit(main())
