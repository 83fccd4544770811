// Emphasis: which markers of *, _ and ~~ belong together, after CommonMark's rules. It works on the items that
// inline.js made of a text: strings, nodes, and markers {delimiter, count, opens, closes, begins}.

const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u;

/** CommonMark's rule of left and right flanks. */
export function flanks(char, before, after) {
  const space = (it) => /\s/.test(it);
  const punctuation = (it) => PUNCTUATION.test(it);
  const left = !space(after) && (!punctuation(after) || space(before) || punctuation(before));
  const right = !space(before) && (!punctuation(before) || space(after) || punctuation(after));
  const begins = space(before) || punctuation(before);
  if (char !== '_') return { opens: left, closes: right, begins };
  return { opens: left && (!right || punctuation(before)), closes: right && (!left || punctuation(after)), begins };
}

/** Pairs of markers become nodes around what stands between them; inner pairs first. */
export function matchDelimiters(items) {
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

export function dropLast(items) {
  if (items.at(-1)?.delimiter) items.pop();
}

/** What is begun at the end of an open text goes up to its end. */
export function closeOpened(items) {
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
export function merge(items) {
  const nodes = [];
  for (const item of items) {
    const node = item.delimiter ? item.delimiter.repeat(item.count) : item;
    if (typeof node === 'string' && typeof nodes.at(-1) === 'string') nodes[nodes.length - 1] += node;
    else if (node !== '') nodes.push(node);
  }
  return nodes;
}
