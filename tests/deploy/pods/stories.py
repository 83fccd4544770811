"""What happens to pods, told one after the other; each says what clients notice. Every story begins in a cluster that
runs as the one before it left it."""

import json
import re
import signal
import threading
import time

from client import Client
from cluster import Cluster, get, until
from manifests import of_kind

TOKENS = 1200


class Story:
    def __init__(self, cluster: Cluster, client: Client):
        self.cluster, self.client = cluster, client
        self.undisturbed, self.moved = "", 0

    def ready(self, pods: int):
        until(f"{pods} pods are ready", lambda: sum(pod.ready for pod in self.cluster.pods.values()) == pods and self.client.status("/ready") == 200)

    def pod(self, part: str):
        return next(pod for name, pod in self.cluster.pods.items() if part in name)

    def expect_whole(self, stream):
        stream.read()
        print(f"        the stream paused for {stream.pause_s_max:.2f} s at most")
        assert (stream.reason, stream.is_done) == ("length", True), stream.reason
        assert stream.text == self.undisturbed, "a stream that was disturbed is not what it would have been"


    def expect_moved(self, stream):
        """It is whole, and another group took it over."""
        self.expect_whole(stream)
        log = self.pod("coordinator").containers[0].log.read_text()
        moved = len(re.findall(r"group formed .* sequences=1", log))
        assert moved == self.moved + 1, f"{moved} groups began with a sequence: {log}"
        self.moved = moved


class SeveralNodes(Story):
    def a_coordinator_without_workers_lives_and_is_not_ready(self):
        pod = self.cluster.start_deployment()
        [coordinator] = pod.containers
        until("its startup probe passes", lambda: coordinator.started)
        # As long as a failing liveness probe would take to end it.
        probe = coordinator.spec["livenessProbe"]
        time.sleep(probe["periodSeconds"] * probe["failureThreshold"] / 5 * 0.4)
        assert coordinator.probe("livenessProbe") and not coordinator.probe("readinessProbe")
        assert (pod.ready, pod.restarts) == (False, 0)
        assert self.client.status("/version") == 0, "nobody is led to it"

    def workers_come_and_it_is_ready(self):
        workers = [self.cluster.start_of_set(number) for number in range(2)]
        self.ready(3)
        assert [pod.restarts for pod in workers] == [0, 0]

    def an_answer_comes_by_the_services_address(self):
        self.undisturbed = self.client.text(TOKENS)
        assert len(self.undisturbed) > TOKENS
        without_key = Client(self.client.address, None)
        assert without_key.ask("POST", "/v1/completions", {"prompt": "x"}).status == 401

    def workers_are_linked_by_their_pods_addresses(self):
        ranks = self.members()
        assert len(ranks) == 2 and all(len(rank["links"]["tcp"]) == 1 for rank in ranks), ranks

    def a_stranger_reaches_nobody(self):
        stranger, coordinator, worker = self.cluster.stranger(), self.pod("coordinator"), self.pod("worker-0")
        doors = [(coordinator, 8000), (coordinator, 7070), (worker, 7071), (worker, 9071), (worker, 8071)]
        reached = [(pod.name, port) for pod, port in doors if self.cluster.reaches(stranger, pod, port)]
        stranger.end()
        assert reached == []
        of_workers = [(pod.name, port) for pod, port in doors if self.cluster.reaches(self.pod("worker-1").sandbox, pod, port)]
        needed = [(coordinator.name, 7070), (worker.name, 7071), (worker.name, 9071)]
        assert of_workers == needed, "workers reach what they need and no more"

    def one_more_worker_waits_in_reserve(self):
        self.cluster.start_of_set(2)
        self.ready(4)
        assert len(self.members()) == 2

    def a_killed_worker_is_not_noticed_in_a_stream(self):
        worker = self.cluster.pods[self.members()[1]["name"].removesuffix("-0")]
        stream = self.client.stream(TOKENS).read(20)
        worker.containers[0].signal(signal.SIGKILL)
        self.expect_moved(stream)
        until("it runs again", lambda: worker.restarts == 1)
        self.ready(4)

    def a_node_that_falls_silent_is_not_noticed_in_a_stream(self):
        lost = self.cluster.pods[self.members()[0]["name"].removesuffix("-0")]
        stream = self.client.stream(TOKENS).read(20)
        lost.sandbox.unplug()
        self.expect_moved(stream)
        self.cluster.delete(lost)
        again = self.cluster.start_of_set(int(lost.name.rsplit("-", 1)[1]))
        assert again.address != lost.address
        self.ready(4)

    def a_worker_that_is_told_to_stop_leaves_at_once(self):
        worker = self.cluster.pods[self.members()[1]["name"].removesuffix("-0")]
        stream = self.client.stream(TOKENS).read(20)
        begun = time.monotonic()
        self.cluster.delete(worker)
        assert worker.statuses == [0] and time.monotonic() - begun < 30
        self.expect_moved(stream)
        self.ready(3)

    def a_worker_that_hangs_is_started_again(self):
        worker = self.cluster.pods[self.members()[0]["name"].removesuffix("-0")]
        restarts = worker.restarts
        stream = self.client.stream(TOKENS).read(20)
        worker.containers[0].signal(signal.SIGSTOP)
        until("its liveness probe fails, and it is started again", lambda: worker.restarts == restarts + 1)
        assert "livenessProbe" in worker.containers[0].why, worker.containers[0].why
        # There was nobody in reserve: the stream waited for it.
        self.expect_moved(stream)
        self.ready(3)

    def a_coordinator_that_is_told_to_stop_ends_its_streams_first(self):
        old = self.pod("coordinator")
        stream = self.client.stream(TOKENS).read(20)
        going = threading.Thread(target=self.cluster.delete, args=(old,))
        going.start()
        until("nobody new is led to it", lambda: self.client.status("/ready") == 0)
        self.expect_whole(stream)
        going.join()
        assert old.statuses == [0], old.statuses

    def workers_outlive_their_coordinator(self):
        workers = list(self.cluster.pods.values())
        restarts = [pod.restarts for pod in workers]
        until("none is ready", lambda: not any(pod.ready for pod in workers))
        self.cluster.start_deployment(1)
        self.ready(3)
        assert self.client.text(TOKENS) == self.undisturbed
        assert [pod.restarts for pod in workers] == restarts, "they are not restarted for it"

    def what_is_scaled_by_is_told(self):
        told = self.client.ask("GET", "/metrics").read().decode()
        for doc in of_kind(self.cluster.docs, "ScaledObject"):
            for metric in set(re.findall(r"flotilla_\w+", doc["spec"]["triggers"][0]["metadata"]["query"])):
                assert re.search(rf"^{metric}[{{ ]", told, re.M), f"{metric} is not told"

    def nobody_listens_but_where_it_says(self):
        for pod in self.cluster.pods.values():
            for container in pod.containers:
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    assert container.probe(probe), (pod.name, probe)
                for port in container.spec["ports"]:
                    if port["name"].split("-")[0] in ("health", "api"):
                        assert get(pod.address, port["containerPort"], "/nothing")[0] == 404

    def members(self) -> list[dict]:
        return members(self.client)


