"""An agents library over the server: openai-agents, by /v1/responses as it does by default, and by chat. Its
tracing would go to OpenAI's servers; it is off."""

from typing import Literal

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

from conftest import HELLO, HELLO_ANSWER, PARIS, PARIS_ANSWER, PARIS_RESULT

set_tracing_disabled(True)
TURNS_MAX = 4
MODELS = [OpenAIResponsesModel, OpenAIChatCompletionsModel]


def weather_tool(asked):
    @function_tool(strict_mode=False)
    def get_weather(city: str) -> str:
        """Gets the current weather in a city.

        Args:
            city: Name of the city
        """
        asked.append(city)
        return PARIS_RESULT

    return get_weather


def agent(kind, client, model, tools=(), **more):
    settings = ModelSettings(temperature=0, max_tokens=400)
    over = kind(model=model, openai_client=client)
    return Agent(name="Demo", model=over, model_settings=settings, tools=list(tools), **more)


@pytest.mark.parametrize("kind", MODELS)
async def test_an_agent_answers(async_client, model, kind):
    result = await Runner.run(agent(kind, async_client, model), HELLO, max_turns=TURNS_MAX)
    assert result.final_output == HELLO_ANSWER


@pytest.mark.parametrize("kind", MODELS)
async def test_an_agent_uses_its_tool_and_answers(async_client, model, kind):
    asked = []
    result = await Runner.run(agent(kind, async_client, model, [weather_tool(asked)]), PARIS, max_turns=TURNS_MAX)
    assert asked == ["Paris"]
    assert result.final_output == PARIS_ANSWER


@pytest.mark.parametrize("kind", MODELS)
async def test_a_streamed_agent_uses_its_tool_and_answers(async_client, model, kind):
    asked = []
    over = agent(kind, async_client, model, [weather_tool(asked)])
    result = Runner.run_streamed(over, PARIS, max_turns=TURNS_MAX)
    kinds = {event.type async for event in result.stream_events()}
    assert {"raw_response_event", "run_item_stream_event"} <= kinds
    assert (asked, result.final_output) == (["Paris"], PARIS_ANSWER)


@pytest.mark.parametrize("kind", MODELS)
async def test_an_agent_with_a_typed_output(async_client, model, kind):
    class Mood(BaseModel):
        mood: Literal["good", "bad"]

    result = await Runner.run(agent(kind, async_client, model, output_type=Mood), HELLO, max_turns=TURNS_MAX)
    assert isinstance(result.final_output, Mood)


async def test_a_second_turn_knows_the_first(async_client, model):
    over = agent(OpenAIResponsesModel, async_client, model)
    first = await Runner.run(over, "What is 12 + 30?", max_turns=TURNS_MAX)
    history = first.to_input_list() + [{"role": "user", "content": "Thanks!"}]
    second = await Runner.run(over, history, max_turns=TURNS_MAX)
    assert second.final_output == "You are welcome!"
