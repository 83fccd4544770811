// The page of the cluster: against states that a test makes, and, where the program serves /v1/cluster,
// against its own two workers.

import assert from 'node:assert/strict';
import { test } from './check.js';

export async function clusterTests(browser, server, api, pages) {
  const story = (name, run, options) =>
    test(`cluster: ${name}`, () => {
      server.reset();
      server.cluster = () => stateOf(2);
      return browser.visit(`${server.url}/cluster`, run, options);
    });

  story('two workers, what each holds, memory and blocks', async (page) => {
    const workers = page.locator('.worker');
    await workers.first().waitFor();
    assert.equal(await workers.count(), 2);
    assert.match(await workers.nth(1).innerText(), /w1[\s\S]*cpu, 2 threads[\s\S]*ready[\s\S]*0\.\.24 of 24[\s\S]*4\.\.8 of 8[\s\S]*45\.\.90 of 90[\s\S]*100,544\.\.201,088 of 201,088/);
    assert.equal(await workers.nth(1).locator('.share').nth(1).locator('.held').count(), 4, 'four heads are drawn');
    assert.match(await page.innerText('#memory'), /Weights 6\.88\u202fGB[\s\S]*KV cache 805\.3\u202fMB[\s\S]*7\.77\u202fGB of 16\u202fGB/);
    assert.match(await page.innerText('#pools'), /24 of 1,024 blocks[\s\S]*28 of 128 blocks/);
    assert.equal(await page.innerText('#kv-use'), '22%');
    assert.match(await page.innerText('#status'), /complete and answers/);
    assert.match(await page.innerText('#model-facts'), /24, of which 12 with a window/);
  });

  story('rates come from two polls, and lines from all', async (page) => {
    let polls = 0;
    server.cluster = () => ({ ...stateOf(2), totals: { ...stateOf(2).totals, generated_tokens: 100 * (polls += 1) } });
    await page.waitForFunction(() => Number(document.getElementById('generated-rate').textContent) > 20);
    await page.waitForSelector('#generated-line .stroke');
    assert.equal(await page.innerText('#prompt-rate'), '0');
    assert.match(await page.innerText('#prompt-peak'), /^last \d s, 0 at most$/, 'no two minutes are known yet');
  });

  story('loading, lost, gone: each in words', async (page) => {
    server.cluster = () => stateOf(2, { status: 'loading', state: 'loading' });
    await page.waitForFunction(() => document.getElementById('status').textContent.includes('loading their weights'));
    assert.match(await page.locator('.worker').first().innerText(), /loading 25%/);
    server.cluster = () => ({ ...stateOf(1), status: 'lost', reason: 'worker w1 left' });
    await page.waitForFunction(() => document.getElementById('status').textContent.includes('worker w1 left'));
    server.cluster = () => ({ status: 500, body: { error: { message: 'no' } } });
    await page.waitForFunction(() => document.getElementById('status').textContent.includes('does not answer'));
    assert.ok(await page.locator('#figures.stale').count(), 'old figures are greyed');
    assert.equal(await page.locator('.worker').count(), 1, 'and stay');
  }, { meant: /Failed to load resource/ });

  story('before any worker, and before the model is read', async (page) => {
    const model = { id: 'gpt-oss-20b', context_tokens: 131_072 };
    server.cluster = () => ({ ...stateOf(0), status: 'loading', epoch: null, model });
    await page.waitForFunction(() => document.getElementById('holdings').textContent.includes('No worker'));
    assert.match(await page.innerText('#status'), /loading their weights/, 'for want of a reason');
    server.cluster = () => ({ ...stateOf(0), status: 'loading', epoch: null, model, reason: 'the model is loading: no workers have joined yet' });
    await page.waitForFunction(() => document.getElementById('status').textContent === 'Waiting for workers: none has joined yet.');
    server.cluster = () => ({ ...stateOf(0), status: 'loading', epoch: null, model, reason: 'the model is loading: 1 of 2 workers have joined' });
    await page.waitForFunction(() => document.getElementById('status').textContent === 'Waiting for workers: 1 of 2 have joined.');
    assert.equal(await page.innerText('#model-facts'), 'Name\ngpt-oss-20b\nContext\n131,072 tokens');
    assert.doesNotMatch(await page.innerText('main'), /NaN|undefined|null/);
  });

  story('several replicas are told apart, and who is left out is named', async (page) => {
    const workers = [0, 1].map((replica) => ({ ...stateOf(1).workers[0], replica, name: `w${replica}` }));
    const left_out = [{ replica: 1, name: 'w7', reason: 'no plan is faster with it' }];
    server.cluster = () => ({ ...stateOf(0), workers, left_out, replicas: [{ status: 'ready' }, { status: 'lost' }] });
    await page.waitForFunction(() => document.getElementById('status').textContent === '1 of 2 replicas serve.');
    assert.deepEqual(await page.locator('.rank').allInnerTexts(), ['#0.0', '#1.0']);
    assert.equal(await page.innerText('.left-out'), 'w7 has no share: no plan is faster with it');
    server.cluster = () => ({ ...stateOf(0), left_out, replicas: [{ status: 'lost' }], status: 'lost' });
    await page.waitForFunction(() => document.querySelector('.rank') === null);
    assert.match(await page.innerText('#holdings'), /No worker has a share yet\.\s+w7 has no share/);
  });

  story('a state that the page does not know is shown as it is, and asked after', async (page) => {
    server.cluster = () => stateOf(2, { status: 'draining' });
    await page.waitForFunction(() => document.getElementById('state').textContent === 'draining');
    assert.equal(await page.innerText('#status'), 'draining');
    server.cluster = () => stateOf(2);
    await page.waitForFunction(() => document.getElementById('state').textContent === 'Ready');
  });

  story('a key is asked for where one is wanted', async (page) => {
    const wanted = (request) => request.headers.authorization === 'Bearer k';
    server.cluster = (request) => (wanted(request) ? stateOf(2) : { status: 401, body: { error: { message: 'key' } } });
    await page.fill('#key', 'k');
    await page.press('#key', 'Enter');
    await page.locator('#key-form').waitFor({ state: 'hidden' });
    await page.locator('.worker').first().waitFor();
  }, { meant: /Failed to load resource/ });

  story('in French, on a phone, in the dark', async (page) => {
    await page.locator('.worker').first().waitFor();
    assert.equal(await page.getAttribute('html', 'lang'), 'fr');
    assert.match(await page.innerText('#memory'), /Poids 6,88\u202fGo/);
    assert.equal(await page.innerText('#kv-use'), '22\u202f%');
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), 0);
  }, { locale: 'fr-FR', colorScheme: 'dark', viewport: { width: 360, height: 640 } });

  const served = await fetch(`${api}/v1/cluster`);
  if (!served.ok) {
    console.log(`the program has no /v1/cluster (${served.status}): its page is tested with made states only`);
    return;
  }
  test('cluster: the program shows its own two workers', () =>
    browser.visit(`${pages}/cluster`, async (page) => {
      await page.locator('.worker').nth(1).waitFor();
      assert.equal(await page.locator('.worker').count(), 2);
      assert.equal(await page.locator('#state').getAttribute('data-state'), 'ready');
      assert.match(await page.innerText('#holdings'), /0\.\.2 of 4[\s\S]*2\.\.4 of 4/);
      await page.waitForFunction(() => document.getElementById('generated-rate').textContent !== '–');
    }));
}

