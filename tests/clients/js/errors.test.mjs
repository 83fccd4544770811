// What OpenAI's package for JavaScript makes of our refusals.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { client, keyed, model, user } from './server.mjs';

const ask = (over, more = {}) =>
  over.chat.completions.create({ model, messages: user('Hello!'), max_tokens: 1, ...more });

test('bad requests name the parameter', async () => {
  for (const [param, wrong] of [['temperature', 3], ['nonsense', 1], ['n', 1000]]) {
    await assert.rejects(ask(client(), { [param]: wrong }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError, `${param}: ${error}`);
      assert.equal(error.param, param);
      assert.ok(error.requestID);
      return true;
    });
  }
});

test('a form that no text is of is unprocessable', async () => {
  const schema = { type: 'integer', minimum: 5, maximum: 4 };
  const response_format = { type: 'json_schema', json_schema: { name: 'form', strict: true, schema } };
  await assert.rejects(ask(client(), { response_format }), (error) => {
    assert.ok(error instanceof OpenAI.UnprocessableEntityError, `${error}`);
    assert.equal(error.code, 'grammar_unsatisfiable');
    assert.equal(error.param, 'response_format.json_schema.schema');
    return true;
  });
});

test('other models are not found', async () => {
  await assert.rejects(ask(client(), { model: 'gpt-4o' }), OpenAI.NotFoundError);
});

test('a wrong key is no key', async () => {
  await assert.rejects(ask(keyed('sk-wrong')), OpenAI.AuthenticationError);
});

test('the right key is served', async () => {
  const answer = await ask(keyed(process.env.FLOTILLA_KEY_free));
  assert.equal(answer.usage.completion_tokens, 1);
});

test('requests per minute are limited, and the refusal says when to come back', async () => {
  const over = keyed(process.env.FLOTILLA_KEY_slow);
  const refused = (async () => {
    for (let request = 0; request < 3; request += 1) await ask(over);
  })();
  await assert.rejects(refused, (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError, `${error}`);
    assert.ok(Number(error.headers.get('retry-after')) >= 1);
    return true;
  });
});
