// The server, as the pages call it: same origin, JSON, a key if there is one. What goes wrong is one kind of
// error, `Problem`, that says what the server said; wording it for people is the page's.

import { events } from './sse.js';

const KEY = 'flotilla.key';

export class Problem extends Error {
  /** `code` is the server's word, or 'network' and 'cut' for what happened on the way. */
  constructor({ message, status = 0, code = null, param = null, retryAfterSeconds = null }) {
    super(message);
    Object.assign(this, { status, code, param, retryAfterSeconds });
  }
}

export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? '';
  } catch {
    return '';
  }
}

export function setApiKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // No storage, no key: the server will say that it wants one.
  }
}

export async function getJson(path, signal) {
  const response = await request(path, { signal });
  return await response.json();
}

/** The chunks of a chat's answer, in order. Ends with a Problem where the server did not come to an end. */
export async function* chat(body, signal) {
  const response = await request('v1/chat/completions', { method: 'POST', body: JSON.stringify(body), signal });
  try {
    for await (const data of events(response.body)) {
      if (data === '[DONE]') return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw problemOf(chunk.error, { status: response.status });
      yield chunk;
    }
  } catch (error) {
    throw passing(error, 'cut');
  }
  throw new Problem({ message: 'the stream ended without its end mark', code: 'cut' });
}

async function request(path, options) {
  const headers = { 'content-type': 'application/json' };
  if (apiKey()) headers.authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: 'no-store', credentials: 'omit' });
  } catch (error) {
    throw passing(error, 'network');
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** An abort is the user's wish and a Problem is told already; anything else happened on the way. */
function passing(error, code) {
  if (error.name === 'AbortError' || error instanceof Problem) return error;
  return new Problem({ message: error.message, code });
}

async function refusal(response) {
  const retryAfter = Number.parseInt(response.headers.get('retry-after') ?? '', 10);
  const extra = { status: response.status, retryAfterSeconds: Number.isNaN(retryAfter) ? null : retryAfter };
  const text = await response.text().catch(() => '');
  try {
    return problemOf(JSON.parse(text).error, extra);
  } catch {
    return new Problem({ message: text.slice(0, 500) || response.statusText, ...extra });
  }
}

function problemOf({ message, code, param }, extra) {
  return new Problem({ message, code, param, ...extra });
}
