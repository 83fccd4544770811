"""The cycle of tools by OpenAI's Python package: a call, its result, an answer; and who may be called."""

import json

import pytest

from conftest import HELLO, PARIS, PARIS_ANSWER, PARIS_RESULT, WEATHER, user

TOOLS = [{"type": "function", "function": WEATHER}]


def test_a_tool_is_called_answered_and_its_result_put_into_words(client, model):
    messages = user(PARIS)
    asked = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0)
    choice = asked.choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}

    # As the package's users do: the message goes back as it came, with whatever stood in it.
    messages = [*messages, choice.message, {"role": "tool", "tool_call_id": call.id, "content": PARIS_RESULT}]
    answered = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0)
    assert answered.choices[0].message.content == PARIS_ANSWER
    assert answered.choices[0].finish_reason == "stop"
    assert not answered.choices[0].message.tool_calls


def test_a_call_is_streamed_in_pieces(client, model):
    stream = client.chat.completions.create(model=model, messages=user(PARIS), tools=TOOLS, temperature=0, stream=True)
    names, ids, arguments, finishes = [], [], "", []
    for chunk in stream:
        choice = chunk.choices[0]
        finishes += [choice.finish_reason] if choice.finish_reason else []
        for call in choice.delta.tool_calls or []:
            assert call.index == 0
            names += [call.function.name] if call.function.name else []
            ids += [call.id] if call.id else []
            arguments += call.function.arguments or ""
    assert (names, len(ids), finishes) == (["get_weather"], 1, ["tool_calls"])
    assert json.loads(arguments) == {"city": "Paris"}


def test_the_streaming_helper_collects_the_call(client, model):
    with client.chat.completions.stream(model=model, messages=user(PARIS), tools=TOOLS, temperature=0) as stream:
        final = stream.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_none_forbids_calls(client, model):
    answer = client.chat.completions.create(
        model=model, messages=user(PARIS), tools=TOOLS, tool_choice="none", temperature=0
    )
    assert not answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_required_calls_even_where_the_model_would_not(client, model, choice):
    free = client.chat.completions.create(model=model, messages=user(HELLO), tools=TOOLS, temperature=0)
    assert not free.choices[0].message.tool_calls
    forced = client.chat.completions.create(
        model=model, messages=user(HELLO), tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=300
    )
    [call] = forced.choices[0].message.tool_calls
    assert forced.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_a_named_tool_is_called_among_several(client, model):
    unit = {"type": "object", "properties": {"unit": {"enum": ["day", "week"]}}, "required": ["unit"]}
    other = {"type": "function", "function": {"name": "get_calendar", "parameters": {**unit, "additionalProperties": False}}}
    answer = client.chat.completions.create(
        model=model,
        messages=user(PARIS),
        tools=[*TOOLS, other],
        tool_choice={"type": "function", "function": {"name": "get_calendar"}},
        temperature=0,
        max_tokens=300,
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_calendar"
    assert json.loads(call.function.arguments)["unit"] in ("day", "week")


def test_strict_arguments_follow_their_schema(client, model):
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    strict = {"type": "function", "function": {**WEATHER, "parameters": schema, "strict": True}}
    answer = client.chat.completions.create(
        model=model, messages=user(PARIS), tools=[strict], temperature=0, max_tokens=300
    )
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) in ({"city": "Oslo"}, {"city": "Rome"})


def test_parallel_tool_calls_false_brings_one_call(client, model):
    answer = client.chat.completions.create(
        model=model, messages=user(PARIS), tools=TOOLS, parallel_tool_calls=False, temperature=0
    )
    assert len(answer.choices[0].message.tool_calls) == 1
