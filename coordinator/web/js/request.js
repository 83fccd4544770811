// The body of a request, from a conversation and the settings. Pure. A setting that is not set is not sent,
// so the server's default holds; what it does not know it refuses by name, and the page shows that.

export const WEATHER = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'Gets the current weather in a city.',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string', description: 'Name of the city' } },
      required: ['city'],
    },
  },
};

/** What the page proposes as a tool's result. */
export const WEATHER_SAMPLE = '{"temperature":14,"condition":"cloudy"}';

export const SAMPLING = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'];

export function requestBody(messages, settings, model) {
  const body = {
    model,
    messages: [...instructions(settings), ...messages.flatMap(wireMessages)],
    reasoning_effort: settings.effort,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  if (!model) delete body.model;
  for (const name of SAMPLING) {
    if (settings[name] !== null && settings[name] !== undefined) body[name] = settings[name];
  }
  if (settings.offerWeather) body.tools = [WEATHER];
  return body;
}

function instructions({ system }) {
  return system?.trim() ? [{ role: 'system', content: system }] : [];
}

/** A message of the page is one of the API, and behind calls the results. What has neither text nor results is none. */
function wireMessages(message) {
  if (message.role === 'user') return [{ role: 'user', content: message.content }];
  const calls = message.calls.every((call) => call.result !== undefined) ? message.calls : [];
  if (calls.length === 0) return message.content ? [{ role: 'assistant', content: message.content }] : [];
  const assistant = {
    role: 'assistant',
    content: message.content || null,
    tool_calls: calls.map(({ id, name, arguments: text }) => ({
      id,
      type: 'function',
      function: { name, arguments: text },
    })),
  };
  // While a call is open, the model is shown what it thought.
  if (message.reasoning) assistant.reasoning = message.reasoning;
  return [assistant, ...calls.map(({ id, result }) => ({ role: 'tool', tool_call_id: id, content: result }))];
}
