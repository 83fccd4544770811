// One headless Chromium for all tests, a fresh profile for each, and what every test asks of a page besides
// its own story: no error in the console that was not meant, and no request to anyone but the server.

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const WAIT_MS = 20_000;
const FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

export async function startBrowser(executablePath) {
  const browser = await chromium.launch({ executablePath, args: FLAGS, timeout: 60_000 });
  return {
    close: () => browser.close(),
    /** Opens `url` and tells `story(page)`. `meant`: a pattern of console errors that belong to it. */
    visit: (url, story, options = {}) => visit(browser, url, story, options),
  };
}

async function visit(browser, url, story, { meant, ...contextOptions }) {
  const context = await browser.newContext({ locale: 'en-GB', viewport: { width: 1200, height: 800 }, ...contextOptions });
  context.setDefaultTimeout(WAIT_MS);
  const page = await context.newPage();
  const [errors, strangers] = [[], []];
  const origin = new URL(url).origin;
  page.on('console', (message) => {
    if (message.type() === 'error' && !meant?.test(message.text())) errors.push(message.text());
  });
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('request', (request) => {
    if (!request.url().startsWith(origin)) strangers.push(request.url());
  });
  try {
    await page.goto(url, { timeout: WAIT_MS });
    await story(page);
    assert.deepEqual(errors, [], 'errors in the console');
    assert.deepEqual(strangers, [], 'requests that left the origin');
  } finally {
    await context.close();
  }
}

/** What a person does to ask, and the answer that then stands last, when it is complete. */
export async function ask(page, text) {
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
}

export function lastAnswer(page) {
  return page.locator('.message.answer').last();
}

export async function answered(page, text) {
  await page.waitForFunction(
    (wanted) => {
      const answer = [...document.querySelectorAll('.message.answer')].at(-1);
      return answer?.getAttribute('aria-busy') === 'false' && answer.querySelector('.markdown').textContent.includes(wanted);
    },
    text,
  );
}

export async function greedy(page) {
  await page.click('#settings-button');
  await page.fill('#temperature', '0');
  await page.click('#settings-button');
}
