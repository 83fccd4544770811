"""A client that leaves frees its work, whichever way it leaves; seen in /v1/cluster and /metrics."""

import asyncio

import pytest

from conftest import HELLO, running, user, wait_for_running

# Far longer than a test waits.
ENDLESS = {"max_tokens": 16_000, "extra_body": {"ignore_eos": True}}
TOKENS_READ = 5


def open_chat(client, model):
    return client.chat.completions.create(model=model, messages=user(HELLO), stream=True, **ENDLESS)


def open_completion(client, model):
    return client.completions.create(model=model, prompt=HELLO, stream=True, **ENDLESS)


def open_response(client, model):
    return client.responses.create(model=model, input="Write a very long text.", temperature=2, stream=True)


def leave_after_some(stream):
    events = iter(stream)
    for _ in range(TOKENS_READ):
        next(events)


@pytest.mark.parametrize("open_stream", [open_chat, open_completion])
def test_closing_a_stream_frees_its_work(client, http, model, open_stream):
    wait_for_running(http, 0, "before")
    stream = open_stream(client, model)
    leave_after_some(stream)
    wait_for_running(http, 1, "while it streams")
    stream.close()
    wait_for_running(http, 0, "after the client left")


def test_closing_a_response_frees_its_work(client, http, model):
    wait_for_running(http, 0, "before")
    stream = open_response(client, model)
    next(iter(stream))
    stream.close()
    wait_for_running(http, 0, "after the client left")


def test_choices_are_freed_together(client, http, model):
    stream = client.chat.completions.create(model=model, messages=user(HELLO), stream=True, n=4, **ENDLESS)
    leave_after_some(stream)
    wait_for_running(http, 4, "while four choices stream")
    stream.close()
    wait_for_running(http, 0, "after the client left")


async def test_a_cancelled_task_frees_its_work(async_client, http, model):
    """Not a stream: the answer would come whole, and the client does not wait for it."""
    request = async_client.chat.completions.create(model=model, messages=user(HELLO), **ENDLESS)
    task = asyncio.create_task(request)
    for _ in range(200):
        await asyncio.sleep(0.05)
        if running(http) == 1:
            break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_for_running(http, 0, "after the task was cancelled")


def test_metrics_say_the_same(http):
    wait_for_running(http, 0, "at the end")
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(("text/plain", "application/openmetrics-text"))
    lines = [line for line in answer.text.splitlines() if "num_requests_running" in line and not line.startswith("#")]
    assert lines, "no gauge of running requests"
    assert [float(line.rsplit(" ", 1)[1]) for line in lines] == [0.0] * len(lines)
    assert "generation_tokens_total" in answer.text
