"""The documents of each values file fit together; and each check of that notices what it is for: a mistake is put into
a rendering, and must be found."""

import copy
import re

import pytest
from manifests import VALUES, containers, documents, of_kind, rendered, templates
from mistakes import mistakes
from mistakes.references import CLAIMS, SECRETS

VARIANTS = [(values,) for values in VALUES] + [
    ("cpu-demo", "workers.perPod=3", "serving.replicas=2"),
    ("cpu-demo", "joinToken.existingSecret="),
    ("cpu-demo", "workers.kind=LeaderWorkerSet"),
    ("cpu-demo", "fullnameOverride=another", "nameOverride=thing"),
    ("several-nodes", "autoscaling.enabled=true", "serving.replicas=auto"),
    ("groups", "workers.cache.type=claim", "workers.perPod=2"),
    ("groups", "workers.restartPolicy=RecreateGroupOnPodRestart"),
    ("replicas", "networkPolicy.dnsPorts={53,5353}"),
    ("one-node", "gpu.enabled=false"),
    ("one-node", "apiTls.existingSecret=flotilla-tls"),
]


def docs_of(values, *settings):
    return documents(rendered(values, *settings))


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_the_documents_fit_together(variant, monkeypatch):
    monkeypatch.setitem(SECRETS, "flotilla-tls", {"tls.crt", "tls.key"})
    assert mistakes(docs_of(*variant)) == []


def test_the_readme_makes_what_is_referred_to():
    readme = (VALUES["cpu-demo"].parents[2] / "README.md").read_text()
    for secret, keys in SECRETS.items():
        for key in keys:
            made = re.search(rf"create secret generic {secret} --from-(literal|file)=(\S*/)?{re.escape(key)}\b", readme)
            assert made, f"README.md does not make {key} of {secret}"
    for claim in CLAIMS:
        assert f"name: {claim}" in readme, claim


def worker(docs):
    """The first container that is one."""
    return next(container for _, container, _ in containers(docs) if container["args"][0] == "worker")


def coordinator(docs):
    return next(container for _, container, _ in containers(docs) if container["args"][0] in ("coordinator", "up"))


def pod(docs, owner):
    return next(template for whose, template in templates(docs) if owner in whose)


def set_flag(container, flag, value):
    container["args"] = [arg for arg in container["args"] if not arg.startswith(f"--{flag}=")] + [f"--{flag}={value}"]


def first(docs, kind, part=""):
    return next(doc for doc in of_kind(docs, kind) if part in doc["metadata"]["name"])


