"""What is named is there: Secrets with their keys, claims, issuers, files behind flags, each once."""

from manifests import containers, name, of_kind

# Secrets and claims that a user makes, as deploy/README.md says: name to keys.
SECRETS = {"flotilla-join": {"token"}, "flotilla-keys": {"keys.toml"}}
CLAIMS = {"models"}


def files_are_mounted(docs):
    """What a flag names lies in a mounted volume; of a Secret, it is a key of it."""
    secrets = secrets_of(docs)
    for owner, container, spec in containers(docs):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for arg in container["args"]:
            path = arg.partition("=")[2]
            if not path.startswith("/") or path.startswith("/opt/flotilla/"):
                continue
            mounts = [mount for mount in container["volumeMounts"] if f"{path}/".startswith(f"{mount['mountPath']}/")]
            if not mounts:
                yield f"{owner}: nothing is mounted where {arg} points"
                continue
            secret = volumes.get(mounts[0]["name"], {}).get("secret")
            if secret and path.rsplit("/", 1)[1] not in secrets.get(secret["secretName"], set()):
                yield f"{owner}: {arg} is no key of the Secret {secret['secretName']}"


def secrets_of(docs):
    made = {doc["metadata"]["name"]: set(doc["data"]) for doc in of_kind(docs, "Secret")}
    certificates = {doc["spec"]["secretName"]: {"tls.crt", "tls.key", "ca.crt"} for doc in of_kind(docs, "Certificate")}
    return SECRETS | made | certificates


def what_is_referred_to_exists(docs):
    secrets = secrets_of(docs)
    claims = CLAIMS | {doc["metadata"]["name"] for doc in of_kind(docs, "PersistentVolumeClaim")}
    for owner, container, spec in containers(docs):
        for volume in spec["volumes"]:
            secret = volume.get("secret", {}).get("secretName")
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if secret and secret not in secrets:
                yield f"{owner}: there is no Secret {secret}"
            if claim and claim not in claims:
                yield f"{owner}: there is no claim {claim}"
        for variable in container["env"]:
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and reference["key"] not in secrets.get(reference["name"], set()):
                yield f"{owner}: {variable['name']} is {reference['key']} of {reference['name']}, which is not there"
    issuers = {doc["metadata"]["name"] for doc in of_kind(docs, "Issuer")}
    for doc in of_kind(docs, "Certificate"):
        if doc["spec"]["issuerRef"].get("kind") == "Issuer" and doc["spec"]["issuerRef"]["name"] not in issuers:
            yield f"{name(doc)}: there is no issuer {doc['spec']['issuerRef']['name']}"
    for doc in of_kind(docs, "StatefulSet"):
        heads = [s for s in of_kind(docs, "Service") if s["metadata"]["name"] == doc["spec"]["serviceName"]]
        if not heads or heads[0]["spec"].get("clusterIP") != "None":
            yield f"{name(doc)}: {doc['spec']['serviceName']} is no headless Service"


def nothing_is_there_twice(docs):
    names = [name(doc) for doc in docs]
    yield from (f"{twice} is there twice" for twice in sorted({at for at in names if names.count(at) > 1}))
    spaces = {doc["metadata"].get("namespace") for doc in docs}
    if len(spaces) > 1 or None in spaces:
        yield f"not all are in one namespace: {spaces}"
