// Markdown inside a line: code, emphasis, links. Text in, a tree out: nodes are strings or
// {tag, children, ...}. The tree knows nothing of the DOM, so no text of a model can become markup here, and
// it is tested without a browser. Not CommonMark to the letter: HTML is text, images are links (nothing is
// loaded from elsewhere), and a new line is a line break, which is what models mean by it.
//
// `open` says that more text will follow: what is begun and not ended yet is taken as meant, so that
// **bold is bold from its first letter, and markers that may still change their meaning are not shown.

import { closeOpened, dropLast, flanks, matchDelimiters, merge } from './emphasis.js';

const LABEL_CHARS_MAX = 2000;
/** Of one paragraph; what follows is text. Matching them takes the square of their number. */
const DELIMITERS_MAX = 400;
const DEPTH_MAX = 6;

/** `inLink`: the text is the label of a link, in which there is no other. */
export function parseInline(text, open = false, depth = 0, inLink = false) {
  const items = new Scanner(text, open, depth, inLink).run();
  if (open) dropLast(items);
  matchDelimiters(items);
  if (open) closeOpened(items);
  return merge(items);
}

/** Only these leave the page. */
export function safeLink(text) {
  try {
    const url = new URL(text);
    return url.protocol === 'http:' || url.protocol === 'https:' ? url.href : null;
  } catch {
    return null;
  }
}

class Scanner {
  constructor(text, open, depth, inLink) {
    Object.assign(this, { text, open, depth, inLink, at: 0, plain: '', items: [], delimiters: 0 });
    // What has no end from here on has none further on: looked for once, not at each beginning.
    this.unclosedTicks = new Set();
    this.unclosedMath = new Set();
  }

  run() {
    while (this.at < this.text.length) this.step(this.text[this.at]);
    this.flush();
    return this.items;
  }

  step(char) {
    const found =
      char === '\\' ? this.escape()
      : char === '`' ? this.code()
      : char === '\n' ? this.node({ tag: 'br' }, 1)
      : char === '<' ? this.angle()
      : char === '[' ? this.link(0)
      : char === '!' && this.text[this.at + 1] === '[' ? this.link(1)
      : char === 'h' ? this.address()
      : char === '$' ? this.math('$$', '$$')
      : char === '*' || char === '_' || char === '~' ? this.delimiter(char)
      : false;
    if (!found) this.literal(char);
  }

  literal(text, length = text.length) {
    this.plain += text;
    this.at += length;
    return true;
  }

  node(node, length) {
    this.flush();
    this.items.push(node);
    this.at += length;
    return true;
  }

  flush() {
    if (this.plain) this.items.push(this.plain);
    this.plain = '';
  }

