// Who holds what: a row a worker, with its shares of layers, heads, expert blocks and vocabulary side by side,
// and below, its memory by part. Ranges are half-open, and written as `flotilla plan` writes them; a rank of one of several replicas as `flotilla top` does.

import { el } from '../dom.js';
import { bytes, percent, t } from '../words.js';
import { legend, share, stack } from './drawings.js';

/** `several`: there is more than one replica. `leftOut`: workers that no plan has a use for, and why. */
export function holdings(workers, model, { several, leftOut }) {
  const none = workers.length === 0 ? [el('p', {}, t('noWorkers'))] : [];
  const rows = workers.map((worker) => holding(worker, model, several));
  return [...none, ...rows, ...leftOut.map((it) => el('p', { class: 'note left-out' }, t('leftOut', it)))];
}

function holding(worker, model, several) {
  return el('article', { class: 'worker', 'aria-label': worker.name },
    who(worker, several),
    el('div', { class: 'shares' },
      shareOf('layers', worker.layers, model.layers),
      shareOf('heads', worker.kv_heads, model.kv_heads),
      shareOf('experts', worker.expert_blocks, worker.expert_blocks_total),
      shareOf('vocabulary', worker.vocab, model.vocab),
    ),
  );
}

function who(worker, several) {
  const { bytes_done: done, bytes_total: total } = worker.loading ?? {};
  const loaded = total > 0 ? done / total : 0;
  const words = { waiting: 'stateWaiting', loading: 'stateLoading', ready: 'stateReady' };
  const state = t(words[worker.state] ?? 'stateWaiting', { share: percent(loaded) });
  const head = el('div', { class: 'who' },
    el('h3', {}, worker.name, el('span', { class: 'rank' }, several ? `#${worker.replica}.${worker.rank}` : `#${worker.rank}`)),
    el('p', { class: 'note' }, worker.device),
    el('p', { class: 'state', 'data-state': worker.state }, state),
  );
  if (worker.state === 'loading') {
    const label = `${bytes(done ?? 0)} / ${bytes(total ?? 0)}`;
    head.append(el('progress', { max: '1', value: String(loaded), 'aria-label': label, title: label }));
  }
  return head;
}

function shareOf(word, range, total) {
  const held = Array.isArray(range) ? range : [0, 0];
  const text = held[1] > held[0] ? t('range', { from: held[0], to: held[1], total }) : t('none');
  return el('div', { class: 'share' },
    el('h4', {}, t(word)),
    share(held, total, `${t(word)}: ${text}`),
    el('p', { class: 'note' }, text),
  );
}

/** Devices that do not say how much they have are drawn to the scale of the one that takes most. */
export function memory(workers) {
  const most = Math.max(0, ...workers.map(taken));
  return workers.map((worker) => {
    const whole = worker.memory_bytes || most;
    const parts = partsOf(worker);
    const entries = parts.map(({ name, word, amount }) => ({ name, text: `${t(word)} ${bytes(amount)}` }));
    const total = worker.memory_bytes ? ` ${t('ofDevice', { total: bytes(worker.memory_bytes) })}` : '';
    return el('article', { class: 'bar-row' },
      el('h3', {}, worker.name),
      stack(parts, whole, `${worker.name}: ${entries.map((entry) => entry.text).join(', ')}`),
      el('p', { class: 'note' }, legend(entries), el('span', { class: 'sum' }, bytes(taken(worker)) + total)),
    );
  });
}

function partsOf(worker) {
  return [
    { name: 'part-1', word: 'weights', amount: worker.weights_bytes },
    { name: 'part-2', word: 'kv', amount: worker.kv_bytes },
    { name: 'part-3', word: 'activations', amount: worker.activation_bytes },
  ];
}

function taken({ weights_bytes, kv_bytes, activation_bytes }) {
  return weights_bytes + kv_bytes + activation_bytes;
}
