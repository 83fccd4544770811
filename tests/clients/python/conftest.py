"""What every test here works with: clients of the servers that run.sh started, and the demo model's words.

The demo model is greedy at temperature 0 and always says the same, so tests may ask for its exact words; where
the words do not matter, they ask for the shape."""

import os
import pathlib
import time

import httpx2
import openai
import pytest

SUM = "What is 27 + 48?"
SUM_ANSWER = "27 + 48 = 75."
HELLO = "Hello!"
HELLO_ANSWER = "Hello! I am Flotilla's toy demo model. How can I help?"
PARIS = "What is the weather in Paris?"
PARIS_RESULT = '{"temperature":14,"condition":"cloudy"}'
PARIS_ANSWER = "In Paris: 14 °C, cloudy."
CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city"}},
    "required": ["city"],
}
WEATHER = {"name": "get_weather", "description": "Gets the current weather in a city.", "parameters": CITY_SCHEMA}

# How long anything here may wait for the server to come to rest.
REST_S_MAX = 10


def address(variable, log):
    url = os.environ.get(variable)
    if not url:
        path = pathlib.Path(os.environ.get("FLOTILLA_LOGS", ".")) / f"{log}.log"
        said = path.read_text()[-600:] if path.exists() else "nothing"
        pytest.fail(f"{variable} is not set: the server did not start; it said: {said}", pytrace=False)
    return url


def client_of(url, key="none", kind=openai.OpenAI):
    # No second tries: the first answer is what is tested.
    return kind(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def url():
    return address("FLOTILLA_URL", "open")


@pytest.fixture(scope="session")
def keyed_url():
    return address("FLOTILLA_KEYED_URL", "keyed")


@pytest.fixture(scope="session")
def client(url):
    with client_of(url) as client:
        yield client


@pytest.fixture
async def async_client(url):
    async with client_of(url, kind=openai.AsyncOpenAI) as client:
        yield client


@pytest.fixture(scope="session")
def http(url):
    """The same server, without OpenAI's client in between."""
    with httpx2.Client(base_url=url, timeout=60) as http:
        yield http


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def document(http):
    answer = http.get("/openapi.json")
    assert answer.status_code == 200, f"/openapi.json answers {answer.status_code}"
    return answer.json()


def user(text):
    return [{"role": "user", "content": text}]


def running(http):
    """How many sequences the cluster works on."""
    answer = http.get("/v1/cluster")
    assert answer.status_code == 200, f"/v1/cluster answers {answer.status_code}: {answer.text[:200]}"
    load = answer.json()["load"]
    return load["running"] + load["waiting"]


def wait_for_running(http, wanted, what):
    deadline = time.monotonic() + REST_S_MAX
    while (found := running(http)) != wanted:
        assert time.monotonic() < deadline, f"{what}: expected {wanted} running, found {found} after {REST_S_MAX} s"
        time.sleep(0.02)
