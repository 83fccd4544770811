"""Chat by OpenAI's Python package: whole, streamed, several at once."""

import asyncio

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from conftest import HELLO, HELLO_ANSWER, SUM, SUM_ANSWER, user


def test_an_answer_comes_whole(client, model):
    answer = client.chat.completions.create(model=model, messages=user(SUM), temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == SUM_ANSWER
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert "So 75." in choice.message.reasoning, "reasoning stands beside the content"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    # Strictly, with every type checked: the client itself takes anything.
    ChatCompletion.model_validate_json(answer.model_dump_json())


def test_a_stream_adds_up_to_the_whole_answer(client, model):
    stream = client.chat.completions.create(model=model, messages=user(SUM), temperature=0, stream=True)
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    contents = [delta.content for delta in deltas if delta.content]
    assert len(contents) > 3, "it comes in pieces"
    assert "".join(contents) == SUM_ANSWER
    reasoning = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
    assert "So 75." in reasoning
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks), "usage was not asked for"
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk.model_dump_json())


def test_include_usage_brings_a_last_chunk_with_usage_alone(client, model):
    whole = client.chat.completions.create(model=model, messages=user(SUM), temperature=0)
    stream = client.chat.completions.create(
        model=model, messages=user(SUM), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_the_streaming_helper_ends_with_the_same_completion(client, model):
    with client.chat.completions.stream(model=model, messages=user(SUM), temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and kinds.count("content.done") == 1
    assert final.choices[0].message.content == SUM_ANSWER


def test_parts_roles_and_effort_are_taken(client, model):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "40 + 2?"}]
    messages = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, reasoning_effort="low")
    assert answer.choices[0].message.content == "40 + 2 = 42."
    turns = [
        {"role": "user", "content": "What is 12 + 30?"},
        {"role": "assistant", "content": "12 + 30 = 42."},
        {"role": "user", "content": "Thanks!"},
    ]
    thanks = client.chat.completions.create(model=model, messages=turns, temperature=0)
    assert thanks.choices[0].message.content == "You are welcome!"


def test_a_repeated_prompt_is_served_from_the_prefix_cache(client, model):
    # Longer than a few blocks, and nobody else's.
    messages = [
        {"role": "user", "content": "What is 12 + 30?"},
        {"role": "assistant", "content": "12 + 30 = 42."},
        {"role": "user", "content": "What is 61 + 17?"},
    ]
    first = client.chat.completions.create(model=model, messages=messages, temperature=0)
    second = client.chat.completions.create(model=model, messages=messages, temperature=0)
    assert second.choices[0].message.content == first.choices[0].message.content
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < second.usage.prompt_tokens, f"cached_tokens is {cached}"


async def test_eight_streams_at_once_each_say_their_own(async_client, model):
    async def ask(a, b):
        question = user(f"What is {a} + {b}?")
        stream = await async_client.chat.completions.create(model=model, messages=question, temperature=0, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    pairs = [(11, 12), (13, 24), (35, 16), (47, 18), (29, 20), (31, 42), (53, 14), (65, 26)]
    answers = await asyncio.wait_for(asyncio.gather(*[ask(a, b) for a, b in pairs]), timeout=60)
    # The toy is wrong in one of a hundred sums, but never answers somebody else's.
    assert [answer.split(" = ")[0] for answer in answers] == [f"{a} + {b}" for a, b in pairs]
    assert sum(answer == f"{a} + {b} = {a + b}." for answer, (a, b) in zip(answers, pairs)) >= 7, answers


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_answers_end_at_their_limit(client, model, name):
    answer = client.chat.completions.create(model=model, messages=user(HELLO), temperature=0, **{name: 5})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def test_stop_strings_end_an_answer_and_are_not_in_it(client, model):
    answer = client.chat.completions.create(model=model, messages=user(HELLO), temperature=0, stop=["demo model", "§"])
    assert answer.choices[0].message.content == HELLO_ANSWER.split("demo model")[0]
    assert answer.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        model=model, messages=user(HELLO), temperature=0, stop="demo model", stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == HELLO_ANSWER.split("demo model")[0]