class Groups(Story):
    """Of a LeaderWorkerSet."""

    def two_groups_come_each_with_its_own_coordinator(self):
        self.first, self.second = self.cluster.start_group(0), self.cluster.start_group(1)
        self.ready(6)
        self.undisturbed = self.client.text(TOKENS)
        names = {name for _ in range(4) for name in (member["name"] for member in members(self.client))}
        assert len(names) == 4, f"each group has its own workers, and both are asked: {names}"

    def a_group_whose_worker_was_killed_serves_again(self):
        self.first[1].containers[0].signal(signal.SIGKILL)
        until("its worker runs again", lambda: self.first[1].restarts == 1)
        self.ready(6)

    def a_group_that_is_made_anew_serves_again(self):
        """What RecreateGroupOnPodRestart does."""
        for pod in self.first[1:] + self.first[:1]:
            self.cluster.delete(pod)
        assert self.client.text(TOKENS) == self.undisturbed, "the other group is asked"
        self.cluster.start_group(0)
        self.ready(6)


class OneNode(Story):
    def one_pod_is_all_of_it(self):
        self.cluster.start_deployment()
        self.ready(1)
        self.undisturbed = self.client.text(TOKENS)
        assert len(members(self.client)) == 2

    def it_ends_its_streams_before_itself(self):
        [pod] = self.cluster.pods.values()
        stream = self.client.stream(TOKENS).read(20)
        going = threading.Thread(target=self.cluster.delete, args=(pod,))
        going.start()
        self.expect_whole(stream)
        going.join()
        assert pod.statuses == [0], pod.statuses


class SeveralInAPod(Story):
    def workers_of_one_pod_share_memory_and_others_do_not(self):
        self.cluster.start_deployment()
        [self.cluster.start_of_set(number) for number in range(2)]
        self.ready(3)
        assert len(self.client.text(20)) > 0
        links = [(len(member["links"]["shm"]), len(member["links"]["tcp"])) for member in members(self.client)]
        assert links == [(1, 2)] * 4, links

    def without_policies_a_stranger_reaches_everybody(self):
        """So that it is the policies that kept it out elsewhere."""
        stranger = self.cluster.stranger()
        doors = [(self.pod("coordinator"), 8000), (self.pod("coordinator"), 7070), (self.pod("worker-0"), 7072), (self.pod("worker-1"), 8071)]
        reached = [self.cluster.reaches(stranger, pod, port) for pod, port in doors]
        stranger.end()
        assert reached == [True] * 4, reached


def members(client: Client) -> list[dict]:
    """The ranks of the group that stands."""
    told = client.cluster()
    found = [worker for worker in told["workers"] if worker.get("rank") is not None]
    assert found, json.dumps(told)[:2000]
    return found
