"""Answers kept to a form, by OpenAI's Python package. The demo model was never taught to write JSON, so what it
writes here is the grammar's doing; the schemas have no room in which it could ramble."""

import json
import re
from typing import Literal

import pytest
from pydantic import BaseModel

import openai
from conftest import HELLO, PARIS, user


class Greeting(BaseModel):
    language: Literal["English", "French"]
    polite: bool
    mood: Literal["good", "bad"] | None


class Weather(BaseModel):
    """Gets the current weather in a city."""

    city: Literal["Paris", "Oslo"]


# Reasoning stays free, and comes before the form.
COMMON = {"temperature": 0, "max_tokens": 400}


def test_chat_parses_into_a_model(client, model):
    answer = client.chat.completions.parse(model=model, messages=user(HELLO), response_format=Greeting, **COMMON)
    choice = answer.choices[0]
    assert isinstance(choice.message.parsed, Greeting)
    assert choice.finish_reason == "stop"
    assert choice.message.reasoning, "reasoning is free, and was not cut away"


def test_chat_parses_a_stream_into_a_model(client, model):
    with client.chat.completions.stream(
        model=model, messages=user(HELLO), response_format=Greeting, **COMMON
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Greeting)


def test_chat_parses_the_arguments_of_a_tool(client, model):
    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    answer = client.chat.completions.parse(model=model, messages=user(PARIS), tools=[tool], **COMMON)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments in (Weather(city="Paris"), Weather(city="Oslo"))


def test_responses_parse_into_a_model(client, model):
    answer = client.responses.parse(
        model=model, input=HELLO, text_format=Greeting, temperature=0, max_output_tokens=400
    )
    assert isinstance(answer.output_parsed, Greeting)


def test_a_json_object_is_any_object(client, model):
    answer = client.chat.completions.create(
        model=model, messages=user(HELLO), response_format={"type": "json_object"}, **COMMON
    )
    content = answer.choices[0].message.content
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)
    else:
        assert content.lstrip().startswith("{"), "cut off, but begun as an object"


FORMS = [
    ({"choice": ["yes", "no"]}, "yes|no"),
    ({"regex": "[ab]{3}-[0-9]{2}"}, "[ab]{3}-[0-9]{2}"),
    ({"grammar": 'start: "left" | "right"'}, "left|right"),
    ({"json": {"enum": [1, 2, 3]}}, "[123]"),
]


@pytest.mark.parametrize("form, pattern", FORMS, ids=lambda value: str(value)[:40])
def test_vllms_forms(client, model, form, pattern):
    answer = client.chat.completions.create(
        model=model, messages=user(HELLO), extra_body={"structured_outputs": form}, **COMMON
    )
    assert re.fullmatch(pattern, answer.choices[0].message.content.strip())


def test_a_schema_that_is_none_is_named(client, model):
    broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=user(HELLO), response_format=broken)
    assert error.value.param.startswith("response_format.json_schema"), error.value.body
