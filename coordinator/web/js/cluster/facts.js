// The pools of KV blocks, what the model is, and what was done since the start.

import { el } from '../dom.js';
import { bytes, number, percent, t } from '../words.js';
import { legend, stack } from './drawings.js';

/** The share of the fuller pool: it is the one that requests wait for. */
export function kvUse(kv) {
  const share = ({ used, blocks }) => (blocks > 0 ? used / blocks : 0);
  return Math.max(...poolsOf(kv).map(share));
}

export function pools(kv) {
  return poolsOf(kv).filter((pool) => pool.blocks > 0).map((pool) => {
    const parts = [
      { name: 'part-1', amount: pool.used },
      { name: 'part-cached', amount: pool.cached },
    ];
    const entries = [
      { name: 'part-1', text: `${t('used')} ${number(pool.used)}` },
      { name: 'part-cached', text: `${t('cached')} ${number(pool.cached)}` },
    ];
    const sum = t('blocks', { count: pool.used, total: pool.blocks });
    return el('article', { class: 'bar-row' },
      el('h3', {}, t(pool.word)),
      stack(parts, pool.blocks, `${t(pool.word)}: ${sum}`),
      el('p', { class: 'note' }, legend(entries), el('span', { class: 'sum' }, sum)),
    );
  });
}

/** Cached blocks are free ones that still hold something. */
function poolsOf(kv) {
  const pool = (word, blocks, free, cached) => ({ word, blocks, cached, used: blocks - free });
  return [
    pool('poolFull', kv.blocks, kv.blocks_free, kv.blocks_cached),
    pool('poolWindow', kv.window_blocks, kv.window_blocks_free, kv.window_blocks_cached),
  ];
}

/** Before its configuration is read, a model is a name and a context. */
export function modelFacts(model) {
  const known = [
    [t('name'), model.id],
    [t('context'), t('tokensValue', { count: model.context_tokens })],
  ];
  if (model.layers === undefined) return known;
  return [
    ...known,
    [t('size'), bytes(model.weights_bytes)],
    [t('layers'), t('layersValue', { count: model.layers, window: model.window_layers })],
    [t('headsName'), t('headsValue', { q: model.q_heads, kv: model.kv_heads })],
    ['Experts', t('expertsValue', { count: model.experts, used: model.experts_per_token })],
    [t('hidden'), number(model.hidden)],
    [t('vocabulary'), number(model.vocab)],
  ];
}

export function totalFacts(totals) {
  const ofTotal = (count, total) =>
    total > 0 ? `${t('ofTotal', { count, total })} (${percent(count / total)})` : number(count);
  const facts = [
    [t('steps'), number(totals.steps)],
    [t('promptTokens'), number(totals.prompt_tokens)],
    [t('cachedTokens'), number(totals.cached_tokens)],
    [t('generatedTokens'), number(totals.generated_tokens)],
    [t('preemptions'), number(totals.preemptions)],
  ];
  if (totals.drafted_tokens > 0) facts.push([t('drafts'), ofTotal(totals.accepted_tokens, totals.drafted_tokens)]);
  return facts;
}

export function facts(list) {
  return list.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]);
}
