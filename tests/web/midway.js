// What a reader does while an answer is still being written, in this tab or in another one.

import assert from 'node:assert/strict';
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
}

/** The answer has come to so many. */
function counted(page, count) {
  return page.waitForFunction(
    (wanted) => [...document.querySelectorAll('.markdown')].at(-1)?.textContent.includes(` ${wanted} `),
    count,
  );
}

async function edit(page, was, text) {
  const message = page.locator('.message.user', { hasText: was });
  await message.hover();
  await message.locator('.edit').click();
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
