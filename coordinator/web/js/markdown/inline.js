// Markdown inside a line: code, emphasis, links. Text in, a tree out: nodes are strings or
// {tag, children, ...}. The tree knows nothing of the DOM, so no text of a model can become markup here, and
// it is tested without a browser. Not CommonMark to the letter: HTML is text, images are links (nothing is
// loaded from elsewhere), and a new line is a line break, which is what models mean by it.
//
// `open` says that more text will follow: what is begun and not ended yet is taken as meant, so that
// **bold is bold from its first letter, and markers that may still change their meaning are not shown.

const LABEL_CHARS_MAX = 2000;
/** Of one paragraph; what follows is text. Matching them takes the square of their number. */
const DELIMITERS_MAX = 400;
const DEPTH_MAX = 6;
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u;

export function parseInline(text, open = false, depth = 0) {
  const items = new Scanner(text, open, depth).run();
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
  constructor(text, open, depth) {
    Object.assign(this, { text, open, depth, at: 0, plain: '', items: [], delimiters: 0 });
    this.unclosedTicks = new Set();
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
    if (!this.text.startsWith(begin, this.at)) return false;
    const stop = this.text.indexOf(end, this.at + begin.length);
    if (stop < 0) return false;
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
    const href = address && safeLink(address[1]);
    return href ? this.node({ tag: 'a', href, children: [address[1]] }, address[0].length) : false;
  }

  /** An address that simply stands in the text. */
  address() {
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
    const children = parseInline(label || target, false, this.depth + 1);
    return this.node({ tag: 'a', href, children }, length);
  }

  /** A link whose target is still being written: its words, as text. */
  label(label, length) {
    this.flush();
    this.items.push(...parseInline(label, false, this.depth + 1));
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

/** CommonMark's rule of left and right flanks. */
function flanks(char, before, after) {
  const space = (it) => /\s/.test(it);
  const punctuation = (it) => PUNCTUATION.test(it);
  const left = !space(after) && (!punctuation(after) || space(before) || punctuation(before));
  const right = !space(before) && (!punctuation(before) || space(after) || punctuation(after));
  const begins = space(before) || punctuation(before);
  if (char !== '_') return { opens: left, closes: right, begins };
  return { opens: left && (!right || punctuation(before)), closes: right && (!left || punctuation(after)), begins };
}

/** Pairs of markers become nodes around what stands between them; inner pairs first. */
function matchDelimiters(items) {
  for (let closer = 0; closer < items.length; closer += 1) {
    while (items[closer]?.closes && items[closer].count > 0) {
      const opener = findOpener(items, closer);
      if (opener < 0) break;
      closer = wrap(items, opener, closer);
    }
  }
}

function findOpener(items, closer) {
  const close = items[closer];
  for (let at = closer - 1; at >= 0; at -= 1) {
    const open = items[at];
    if (open.delimiter !== close.delimiter || !open.opens || open.count === 0) continue;
    const bothWays = open.closes || close.opens;
    if (bothWays && (open.count + close.count) % 3 === 0 && open.count % 3 !== 0) continue;
    return at;
  }
  return -1;
}

/** Returns where the closer is then. */
function wrap(items, opener, closer) {
  const open = items[opener];
  const close = items[closer];
  const used = open.count >= 2 && close.count >= 2 ? 2 : 1;
  const inner = items.slice(opener + 1, closer);
  items.splice(opener + 1, closer - opener - 1, { tag: emphasis(open.delimiter, used), children: merge(inner) });
  open.count -= used;
  close.count -= used;
  return opener + 2;
}

function emphasis(delimiter, count) {
  if (delimiter === '~') return 'del';
  return count === 2 ? 'strong' : 'em';
}

function dropLast(items) {
  if (items.at(-1)?.delimiter) items.pop();
}

/** What is begun at the end of an open text goes up to its end. */
function closeOpened(items) {
  for (let at = items.length - 2; at >= 0; at -= 1) {
    const item = items[at];
    const meant = item.opens && (item.count >= 2 || item.begins);
    if (!meant || item.count === 0) continue;
    const children = merge(items.splice(at + 1));
    const inner = item.count >= 3 ? [{ tag: 'em', children }] : children;
    items[at] = { tag: emphasis(item.delimiter, Math.min(item.count, 2)), children: inner };
  }
}

/** Markers that are left are text, and texts side by side are one. */
function merge(items) {
  const nodes = [];
  for (const item of items) {
    const node = item.delimiter ? item.delimiter.repeat(item.count) : item;
    if (typeof node === 'string' && typeof nodes.at(-1) === 'string') nodes[nodes.length - 1] += node;
    else if (node !== '') nodes.push(node);
  }
  return nodes;
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
