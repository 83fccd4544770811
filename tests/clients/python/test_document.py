"""The OpenAPI document is valid, is of this server, and has every route that the server has and no other."""

import pathlib
import re

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

API = pathlib.Path(__file__).parents[3] / "coordinator" / "src" / "api"
# For people with a browser, not for programs.
PAGES = re.compile(r"^/($|cluster$|web(/|$))")
METHODS = ("get", "put", "post", "delete", "patch")


def test_it_is_a_valid_document(document):
    validate(document)
    assert document["openapi"].startswith("3.1")


def test_it_carries_the_servers_version(document, http):
    assert document["info"]["version"] == http.get("/version").json()["version"]


def test_every_schema_and_every_example_in_it_is_valid(document):
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        resolved = {**schema, "components": document["components"]}
        for example in schema.get("examples", []):
            errors = [error.message for error in Draft202012Validator(resolved).iter_errors(example)]
            assert not errors, f"an example of {name}: {errors}"


def test_every_reference_leads_somewhere_and_every_schema_is_used(document):
    used = set(re.findall(r"'\$ref': '#/components/([^']*)'", str(document)))
    for reference in used:
        kind, name = reference.split("/")
        assert name in document["components"][kind], f"{reference} is not there"
    kept = {f"{kind}/{name}" for kind in ("schemas", "responses", "parameters") for name in document["components"].get(kind, {})}
    assert not kept - used, "described, but used nowhere"


def source():
    """Of the API, without the tests in it."""
    return "\n".join(path.read_text().split("#[cfg(test)]")[0] for path in sorted(API.rglob("*.rs")))


def routes_in_source():
    found = re.findall(r"\.route\(\s*\"([^\"]+)\"", source())
    return {re.sub(r"\{\*?(\w+)\}", "{}", path) for path in found if not PAGES.match(path)}


def test_every_route_in_the_source_is_in_it_and_no_other(document):
    described = {re.sub(r"\{\w+\}", "{}", path) for path in document["paths"]}
    routes = routes_in_source()
    assert routes, f"no route was found in {API}"
    assert described == routes, f"not described: {routes - described}; not routed: {described - routes}"


def test_the_methods_of_every_path_are_those_that_the_server_allows(document, http):
    for path, item in document["paths"].items():
        described = {method.upper() for method in METHODS if method in item}
        answer = http.request("PATCH", re.sub(r"\{\w+\}", "x", path))
        assert answer.status_code == 405, f"PATCH {path} answers {answer.status_code}"
        allowed = {method.strip() for method in answer.headers["allow"].split(",")} - {"HEAD", "OPTIONS"}
        assert described == allowed, f"{path}: described {described}, allowed {allowed}"


def names_in(node):
    """Of all properties and parameters that are described, wherever they stand."""
    if isinstance(node, dict):
        yield from node.get("properties", ())
        yield from (entry["name"] for entry in node.get("parameters", ()) if "name" in entry)
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from names_in(inner)


def names_in_source():
    """Of the fields that are taken from bodies and queries, as far as the source names them where it takes them."""
    text = source()
    taken = re.findall(r"\.(?:take|require)\(\s*\"(\w+)\"", text)
    numbers = re.findall(r"number\(fields, \"(\w+)\"", text)
    neutral = re.findall(r"\(\"(\w+)\", (?:Neutral::)?(?:Always|Unset|Bool|Numbers|Words|Empty|TypeText|ListOfText)\b", text)
    lists = re.findall(r"for name in \[([^\]]*)\]", text)
    return {*taken, *numbers, *neutral, *re.findall(r"\"(\w+)\"", " ".join(lists))}


def test_each_parameter_that_the_source_reads_is_in_it(document):
    read = names_in_source()
    assert len(read) > 80, f"too few were found in {API}: {sorted(read)}"
    assert not read - set(names_in(document))


# The least that each endpoint takes.
LEAST = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "Hello!", "max_tokens": 1},
    "/v1/responses": {"input": "Hello!", "max_output_tokens": 16},
}


@pytest.mark.parametrize("path", LEAST)
def test_each_described_parameter_is_known_to_the_server(document, http, path):
    """A name that the server does not know is refused as unknown; of those described, none may be."""
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    schema = document["components"]["schemas"][content["schema"]["$ref"].rsplit("/", 1)[1]]
    assert schema["additionalProperties"] is False
    unknown = []
    for name in schema["properties"]:
        # Some take any value; most refuse this one, by their name.
        answer = http.post(path, json={**LEAST[path], name: {"no such": "value"}})
        error = answer.json().get("error")
        if answer.status_code != 200 and (error["code"] == "unknown_parameter" and error["param"] == name):
            unknown.append(name)
    assert not unknown, f"described, but unknown to the server: {unknown}"
    nobodys = http.post(path, json={**LEAST[path], "no_such_name": 1})
    assert (nobodys.status_code, nobodys.json()["error"]["param"]) == (400, "no_such_name")
