"""Seeds, choices, logprobs, and what else changes how tokens are chosen, by OpenAI's Python package."""

import math

import pytest

from conftest import HELLO, HELLO_ANSWER, user

# Hot enough that two answers are hardly ever the same.
HOT = {"temperature": 2, "max_tokens": 40}


def texts(answer):
    return [(choice.message.reasoning, choice.message.content) for choice in answer.choices]


def test_the_same_seed_gives_the_same_tokens(client, model):
    ask = lambda seed: texts(client.chat.completions.create(model=model, messages=user(HELLO), seed=seed, **HOT))
    assert ask(7) == ask(7)
    assert ask(7) != ask(8)
    assert ask(-1) == ask(-1), "seeds are signed"


def test_n_choices_are_counted_once_for_the_prompt(client, model):
    one = client.chat.completions.create(model=model, messages=user(HELLO), seed=7, **HOT)
    three = client.chat.completions.create(model=model, messages=user(HELLO), seed=7, n=3, **HOT)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert texts(three)[0] == texts(one)[0], "the first choice is that of n=1"
    assert len(set(texts(three))) > 1
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens > one.usage.completion_tokens


def check_content_logprobs(entries, content, top):
    assert "".join(entry.token for entry in entries) == content
    assert bytes(byte for entry in entries for byte in entry.bytes) == content.encode()
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == top
        likelihoods = [candidate.logprob for candidate in entry.top_logprobs]
        assert likelihoods == sorted(likelihoods, reverse=True)
        if top:
            assert entry.top_logprobs[0].token == entry.token, "at temperature 0 the likeliest token is chosen"
            assert sum(map(math.exp, likelihoods)) <= 1 + 1e-4


@pytest.mark.parametrize("top", [0, 3, 20])
def test_logprobs_stand_beside_the_content(client, model, top):
    answer = client.chat.completions.create(
        model=model, messages=user(HELLO), temperature=0, logprobs=True, top_logprobs=top
    )
    choice = answer.choices[0]
    assert choice.message.content == HELLO_ANSWER
    check_content_logprobs(choice.logprobs.content, choice.message.content, top)


def test_logprobs_are_left_out_unless_asked_for(client, model):
    answer = client.chat.completions.create(model=model, messages=user(HELLO), temperature=0)
    assert answer.choices[0].logprobs is None


def test_logprobs_are_streamed_with_their_text(client, model):
    stream = client.chat.completions.create(
        model=model, messages=user(HELLO), temperature=0, logprobs=True, top_logprobs=2, stream=True
    )
    entries = []
    for chunk in stream:
        choice = chunk.choices[0]
        if choice.logprobs is not None:
            entries.extend(choice.logprobs.content)
    check_content_logprobs(entries, HELLO_ANSWER, 2)


def test_a_logit_bias_forbids_a_token(client, http, model):
    body = {"prompt": HELLO, "add_special_tokens": False, "return_token_strs": True}
    answer = http.post("/tokenize", json=body).json()
    token, name = answer["tokens"][0], answer["token_strs"][0]
    ask = {"model": model, "messages": user(HELLO), "temperature": 0, "reasoning_effort": "low", "logprobs": True}
    plain = client.chat.completions.create(**ask)
    assert plain.choices[0].logprobs.content[0].token == name, "it begins its answer as it was asked"
    biased = client.chat.completions.create(**ask, max_tokens=60, logit_bias={str(token): -100})
    # The model may spell the word by other tokens.
    assert name not in [entry.token for entry in biased.choices[0].logprobs.content]


PARAMETERS = [
    {"presence_penalty": 1.5},
    {"frequency_penalty": 1.5},
    {"top_p": 0.5},
    {"extra_body": {"top_k": 1}},
    {"extra_body": {"min_p": 0.2}},
    {"extra_body": {"repetition_penalty": 1.3}},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda parameters: str(parameters))
def test_parameters_of_sampling_are_taken(client, model, parameters):
    answer = client.chat.completions.create(
        model=model, messages=user(HELLO), seed=1, max_tokens=40, reasoning_effort="low", **parameters
    )
    assert answer.usage.completion_tokens > 0


def test_top_k_of_one_is_greedy_however_hot(client, model):
    answer = client.chat.completions.create(
        model=model, messages=user(HELLO), temperature=2, seed=5, extra_body={"top_k": 1}
    )
    assert answer.choices[0].message.content == HELLO_ANSWER


def test_an_answer_has_its_least_length(client, model):
    """vLLM's min_tokens: the demo model would stop sooner."""
    ask = lambda **more: client.chat.completions.create(model=model, messages=user(HELLO), max_tokens=300, temperature=0, **more)
    short = ask().usage.completion_tokens
    longer = ask(extra_body={"min_tokens": short + 10}).usage.completion_tokens
    assert short + 10 <= longer <= 300, f"{short} without"
