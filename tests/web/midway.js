// What a reader does while an answer is still being written, in this tab or in another one.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { answered, ask, lastAnswer } from './browser.js';
import { test } from './check.js';
import { endless } from './scripted.js';

export function midwayTests(browser, server) {
  const story = (name, run, options) =>
    test(`midway: ${name}`, () => {
      server.reset();
      return browser.visit(server.url, run, options);
    });

  story('a message that is edited while its answer is written is asked anew', async (page) => {
    await ask(page, 'One?');
    await answered(page, 'Hello.');
    server.chat = endless;
    await ask(page, 'Two?');
    await counted(page, 5);
    server.chat = async function* () {
      yield { content: 'Anew.' };
    };
    await edit(page, 'Two?', 'Two, but better?');
    await answered(page, 'Anew.');
    assert.deepEqual(await questions(page), ['One?', 'Two, but better?']);
    assert.deepEqual(await kept(page), ['One?', 'Hello.', 'Two, but better?', 'Anew.']);
    assert.deepEqual(server.bodies.at(-1).messages.map((message) => message.content), ['One?', 'Hello.', 'Two, but better?']);
  });

  story('a reader who goes up, however slowly, stays there', async (page) => {
    server.chat = lines;
    await ask(page, 'Count.');
    await page.waitForFunction(() => document.getElementById('scroller').scrollTop > 200);
    await page.mouse.move(600, 300);
    for (let tick = 0; tick < 20; tick += 1) {
      await page.mouse.wheel(0, -20);
      await sleep(16);
    }
    await page.locator('#to-end').waitFor();
    // The wheel's last turns may be on their way.
    const before = await page.evaluate(async () => {
      const scroller = document.getElementById('scroller');
      let [last, frames] = [scroller.scrollTop, 0];
      while (frames < 20) {
        await new Promise(requestAnimationFrame);
        frames = scroller.scrollTop === last ? frames + 1 : 0;
        last = scroller.scrollTop;
      }
      return last;
    });
    const grown = await page.evaluate(() => document.getElementById('scroller').scrollHeight);
    await page.waitForFunction((was) => document.getElementById('scroller').scrollHeight > was + 200, grown);
    assert.equal(await page.evaluate(() => document.getElementById('scroller').scrollTop), before);
    await page.click('#to-end');
    await page.waitForFunction((was) => document.getElementById('scroller').scrollHeight > was + 600, grown);
    assert.ok((await toGo(page)) < 80 && (await page.locator('#to-end').isHidden()), 'it follows again');
    await page.click('#send');
  });

  story('what becomes shorter is followed on', async (page) => {
    server.chat = async function* () {
      for (let line = 0; line < 40; line += 1) yield { reasoning: `Thought ${line}.\n` };
      await sleep(300);
      yield* lines();
    };
    await ask(page, 'Think.');
    await page.waitForFunction(() => document.getElementById('scroller').scrollTop > 300);
    assert.ok((await toGo(page)) < 80);
    await page.click('#send');
  }, { viewport: { width: 900, height: 420 } });

  story('a conversation that is open in two tabs has what both added', async (page) => {
    await ask(page, 'From the first.');
    await answered(page, 'Hello.');
    const other = await page.context().newPage();
    await other.goto(server.url);
    await other.locator('#conversations .open').click();
    await edit(page, 'From the first.', null);
    await page.fill('.message.user textarea', 'half typed');
    await ask(other, 'From the second.');
    await answered(other, 'Hello.');
    await page.waitForFunction(() => document.querySelectorAll('.message').length === 4);
    await page.waitForFunction(() => [...document.querySelectorAll('.markdown')].at(-1).textContent === 'Hello.');
    assert.equal(await page.inputValue('.message.user textarea'), 'half typed');
    await page.press('.message.user textarea', 'Escape');
    await ask(page, 'From the first again.');
    await page.waitForFunction(() => document.querySelectorAll('.message').length === 6);
    await answered(page, 'Hello.');
    const all = ['From the first.', 'Hello.', 'From the second.', 'Hello.', 'From the first again.', 'Hello.'];
    assert.deepEqual(await kept(page), all);
    assert.equal(server.bodies.at(-1).messages.length, 5, 'the model is told all of it');
  });

  story('while another tab streams, the list of conversations stays as it is', async (page) => {
    await ask(page, 'One.');
    await answered(page, 'Hello.');
    const other = await page.context().newPage();
    await other.goto(server.url);
    server.chat = endless;
    await ask(other, 'Two.');
    await page.waitForFunction(() => document.querySelectorAll('#conversations .open').length === 2);
    const title = page.locator('#conversations .open', { hasText: 'One.' });
    await title.focus();
    await page.evaluate(() => {
      window.told = 0;
      addEventListener('storage', () => (window.told += 1));
    });
    await page.waitForFunction(() => window.told >= 2);
    assert.equal(await page.evaluate(() => document.activeElement.textContent), 'One.');
    await other.close();
  });

  story('a failed answer says so once, and its details stay open', async (page) => {
    server.refuse = () => ({ status: 500, body: { error: { message: 'said so' } } });
    await ask(page, 'One?');
    await page.locator('.problem summary').click();
    await page.evaluate(() => {
      window.alerts = 0;
      const count = (node) => node.querySelectorAll?.('[role=alert]').length + (node.matches?.('[role=alert]') ? 1 : 0);
      new MutationObserver((changes) => {
        for (const { addedNodes } of changes) for (const node of addedNodes) window.alerts += count(node) || 0;
      }).observe(document.getElementById('thread'), { childList: true, subtree: true });
    });
    server.refuse = null;
    server.chat = endless;
    await ask(page, 'Two?');
    await counted(page, 20);
    assert.equal(await page.evaluate(() => window.alerts), 0);
    assert.match(await lastAnswer(page).locator('.meta').innerText(), /^\d+ tokens · [\d.]+ tokens\/s · first after /);
    assert.ok(await page.evaluate(() => document.querySelector('.problem details').open));
    await page.click('#send');
  }, { meant: /Failed to load resource/ });

  story('focus is never lost with the button that was pressed', async (page) => {
    await ask(page, 'One?');
    await answered(page, 'Hello.');
    await lastAnswer(page).locator('.retry').focus();
    await page.keyboard.press('Enter');
    await answered(page, 'Hello.');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'prompt');
  });

  story('the Enter that ends a word of an input method sends nothing', async (page) => {
    await page.fill('#prompt', 'にほん');
    await page.evaluate(() => {
      const key = { key: 'Enter', keyCode: 229, bubbles: true, cancelable: true };
      document.getElementById('prompt').dispatchEvent(new KeyboardEvent('keydown', key));
    });
    assert.equal(await page.inputValue('#prompt'), 'にほん');
    await page.press('#prompt', 'Enter');
    await answered(page, 'Hello.');
  });

  story('only what can be pressed has a tooltip', async (page) => {
    const titled = await page.evaluate(() => [...document.querySelectorAll('[title]')].map((it) => it.localName));
    assert.deepEqual(titled.filter((name) => !['button', 'select', 'option', 'span'].includes(name)), []);
    assert.equal(await page.getAttribute('#settings-button', 'title'), 'Settings');
    assert.equal(await page.getAttribute('#thread', 'aria-label'), 'Messages');
  });

  story('a server behind a proxy that had none is ready once it is', async (page) => {
    await page.waitForSelector('#state[data-state=ready]');
    server.gone = true;
    await page.reload();
    await page.waitForSelector('#state[data-state=unreachable]');
    server.gone = false;
    await page.waitForSelector('#state[data-state=ready]');
  }, { meant: /502/ });
}

