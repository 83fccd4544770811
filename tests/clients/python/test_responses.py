"""OpenAI's Responses API by OpenAI's Python package: whole, streamed, carried on, with tools."""

import json

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from conftest import HELLO, HELLO_ANSWER, PARIS, PARIS_ANSWER, PARIS_RESULT, SUM, SUM_ANSWER, WEATHER

TOOLS = [{"type": "function", "strict": False, **WEATHER}]
EVENTS = TypeAdapter(ResponseStreamEvent)


def kinds(response):
    return [item.type for item in response.output]


def test_a_response_comes_whole(client, model):
    response = client.responses.create(model=model, input=SUM, temperature=0)
    assert (response.status, response.output_text) == ("completed", SUM_ANSWER)
    assert kinds(response) == ["reasoning", "message"]
    assert "So 75." in response.output[0].content[0].text
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
    # Strictly, with every type checked: the client itself takes anything.
    Response.model_validate_json(response.model_dump_json(exclude_unset=True))


def test_effort_and_instructions_are_taken(client, model):
    response = client.responses.create(
        model=model, input="What is 40 + 2?", instructions="Be brief.", reasoning={"effort": "low"}, temperature=0
    )
    assert response.instructions == "Be brief."
    assert response.reasoning.effort == "low"
    response = client.responses.create(model=model, input=SUM, reasoning={"effort": "none"}, temperature=0)
    assert response.reasoning.effort == "low", "there is none below"
    assert response.status == "completed"


def test_events_come_in_order_and_add_up(client, model):
    stream = client.responses.create(model=model, input=SUM, temperature=0, stream=True)
    events = list(stream)
    for event in events:
        EVENTS.validate_json(event.model_dump_json(exclude_unset=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == "response.completed"
    assert types.count("response.output_item.added") == types.count("response.output_item.done") == 2
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3, "it comes in pieces"
    assert "".join(deltas) == SUM_ANSWER
    [done] = [event for event in events if event.type == "response.output_text.done"]
    assert done.text == SUM_ANSWER
    reasoning = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    final = events[-1].response
    assert final.output[0].content[0].text == reasoning
    assert final.output_text == SUM_ANSWER
    assert final.id == events[0].response.id


def test_the_streaming_helper_ends_with_the_same_response(client, model):
    with client.responses.stream(model=model, input=SUM, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == SUM_ANSWER


def test_a_previous_response_is_carried_on(client, model):
    first = client.responses.create(model=model, input="Translate 'seven' to French.", temperature=0)
    second = client.responses.create(
        model=model, input="And in German?", previous_response_id=first.id, temperature=0
    )
    assert second.output_text == '"seven" in German is "sieben".'
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens


def test_a_conversation_goes_back_as_it_came(client, model):
    first = client.responses.create(model=model, input="What is 12 + 30?", temperature=0, store=False)
    history = [{"role": "user", "content": "What is 12 + 30?"}]
    history += [item.model_dump(exclude_none=True) for item in first.output]
    history += [{"role": "user", "content": "Thanks!"}]
    second = client.responses.create(model=model, input=history, temperature=0, store=False)
    assert second.output_text == "You are welcome!"


@pytest.mark.parametrize("carried", ["by id", "by hand", "as Codex does"])
def test_a_tool_is_called_answered_and_its_result_put_into_words(client, model, carried):
    include = ["reasoning.encrypted_content"]
    asked = client.responses.create(model=model, input=PARIS, tools=TOOLS, temperature=0, include=include)
    [call] = [item for item in asked.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert asked.status == "completed"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": PARIS_RESULT}
    if carried == "by id":
        more = {"input": [result], "previous_response_id": asked.id}
    else:
        past = [item.model_dump(exclude_none=True) for item in asked.output]
        for item in past:
            if carried == "as Codex does" and item["type"] == "reasoning":
                del item["content"]
        more = {"input": [{"role": "user", "content": PARIS}, *past, result]}
    answered = client.responses.create(model=model, tools=TOOLS, temperature=0, **more)
    assert answered.output_text == PARIS_ANSWER


def test_a_call_is_streamed_in_pieces(client, model):
    events = list(client.responses.create(model=model, input=PARIS, tools=TOOLS, temperature=0, stream=True))
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert json.loads(arguments) == {"city": "Paris"} == json.loads(done.arguments)
    [call] = [item for item in events[-1].response.output if item.type == "function_call"]
    assert (call.name, call.arguments) == ("get_weather", arguments)


def test_required_calls_even_where_the_model_would_not(client, model):
    response = client.responses.create(
        model=model, input=HELLO, tools=TOOLS, tool_choice="required", temperature=0, max_output_tokens=300
    )
    [call] = [item for item in response.output if item.type == "function_call"]
    assert isinstance(json.loads(call.arguments)["city"], str)


def test_a_limit_leaves_a_response_incomplete(client, model):
    response = client.responses.create(model=model, input=SUM, temperature=0, max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model=model, input=SUM, temperature=0, max_output_tokens=16, stream=True))
    assert events[-1].type == "response.incomplete"


def test_logprobs_are_included_on_request(client, model):
    response = client.responses.create(
        model=model, input=HELLO, temperature=0, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    [part] = response.output[-1].content
    assert "".join(entry.token for entry in part.logprobs) == part.text == HELLO_ANSWER
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_stored_responses_are_found_listed_and_deleted(client, model):
    kept = client.responses.create(model=model, input=HELLO, temperature=0, metadata={"case": "kept"})
    found = client.responses.retrieve(kept.id)
    assert (found.output_text, found.metadata) == (HELLO_ANSWER, {"case": "kept"})
    assert client.responses.retrieve(kept.id, include=["reasoning.encrypted_content"]) == found
    [item] = client.responses.input_items.list(kept.id, include=["reasoning.encrypted_content"]).data
    assert (item.type, item.role, item.content[0].text) == ("message", "user", HELLO)
    client.responses.delete(kept.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)
    unkept = client.responses.create(model=model, input=HELLO, temperature=0, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_only_background_responses_can_be_cancelled(client, model):
    kept = client.responses.create(model=model, input=HELLO, temperature=0)
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.cancel(kept.id)
    assert "background" in error.value.message


def test_an_unknown_previous_response_is_named(client, model):
    with pytest.raises(openai.NotFoundError) as error:
        client.responses.create(model=model, input=HELLO, previous_response_id="resp_nobody")
    assert error.value.param == "previous_response_id"


REFUSED = [
    ("background", {"background": True}),
    ("truncation", {"truncation": "auto"}),
    ("conversation", {"conversation": "conv_1"}),
    ("tools[0].type", {"tools": [{"type": "custom"}]}),
    ("nonsense", {"extra_body": {"nonsense": 1}}),
]


@pytest.mark.parametrize("param, parameters", REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_not_there_is_refused_by_name(client, model, param, parameters):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model=model, input=HELLO, **parameters)
    assert error.value.param == param
