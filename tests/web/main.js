// All tests of the web pages. FLOTILLA_BIN is the program, which is started with the demo model; or
// FLOTILLA_URL is where it serves already. A word as argument runs the tests whose name holds it.

import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { startBrowser } from './browser.js';
import { runTests } from './check.js';
import { chatTests } from './chat.js';
import { clusterTests } from './cluster.js';
import { startFlotilla } from './flotilla.js';
import { midwayTests } from './midway.js';
import { pureTests } from './pure.js';
import { ScriptServer } from './script-server.js';
import { scriptedTests } from './scripted.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const chromium = process.env.CHROMIUM_BIN ?? '/usr/bin/chromium';

async function main() {
  pureTests(root);
  const ends = [];
  try {
    const url = process.env.FLOTILLA_URL ?? (await started(ends));
    const hasPages = (await fetch(url)).headers.get('content-type')?.startsWith('text/html');
    if (!hasPages) console.log('the program has no web pages: they are served from coordinator/web');
    const script = await new ScriptServer(url, hasPages ? null : root).start();
    ends.push(() => script.stop());
    const real = hasPages ? url : (await passing(url, ends)).url;
    const browser = await startBrowser(chromium);
    ends.push(() => browser.close());
    chatTests(browser, real, { hasPages });
    scriptedTests(browser, script);
    midwayTests(browser, script);
    await clusterTests(browser, script, url, real);
    return await runTests(process.argv[2]);
  } finally {
    for (const end of ends.reverse()) await end();
  }
}

async function started(ends) {
  const binary = process.env.FLOTILLA_BIN;
  if (!binary) throw new Error('set FLOTILLA_BIN to the program, or FLOTILLA_URL to where it serves');
  const flotilla = await startFlotilla(path.resolve(binary), root);
  ends.push(flotilla.stop);
  return flotilla.url;
}

/** The program behind pages from the folder. */
async function passing(url, ends) {
  const server = await new ScriptServer(url, root).start();
  server.passThrough = true;
  ends.push(() => server.stop());
  return server;
}

try {
  process.exitCode = (await main()) > 0 ? 1 : 0;
} catch (error) {
  console.log(String(error.stack ?? error));
  console.log('0 passed, 1 failed');
  process.exitCode = 1;
}
