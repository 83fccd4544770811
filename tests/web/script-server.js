// A server of the test's own: it has the real pages, and answers the API as a test says. For what a real
// model does not do on demand: markup in its answers, an answer without an end, every kind of refusal.
//
// Pages come from the program under test, with its headers. A program from before the pages existed has none;
// then they come from the folder, so that they can be worked on without building Rust.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import path from 'node:path';

const TYPES = { html: 'text/html; charset=utf-8', css: 'text/css', js: 'text/javascript', svg: 'image/svg+xml' };

export class ScriptServer {
  /** `upstream`: the program's address. `root`: the repository's folder, if pages come from there. */
  constructor(upstream, root) {
    Object.assign(this, { upstream, root });
    this.reset();
    this.server = createServer((request, response) => {
      this.handle(request, response).catch((error) => response.destroy(error));
    });
  }

  /** Every test begins with a server that knows nothing. */
  reset() {
    /** async function*(body): deltas, or {error}; its `return` ends the stream, 'break' cuts it. */
    this.chat = async function* () {
      yield { content: 'Hello.' };
    };
    /** (request) => {status, headers, body}, instead of a chat's answer. */
    this.refuse = null;
    this.cluster = null;
    /** (request) => whether a key is missing. */
    this.locked = null;
    /** Whether only a proxy answers, with 502. */
    this.gone = false;
    this.passThrough = false;
    this.bodies = [];
    this.authorizations = [];
    this.left = 0;
  }

  async start() {
    await new Promise((resolve) => this.server.listen(0, '127.0.0.1', resolve));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
    return this;
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  async handle(request, response) {
    const { pathname } = new URL(request.url, this.url);
    if (pathname === '/' || pathname === '/cluster' || pathname.startsWith('/web/')) return this.page(pathname, response);
    if (this.passThrough) return this.pass(request, response);
    if (this.gone) return json(response, 502, {});
    if (pathname === '/v1/models' && this.locked?.(request)) return json(response, 401, { error: { message: 'a key is needed' } });
    if (pathname === '/v1/models') return json(response, 200, { object: 'list', data: [{ id: 'scripted' }] });
    if (pathname === '/health') return json(response, 200, { status: 'ready' });
    if (pathname === '/v1/cluster') return this.state(request, response);
    if (pathname === '/v1/chat/completions') return this.complete(request, response);
    json(response, 404, { error: { message: `there is nothing at ${pathname}`, code: 'not_found' } });
  }

  async page(pathname, response) {
    if (this.root) return this.file(pathname, response);
    const answer = await fetch(this.upstream + pathname);
    const headers = Object.fromEntries([...answer.headers].filter(([name]) => !/^(date|connection|transfer|content-length)/.test(name)));
    response.writeHead(answer.status, headers).end(Buffer.from(await answer.arrayBuffer()));
  }

  async file(pathname, response) {
    const names = { '/': 'index.html', '/cluster': 'cluster.html' };
    const name = names[pathname] ?? pathname.slice('/web/'.length);
    const source = await readFile(path.join(this.root, 'coordinator/src/api/page.rs'), 'utf8');
    const policy = /CONTENT_SECURITY_POLICY: &str = "([^"]+)"/.exec(source)[1].replace(/\\\s+/g, '');
    const bytes = await readFile(path.join(this.root, 'coordinator/web', path.normalize(`/${name}`))).catch(() => null);
    if (!bytes) return json(response, 404, { error: { message: `no ${name}` } });
    response.writeHead(200, { 'content-type': TYPES[name.split('.').at(-1)], 'content-security-policy': policy }).end(bytes);
  }

  async pass(request, response) {
    const body = request.method === 'POST' ? await bodyOf(request) : undefined;
    const answer = await fetch(this.upstream + request.url, { method: request.method, headers: { 'content-type': 'application/json' }, body });
    response.writeHead(answer.status, { 'content-type': answer.headers.get('content-type') });
    for await (const piece of answer.body) response.write(piece);
    response.end();
  }

  state(request, response) {
    this.authorizations.push(request.headers.authorization ?? null);
    const answer = this.cluster?.(request);
    if (!answer) return json(response, 404, { error: { message: 'there is nothing at /v1/cluster', code: 'not_found' } });
    if (answer.status >= 400) return json(response, answer.status, answer.body);
    json(response, 200, answer);
  }

  async complete(request, response) {
    const body = JSON.parse(await bodyOf(request));
    this.bodies.push(body);
    this.authorizations.push(request.headers.authorization ?? null);
    const refusal = this.refuse?.(body);
    if (refusal) return json(response, refusal.status, refusal.body, refusal.headers);
    response.on('close', () => response.writableFinished || (this.left += 1));
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    await this.stream(body, response);
  }

  async stream(body, response) {
    let tokens = 0;
    const send = (event) => response.write(`data: ${JSON.stringify(event)}\n\n`);
    for await (const delta of this.chat(body)) {
      if (response.destroyed) return;
      if (delta === 'break') return response.destroy();
      if (delta.error) return response.end(`data: ${JSON.stringify(delta)}\n\ndata: [DONE]\n\n`);
      tokens += 1;
      send({ choices: [{ index: 0, delta, finish_reason: null }], usage: usage(tokens) });
    }
    send({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }], usage: usage(tokens) });
    response.end('data: [DONE]\n\n');
  }
}

function usage(tokens) {
  return { prompt_tokens: 20, completion_tokens: tokens, prompt_tokens_details: { cached_tokens: 16 } };
}

function json(response, status, body, headers = {}) {
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
}

async function bodyOf(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}