async function* lines() {
  for (let count = 1; ; count += 1) {
    yield { content: `${count}\n\n` };
    await sleep(30);
  }
}

/** How far the end of the thread is below. */
function toGo(page) {
  return page.evaluate(() => {
    const { scrollHeight, scrollTop, clientHeight } = document.getElementById('scroller');
    return scrollHeight - scrollTop - clientHeight;
  });
}

/** The answer has come to so many. */
function counted(page, count) {
  return page.waitForFunction(
    (wanted) => [...document.querySelectorAll('.markdown')].at(-1)?.textContent.includes(` ${wanted} `),
    count,
  );
}

/** `text` null: the field is only opened. */
async function edit(page, was, text) {
  const message = page.locator('.message.user', { hasText: was });
  await message.hover();
  await message.locator('.edit').click();
  if (text === null) return;
  const field = page.locator('.message.user textarea');
  await field.fill(text);
  await field.press('Enter');
}

function questions(page) {
  return page.locator('.message.user .text').allInnerTexts();
}

/** What is kept of the only conversation. */
function kept(page) {
  return page.evaluate(() => {
    const key = Object.keys(localStorage).find((it) => it.startsWith('flotilla.conversation.'));
    return JSON.parse(localStorage.getItem(key)).messages.map((message) => message.content);
  });
}
