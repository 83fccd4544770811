"""A container as the kubelet would start it: its environment, and `$(NAME)` in its arguments."""

import re


def environment(container: dict, of_pod: dict[str, str], secret: callable) -> dict[str, str]:
    """`of_pod` is what the downward API tells, by field path; `secret` gives a key of a Secret, by both names."""
    variables = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            value = of_pod[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            value = secret(source["secretKeyRef"]["name"], source["secretKeyRef"]["key"])
        else:
            value = expanded(variable.get("value", ""), variables)
        variables[variable["name"]] = value
    return variables


def expanded(text: str, variables: dict[str, str]) -> str:
    """`$(NAME)` where there is such a variable; `$$` is one `$`; anything else stays."""

    def value(found: re.Match) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", value, text)


def command(container: dict, variables: dict[str, str]) -> list[str]:
    return [expanded(word, variables) for word in [*container["command"], *container["args"]]]
