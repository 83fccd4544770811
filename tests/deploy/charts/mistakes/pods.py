"""What a pod is allowed, and what it needs: cards, memory, volumes, variables, time to end, words that are known."""

import re

from manifests import containers, flag, name, templates

CARDS = "nvidia.com/gpu"
# Set by the controller of LeaderWorkerSets in each container.
GIVEN = {"LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"}
# What the program reads.
VARIABLES = {"FLOTILLA_JOIN_TOKEN", "FLOTILLA_COORDINATOR", "FLOTILLA_LOG", "FLOTILLA_CACHE", "FLOTILLA_WEIGHT_CACHE"}
WORDS = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "whenUnsatisfiable": {"ScheduleAnyway", "DoNotSchedule"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "medium": {"Memory"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "protocol": {"TCP", "UDP"},
    "scheme": {"HTTP", "HTTPS", "http", "https"},
    "operator": {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Equal"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
    "policyTypes": {"Ingress", "Egress"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
}


def words_are_known(docs):
    def walk(where, key, value):
        if isinstance(value, dict):
            for inner, item in value.items():
                yield from walk(f"{where}.{inner}", inner, item)
        elif isinstance(value, list):
            for item in value:
                yield from walk(where, key, item)
        elif key in WORDS and value not in WORDS[key]:
            yield f"{where} is {value}, expected one of {', '.join(sorted(WORDS[key]))}"

    for doc in docs:
        yield from walk(name(doc), "", doc.get("spec", {}))


def cards_are_whole(docs):
    for owner, container, spec in containers(docs):
        limits, requests = (container["resources"].get(kind, {}) for kind in ("limits", "requests"))
        device = flag(container, "device") or "cpu"
        cards = device.count("cuda")
        if limits.get(CARDS, 0) != cards or requests.get(CARDS, 0) != cards:
            yield f"{owner}: --device is {device}, it asks for {requests.get(CARDS, 0)} cards and may have {limits.get(CARDS, 0)}"
        if cards:
            yield from (f"{owner}: {finding}" for finding in card_pod(spec, container))
        if "memory" not in limits:
            yield f"{owner} has no limit of memory, and would offer the node's"


def card_pod(spec, container):
    keys = [toleration.get("key") for toleration in spec.get("tolerations", [])]
    if CARDS not in keys:
        yield "its pod does not tolerate the taint of nodes with cards"
    required = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = [match["key"] for term in required.get("nodeSelectorTerms", []) for match in term["matchExpressions"]]
    if "nvidia.com/gpu.product" not in terms:
        yield "its pod may be put beside any kind of card"
    shared = [volume["name"] for volume in spec["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory"]
    mounted = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in shared]
    if "/dev/shm" not in mounted:
        yield "its /dev/shm is not a volume in memory"


def mounts_have_volumes(docs):
    for doc in docs:
        spec = doc.get("spec", {})
        made = spec.get("volumeClaimTemplates") or spec.get("leaderWorkerTemplate", {}).get("volumeClaimTemplates", [])
        for owner, template in templates([doc]):
            volumes = [volume["name"] for volume in template["spec"]["volumes"]] + [claim["metadata"]["name"] for claim in made]
            mounted = [mount for container in template["spec"]["containers"] for mount in container["volumeMounts"]]
            yield from (f"{owner}: {mount['name']} is mounted, and no volume" for mount in mounted if mount["name"] not in volumes)
            unused = {volume["name"] for volume in template["spec"]["volumes"]} - {mount["name"] for mount in mounted}
            yield from (f"{owner}: the volume {volume} is nowhere mounted" for volume in sorted(unused))
            if len(set(volumes)) < len(volumes):
                yield f"{owner}: two volumes have one name: {volumes}"


def variables_are_known(docs):
    for owner, container, _ in containers(docs):
        defined = [variable["name"] for variable in container["env"]]
        used = set(re.findall(r"\$\(([A-Z_]+)\)", " ".join(container["args"])))
        yield from (f"{owner}: $({missing}) is not in its environment" for missing in sorted(used - set(defined) - GIVEN))
        ours = {variable for variable in defined if variable.startswith("FLOTILLA_")}
        yield from (f"{owner}: nothing reads {unknown}" for unknown in sorted(ours - VARIABLES))
        if len(set(defined)) < len(defined):
            yield f"{owner}: a variable is there twice"
        if container["args"][0] != "up" and "FLOTILLA_JOIN_TOKEN" not in defined:
            yield f"{owner} has no join token"


def is_locked_down(docs):
    for owner, container, spec in containers(docs):
        pod, own = spec.get("securityContext", {}), container.get("securityContext", {})
        wanted = {
            "runs as root": pod.get("runAsNonRoot") is True and pod.get("runAsUser", 0) != 0,
            "has no seccomp profile": pod.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "may write its image": own.get("readOnlyRootFilesystem") is True,
            "may gain privileges": own.get("allowPrivilegeEscalation") is False,
            "has capabilities": own.get("capabilities", {}).get("drop") == ["ALL"] and "add" not in own["capabilities"],
            "is privileged": not own.get("privileged"),
            "has a token of Kubernetes": spec.get("automountServiceAccountToken") is False,
            "is told every Service of the namespace": spec.get("enableServiceLinks") is False,
            "is in the node's namespaces": not any(spec.get(kind) for kind in ("hostNetwork", "hostPID", "hostIPC")),
        }
        yield from (f"{owner} {finding}" for finding, holds in wanted.items() if not holds)


def answers_have_time_to_end(docs):
    for owner, container, spec in containers(docs):
        if container["args"][0] == "worker":
            continue
        drain = int(flag(container, "drain-timeout"))
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace = spec.get("terminationGracePeriodSeconds", 30)
        if pause == 0:
            yield f"{owner} is told to stop before others know it"
        if grace < drain + pause + 5:
            yield f"{owner}: it is killed after {grace} s, and its answers may take {drain} s, after {pause} s"
