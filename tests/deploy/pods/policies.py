"""NetworkPolicies, as a network plugin would keep them: rules of nftables in each pod's own network. All that is told of
here is one namespace; the node, from which probes and Services come, is let in as Kubernetes lets it."""

import subprocess

from manifests import of_kind, selects
from sandbox import Sandbox

NODE = "10.77.0.1"
CHAIN = """
    chain {name} {{
        type filter hook {hook} priority 0; policy {policy};
        {loopback} "lo" accept
        ct state established,related accept
{rules}
    }}
"""


def enforce(docs: list[dict], pods: list[Sandbox]):
    policies = of_kind(docs, "NetworkPolicy")
    for pod in pods:
        own = [doc["spec"] for doc in policies if selects(doc["spec"]["podSelector"], pod.labels)]
        chains = [chain(own, pods, pod, way) for way in ("Ingress", "Egress")]
        text = "flush ruleset\ntable inet fence {" + "".join(chains) + "}\n"
        words = ["nsenter", "--target", str(pod.spaces), "--net", "nft", "--file", "-"]
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{text}\n{done.stderr}"


def chain(own: list[dict], pods: list[Sandbox], pod: Sandbox, way: str) -> str:
    """Who is selected by no policy of this way may do what it likes."""
    own = [spec for spec in own if way in spec["policyTypes"]]
    comes = way == "Ingress"
    rules = [f"ip saddr {NODE} accept"] if comes else []
    for spec in own:
        for rule in spec.get(way.lower(), []):
            rules += allowed(rule, pods, pod, comes)
    return CHAIN.format(
        name="comes" if comes else "goes",
        hook="input" if comes else "output",
        policy="drop" if own else "accept",
        loopback="iif" if comes else "oif",
        rules="\n".join(f"        {rule}" for rule in rules),
    )


def allowed(rule: dict, pods: list[Sandbox], pod: Sandbox, comes: bool) -> list[str]:
    peers = rule.get("from" if comes else "to")
    places = [""]
    if peers is not None:
        # Other namespaces have no pods here.
        selectors = [peer["podSelector"] for peer in peers if "namespaceSelector" not in peer]
        addresses = [other.address for other in pods if any(selects(selector, other.labels) for selector in selectors)]
        places = [f"ip {'saddr' if comes else 'daddr'} {address} " for address in addresses]
    return [f"{place}{port(at, pod)} accept" for place in places for at in rule["ports"]]


def port(at: dict, pod: Sandbox) -> str:
    number = at["port"]
    if isinstance(number, str):
        [number] = [own["containerPort"] for container in pod.spec["containers"] for own in container["ports"] if own["name"] == at["port"]]
    return f"{at.get('protocol', 'TCP').lower()} dport {number}{'-' + str(at['endPort']) if 'endPort' in at else ''}"
