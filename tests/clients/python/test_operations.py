"""What Prometheus and Grafana are given: /metrics by Prometheus' own parser, and every expression by a parser of PromQL.
Which metrics they may name is tested in tests/observability."""

import json
import pathlib

import promql_parser
import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

DEPLOY = pathlib.Path(__file__).resolve().parents[3] / "deploy"


def expressions():
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    dashboard = json.loads((DEPLOY / "grafana" / "flotilla.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            # As Grafana fills it in.
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def test_metrics_are_openmetrics(http):
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert len(families) > 40
    assert families["flotilla_step_phase_seconds"].type == "histogram"
    for family in families.values():
        assert family.documentation, f"{family.name} has no help"
        assert family.name.startswith("flotilla_")


@pytest.mark.parametrize(("name", "expression"), list(expressions()))
def test_expressions_are_promql(name, expression):
    promql_parser.parse(expression)


def test_alerts_are_whole():
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
