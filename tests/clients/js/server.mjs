// What the tests here work with: OpenAI's package over the servers that run.sh started.

import assert from 'node:assert/strict';
import OpenAI from 'openai';

const REST_MS_MAX = 10_000;

function address(variable) {
  const url = process.env[variable];
  assert.ok(url, `${variable} is not set: run.sh says why the server did not start`);
  return url;
}

export const url = () => address('FLOTILLA_URL');

// No second tries: the first answer is what is tested.
export const clientOf = (base, apiKey = 'none') =>
  new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });

export const client = () => clientOf(url());
export const keyed = (key) => clientOf(address('FLOTILLA_KEYED_URL'), key);

export const user = (content) => [{ role: 'user', content }];
export const model = 'flotilla-demo';

export const weather = {
  name: 'get_weather',
  description: 'Gets the current weather in a city.',
  parameters: {
    type: 'object',
    properties: { city: { type: 'string', description: 'Name of the city' } },
    required: ['city'],
  },
};

async function running() {
  const answer = await fetch(`${url()}/v1/cluster`);
  assert.equal(answer.status, 200, '/v1/cluster');
  const { load } = await answer.json();
  return load.running + load.waiting;
}

export async function waitForRunning(wanted, what) {
  const deadline = Date.now() + REST_MS_MAX;
  for (;;) {
    const found = await running();
    if (found === wanted) return;
    assert.ok(Date.now() < deadline, `${what}: expected ${wanted} running, found ${found} after ${REST_MS_MAX} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
