"""What OpenAI's Python package makes of our refusals: its own exceptions, with the parameter named."""

import os

import httpx2
import openai
import pytest

from conftest import HELLO, client_of, user


def ask(client, model="flotilla-demo", **parameters):
    return client.chat.completions.create(model=model, messages=user(HELLO), max_tokens=1, **parameters)


@pytest.fixture(scope="session")
def keys(keyed_url):
    """The keys that run.sh made: one without limits, others that each have one."""
    return {name: os.environ[f"FLOTILLA_KEY_{name}"] for name in ("free", "slow", "short", "narrow")}


WRONG = [
    ("temperature", "invalid_value", {"temperature": 3}),
    ("n", "invalid_value", {"n": 1000}),
    ("stop", "invalid_value", {"stop": [""]}),
    ("nonsense", "unknown_parameter", {"extra_body": {"nonsense": 1}}),
    ("top_logprobs", "invalid_value", {"logprobs": True, "top_logprobs": 21}),
    ("logit_bias", "invalid_value", {"logit_bias": {"0": 101}}),
    ("response_format.type", "invalid_value", {"response_format": {"type": "xml"}}),
    ("tools[0].function.name", "invalid_value", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
]


@pytest.mark.parametrize("param, code, parameters", WRONG, ids=[row[0] for row in WRONG])
def test_bad_requests_name_the_parameter(client, model, param, code, parameters):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, **parameters)
    error = caught.value
    assert error.param.startswith(param), f"expected {param} to be named: {error.body}"
    assert (error.code, error.type) == (code, "invalid_request_error"), error.body
    assert error.request_id


NOTHING = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 4}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "form", "strict": True, "schema": NOTHING}}
UNPROCESSABLE = [
    ("response_format.json_schema.schema", "grammar_unsatisfiable", {"response_format": FORM}),
    ("guided_regex", "grammar_too_complex", {"extra_body": {"guided_regex": "(" * 200 + "a" + ")" * 200}}),
]


@pytest.mark.parametrize("param, code, parameters", UNPROCESSABLE, ids=[row[1] for row in UNPROCESSABLE])
def test_forms_that_cannot_be_followed_are_unprocessable(client, model, param, code, parameters):
    """Well formed, and understood: another exception than that of a bad request, and nothing to try again."""
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(client, model, **parameters)
    error = caught.value
    assert (error.status_code, error.param, error.code) == (422, param, code), error.body
    assert error.type == "invalid_request_error"


def test_too_long_a_prompt_says_how_long(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=user("word " * 100_000))
    assert caught.value.code == "context_length_exceeded"


def test_too_large_a_body_is_413(client, model):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=model, messages=user("a" * (5 << 20)))
    assert caught.value.status_code == 413


def test_other_models_are_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-4o")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_other_paths_are_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="flotilla-demo", input="x")
    assert "/v1/embeddings" in caught.value.message


@pytest.mark.parametrize("key", ["sk-wrong", "x"])
def test_a_wrong_key_is_no_key(keyed_url, key):
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(client_of(keyed_url, key))
    assert caught.value.status_code == 401
    assert caught.value.code == "invalid_api_key"


def test_no_key_at_all_is_401_and_health_needs_none(keyed_url):
    refused = httpx2.get(f"{keyed_url}/v1/models", timeout=30)
    assert refused.status_code == 401
    assert refused.json()["error"]["message"]
    for path in ("/health", "/ready", "/metrics"):
        assert httpx2.get(keyed_url + path, timeout=30).status_code == 200, path


def test_the_right_key_is_served(keyed_url, keys):
    client = client_of(keyed_url, keys["free"])
    for _ in range(3):
        assert ask(client).usage.completion_tokens == 1


def limited(caught):
    """A refusal for want of rate says when to come back, in whole seconds."""
    error = caught.value
    assert error.status_code == 429
    assert error.type == "rate_limit_error", error.body
    assert int(error.response.headers["retry-after"]) >= 1


def test_requests_per_minute_are_limited(keyed_url, keys):
    client = client_of(keyed_url, keys["slow"])
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(3):
            ask(client)
    limited(caught)


def test_tokens_per_minute_are_limited(keyed_url, keys):
    client = client_of(keyed_url, keys["short"])
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(8):
            client.chat.completions.create(model="flotilla-demo", messages=user(HELLO), max_tokens=40)
    limited(caught)


def test_requests_at_once_are_limited(keyed_url, keys):
    client = client_of(keyed_url, keys["narrow"])
    endless = {"max_tokens": 3000, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(model="flotilla-demo", messages=user(HELLO), stream=True, **endless)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client)
    limited(caught)
    stream.close()


def test_the_package_comes_back_by_itself_after_429(keyed_url, keys):
    """Its own retries take our Retry-After for what it is: the seat is free again soon."""
    patient = client_of(keyed_url, keys["narrow"]).with_options(max_retries=4)
    assert ask(patient).usage.completion_tokens == 1
