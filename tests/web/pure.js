// What of the pages needs no browser: Markdown as a tree, the stream's lines, the request, the answer that
// grows, rates, and that both languages say everything.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { Receiving, emptyAnswer } from '../../coordinator/web/js/answer.js';
import { Rates } from '../../coordinator/web/js/cluster/rates.js';
import { thoughtWords } from '../../coordinator/web/js/message.js';
import { parseInline } from '../../coordinator/web/js/markdown/inline.js';
import { MarkdownStream, parseMarkdown } from '../../coordinator/web/js/markdown/stream.js';
import { requestBody } from '../../coordinator/web/js/request.js';
import { Lines } from '../../coordinator/web/js/sse.js';
import { english } from '../../coordinator/web/js/words-en.js';
import { french } from '../../coordinator/web/js/words-fr.js';
import { test } from './check.js';

/** A tree as one line: p(text em(text)). */
function line(nodes) {
  return nodes.map((node) => {
    if (typeof node === 'string') return node;
    const extra = node.href ?? node.language ?? node.start ?? (node.done === undefined ? '' : node.done ? 'x' : 'o');
    const inner = node.text ?? line(node.children ?? []);
    return `${node.tag}${extra === '' ? '' : `[${extra}]`}(${inner})`;
  }).join('');
}

function open(text) {
  const stream = new MarkdownStream();
  stream.update(text, true);
  return line([...stream.finished, ...stream.last]);
}

const WHOLE = [
  ['# A *b* #', 'h1(A em(b))'],
  ['one\ntwo\n\nthree', 'p(onebr()two)p(three)'],
  ['**a *b* c** `d*e*` ~~f~~', 'p(strong(a em(b) c) code(d*e*) del(f))'],
  ['***a***', 'p(em(strong(a)))'],
  ['snake_case_name and 2 * 3 * 4', 'p(snake_case_name and 2 * 3 * 4)'],
  ['``a`b``', 'p(code(a`b))'],
  ['\\*a\\* \\(x_1 * y\\)', 'p(*a* math(\\(x_1 * y\\)))'],
  ['[a **b**](https://x.org/a_(b) "t")', 'p(a[https://x.org/a_(b)](a strong(b)))'],
  ['see https://x.org/a. And (https://y.org)', 'p(see a[https://x.org/a](https://x.org/a). And (a[https://y.org/](https://y.org)))'],
  ['[https://a.org](https://b.org) [<https://a.org>](https://b.org)', 'p(a[https://b.org/](https://a.org) a[https://b.org/](https://a.org))'],
  ['[![cat](https://x.org/cat.png)](https://y.org)', 'p(a[https://y.org/](cat))'],
  ['![https://a.org](https://b.org)', 'p(a[https://b.org/](https://a.org))'],
  ['![cat](https://x.org/cat.png)', 'p(a[https://x.org/cat.png](cat))'],
  ['- a\n- b\n  - c\n\n  d\n- [x] e', 'ul(li(p(a))li(p(b)ul(li(p(c)))p(d))li[x](p(e)))'],
  ['2. a\n3. b', 'ol[2](li(p(a))li(p(b)))'],
  ['1. a\n  - b\n2. c', 'ol[1](li(p(a)ul(li(p(b))))li(p(c)))'],
  ['1. a\n   ```js\n   x\n\n  y\n   ```\n2. b', 'ol[1](li(p(a)fence[js](x\n\ny))li(p(b)))'],
  ['In\n1986. it was', 'p(Inbr()1986. it was)'],
  ['> a\n> > b\n\nc', 'blockquote(p(a)blockquote(p(b)))p(c)'],
  ['```py\na < b\n# no *em*\n```\nz', 'fence[py](a < b\n# no *em*)p(z)'],
  ['````\n```\n````', 'fence(```)'],
  ['```make\nall:\n\techo\t"hi"\n```', 'fence[make](all:\n\techo\t"hi")'],
  ['- a\n  ```make\n  all:\n  \techo\n  ```', 'ul(li(p(a)fence[make](all:\n\techo)))'],
  ['1. a\n\t```\n\tx\n\t\ty\n\t```', 'ol[1](li(p(a)fence(x\n\ty)))'],
  ['> ```\n> \tx\n> ```', 'blockquote(fence(\tx))'],
  ['-\ta\n\t-\tb\n>\t# c', 'ul(li(p(a)ul(li(p(b)))))blockquote(h1(c))'],
  ['a\n\n---\n\nb', 'p(a)hr()p(b)'],
  ['|a|b|\n|--|:-:|\n|1|`x|y`|\n|2|', 'table(thead(tr(th(a)th(b)))tbody(tr(td(1)td(code(x|y)))tr(td(2)td())))'],
  ['a | b\nc | d', 'p(a | bbr()c | d)'],
  ['a<br>b <b>c</b>', 'p(abr()b <b>c</b>)'],
];

const HARMFUL = [
  '[x](javascript:alert(1))',
  '[x](JaVaScRiPt:alert(1))',
  '[x](data:text/html,<script>alert(1)</script>)',
  '[x](//evil.org)',
  '[x](vbscript:x)',
  '<img src=x onerror=alert(1)>',
  '<https:evil>',
];

