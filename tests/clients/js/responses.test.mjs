// OpenAI's Responses API by OpenAI's package for JavaScript.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { client, model, weather } from './server.mjs';

const exact = { model, temperature: 0 };
const tools = [{ type: 'function', strict: false, ...weather }];

test('a response comes whole', async () => {
  const response = await client().responses.create({ ...exact, input: 'What is 27 + 48?' });
  assert.equal(response.output_text, '27 + 48 = 75.');
  assert.deepEqual(response.output.map((item) => item.type), ['reasoning', 'message']);
});

test('events come in order and add up', async () => {
  const stream = await client().responses.create({ ...exact, input: 'What is 27 + 48?', stream: true });
  const events = [];
  for await (const event of stream) events.push(event);
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  assert.equal(events[0].type, 'response.created');
  assert.equal(events.at(-1).type, 'response.completed');
  const text = events.filter((event) => event.type === 'response.output_text.delta').map((event) => event.delta);
  assert.equal(text.join(''), '27 + 48 = 75.');
});

test('the streaming helper ends with the same response', async () => {
  const stream = client().responses.stream({ ...exact, input: 'What is 27 + 48?' });
  for await (const event of stream) assert.ok(event.type);
  assert.equal((await stream.finalResponse()).output_text, '27 + 48 = 75.');
});

test('a tool is called, and its result is carried on by id', async () => {
  const asked = await client().responses.create({ ...exact, input: 'What is the weather in Paris?', tools });
  const call = asked.output.find((item) => item.type === 'function_call');
  assert.ok(call, `no call in ${JSON.stringify(asked.output)}`);
  assert.deepEqual(JSON.parse(call.arguments), { city: 'Paris' });
  const result = { type: 'function_call_output', call_id: call.call_id, output: '{"temperature":14,"condition":"cloudy"}' };
  const answered = await client().responses.create({ ...exact, input: [result], previous_response_id: asked.id, tools });
  assert.equal(answered.output_text, 'In Paris: 14 °C, cloudy.');
});

test('a response is parsed into a form', async () => {
  const form = z.object({ language: z.enum(['English', 'French']), polite: z.boolean() });
  const response = await client().responses.parse({
    ...exact,
    max_output_tokens: 400,
    input: 'Hello!',
    text: { format: zodTextFormat(form, 'greeting') },
  });
  assert.ok(form.safeParse(response.output_parsed).success, `found ${response.output_text}`);
});

test('a stored response is found and deleted', async () => {
  const kept = await client().responses.create({ ...exact, input: 'Hello!' });
  assert.equal((await client().responses.retrieve(kept.id)).id, kept.id);
  await client().responses.delete(kept.id);
  await assert.rejects(client().responses.retrieve(kept.id), { status: 404 });
});
