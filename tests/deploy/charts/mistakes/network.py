"""Who finds whom: selectors, ports, policies, probes, monitors."""

from manifests import containers, flag, name, of_kind, selects, templates

from mistakes.pods import CARDS

# Ports of the kernel's choice, on which NCCL listens.
EPHEMERAL = (32768, 60999)


def selectors(docs):
    """Each selector of pods: whose it is, and itself."""
    for doc in docs:
        spec = doc.get("spec", {})
        match doc["kind"]:
            case "Service":
                yield name(doc), {"matchLabels": spec["selector"]}
            case "Deployment" | "StatefulSet" | "PodDisruptionBudget":
                yield name(doc), spec["selector"]
            case "NetworkPolicy":
                yield name(doc), spec["podSelector"]
                rules = spec.get("ingress", []) + spec.get("egress", [])
                peers = [peer for rule in rules for peer in rule.get("from", []) + rule.get("to", [])]
                yield from ((f"{name(doc)} peer", peer["podSelector"]) for peer in peers if "podSelector" in peer)
    for owner, template in templates(docs):
        for spread in template["spec"].get("topologySpreadConstraints", []):
            yield f"{owner} spread", spread["labelSelector"]


def selectors_find_pods(docs):
    for owner, selector in selectors(docs):
        if not any(selects(selector, labels) for labels in labels_of_pods(docs)):
            yield f"{owner} selects no pod"
    for doc in of_kind(docs, "Deployment", "StatefulSet"):
        if not selects(doc["spec"]["selector"], doc["spec"]["template"]["metadata"]["labels"]):
            yield f"{name(doc)} does not select its own pods"


def ports_of(docs, selector):
    pods = [template for _, template in templates(docs) if selects(selector, template["metadata"]["labels"])]
    ports = [port for pod in pods for container in pod["spec"]["containers"] for port in container.get("ports", [])]
    return {port["name"] for port in ports} | {port["containerPort"] for port in ports}


def ports_are_those_of_containers(docs):
    for doc in of_kind(docs, "Service"):
        ports = ports_of(docs, {"matchLabels": doc["spec"]["selector"]})
        for port in doc["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"{name(doc)} leads to {port['targetPort']}, where no container listens"
    for doc in of_kind(docs, "NetworkPolicy"):
        yield from policy_ports(docs, doc)
    for owner, template in templates(docs):
        names = [port["name"] for container in template["spec"]["containers"] for port in container["ports"]]
        numbers = [port["containerPort"] for container in template["spec"]["containers"] for port in container["ports"]]
        if len(set(names)) < len(names) or len(set(numbers)) < len(numbers):
            yield f"{owner}: two ports are one: {names}, {numbers}"
        yield from (f"{owner}: the name {port} is too long" for port in names if len(port) > 15)


def policy_ports(docs, doc):
    """What is let in is listened on; what is let out is what workers dial."""
    own = ports_of(docs, doc["spec"]["podSelector"])
    for rule in doc["spec"].get("ingress", []):
        for port in rule["ports"]:
            is_nccl = (port["port"], port.get("endPort")) == EPHEMERAL
            if port["port"] not in own and not is_nccl:
                yield f"{name(doc)} lets in to {port['port']}, where no container listens"
            ends = port.get("endPort")
            if ends and not is_nccl and ends not in own:
                yield f"{name(doc)} lets in up to {ends}, where no container listens"


def workers_may_do_what_they_must(docs):
    policies = of_kind(docs, "NetworkPolicy")
    for owner, container, spec in containers(docs):
        if not policies or container["args"][0] != "worker":
            continue
        rules = [rule for doc in policies for rule in doc["spec"].get("ingress", []) if "worker" in name(doc)]
        ranges = [(at["port"], at.get("endPort", at["port"])) for rule in rules for at in rule["ports"]]
        for word in ("collective-listen", "weights-listen"):
            port = int(flag(container, word).rsplit(":", 1)[1])
            if not any(isinstance(low, int) and low <= port <= high for low, high in ranges):
                yield f"{owner}: no policy lets its peers in to {port}"
        has_cards = CARDS in container["resources"].get("limits", {})
        if has_cards and EPHEMERAL not in ranges:
            yield f"{owner}: no policy lets NCCL in"


def listens_where_it_says(docs):
    flags = {"listen": "api", "worker-listen": "fleet", "health-listen": "health"}
    flags |= {"collective-listen": "collective", "weights-listen": "weights"}
    for owner, container, _ in containers(docs):
        for word, port_name in flags.items():
            address = flag(container, word)
            ports = [port for port in container["ports"] if port["name"].split("-")[0] == port_name]
            told = [f"{port['containerPort']}" for port in ports]
            listens = [address.rsplit(":", 1)[1]] if address else []
            if told != listens:
                yield f"{owner}: --{word} is {address}, and the ports named {port_name} are {told}"
            if address and address.startswith("127."):
                yield f"{owner}: --{word} is {address}, which nobody else reaches"


def probes_ask_what_answers(docs):
    paths = {"worker": ("/health", "/ready"), "coordinator": ("/version", "/ready"), "up": ("/version", "/ready")}
    for owner, container, _ in containers(docs):
        alive, ready = paths[container["args"][0]]
        for kind, path in (("startupProbe", alive), ("livenessProbe", alive), ("readinessProbe", ready)):
            probe = container.get(kind, {}).get("httpGet")
            if not probe:
                yield f"{owner} has no {kind}"
                continue
            ports = [port["name"] for port in container["ports"] if port["name"] == probe["port"]]
            if not ports or ports[0].split("-")[0] not in ("api", "health"):
                yield f"{owner}: {kind} asks the port {probe['port']}"
            if probe["path"] != path:
                yield f"{owner}: {kind} asks {probe['path']}, expected {path}"
            is_tls = flag(container, "tls-cert") and container["args"][0] != "worker"
            if probe.get("scheme", "HTTP") != ("HTTPS" if is_tls else "HTTP"):
                yield f"{owner}: {kind} asks by {probe.get('scheme')}"
        start = container.get("startupProbe", {})
        if start.get("periodSeconds", 10) * start.get("failureThreshold", 3) < 300:
            yield f"{owner}: its start may take less than 5 min"


def monitors_find_services(docs):
    for doc in of_kind(docs, "ServiceMonitor"):
        found = [s for s in of_kind(docs, "Service") if selects(doc["spec"]["selector"], s["metadata"]["labels"])]
        if len(found) != 1:
            yield f"{name(doc)} finds {len(found)} Services"
            continue
        for endpoint in doc["spec"]["endpoints"]:
            if endpoint["port"] not in [port["name"] for port in found[0]["spec"]["ports"]]:
                yield f"{name(doc)}: {name(found[0])} has no port {endpoint['port']}"


def labels_of_pods(docs):
    return [template["metadata"]["labels"] for _, template in templates(docs)]