  rest() {
    return this.text.slice(this.at);
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === '(' && this.math('\\(', '\\)')) return true;
    if (next === '[' && this.math('\\[', '\\]')) return true;
    if (next === undefined) return this.open && this.literal('', 1);
    if (next === '\n') return this.literal('', 1);
    return /[!-/:-@[-`{-~]/.test(next) && !'()[]'.includes(next) && this.literal(next, 2);
  }

  /** Formulas are not set, but what stands in them is no emphasis either. */
  math(begin, end) {
    if (!this.text.startsWith(begin, this.at) || this.unclosedMath.has(end)) return false;
    const stop = this.text.indexOf(end, this.at + begin.length);
    if (stop < 0) {
      this.unclosedMath.add(end);
      return false;
    }
    const source = this.text.slice(this.at, stop + end.length);
    return this.node({ tag: 'math', children: [source] }, source.length);
  }

  code() {
    const ticks = runLength(this.text, this.at);
    const begin = this.at + ticks;
    const stop = this.unclosedTicks.has(ticks) ? -1 : findRun(this.text, begin, ticks);
    if (stop >= 0) {
      const source = this.text.slice(begin, stop).replaceAll('\n', ' ');
      const padded = source.length > 2 && source.startsWith(' ') && source.endsWith(' ') && source.trim() !== '';
      const code = padded ? source.slice(1, -1) : source;
      return this.node({ tag: 'code', children: [code] }, stop + ticks - this.at);
    }
    this.unclosedTicks.add(ticks);
    if (!this.open) return this.literal('`'.repeat(ticks));
    const begun = trimRight(this.text.slice(begin), '`').replaceAll('\n', ' ');
    if (begun === '') return this.literal('', this.text.length - this.at);
    return this.node({ tag: 'code', children: [begun] }, this.text.length - this.at);
  }

  angle() {
    const rest = this.text.slice(this.at, this.at + LABEL_CHARS_MAX);
    const lineBreak = /^<br ?\/?>/i.exec(rest);
    if (lineBreak) return this.node({ tag: 'br' }, lineBreak[0].length);
    const address = /^<(https?:\/\/[^\s<>]+)>/i.exec(rest);
    if (address && this.inLink) return this.literal(address[1], address[0].length);
    const href = address && safeLink(address[1]);
    return href ? this.node({ tag: 'a', href, children: [address[1]] }, address[0].length) : false;
  }

  /** An address that simply stands in the text. */
  address() {
    if (this.inLink) return false;
    const before = this.text[this.at - 1];
    if (before !== undefined && /[\p{L}\p{N}]/u.test(before)) return false;
    const found = /^https?:\/\/[^\s<>"'`|]+/i.exec(this.text.slice(this.at, this.at + LABEL_CHARS_MAX));
    if (!found) return false;
    const text = trimAddress(found[0]);
    const href = safeLink(text);
    return href ? this.node({ tag: 'a', href, children: [text] }, text.length) : false;
  }

  link(bang) {
    if (this.depth >= DEPTH_MAX) return false;
    const begin = this.at + bang + 1;
    const end = closingBracket(this.text, begin);
    if (end < 0) return this.open && this.unfinished(begin) ? this.literal('', bang + 1) : false;
    const label = this.text.slice(begin, end);
    const target = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/.exec(
      this.text.slice(end + 1, end + 1 + LABEL_CHARS_MAX),
    );
    if (target) return this.linked(label, target[1], end + 1 + target[0].length - this.at);
    const cut = this.open && (end + 1 === this.text.length || /^\([^)\n]*$/.test(this.text.slice(end + 1)));
    return cut ? this.label(label, this.text.length - this.at) : false;
  }

  linked(label, target, length) {
    const href = safeLink(target);
    if (!href) return this.literal(this.text.slice(this.at, this.at + length));
    if (this.inLink) return this.label(label || target, length);
    const children = parseInline(label || target, false, this.depth + 1, true);
    return this.node({ tag: 'a', href, children }, length);
  }

  /** A link whose target is still being written, or that stands in another: its words, as text. */
  label(label, length) {
    this.flush();
    this.items.push(...parseInline(label, false, this.depth + 1, true));
    this.at += length;
    return true;
  }

  /** A bracket that nothing closes yet, in the last line. */
  unfinished(begin) {
    const rest = this.text.slice(begin, begin + LABEL_CHARS_MAX);
    return begin + rest.length === this.text.length && !/[\n[\]]/.test(rest);
  }

  delimiter(char) {
    const count = runLength(this.text, this.at);
    if (this.delimiters >= DELIMITERS_MAX || (char === '~' && count !== 2)) {
      return char === '~' && this.open && this.at + count === this.text.length
        ? this.literal('', count)
        : this.literal(char.repeat(count));
    }
    this.delimiters += 1;
    const before = this.text[this.at - 1] ?? ' ';
    const after = this.text[this.at + count] ?? ' ';
    return this.node({ delimiter: char, count, ...flanks(char, before, after) }, count);
  }
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** Where a run of exactly so many backticks begins. */
function findRun(text, from, ticks) {
  let at = text.indexOf('`', from);
  while (at >= 0) {
    const length = runLength(text, at);
    if (length === ticks) return at;
    at = text.indexOf('`', at + length);
  }
  return -1;
}

function closingBracket(text, begin) {
  const end = Math.min(text.length, begin + LABEL_CHARS_MAX);
  for (let at = begin, depth = 0; at < end; at += 1) {
    if (text[at] === '\\') at += 1;
    else if (text[at] === '[') depth += 1;
    else if (text[at] === ']' && depth === 0) return at;
    else if (text[at] === ']') depth -= 1;
  }
  return -1;
}

function trimRight(text, char) {
  let end = text.length;
  while (end > 0 && text[end - 1] === char) end -= 1;
  return text.slice(0, end);
}

/** Punctuation behind an address belongs to the sentence, and so does a bracket that it did not open. */
function trimAddress(text) {
  let end = text.length;
  while (end > 0) {
    const last = text[end - 1];
    const closes = last === ')' && !text.slice(0, end).includes('(');
    if (!closes && !'.,;:!?*_~]'.includes(last)) break;
    end -= 1;
  }
  return text.slice(0, end);
}