/** What is shown while it is written, and must not look different once it is whole. */
const OPEN = [
  ['**bo', 'p(strong(bo))'],
  ['**bold*', 'p(strong(bold))'],
  ['a **', 'p(a )'],
  ['a `co', 'p(a code(co))'],
  ['a *it', 'p(a em(it))'],
  ['2*3', 'p(2*3)'],
  ['[la', 'p(la)'],
  ['[label](https://x.o', 'p(label)'],
  ['a\n``', 'p(a)'],
  ['a\n```p', 'p(a)'],
  ['```py\nx', 'fence[py](x)'],
  ['```py\nx\n``', 'fence[py](x)'],
  ['a\n-', 'p(a)'],
  ['a\n#', 'p(a)'],
  ['1. a\n2', 'ol[1](li(p(a)))'],
  ['| a | b |', 'table(thead(tr(th(a)th(b)))tbody())'],
  ['| a | b |\n|-', 'table(thead(tr(th(a)th(b)))tbody())'],
  ['42', 'p(42)'],
];

export function pureTests(root) {
  test('markdown: what it becomes', () => {
    for (const [text, tree] of WHOLE) assert.equal(line(parseMarkdown(text)), tree, text);
  });

  test('markdown: no link but http and https, no markup but ours', () => {
    for (const text of HARMFUL) {
      const tree = line(parseMarkdown(text));
      assert.ok(!/a\[/.test(tree), `${text} became ${tree}`);
      assert.ok(tree.includes(text.slice(0, 8)), `${text} is not there as text: ${tree}`);
    }
  });

  test('markdown: what is begun is taken as meant', () => {
    for (const [text, tree] of OPEN) assert.equal(open(text), tree, text);
  });

  test('markdown: in pieces it becomes the same as whole', piecesMakeTheWhole);

  test('markdown: ten thousand markers cost no more than they should', () => {
    for (const text of ['*a', '[', '`', '> ', '- ', '**a_b', '![](', '|a', '<', '~~', '$$', '\\(', 'https://', '#', '1. ']) {
      const begun = process.cpuUsage().user;
      parseMarkdown(text.repeat(10_000));
      parseInline(text.repeat(10_000), true);
      const spent_ms = (process.cpuUsage().user - begun) / 1000;
      // The square of it would be minutes; this is no measure of speed.
      assert.ok(spent_ms < 15_000, `${text}: ${spent_ms} ms of CPU`);
    }
  });

  test('markdown: an end that is not there is looked for once', () => {
    const begun = process.cpuUsage().user;
    for (const text of ['\\(x ', '\\[x ']) parseInline(text.repeat(120_000));
    const spent_ms = (process.cpuUsage().user - begun) / 1000;
    // Looked for at each beginning, each takes more than half a minute.
    assert.ok(spent_ms < 15_000, `${spent_ms} ms of CPU`);
  });

  test('events: lines may be cut anywhere', () => {
    const text = ': hello\r\ndata: {"a":1}\r\n\r\ndata: x\ndata: y\n\nevent: z\n\ndata:[DONE]\n\n';
    for (let cut = 0; cut <= text.length; cut += 1) {
      const lines = new Lines();
      const data = [...lines.push(text.slice(0, cut)), ...lines.push(text.slice(cut))];
      assert.deepEqual(data, ['{"a":1}', 'x\ny', '[DONE]'], `cut at ${cut}`);
    }
  });

  test('request: only what is set is sent, and calls go with their results', requestSaysWhatIsSet);
  test('answer: reasoning, content and calls grow apart', answerGrows);
  test('answer: a short thought is not one of 0 s', thoughtsHaveWords);
  test('rates: differences over time, and nothing after a new start', ratesAreDifferences);
  test('words: both languages say everything, with French spaces', () => wordsAreWhole(root));
}

/** Small random texts over what Markdown is made of; the seed is printed if one fails. */
function piecesMakeTheWhole() {
  const parts = ['a', 'b ', ' ', '\n', '\n', '\n\n', '- ', '1. ', '2', '.', '*', '**', '`', '```', '~~', '> ', '#', '# ', '|', '|-|', '---', '[x](https://y.z)', '[', '](', '  ', '\t', '\\'];
  for (let seed = 1; seed <= 10000; seed += 1) {
    let state = seed;
    const random = (below) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
    const text = Array.from({ length: 4 + random(20) }, () => parts[random(parts.length)]).join('');
    const stream = new MarkdownStream();
    for (let end = 0; end < text.length; end += 1 + random(3)) stream.update(text.slice(0, end), true);
    stream.update(text, false);
    const whole = line(parseMarkdown(text));
    assert.equal(line([...stream.finished, ...stream.last]), whole, `seed ${seed}: ${JSON.stringify(text)}`);
  }
}

function requestSaysWhatIsSet() {
  const settings = { effort: 'high', system: ' ', temperature: 0, top_p: null, seed: 7, offerWeather: true };
  const call = { id: 'c1', name: 'get_weather', arguments: '{}' };
  const messages = [
    { role: 'user', content: 'q' },
    { role: 'assistant', content: '', reasoning: 'hm', calls: [{ ...call, result: '{"t":1}' }] },
    { role: 'assistant', content: 'a', reasoning: 'hm', calls: [] },
    { role: 'assistant', content: '', reasoning: 'cut', calls: [call] },
    { role: 'user', content: 'r' },
  ];
  const body = requestBody(messages, settings, 'm');
  assert.deepEqual(Object.keys(body).sort(), ['messages', 'model', 'reasoning_effort', 'seed', 'stream', 'stream_options', 'temperature', 'tools']);
  assert.equal(body.temperature, 0);
  assert.deepEqual(body.messages.map((message) => message.role), ['user', 'assistant', 'tool', 'assistant', 'user']);
  assert.equal(body.messages[1].reasoning, 'hm');
  assert.equal(body.messages[2].tool_call_id, 'c1');
  assert.ok(!('reasoning' in body.messages[3]), 'old reasoning is not sent');
}

function answerGrows() {
  const message = emptyAnswer();
  const receiving = new Receiving(message, 1000);
  const chunk = (delta, completion_tokens, finish_reason = null) => ({
    choices: [{ delta, finish_reason }],
    usage: { prompt_tokens: 10, completion_tokens },
  });
  receiving.chunk(chunk({ role: 'assistant', content: '' }, 0), 1100);
  receiving.chunk(chunk({ reasoning: 'I ', reasoning_content: 'I ' }, 1), 1500);
  receiving.chunk(chunk({ reasoning: 'see' }, 3), 2500);
  receiving.chunk(chunk({ content: 'Yes' }, 5), 3500);
  receiving.chunk(chunk({ tool_calls: [{ index: 0, id: 'c', function: { name: 'f', arguments: '' } }] }, 7), 4500);
  assert.equal(message.rate, null, 'of six tokens none is told yet');
  receiving.chunk(chunk({ tool_calls: [{ index: 0, function: { arguments: '{}' } }] }, 9, 'tool_calls'), 5500);
  receiving.chunk({ choices: [], usage: { prompt_tokens: 10, completion_tokens: 9 } }, 9999);
  assert.equal(message.reasoning, 'I see');
  assert.equal(message.reasoningSeconds, 2);
  assert.equal(message.content, 'Yes');
  assert.deepEqual(message.calls, [{ id: 'c', name: 'f', arguments: '{}' }]);
  assert.equal(message.firstTokenSeconds, 0.5);
  assert.equal(message.rate, 2, 'eight more tokens in four seconds; the last chunk brings none');
  assert.equal(message.finish, 'tool_calls');
  const burst = new Receiving(emptyAnswer(), 1000);
  for (let count = 1; count <= 20; count += 1) burst.chunk(chunk({ content: 'a' }, count), 1500);
  assert.equal(burst.message.rate, null, 'what came in one piece says nothing of the rate');
}

function thoughtsHaveWords() {
  assert.equal(thoughtWords(false, 0.02), 'Thought for less than a second');
  assert.equal(thoughtWords(false, 3.21), 'Thought for 3.2\u202fs');
  assert.equal(thoughtWords(true, 0.02), 'Thinking, 0\u202fs');
}

function ratesAreDifferences() {
  const rates = new Rates();
  rates.push({ tokens: 100 }, 0);
  assert.equal(rates.now('tokens'), null);
  for (let second = 1; second <= 200; second += 1) rates.push({ tokens: 100 + 50 * second }, second * 1000);
  assert.equal(rates.now('tokens'), 50);
  assert.equal(rates.seconds(), 123, 'what is kept, not more');
  const series = rates.series('tokens', 200_000);
  assert.ok(series.length >= 119 && series.length <= 122, `${series.length} points`);
  assert.ok(series.every((point) => point.rate === 50 && point.age <= 1));
  rates.push({ tokens: 3 }, 201_000);
  assert.equal(rates.now('tokens'), null);
}

function wordsAreWhole(root) {
  assert.deepEqual(Object.keys(french), Object.keys(english));
  const values = (entry) => (typeof entry === 'string' ? [entry] : Object.values(entry));
  const slots = (entry) => [...new Set(values(entry).join(' ').match(/\{\w+\}/g) ?? [])].sort();
  for (const [key, entry] of Object.entries(french)) {
    assert.deepEqual(slots(entry), slots(english[key]), key);
    for (const text of values(entry)) {
      assert.ok(!/[^\u202f][;:!?»]|«[^\u202f]/.test(text), `${key}: no narrow space in ${text}`);
      assert.ok(!text.includes("'"), `${key}: a straight apostrophe in ${text}`);
    }
  }
  for (const name of ['index.html', 'cluster.html']) {
    const html = readFileSync(path.join(root, 'coordinator/web', name), 'utf8');
    for (const [, key] of html.matchAll(/data-(?:word|label|hint)="(\w+)"/g)) assert.ok(key in english, `${name}: ${key}`);
  }
}
