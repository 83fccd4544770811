"""Coordinators and workers: they find and believe each other, there are enough of them, and whole copies are scaled."""

from manifests import containers, flag, name, of_kind


def workers_find_their_coordinator(docs):
    services = {doc["metadata"]["name"]: doc for doc in of_kind(docs, "Service")}
    coordinators = [container for _, container, _ in containers(docs) if container["args"][0] == "coordinator"]
    for owner, container, _ in containers(docs):
        if container["args"][0] != "worker":
            continue
        scheme, _, address = flag(container, "coordinator").partition("://")
        host, _, port = address.partition(":")
        if (scheme == "https") != bool(flag(coordinators[0], "worker-tls-cert")):
            yield f"{owner} dials {scheme}, and the coordinator does not speak it"
        if port != flag(coordinators[0], "worker-listen").rsplit(":", 1)[1]:
            yield f"{owner} dials {port}, where the coordinator does not listen for workers"
        if host != "$(LWS_LEADER_ADDRESS)":
            yield from (f"{owner}: {finding}" for finding in dialed(services.get(host), host, int(port)))
        asked = flag(container, "tls-name") or host
        names = [dns for doc in of_kind(docs, "Certificate") for dns in doc["spec"].get("dnsNames", [])]
        if scheme == "https" and asked not in names:
            yield f"{owner} asks for a certificate of {asked}, there are {names}"


def dialed(service, host, port):
    if not service:
        yield f"there is no Service {host}"
        return
    if not service["spec"].get("publishNotReadyAddresses"):
        yield f"{host} names the coordinator when it is ready, which it is not before workers have come"
    if port not in [at["port"] for at in service["spec"]["ports"]]:
        yield f"{host} has no port {port}"


def there_are_workers_for_every_copy(docs):
    for doc in of_kind(docs, "StatefulSet"):
        [coordinator] = [c for _, c, _ in containers(docs) if c["args"][0] == "coordinator"]
        ranks, per_pod = int(flag(coordinator, "workers")), len(doc["spec"]["template"]["spec"]["containers"])
        copies = flag(coordinator, "replicas")
        pods = doc["spec"].get("replicas")
        if pods is not None and pods * per_pod < ranks * (1 if copies == "auto" else int(copies)):
            yield f"{name(doc)}: {pods} pods of {per_pod} workers are too few for {copies} copies of {ranks}"
    for doc in of_kind(docs, "LeaderWorkerSet"):
        group = doc["spec"]["leaderWorkerTemplate"]
        [leader] = group["leaderTemplate"]["spec"]["containers"]
        workers = (group["size"] - 1) * len(group["workerTemplate"]["spec"]["containers"])
        if workers != int(flag(leader, "workers")):
            yield f"{name(doc)}: a group has {workers} workers, its coordinator waits for {flag(leader, 'workers')}"


def whole_copies_are_scaled(docs):
    for doc in of_kind(docs, "ScaledObject"):
        spec = doc["spec"]
        target = f"{spec['scaleTargetRef']['kind']}/{spec['scaleTargetRef']['name']}"
        found = [at for at in docs if name(at) == target and at["apiVersion"] == spec["scaleTargetRef"]["apiVersion"]]
        if not found:
            yield f"{name(doc)}: there is no {target}"
            continue
        if "replicas" in found[0]["spec"]:
            yield f"{name(doc)}: {target} says how many it has itself, and an upgrade would undo what was scaled"
        size, reserve = pods_of_a_copy(docs, found[0]), query_reserve(spec)
        for bound in ("minReplicaCount", "maxReplicaCount"):
            if (spec[bound] - reserve) % size:
                yield f"{name(doc)}: {bound} is {spec[bound]}, not whole copies of {size} pods and {reserve} in reserve"
        if not spec["triggers"][0]["metadata"]["query"].startswith(f"{size} * "):
            yield f"{name(doc)} does not count in copies of {size} pods"
        # KEDA's own default is "true".
        if spec["triggers"][0]["metadata"].get("ignoreNullValues") != "false":
            yield f"{name(doc)} takes no answer for no load"


def query_reserve(spec):
    return int(spec["triggers"][0]["metadata"]["query"].rsplit("+", 1)[1])


def pods_of_a_copy(docs, target):
    if target["kind"] == "LeaderWorkerSet":
        return 1
    [ranks] = [int(flag(c, "workers")) for _, c, _ in containers(docs) if c["args"][0] == "coordinator"]
    return ranks // len(target["spec"]["template"]["spec"]["containers"])
