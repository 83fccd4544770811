// The chat page against answers that a test writes: what a model should not write but may, answers that do
// not end, and every way in which a request can fail.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { answered, ask, lastAnswer } from './browser.js';
import { test } from './check.js';

const MARKDOWN = `# Plan **one**

A *quick* look at \`code\`, [a link](https://example.org/x) and **two words**.

1. First
   - nested **item**
2. Second

\`\`\`python
def f(x):
    return "**not bold**"
\`\`\`

| name | value |
|------|------:|
| \`a\`  | 1     |

> Quoted ~~text~~.
`;

const XSS = `<img src=x onerror="window.hacked=1"> <script>window.hacked=1</script>

[click](javascript:window.hacked=1) ![x](https://evil.example/pixel.png) <a href="javascript:window.hacked=1">a</a>

\`\`\`html"><script>window.hacked=1</script>
<script>window.hacked=1</script>
\`\`\`

| <svg onload=window.hacked=1> | b |
|--|--|
| <iframe src="javascript:window.hacked=1"></iframe> | [d](data:text/html,<script>1</script>) |
`;

export function scriptedTests(browser, server) {
  const story = (name, run, options) =>
    test(`scripted: ${name}`, () => {
      server.reset();
      return browser.visit(server.url, run, options);
    });

  story('what a model writes is text, whatever it writes', async (page) => {
    server.chat = () => pieces(XSS, 7);
    await ask(page, '<b>me</b>');
    await answered(page, 'onerror');
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    const strange = 'img, script, iframe, svg, [onerror], [onload], a:not([href^=https])';
    assert.equal(await page.locator(`#thread :is(${strange})`).count(), 0);
    assert.equal(await page.innerText('.message.user .text'), '<b>me</b>');
    assert.match(await lastAnswer(page).innerText(), /\[click\]\(javascript:window.hacked=1\)/);
  });

  story('markdown that is not whole yet shows no markers, and moves nothing', async (page) => {
    server.chat = () => pieces(MARKDOWN, 1, 4);
    await page.evaluate(watchMarkers);
    await ask(page, 'Show me.');
    await answered(page, 'Quoted');
    const seen = await page.evaluate(() => window.seen);
    assert.deepEqual(seen.markers, [], 'markers in sight');
    assert.ok(seen.looks > 10, `looked ${seen.looks} times`);
    assert.equal(seen.headings, 1, 'a finished block is never made anew');
    const tags = await lastAnswer(page).locator('.markdown').evaluate((it) => [...it.children].map((child) => child.className || child.tagName));
    assert.deepEqual(tags, ['H1', 'P', 'OL', 'fence', 'table', 'BLOCKQUOTE']);
    const link = lastAnswer(page).locator('a');
    assert.equal(await link.getAttribute('href'), 'https://example.org/x');
    assert.match(await link.getAttribute('rel'), /noopener/);
    await page.click('.fence .copy');
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'def f(x):\n    return "**not bold**"');
  }, { permissions: ['clipboard-read', 'clipboard-write'] });

  for (const [way, stop] of [['the button', (page) => page.click('#send')], ['Esc', (page) => page.keyboard.press('Escape')]]) {
    story(`${way} stops an answer, and the server hears of it`, async (page) => {
      server.chat = endless;
      await ask(page, 'Count.');
      await page.waitForFunction(() => document.querySelector('.markdown')?.textContent.includes('5'));
      await stop(page);
      await page.waitForSelector('.message.answer[aria-busy=false]');
      assert.match(await lastAnswer(page).innerText(), /Stopped\./);
      assert.equal(await page.innerText('#send'), 'Send');
      await until(() => server.left === 1, 'the server to see the client leave');
      server.chat = async function* () {
        yield { content: 'Whole.' };
      };
      await lastAnswer(page).locator('.retry').click();
      await answered(page, 'Whole.');
      assert.equal(await page.locator('.message').count(), 2);
    });
  }

  const REFUSALS = [
    [429, { code: 'queue_full' }, { 'retry-after': '7' }, /busy.*try again in 7\u202fs/],
    [503, { code: 'not_ready' }, { 'retry-after': '90' }, /not ready.*in 1\u202fmin 30\u202fs/],
    [401, { code: 'invalid_api_key' }, {}, /API key/],
    [400, { code: 'unsupported_value', param: 'top_k' }, {}, /does not accept the setting “top_k”/],
    [400, { code: 'context_length_exceeded' }, {}, /too long for this model/],
    [500, { code: 'internal_error' }, {}, /Something went wrong/],
  ];
  story('every refusal is put in words, and retry gets over it', async (page) => {
    for (const [status, error, headers, words] of REFUSALS) {
      server.refuse = () => ({ status, headers, body: { error: { message: 'said so', param: null, ...error } } });
      await page.click('#new-chat');
      await ask(page, 'Hello.');
      const problem = lastAnswer(page).locator('.problem');
      await problem.waitFor();
      assert.match(await problem.locator('> p').innerText(), words);
      await problem.locator('summary').click();
      assert.match(await problem.innerText(), /said so/);
      server.refuse = null;
      await lastAnswer(page).locator('.retry').click();
      await answered(page, 'Hello.');
      assert.equal(await page.locator('.problem').count(), 0);
    }
  }, { meant: /Failed to load resource/ });

  story('a server that is not there is said to be so, and nothing is said to be its words', async (page) => {
    await page.route('**/v1/chat/completions', (route) => route.abort());
    await ask(page, 'Hello.');
    await page.waitForSelector('.problem');
    assert.equal(await page.innerText('.problem > p'), 'The server cannot be reached.');
    assert.equal(await page.innerText('.problem summary'), 'Details');
  }, { meant: /Failed to load resource/ });

  story('an answer that breaks off keeps what came, and says so', async (page) => {
    server.chat = async function* () {
      yield { content: 'Half an ' };
      yield { error: { message: 'a worker left', code: 'interrupted' } };
    };
    await ask(page, 'One.');
    await page.waitForSelector('.problem');
    assert.match(await lastAnswer(page).innerText(), /Half an[\s\S]*connection broke/);
    server.chat = async function* () {
      yield { content: 'Another ' };
      await sleep(200);
      yield 'break';
    };
    await ask(page, 'Two.');
    await page.waitForFunction(() => document.querySelectorAll('.problem').length === 2);
    assert.match(await lastAnswer(page).innerText(), /Another[\s\S]*connection broke/);
  }, { meant: /Failed to load resource|ERR_INCOMPLETE_CHUNKED_ENCODING/ });

  story('what is set is what is sent, and the key stays in the tab', async (page) => {
    await page.click('#settings-button');
    await page.fill('#system', 'Be brief.');
    for (const [name, value] of [['temperature', '0.5'], ['top_p', '0.9'], ['top_k', '40'], ['min_p', '0.05'], ['max_tokens', '99'], ['seed', '7']]) {
      await page.fill(`#${name}`, value);
    }
    await page.fill('#key', 'sk-secret');
    await page.check('input[value=high]');
    await ask(page, 'Hello.');
    await answered(page, 'Hello.');
    const { messages, temperature, top_p, top_k, min_p, max_tokens, seed, reasoning_effort, model } = server.bodies[0];
    assert.deepEqual({ temperature, top_p, top_k, min_p, max_tokens, seed, reasoning_effort, model },
      { temperature: 0.5, top_p: 0.9, top_k: 40, min_p: 0.05, max_tokens: 99, seed: 7, reasoning_effort: 'high', model: 'scripted' });
    assert.deepEqual(messages[0], { role: 'system', content: 'Be brief.' });
    assert.equal(server.authorizations[0], 'Bearer sk-secret');
    assert.ok(!(await page.evaluate(() => JSON.stringify(localStorage))).includes('sk-secret'));
  });

  story('a key that is missing is asked for', async (page) => {
    server.locked = (request) => request.headers.authorization !== 'Bearer k';
    await page.reload();
    await page.waitForSelector('#state[data-state=locked]');
    await page.click('#settings-button');
    await page.fill('#key', 'k');
    await page.press('#key', 'Enter');
    await page.waitForSelector('#state[data-state=ready]');
    assert.equal(await page.innerText('#model'), 'scripted');
  }, { meant: /401/ });

  story('while the model thinks in silence, the seconds go on', async (page) => {
    server.chat = async function* () {
      yield { reasoning: 'Hm.' };
      await sleep(4000);
      yield { content: 'So.' };
    };
    await ask(page, 'Think.');
    await page.waitForFunction(() => /Thinking, [1-9]/.test(document.querySelector('.reasoning summary')?.textContent));
    await answered(page, 'So.');
    assert.match(await lastAnswer(page).locator('summary').innerText(), /Thought for [\d.]+\u202fs/);
  });

  story('by keyboard: a line more, a message, and every control has a name', async (page) => {
    await page.click('#settings-button');
    await page.focus('#prompt');
    await page.keyboard.type('one');
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('two');
    await page.keyboard.press('Enter');
    await answered(page, 'Hello.');
    assert.equal(server.bodies[0].messages[0].content, 'one\ntwo');
    assert.deepEqual(await page.evaluate(namelessControls), []);
    await page.keyboard.press('Shift+Tab');
    assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle), 'none', 'focus is seen');
  });

  for (const [locale, ready, effort] of [['en-GB', 'Ready', 'Reasoning'], ['fr-FR', 'Prêt', 'Réflexion']]) {
    story(`on a phone the state, the model and what is chosen are in words (${locale})`, async (page) => {
      await page.waitForSelector('#state[data-state=ready]');
      for (const [place, words] of [['#state', ready], ['#model', 'scripted'], ['.effort legend', effort]]) {
        const box = await page.locator(place).boundingBox();
        assert.ok(box.width > 20 && box.height > 8 && box.x >= 0 && box.x + box.width <= 360, `${place} is seen`);
        assert.equal(await page.innerText(place), words);
        assert.notEqual(await page.locator(place).evaluate((it) => getComputedStyle(it).fontSize), '0px');
      }
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), 0);
    }, { locale, viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true });
  }

  story('buttons under an answer stand where its text does', async (page) => {
    server.chat = endless;
    await ask(page, 'Count.');
    await page.waitForFunction(() => document.querySelector('.markdown')?.textContent.includes('3'));
    await page.click('#send');
    await lastAnswer(page).locator('.retry').waitFor();
    const left = (place) => lastAnswer(page).locator(place).evaluate((it) => {
      const range = document.createRange();
      range.selectNodeContents(it);
      return range.getBoundingClientRect().left;
    });
    const copy = await lastAnswer(page).locator('.copy').boundingBox();
    const meta = await lastAnswer(page).locator('.meta').boundingBox();
    assert.ok(copy.y > meta.y, 'the buttons have wrapped');
    const text = await left('.markdown');
    for (const place of ['.copy', '.meta', '.note']) assert.ok(Math.abs((await left(place)) - text) < 1, place);
  }, { viewport: { width: 330, height: 640 } });

  story('on a phone nothing is wider than the screen', async (page) => {
    server.chat = () => pieces(`${MARKDOWN}\n\`${'long'.repeat(60)}\`\n\n| ${'wide | '.repeat(20)}\n|${'--|'.repeat(20)}\n`, 50);
    await ask(page, 'x'.repeat(300));
    await answered(page, 'wide');
    const overflow = () => document.documentElement.scrollWidth - innerWidth;
    assert.equal(await page.evaluate(overflow), 0);
    await page.click('#settings-button');
    assert.equal(await page.evaluate(overflow), 0);
    await page.keyboard.press('Escape');
    assert.ok(await page.locator('#settings').isHidden(), 'Esc closes what lies over the thread');
    const { bottom } = await page.locator('#send').evaluate((it) => it.getBoundingClientRect());
    assert.ok(bottom <= 640, 'the button is in sight');
  }, { viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true });
}

