// The chat page over the program itself and its demo model: what a visitor does, from the first question on.

import assert from 'node:assert/strict';
import { answered, ask, greedy, lastAnswer } from './browser.js';
import { test } from './check.js';

export function chatTests(browser, url, { hasPages }) {
  const chat = (name, story, options) => test(`chat: ${name}`, () => browser.visit(url, story, options));

  chat('an answer streams, and its reasoning folds', async (page) => {
    await greedy(page);
    await watchGrowth(page);
    await ask(page, 'What is 12 + 30?');
    await answered(page, '42');
    const answer = lastAnswer(page);
    assert.equal(await answer.locator('.markdown').innerText(), '12 + 30 = 42.');
    const reasoning = answer.locator('.reasoning');
    assert.ok(await page.evaluate(() => window.reasoningWasOpen), 'open while the model thinks');
    assert.equal(await reasoning.getAttribute('open'), null, 'folded when it has answered');
    assert.match(await reasoning.locator('summary').innerText(), /^Thought for ([\d.]+\u202fs|less than a second)$/);
    await reasoning.locator('summary').click();
    assert.match(await reasoning.locator('.reasoning-text').innerText(), /12 \+ 30/);
    // So short an answer may come too fast for a rate.
    assert.match(await answer.locator('.meta').innerText(), /^\d+ tokens, \d+ of them thinking( · [\d.,]+ tokens\/s)? · first after .* · prompt \d+/);
  });

  chat('a long answer is seen to grow, code in a box', async (page) => {
    await greedy(page);
    await watchGrowth(page);
    await ask(page, 'Write a Python function that checks if a number is prime.');
    await answered(page, 'def is_prime');
    const lengths = await page.evaluate(() => window.lengths);
    assert.ok(lengths.length >= 3, `it grew in ${lengths.length} steps`);
    assert.match(await lastAnswer(page).locator('.fence code').innerText(), /^def is_prime/);
    assert.equal(await lastAnswer(page).locator('.fence .language').innerText(), 'python');
  });

  chat('retry asks anew, edit replaces what came after', async (page) => {
    await greedy(page);
    await ask(page, 'What is 40 + 2?');
    await answered(page, '42');
    await lastAnswer(page).locator('.retry').click();
    await page.waitForSelector('.message.answer[aria-busy=true]');
    await answered(page, '42');
    assert.equal(await page.locator('.message').count(), 2);
    await page.locator('.message.user').hover();
    await page.click('.message.user .edit');
    await page.fill('.message.user textarea', 'What is 27 + 48?');
    await page.press('.message.user textarea', 'Enter');
    await answered(page, '75');
    assert.equal(await page.locator('.message').count(), 2);
    assert.equal(await page.locator('.message.user .text').innerText(), 'What is 27 + 48?');
  });

  chat('the cycle of tools: a call, its result, an answer', async (page) => {
    await greedy(page);
    await page.click('#settings-button');
    await page.check('#offer-weather');
    await page.click('#settings-button');
    await ask(page, 'What is the weather in Paris?');
    const call = page.locator('.call');
    await call.locator('.tool-result').waitFor();
    assert.equal(await call.locator('.call-name').innerText(), 'get_weather');
    assert.equal(await call.locator('.call-arguments').innerText(), '{\n  "city": "Paris"\n}');
    await call.locator('.tool-result').fill('{"temperature":14,"condition":"cloudy"}');
    await call.locator('.send-result').click();
    await answered(page, 'In Paris: 14 °C, cloudy.');
    assert.match(await call.locator('.call-result').innerText(), /"condition": "cloudy"/);
    assert.equal(await call.locator('.tool-result').count(), 0, 'the form is gone');
  });

  chat('a visitor who reads French is answered in French', async (page) => {
    assert.equal(await page.getAttribute('html', 'lang'), 'fr');
    assert.match(await page.innerText('.welcome h1'), /^Que regardons-nous\u202f\?$/);
    await greedy(page);
    await ask(page, 'Combien font 36 + 57 ?');
    await answered(page, '93');
    assert.match(await lastAnswer(page).locator('summary').innerText(), /^A réfléchi /);
    await page.selectOption('#language', 'en');
    assert.equal(await page.getAttribute('html', 'lang'), 'en');
    assert.match(await lastAnswer(page).locator('summary').innerText(), /^Thought for /);
    await page.reload();
    assert.equal(await page.getAttribute('html', 'lang'), 'en', 'the choice stays');
  }, { locale: 'fr-FR' });

  chat('conversations stay, and go when they are told to', async (page) => {
    await greedy(page);
    await ask(page, 'What is 12 + 30?');
    await answered(page, '42');
    await page.click('#new-chat');
    await ask(page, 'Hello!');
    await answered(page, 'Flotilla');
    await page.reload();
    const titles = page.locator('#conversations .open');
    assert.deepEqual(await titles.allInnerTexts(), ['Hello!', 'What is 12 + 30?']);
    await titles.nth(1).click();
    assert.match(await lastAnswer(page).innerText(), /12 \+ 30 = 42/);
    await page.locator('#conversations li.current .delete').click();
    assert.equal(await titles.count(), 1);
    assert.equal(await page.locator('.message').count(), 0);
    await page.click('#notice button');
    assert.equal(await titles.count(), 2);
    assert.equal(await page.inputValue('#temperature'), '0', 'settings stay too');
  });

  chat('a setting that makes no sense is refused in words', async (page) => {
    await page.click('#settings-button');
    await page.fill('#temperature', '5');
    await ask(page, 'Hello!');
    const problem = lastAnswer(page).locator('.problem');
    await problem.waitFor();
    assert.match(await problem.innerText(), /does not accept the setting “temperature”/);
    await page.click('#reset');
    await lastAnswer(page).locator('.retry').click();
    await answered(page, '');
    assert.equal(await page.locator('.problem').count(), 0);
  }, { meant: /400 \(Bad Request\)/ });

  if (hasPages) test('chat: pages are sent once, and shut', () => pagesAreSentOnce(url));
}

/** Every length that the answer's text had, and whether the reasoning was ever seen open. */
async function watchGrowth(page) {
  await page.evaluate(() => {
    window.lengths = [];
    new MutationObserver(() => {
      const text = document.querySelector('.message.answer .markdown')?.textContent ?? '';
      if (text.length > (window.lengths.at(-1) ?? 0)) window.lengths.push(text.length);
      if (document.querySelector('.reasoning')?.open) window.reasoningWasOpen = true;
    }).observe(document.getElementById('thread'), { subtree: true, childList: true, characterData: true, attributes: true });
  });
}

async function pagesAreSentOnce(url) {
  for (const path of ['/', '/cluster', '/web/base.css', '/web/js/chat.js', '/web/icon.svg']) {
    const first = await fetch(url + path);
    assert.equal(first.status, 200, path);
    assert.match(first.headers.get('content-security-policy'), /^default-src 'none'; script-src 'self';/);
    assert.equal(first.headers.get('x-content-type-options'), 'nosniff');
    const again = await fetch(url + path, { headers: { 'if-none-match': first.headers.get('etag') } });
    assert.equal(again.status, 304, path);
  }
  assert.equal((await fetch(`${url}/web/nothing.js`)).status, 404);
}