/** A 20b over so many workers, of which two would be whole. */
export function stateOf(count, { status = 'ready', state = 'ready' } = {}) {
  const worker = (rank) => ({
    rank, name: `w${rank}`, device: 'cpu, 2 threads, AVX-512', backend: 'cpu', state,
    memory_bytes: 16e9, weights_bytes: 6.88e9, kv_bytes: 805_310_000, activation_bytes: 85_430_000,
    loading: { bytes_done: 1.72e9, bytes_total: 6.88e9 },
    layers: [0, 24], kv_heads: [4 * rank, 4 * rank + 4], experts: [0, 32],
    expert_blocks: [45 * rank, 45 * rank + 45], expert_blocks_total: 90, vocab: [100_544 * rank, 100_544 * (rank + 1)],
  });
  return {
    object: 'cluster', status, reason: null, version: '0.1.0', uptime_seconds: 3725.5, epoch: 1,
    model: {
      id: 'gpt-oss-20b', layers: 24, window_layers: 12, hidden: 2880, q_heads: 64, kv_heads: 8, experts: 32,
      experts_per_token: 4, vocab: 201_088, context_tokens: 131_072, weights_bytes: 13_761_264_768,
    },
    workers: Array.from({ length: count }, (_, rank) => worker(rank)),
    kv: { block_tokens: 16, blocks: 1024, blocks_free: 1000, blocks_cached: 10, window_blocks: 128, window_blocks_free: 100, window_blocks_cached: 4 },
    load: { running: 3, waiting: 1, steps_in_flight: 2 },
    totals: { steps: 1200, prompt_tokens: 40_000, generated_tokens: 9000, cached_tokens: 12_000, preemptions: 1, drafted_tokens: 500, accepted_tokens: 210 },
    step: { compute_us: 41_200 },
  };
}