# What is done to the documents, and a word of the finding.
FAULTS = {
    "a label of the worker's pods": (lambda d: pod(d, "worker")["metadata"]["labels"].update({"app.kubernetes.io/component": "wrker"}), "select"),
    "a Service's selector": (lambda d: first(d, "Service")["spec"]["selector"].update({"app.kubernetes.io/name": "x"}), "selects no pod"),
    "a budget's selector": (lambda d: first(d, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update({"x": "y"}), "selects no pod"),
    "a policy's peer": (lambda d: first(d, "NetworkPolicy", "worker")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].update({"x": "y"}), "peer selects no pod"),
    "a Service's target": (lambda d: first(d, "Service")["spec"]["ports"][0].update(targetPort="http"), "no container listens"),
    "a policy's port": (lambda d: first(d, "NetworkPolicy", "coordinator")["spec"]["ingress"][0]["ports"][0].update(port=8080), "no container listens"),
    "no port for NCCL": (lambda d: first(d, "NetworkPolicy", "worker")["spec"]["ingress"][0]["ports"].pop(), "lets NCCL in"),
    "a collective's port that is fenced off": (lambda d: first(d, "NetworkPolicy", "worker")["spec"]["ingress"][0]["ports"].pop(0), "lets its peers in"),
    "a port of weights that is fenced off": (lambda d: first(d, "NetworkPolicy", "worker")["spec"]["ingress"][0]["ports"].pop(1), "lets its peers in"),
    "a probe's port": (lambda d: worker(d)["livenessProbe"]["httpGet"].update(port="collective-0"), "asks the port"),
    "a probe's path": (lambda d: coordinator(d)["livenessProbe"]["httpGet"].update(path="/health"), "expected /version"),
    "a probe that is missing": (lambda d: worker(d).pop("readinessProbe"), "has no readinessProbe"),
    "a short start": (lambda d: coordinator(d)["startupProbe"].update(failureThreshold=3), "less than 5 min"),
    "another port to listen on": (lambda d: set_flag(coordinator(d), "listen", "0.0.0.0:8001"), "--listen"),
    "loopback": (lambda d: set_flag(worker(d), "collective-listen", "127.0.0.1:7071"), "nobody else reaches"),
    "an unknown word": (lambda d: pod(d, "worker")["spec"]["topologySpreadConstraints"][0].update(whenUnsatisfiable="Never"), "whenUnsatisfiable"),
    "cards asked for and not limited": (lambda d: worker(d)["resources"]["limits"].pop("nvidia.com/gpu"), "may have 0"),
    "no toleration": (lambda d: pod(d, "worker")["spec"].update(tolerations=[]), "tolerate"),
    "any kind of card": (lambda d: pod(d, "worker")["spec"].pop("affinity"), "any kind of card"),
    "shared memory on a disk": (lambda d: next(v for v in pod(d, "worker")["spec"]["volumes"] if v["name"] == "shm")["emptyDir"].pop("medium"), "/dev/shm"),
    "no limit of memory": (lambda d: worker(d)["resources"]["limits"].pop("memory"), "no limit of memory"),
    "a mount without a volume": (lambda d: worker(d)["volumeMounts"].append({"name": "gone", "mountPath": "/gone"}), "and no volume"),
    "a volume that nobody mounts": (lambda d: pod(d, "worker")["spec"]["volumes"].append({"name": "idle", "emptyDir": {}}), "nowhere mounted"),
    "a file that is not mounted": (lambda d: set_flag(coordinator(d), "api-keys", "/etc/keys.toml"), "nothing is mounted"),
    "a file that is no key": (lambda d: set_flag(coordinator(d), "worker-tls-ca", "/etc/flotilla/fleet-tls/ca.pem"), "is no key"),
    "a Secret that is not there": (lambda d: next(v for v in pod(d, "worker")["spec"]["volumes"] if v["name"] == "fleet-tls")["secret"].update(secretName="x"), "no Secret x"),
    "a key of a Secret": (lambda d: next(e for e in worker(d)["env"] if e["name"] == "FLOTILLA_JOIN_TOKEN")["valueFrom"]["secretKeyRef"].update(key="tokn"), "which is not there"),
    "a claim that is not there": (lambda d: next(v for v in pod(d, "coordinator")["spec"]["volumes"] if v["name"] == "model")["persistentVolumeClaim"].update(claimName="x"), "no claim x"),
    "an issuer that is not there": (lambda d: first(d, "Certificate", "worker")["spec"]["issuerRef"].update(name="x"), "no issuer x"),
    "a variable in an argument": (lambda d: set_flag(worker(d), "name", "$(NODE_NAME)"), "$(NODE_NAME)"),
    "a variable that nobody reads": (lambda d: worker(d)["env"].append({"name": "FLOTILLA_THREADS", "value": "2"}), "nothing reads"),
    "root": (lambda d: pod(d, "worker")["spec"]["securityContext"].update(runAsUser=0), "runs as root"),
    "a writable image": (lambda d: worker(d)["securityContext"].update(readOnlyRootFilesystem=False), "may write its image"),
    "a capability": (lambda d: worker(d)["securityContext"]["capabilities"].update(add=["IPC_LOCK"]), "has capabilities"),
    "a token of Kubernetes": (lambda d: pod(d, "coordinator")["spec"].pop("automountServiceAccountToken"), "token of Kubernetes"),
    "the node's network": (lambda d: pod(d, "worker")["spec"].update(hostNetwork=True), "node's namespaces"),
    "a short grace": (lambda d: pod(d, "coordinator")["spec"].update(terminationGracePeriodSeconds=30), "is killed after 30 s"),
    "no pause before the order": (lambda d: coordinator(d).pop("lifecycle"), "before others know it"),
    "a Service of ready pods for workers": (lambda d: first(d, "Service", "fleet")["spec"].pop("publishNotReadyAddresses"), "when it is ready"),
    "a coordinator of another name": (lambda d: set_flag(worker(d), "coordinator", "https://coordinator:7070"), "no Service coordinator"),
    "plain words to TLS": (lambda d: set_flag(worker(d), "coordinator", "http://flotilla-fleet:7070"), "does not speak it"),
    "a name that no certificate has": (lambda d: set_flag(worker(d), "tls-name", "x"), "certificate of x"),
    "too few pods": (lambda d: first(d, "StatefulSet")["spec"].update(replicas=3), "too few"),
    "a headless Service that has an address": (lambda d: first(d, "Service", "worker")["spec"].pop("clusterIP"), "no headless Service"),
    "a monitor of another port": (lambda d: first(d, "ServiceMonitor")["spec"]["endpoints"][0].update(port="metrics"), "no port metrics"),
    "a document twice": (lambda d: d.append(copy.deepcopy(d[0])), "is there twice"),
    "another namespace": (lambda d: d[0]["metadata"].update(namespace="x"), "one namespace"),
}
GROUP_FAULTS = {
    "a group of another size": (lambda d: first(d, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"].update(size=4), "waits for"),
    "what is scaled says how many": (lambda d: first(d, "LeaderWorkerSet")["spec"].update(replicas=2), "how many it has itself"),
    "a target that is not there": (lambda d: first(d, "ScaledObject")["spec"]["scaleTargetRef"].update(name="x"), "there is no"),
    "half copies": (lambda d: first(d, "ScaledObject")["spec"]["triggers"][0]["metadata"].update(query="3 * x + 0"), "copies of 1"),
    "no answer that is no load": (lambda d: first(d, "ScaledObject")["spec"]["triggers"][0]["metadata"].pop("ignoreNullValues"), "takes no answer for no load"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_is_found(fault):
    expect_found("several-nodes", *FAULTS[fault])


@pytest.mark.parametrize("fault", GROUP_FAULTS)
def test_a_mistake_in_groups_is_found(fault):
    expect_found("groups", *GROUP_FAULTS[fault])


def test_pods_that_are_no_whole_copies_are_found():
    expect_found("replicas", lambda d: first(d, "ScaledObject")["spec"].update(maxReplicaCount=8), "not whole copies")


def expect_found(values, plant, words):
    docs = docs_of(values)
    plant(docs)
    found = mistakes(docs)
    assert any(words in finding for finding in found), found