export async function* pieces(text, size, pauseEvery = 0) {
  for (let at = 0; at < text.length; at += size) {
    yield { content: text.slice(at, at + size) };
    // So long that a browser draws in between.
    if (pauseEvery && (at / size) % pauseEvery === 0) await sleep(17);
  }
}

export async function* endless() {
  for (let count = 1; ; count += 1) {
    yield { content: `${count} ` };
    await sleep(30);
  }
}

/** In the page: looks at every change for markers that a reader should not see. */
function watchMarkers() {
  window.seen = { markers: [], looks: 0, headings: 0 };
  const headings = new Set();
  new MutationObserver(() => {
    const answer = document.querySelector('.message.answer .markdown');
    if (!answer) return;
    window.seen.looks += 1;
    answer.querySelectorAll('h1').forEach((it) => headings.add(it));
    window.seen.headings = headings.size;
    const copy = answer.cloneNode(true);
    copy.querySelectorAll('pre').forEach((it) => it.remove());
    if (/[*`~#[\]|>]|https/.test(copy.textContent)) window.seen.markers.push(copy.textContent.slice(-60));
  }).observe(document.getElementById('thread'), { subtree: true, childList: true, characterData: true });
}

/** In the page: what can be used and does not say what it is for. */
function namelessControls() {
  const controls = [...document.querySelectorAll('button, input, textarea, select, a, summary')];
  const name = (it) => it.getAttribute('aria-label') || it.textContent.trim() || it.labels?.[0]?.textContent.trim();
  return controls.filter((it) => it.checkVisibility() && !name(it)).map((it) => it.outerHTML.slice(0, 80));
}

export async function until(holds, what) {
  for (let tries = 0; tries < 200; tries += 1) {
    if (holds()) return;
    await sleep(100);
  }
  throw new Error(`waited 20 s for ${what}`);
}
