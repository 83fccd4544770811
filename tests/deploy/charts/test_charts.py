"""Helm takes the chart, refuses wrong values by name, and makes what every Kubernetes that is meant accepts."""

import json
import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft7Validator
from manifests import CHART, KUBERNETES, RELEASE, VALUES, documents, helm, name, rendered, templates
from render import text

# Chart.yaml asks for 1.30 at least.
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
KINDS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "kinds").glob("*.json")}
FEATURES = ["ingress.enabled=true", "ingress.host=flotilla.example", "ingress.tlsSecret=tls", "ingress.className=nginx", "monitoring.serviceMonitor.enabled=true", "monitoring.dashboards.enabled=true", "joinToken.existingSecret="]
if (CHART / "files/prometheus/alerts.yaml").exists():
    FEATURES.append("monitoring.alerts.enabled=true")


@pytest.mark.parametrize("values", VALUES)
def test_helm_finds_nothing_to_complain_of(values):
    ran = helm("lint", "--strict", str(CHART), "-f", str(VALUES[values]))
    assert ran.returncode == 0 and "[WARNING]" not in ran.stdout + ran.stderr, ran.stdout + ran.stderr


@pytest.mark.parametrize("values", VALUES)
def test_what_lies_there_for_those_without_helm_is_what_the_chart_makes(values):
    written = (KUBERNETES / f"{values}.yaml").read_text()
    assert written == text(values), "run tests/deploy/run.sh render"


def test_nothing_lies_there_without_values():
    assert {path.stem for path in KUBERNETES.glob("*.yaml")} == set(VALUES)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VALUES)
def test_kubernetes_knows_every_field(values, version):
    for doc in documents(rendered(values, version=f"{version}.0")) + documents(rendered(values, *FEATURES)):
        if doc["kind"] in KINDS:
            check_by_own_schema(doc, version)
        else:
            kubernetes_validate.validate(doc, version, strict=True)


