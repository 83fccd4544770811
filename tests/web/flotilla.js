// The program under test: started with the demo model on a free port, and ended by its process id.

import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { within } from './check.js';

const START_MS_MAX = 120_000;
const STOP_MS_MAX = 10_000;

export async function startFlotilla(binary, root) {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const child = spawn(binary, ['up', '--listen', `127.0.0.1:${port}`], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  for (const pipe of [child.stdout, child.stderr]) pipe.on('data', (data) => (said = (said + data).slice(-4000)));
  // Whatever ends the tests ends what they started.
  process.once('exit', () => child.kill('SIGTERM'));
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const died = ended.then((code) => {
    throw new Error(`${binary} up ended with ${code}:\n${said}`);
  });
  died.catch(() => {});
  const stop = async () => {
    child.kill('SIGTERM');
    await within(STOP_MS_MAX, ended, 'the program to end').catch(() => child.kill('SIGKILL'));
  };
  try {
    await within(START_MS_MAX, Promise.race([healthy(url), died]), `${binary} up to be ready`);
  } catch (error) {
    await stop();
    throw error;
  }
  return { url, stop };
}

async function healthy(url) {
  for (;;) {
    const answer = await fetch(`${url}/health`).catch(() => null);
    if (answer?.ok) return;
    await sleep(200);
  }
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
