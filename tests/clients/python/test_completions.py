"""Raw completions, models and tokens, by OpenAI's Python package and plain HTTP."""

from openai.types import Completion

from conftest import HELLO_ANSWER

# Harmony by hand: special tokens are recognised in a raw prompt.
PROMPT = "<|start|>user<|message|>Hello!<|end|><|start|>assistant<|channel|>final<|message|>"


def test_a_prompt_is_continued(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=60)
    choice = answer.choices[0]
    assert choice.text.startswith("Hello!"), choice.text
    assert choice.finish_reason == "stop"
    Completion.model_validate_json(answer.model_dump_json())


def test_a_prompt_is_continued_in_a_stream(client, model):
    whole = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=60)
    chunks = list(client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=60, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_prompts_as_text_or_tokens(client, http, model):
    tokens = http.post("/tokenize", json={"prompt": PROMPT, "add_special_tokens": False}).json()["tokens"]
    two = client.completions.create(model=model, prompt=[PROMPT, PROMPT], temperature=0, max_tokens=9)
    ids = client.completions.create(model=model, prompt=tokens, temperature=0, max_tokens=9)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert len({choice.text for choice in [*two.choices, *ids.choices]}) == 1
    assert ids.choices[0].finish_reason == "length"


def test_echo_puts_the_prompt_before_the_text(client, model):
    answer = client.completions.create(model=model, prompt="One two three", temperature=0, max_tokens=3, echo=True)
    assert answer.choices[0].text.startswith("One two three")
    assert len(answer.choices[0].text) > len("One two three")


def test_logprobs_of_completions(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=8, logprobs=2)
    logprobs, text = answer.choices[0].logprobs, answer.choices[0].text
    assert "".join(logprobs.tokens) == text
    assert len(logprobs.token_logprobs) == len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
    assert all(logprob <= 0 for logprob in logprobs.token_logprobs)
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        start = offset - logprobs.text_offset[0]
        assert text[start : start + len(token)] == token


def test_ignore_eos_goes_on_to_the_limit(client, model):
    answer = client.completions.create(
        model=model, prompt=PROMPT, temperature=0, max_tokens=100, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 100
    assert answer.choices[0].finish_reason == "length"


def test_models_are_listed_and_found(client, model):
    assert [entry.id for entry in client.models.list()] == [model]
    found = client.models.retrieve(model)
    assert (found.id, found.object) == (model, "model")
    assert found.max_model_len > 0


def test_tokens_there_and_back(http):
    text = "Hello, où ça ? 😀"
    there = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False, "return_token_strs": True})
    assert there.status_code == 200, there.text
    answer = there.json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] > answer["count"]
    back = http.post("/detokenize", json={"tokens": answer["tokens"]})
    assert (back.status_code, back.json()) == (200, {"prompt": text})


def test_a_chat_is_tokenized_as_it_would_be_prompted(http, client, model):
    messages = [{"role": "user", "content": "Hello!"}]
    count = http.post("/tokenize", json={"messages": messages}).json()["count"]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
    assert answer.choices[0].message.content == HELLO_ANSWER
    assert answer.usage.prompt_tokens == count
