// A tree of Markdown as DOM. Nodes are made by name from a fixed set, and text is only ever put into text
// nodes, so nothing that a model writes is markup. A tree that grew is patched into what is there: what did
// not change keeps its nodes, and with them selection, scroll position and focus.

import { el } from '../dom.js';
import { t } from '../words.js';
import { MarkdownStream } from './stream.js';

const KIND = Symbol('kind');

/** Shows one text in one element, however often it grows. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.stream = new MarkdownStream();
  }

  update(text, open) {
    const kept = this.stream.update(text, open);
    const { finished, last } = this.stream;
    patch(this.element, [...finished.slice(kept), ...last], Math.min(kept, finished.length));
  }
}

/** Makes the children from `from` on show `nodes`, and nothing else. */
function patch(parent, nodes, from = 0) {
  nodes.forEach((node, index) => {
    const old = parent.childNodes[from + index];
    if (old && old[KIND] === kindOf(node)) renew(old, node);
    else if (old) old.replaceWith(make(node));
    else parent.append(make(node));
  });
  while (parent.childNodes.length > from + nodes.length) parent.lastChild.remove();
}

function kindOf(node) {
  return typeof node === 'string' ? 'text' : node.tag;
}

function make(node) {
  const made = typeof node === 'string' ? document.createTextNode(node) : (SPECIAL[node.tag]?.make ?? plain)(node);
  made[KIND] = kindOf(node);
  renew(made, node);
  return made;
}

function renew(dom, node) {
  if (typeof node === 'string') return setText(dom, node);
  const special = SPECIAL[node.tag];
  if (special?.renew) special.renew(dom, node);
  else patch(dom, node.children ?? []);
}

function setText(dom, text) {
  if (dom.data === text) return;
  if (text.startsWith(dom.data)) dom.appendData(text.slice(dom.data.length));
  else dom.data = text;
}

const PLAIN = new Set(
  'p h1 h2 h3 h4 h5 h6 ul ol li blockquote hr thead tbody tr th td em strong del code br a'.split(' '),
);

function plain(node) {
  if (!PLAIN.has(node.tag)) throw new Error(`no element for ${node.tag}`);
  return el(node.tag);
}

const SPECIAL = {
  a: {
    make: () => el('a', { rel: 'noopener noreferrer nofollow', target: '_blank' }),
    renew(dom, node) {
      dom.href = node.href;
      patch(dom, node.children);
    },
  },
  math: { make: () => el('code', { class: 'math' }) },
  ol: {
    renew(dom, node) {
      dom.start = node.start;
      patch(dom, node.children);
    },
  },
  li: {
    renew(dom, node) {
      dom.classList.toggle('task', node.done !== undefined);
      dom.classList.toggle('done', node.done === true);
      patch(dom, node.children);
    },
  },
  th: { renew: cell },
  td: { renew: cell },
  table: {
    make: () => el('div', { class: 'table', tabindex: '0' }, el('table')),
    renew: (dom, node) => patch(dom.firstChild, node.children),
  },
  fence: {
    make: fence,
    renew(dom, node) {
      dom.querySelector('.language').textContent = node.language;
      const code = dom.querySelector('code');
      if (!code.firstChild) code.append('');
      setText(code.firstChild, node.text);
    },
  },
};

function cell(dom, node) {
  dom.style.textAlign = node.align;
  patch(dom, node.children);
}

function fence() {
  const copy = el('button', { type: 'button', class: 'quiet copy' }, t('copy'));
  const box = el(
    'div',
    { class: 'fence' },
    el('div', { class: 'fence-bar' }, el('span', { class: 'language' }), copy),
    el('pre', { tabindex: '0' }, el('code')),
  );
  copy.addEventListener('click', () => copyText(box.querySelector('code').textContent, copy));
  return box;
}

const COPIED_MS = 1500;

export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = t('copied');
  } catch {
    // Over plain http there is no clipboard, except on this machine.
    button.textContent = t('copyFailed');
  }
  setTimeout(() => (button.textContent = t('copy')), COPIED_MS);
}