def check_by_own_schema(doc, version):
    """Of kinds that others define: their fields as far as the chart could use them. Pods in them are pods."""
    errors = [f"{name(doc)}: {error.json_path}: {error.message}" for error in Draft7Validator(KINDS[doc["kind"]]).iter_errors(doc)]
    assert not errors, "\n".join(errors)
    for _, template in templates([doc]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | template["metadata"], "spec": template["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_a_misspelt_field_is_seen_in_each_kind():
    seen = set()
    for values in VALUES:
        for doc in documents(rendered(values, *FEATURES)):
            if doc["kind"] in seen or doc["kind"] in ("Secret", "ConfigMap"):
                continue
            seen.add(doc["kind"])
            doc["spec"]["replikas"] = 1
            with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
                if doc["kind"] in KINDS:
                    check_by_own_schema(doc, "1.37")
                else:
                    kubernetes_validate.validate(doc, "1.37", strict=True)
    assert seen > set(KINDS) - {"PrometheusRule"}, seen


WRONG = [
    ("topology=cluster", "/topology"),
    ("worker.count=2", "worker"),
    ("workers.count=0", "/workers/count"),
    ("workers.kind=Deployment", "/workers/kind"),
    ("workers.cache.type=disk", "/workers/cache/type"),
    ("workers.sharedMemory=2 GB", "/workers/sharedMemory"),
    ("model.source=url", "/model/location"),
    ("model.source=synthetic", "/model/location"),
    ("serving.replicas=many", "/serving/replicas"),
    ("serving.drainSeconds=-1", "/serving/drainSeconds"),
    ("listenHost=127.0.0.1", "/listenHost"),
    ("service.port=0", "/service/port"),
    ("service.sessionAffinity=Cookie", "/service/sessionAffinity"),
    ("autoscaling.enabled=true", "/serving/replicas"),
    ("certManager.api.enabled=true", "/certManager/api"),
    ("workers.resources.limits=null", "/workers/resources"),
    ("gpu.enabled=yes please", "/gpu/enabled"),
    ("networkPolicy.dnsPorts={dns}", "/networkPolicy/dnsPorts/0"),
    ("ingress.enabled=true", "/ingress/host"),
    ("podDisruptionBudget.workersNotReady=Never", "/podDisruptionBudget/workersNotReady"),
]


@pytest.mark.parametrize("setting, where", WRONG)
def test_wrong_values_are_refused_by_name(setting, where):
    ran = helm("template", "x", str(CHART), "--set", setting)
    assert ran.returncode != 0 and where in ran.stderr, ran.stderr


CLASHES = [
    ("workers.kind=LeaderWorkerSet", "workers.reserve=1"),
    ("workers.kind=LeaderWorkerSet", "serving.replicas=auto"),
    ("workers.kind=LeaderWorkerSet", "topology=node"),
    ("topology=node", "autoscaling.enabled=true"),
    ("topology=node", "serving.replicas=2"),
    ("topology=node", "workers.args={--threads=1}"),
    ("monitoring.alerts.enabled=true", "serving.stages=0"),
    ("autoscaling.enabled=true,serving.replicas=auto", "autoscaling.replicasMin=5"),
]


@pytest.mark.parametrize("first, second", CLASHES)
def test_values_that_do_not_go_together_are_refused(first, second):
    ran = helm("template", "x", str(CHART), "--set", first, "--set", second)
    assert ran.returncode != 0, ran.stdout


def test_cards_are_named_in_one_place():
    mine = "workers.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0]"
    sets = f"gpu.enabled=true,{mine}.key=zone,{mine}.operator=Exists"
    both = helm("template", "x", str(CHART), "--set", f"{sets},gpu.products={{Tesla-T4}}")
    assert both.returncode != 0 and "gpu.products and workers.affinity.nodeAffinity are both set" in both.stderr, both.stderr
    assert helm("template", "x", str(CHART), "--set", sets).returncode == 0


@pytest.mark.parametrize("policy", ["None", "RecreateGroupOnPodRestart"])
def test_groups_restart_as_they_are_told(policy):
    sets = [f"workers.restartPolicy={policy}"] if policy != "None" else []
    [group] = [doc for doc in documents(rendered("groups", *sets)) if doc["kind"] == "LeaderWorkerSet"]
    assert group["spec"]["leaderWorkerTemplate"]["restartPolicy"] == policy


@pytest.mark.parametrize("policy", ["IfHealthyBudget", "AlwaysAllow"])
@pytest.mark.parametrize("values", ["replicas", "groups"])
def test_workers_that_form_a_group_are_not_evicted_all_at_once(values, policy):
    sets = [f"podDisruptionBudget.workersNotReady={policy}"] if policy != "IfHealthyBudget" else []
    budgets = [doc for doc in documents(rendered(values, *sets)) if doc["kind"] == "PodDisruptionBudget"]
    [workers] = [doc["spec"] for doc in budgets if doc["metadata"]["name"].endswith("-worker")]
    assert workers["unhealthyPodEvictionPolicy"] == policy and workers["maxUnavailable"] == 1


def test_names_are_asked_for_where_dns_listens():
    policies = [doc for doc in documents(rendered("replicas", "networkPolicy.dnsPorts={53,5353}")) if doc["kind"] == "NetworkPolicy"]
    wanted = [{"port": port, "protocol": protocol} for port in (53, 5353) for protocol in ("UDP", "TCP")]
    assert len(policies) == 2 and all(policy["spec"]["egress"][0]["ports"] == wanted for policy in policies)


@pytest.mark.parametrize(
    "location, port", [("https://models.example/m", 443), ("http://models.example/m", 80), ("https://models.example:8443/m", 8443)]
)
def test_the_coordinator_reaches_the_models_web_server_and_no_other_port(location, port):
    policies = [doc for doc in documents(rendered("replicas", f"model.location={location}")) if doc["kind"] == "NetworkPolicy"]
    [coordinator] = [doc for doc in policies if doc["metadata"]["name"].endswith("-coordinator")]
    assert coordinator["spec"]["egress"][1:] == [{"ports": [{"port": port}]}]


@pytest.mark.parametrize("values", VALUES)
def test_a_way_in_leads_to_the_service_of_the_api(values):
    docs = documents(rendered(values, *FEATURES))
    [ingress] = [doc for doc in docs if doc["kind"] == "Ingress"]
    [rule] = ingress["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    [service] = [doc for doc in docs if doc["kind"] == "Service" and doc["metadata"]["name"] == backend["name"]]
    assert service["metadata"]["labels"]["app.kubernetes.io/component"] == "api"
    assert backend["port"]["name"] in [port["name"] for port in service["spec"]["ports"]]
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_a_client_stays_with_one_group_where_it_is_told_so(affinity):
    docs = documents(rendered("groups", f"service.sessionAffinity={affinity}"))
    [service] = [doc for doc in docs if doc["kind"] == "Service" and doc["metadata"]["labels"].get("app.kubernetes.io/component") == "api"]
    assert service["spec"]["sessionAffinity"] == affinity


def test_a_cluster_that_gives_users_is_told_none():
    for _, template in templates(documents(rendered("groups", "fixedUser=false"))):
        assert template["spec"]["securityContext"].keys() & {"runAsUser", "runAsGroup", "fsGroup"} == set()
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_a_packed_chart_is_the_same(tmp_path):
    ran = helm("package", str(CHART), "--destination", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    [packed] = tmp_path.iterdir()
    ran = helm("template", RELEASE, str(packed), "-n", RELEASE, "-f", str(VALUES["groups"]), "--kube-version", "1.37.0")
    assert ran.stdout == rendered("groups")


def test_rules_and_dashboards_are_taken_as_they_lie_there(tmp_path):
    chart = tmp_path / "flotilla"
    shutil.copytree(CHART, chart)
    rules = {"groups": [{"name": "flotilla", "rules": [{"alert": "Down", "expr": "up == 0", "annotations": {"summary": "{{ $labels.pod }}"}}]}]}
    (chart / "files/prometheus/alerts.yaml").write_text(yaml.safe_dump(rules))
    (chart / "files/grafana/one.json").write_text('{"title": "{{pod}}"}\n')
    ran = helm("template", "x", str(chart), "--set", "monitoring.alerts.enabled=true,monitoring.dashboards.enabled=true")
    assert ran.returncode == 0, ran.stderr
    docs = {doc["kind"]: doc for doc in documents(ran.stdout)}
    check_by_own_schema(docs["PrometheusRule"], "1.37")
    assert docs["PrometheusRule"]["spec"] == rules
    assert docs["ConfigMap"]["data"]["one.json"] == '{"title": "{{pod}}"}\n'


def test_a_token_is_made_where_none_is_given_and_another_each_time():
    made = [secrets_of(rendered("cpu-demo", "joinToken.existingSecret=")) for _ in range(2)]
    rendered.cache_clear()
    made.append(secrets_of(rendered("cpu-demo", "joinToken.existingSecret=")))
    assert len(made[0]["token"]) > 32 and made[0] != made[2]


def secrets_of(text):
    [secret] = [doc for doc in documents(text) if doc["kind"] == "Secret"]
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    return secret["data"]
