// Chat by OpenAI's package for JavaScript.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { client, model, user, waitForRunning, weather } from './server.mjs';

const SUM = user('What is 27 + 48?');
const SUM_ANSWER = '27 + 48 = 75.';
const PARIS = user('What is the weather in Paris?');
const tools = [{ type: 'function', function: weather }];
const exact = { model, temperature: 0 };

test('an answer comes whole', async () => {
  const answer = await client().chat.completions.create({ ...exact, messages: SUM });
  assert.equal(answer.choices[0].message.content, SUM_ANSWER);
  assert.equal(answer.choices[0].finish_reason, 'stop');
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test('a stream adds up to the whole answer, and usage comes last', async () => {
  const stream = await client().chat.completions.create({
    ...exact,
    messages: SUM,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 0);
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join(''), SUM_ANSWER);
});

test('the streaming helper ends with the same content', async () => {
  const stream = client().chat.completions.stream({ ...exact, messages: SUM });
  assert.equal(await stream.finalContent(), SUM_ANSWER);
});

test('the helper for tools runs the whole cycle', async () => {
  const asked = [];
  const tool = {
    type: 'function',
    function: {
      ...weather,
      parse: JSON.parse,
      function: ({ city }) => {
        asked.push(city);
        return '{"temperature":14,"condition":"cloudy"}';
      },
    },
  };
  const runner = client().chat.completions.runTools({ ...exact, messages: PARIS, tools: [tool] }, { maxChatCompletions: 3 });
  assert.equal(await runner.finalContent(), 'In Paris: 14 °C, cloudy.');
  assert.deepEqual(asked, ['Paris']);
});

test('a call is streamed in pieces', async () => {
  const stream = client().chat.completions.stream({ ...exact, messages: PARIS, tools });
  const { choices } = await stream.finalChatCompletion();
  assert.equal(choices[0].finish_reason, 'tool_calls');
  assert.deepEqual(JSON.parse(choices[0].message.tool_calls[0].function.arguments), { city: 'Paris' });
});

test('an answer is parsed into a form', async () => {
  const form = z.object({ language: z.enum(['English', 'French']), polite: z.boolean() });
  const answer = await client().chat.completions.parse({
    ...exact,
    max_tokens: 400,
    messages: user('Hello!'),
    response_format: zodResponseFormat(form, 'greeting'),
  });
  const { parsed } = answer.choices[0].message;
  assert.ok(form.safeParse(parsed).success, `found ${answer.choices[0].message.content}`);
});

test('logprobs stand beside the content', async () => {
  const answer = await client().chat.completions.create({ ...exact, messages: SUM, logprobs: true, top_logprobs: 2 });
  const entries = answer.choices[0].logprobs.content;
  assert.equal(entries.map((entry) => entry.token).join(''), SUM_ANSWER);
  assert.ok(entries.every((entry) => entry.logprob <= 0 && entry.top_logprobs.length === 2));
});

test('the same seed gives the same tokens, and n gives as many choices', async () => {
  const ask = async (seed, n) => {
    const answer = await client().chat.completions.create({
      model, messages: user('Hello!'), temperature: 2, max_tokens: 40, seed, n,
    });
    return answer.choices.map(({ message }) => `${message.reasoning}|${message.content}`);
  };
  const [once, again, other] = [await ask(7, 2), await ask(7, 2), await ask(8, 2)];
  assert.equal(once.length, 2);
  assert.deepEqual(once, again);
  assert.notDeepEqual(once, other);
});

test('aborting a stream frees its work', async () => {
  await waitForRunning(0, 'before');
  const stream = await client().chat.completions.create({
    model, messages: user('Hello!'), stream: true, max_tokens: 16_000, ignore_eos: true,
  });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break;
  }
  stream.controller.abort();
  await waitForRunning(0, 'after the client left');
});

test('a raw prompt is continued', async () => {
  const answer = await client().completions.create({ ...exact, prompt: 'One two three', max_tokens: 4 });
  assert.equal(answer.usage.completion_tokens, 4);
});

test('models are listed', async () => {
  const found = [];
  for await (const entry of client().models.list()) found.push(entry.id);
  assert.deepEqual(found, [model]);
});
