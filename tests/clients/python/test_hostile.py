"""Bodies that nobody sends in good faith, by plain HTTP: each is refused as the client's fault, soon and in
OpenAI's shape, and the server goes on. What schemathesis makes up is near the document; this is far from it."""

import json

import pytest

from conftest import HELLO, running, user

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"]

BODIES = {
    "nothing": b"",
    "no JSON": b"{'messages': 1}",
    "cut off": b'{"messages": [',
    "a list": b"[]",
    "a number": b"1e400",
    "not a number": b'{"messages": NaN}',
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "half an escape": b'{"prompt": "\\ud8"}',
    "deep lists": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "many names": json.dumps({f"name_{index}": index for index in range(20_000)}).encode(),
    "a long name": json.dumps({"a" * 1_000_000: 1}).encode(),
    "a zip": b"\x1f\x8b\x08\x00" + bytes(1000),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BODIES)
def test_what_is_no_request_is_refused(http, path, body):
    answer = http.post(path, content=BODIES[body], headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413), f"{answer.status_code}: {answer.text[:300]}"
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x"}}

REQUESTS = {
    "messages": {"messages": user(HELLO) * 10_000},
    "tools": {"tools": [{**TOOL, "function": {"name": f"f{index}"}} for index in range(2000)]},
    "stop": {"stop": ["a"] * 1000},
    "logit_bias": {"logit_bias": {str(token): 1 for token in range(1500)}},
    "n": {"n": 10**30},
    "max_tokens": {"max_tokens": -1},
    "temperature": {"temperature": 1e300},
    "seed": {"seed": 2**64},
    "stop_token_ids": {"stop_token_ids": list(range(1000))},
    "structured_outputs.regex": {"structured_outputs": {"regex": "(" * 5000}},
    "structured_outputs.grammar": {"structured_outputs": {"grammar": "start: " + "(" * 5000}},
    "structured_outputs.choice": {"structured_outputs": {"choice": []}},
    "response_format.json_schema.schema": {
        "response_format": {**FORMAT, "json_schema": {"name": "x", "schema": {"enum": ["a" * 100_000]}}}
    },
}


# Forms that are understood, and too much to follow.
FORMS = {"structured_outputs.regex", "structured_outputs.grammar", "response_format.json_schema.schema"}


@pytest.mark.parametrize("param", REQUESTS)
def test_what_is_too_much_is_refused_by_name(http, param):
    answer = http.post("/v1/chat/completions", json={"messages": user(HELLO), "max_tokens": 4, **REQUESTS[param]})
    expected = (422,) if param in FORMS else (400, 413)
    assert answer.status_code in expected, f"{answer.status_code}: {answer.text[:300]}"
    assert (answer.json()["error"]["param"] or "").startswith(param), answer.text[:300]


LONG = "a" * 1_000_000
NAMED = {
    "a name": {"messages": user(HELLO), LONG: 1},
    "a model": {"messages": user(HELLO), "model": LONG},
    "an id": {"messages": [{"role": "tool", "tool_call_id": LONG, "content": "x"}]},
    "a tool": {"messages": user(HELLO), "tools": [{**TOOL, "function": {"name": LONG}}]},
    "a user": {"messages": [{"role": "user", "content": HELLO, "name": LONG}]},
    "a token": {"messages": user(HELLO), "logit_bias": {LONG: 1}},
}


@pytest.mark.parametrize("what", NAMED)
def test_what_is_wrong_is_named_and_not_sent_back_at_length(http, what):
    answer = http.post("/v1/chat/completions", json=NAMED[what])
    assert answer.status_code in (400, 404)
    assert len(answer.content) < 4096, f"{len(answer.content)} bytes are sent back"


def test_a_schema_that_nests_ends_one_way_or_the_other(http):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(100)}}
    body = {"messages": user(HELLO), "max_tokens": 8, "response_format": form}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code in (200, 400), f"{answer.status_code}: {answer.text[:300]}"


def test_afterwards_the_server_is_as_before(http):
    assert http.get("/health").status_code == 200
    assert running(http) == 0
