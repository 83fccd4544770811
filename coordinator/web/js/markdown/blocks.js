// Markdown by lines: paragraphs, headings, lists, quotes, fences, tables, rules. Lines in, blocks out, each
// with the line at which it begins. Deliberately absent: HTML, code by indentation, headings by underlining,
// references: models hardly write them, and misread they do harm.
//
// A block depends on nothing before it, so `stream.js` can keep those that are over. `open` says that the
// last line may go on: what could still become something else is held back until that is known.

import { parseInline } from './inline.js';
import { cellsOf, mayBecomeRuler, rulerOf } from './tables.js';

const DEPTH_MAX = 8;
const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>(?: |(\t))?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +)|$)/;
/** Lines of markers only: what they mark is still to come. */
const MARKERS = /^[ \t]*(?:[-*_+= \t]+|#{1,6}[ \t]*|`+|~+|>[> \t]*)$/;
const NUMBER = /^[ \t]*\d{1,9}[.)]?[ \t]*$/;
const FENCE_BEGUN = /^ {0,3}(?:`{3,}[^`]*|~{3,}.*)$/;

const TAB = '    ';

/** `raw`: the lines as they were written, for code; everything else is read as if a tab were four blanks. */
export function parseBlocks(lines, open = false, depth = 0) {
  const raw = open ? withoutHeld(lines) : lines;
  const reader = { raw, lines: raw.map(expand), open, depth };
  const blocks = [];
  let line = 0;
  while (line < reader.lines.length) {
    if (isBlank(reader.lines[line])) {
      line += 1;
      continue;
    }
    const block = readBlock(reader, line);
    blocks.push({ ...block, line });
    line = block.end;
  }
  return blocks;
}

export function nodesOf(lines, open, depth) {
  return parseBlocks(lines, open, depth).map((block) => block.node);
}

function withoutHeld(lines) {
  const last = lines.at(-1);
  if (last === undefined || isBlank(last)) return lines;
  const held = MARKERS.test(last) || FENCE_BEGUN.test(last) || (lines.length > 1 && NUMBER.test(last));
  return held ? lines.slice(0, -1) : lines;
}

function readBlock(reader, at) {
  const kind = begins(reader, at);
  if (kind === 'fence') return fence(reader, at);
  if (kind === 'heading') return heading(reader, at);
  if (kind === 'rule') return { node: { tag: 'hr' }, end: at + 1 };
  if (kind === 'table') return table(reader, at);
  if (kind === 'quote' && reader.depth < DEPTH_MAX) return quote(reader, at);
  if (kind === 'item' && reader.depth < DEPTH_MAX) return list(reader, at);
  return paragraph(reader, at);
}

/** What begins at a line; null: a paragraph. */
function begins(reader, at) {
  const line = reader.lines[at];
  const mark = FENCE.exec(line);
  if (mark && !(mark[2][0] === '`' && mark[3].includes('`'))) return 'fence';
  if (HEADING.test(line)) return 'heading';
  if (RULE.test(line)) return 'rule';
  if (QUOTE.test(line)) return 'quote';
  if (ITEM.test(line)) return 'item';
  return tableBegins(reader, at) ? 'table' : null;
}

/** What ends a paragraph. A number in its middle is a number, unless it begins to count. */
function interrupts(reader, at) {
  const kind = begins(reader, at);
  if (kind !== 'item') return kind !== null;
  const [whole, , marker] = ITEM.exec(reader.lines[at]);
  return whole.length < reader.lines[at].length && (!/\d/.test(marker) || parseInt(marker, 10) === 1);
}

function paragraph(reader, at) {
  let end = at + 1;
  while (end < reader.lines.length && !isBlank(reader.lines[end]) && !interrupts(reader, end)) end += 1;
  const text = reader.lines.slice(at, end).map((line) => line.trim()).join('\n');
  return { node: { tag: 'p', children: inline(reader, text, end) }, end };
}

/** Only the text at the very end of what there is can go on. */
function inline(reader, text, end) {
  return parseInline(text, reader.open && end >= reader.lines.length);
}

function heading(reader, at) {
  const line = reader.lines[at];
  const [marker, hashes] = HEADING.exec(line);
  let text = line.slice(marker.length).trimEnd();
  const bare = text.replace(/#+$/, '');
  if (bare === '' || /\s$/.test(bare)) text = bare.trimEnd();
  return { node: { tag: `h${hashes.length}`, children: inline(reader, text, at + 1) }, end: at + 1 };
}

function fence(reader, at) {
  const [, indent, marker, info] = FENCE.exec(reader.lines[at]);
  let end = at + 1;
  while (end < reader.lines.length && !closesFence(reader.lines[end], marker)) end += 1;
  const text = reader.raw.slice(at + 1, end).map((line) => unindent(line, indent.length)).join('\n');
  const language = /^\s*([\w+#.-]*)/.exec(info)[1];
  return { node: { tag: 'fence', language, text }, end: Math.min(end + 1, reader.lines.length) };
}

function closesFence(line, marker) {
  const run = line.trim();
  return run.length >= marker.length && indentOf(line) <= 3 && run === marker[0].repeat(run.length);
}

function quote(reader, at) {
  const inner = [];
  let end = at;
  while (end < reader.lines.length) {
    const line = reader.lines[end];
    const goesOn = end > at && !isBlank(line) && !isBlank(inner.at(-1)) && !interrupts(reader, end);
    // Of a tab behind the mark one blank is the mark's.
    if (QUOTE.test(line)) inner.push(reader.raw[end].replace(QUOTE, (_, tab) => (tab ? TAB.slice(1) : '')));
    else if (goesOn) inner.push(reader.raw[end]);
    else break;
    end += 1;
  }
  const open = reader.open && end >= reader.lines.length;
  return { node: { tag: 'blockquote', children: nodesOf(inner, open, reader.depth + 1) }, end };
}

function list(reader, at) {
  const [, , marker] = ITEM.exec(reader.lines[at]);
  const kind = marker.at(-1);
  const items = [];
  let end = at;
  while (end < reader.lines.length) {
    const begun = ITEM.exec(reader.lines[end]);
    if (!begun || begun[2].at(-1) !== kind || RULE.test(reader.lines[end])) break;
    const item = readItem(reader, end, begun);
    items.push(item.node);
    end = item.end;
  }
  const numbered = /\d/.test(marker);
  const node = { tag: numbered ? 'ol' : 'ul', children: items };
  if (numbered) node.start = parseInt(marker, 10);
  return { node, end };
}

/** An item has the lines that stand deeper than its marker by two, which is how models indent. */
function readItem(reader, at, [whole, indent, marker, spaces]) {
  const first = withoutColumns(reader.raw[at], whole.length);
  const content = indent.length + marker.length + Math.min(spaces?.length ?? 1, 4);
  const inner = [first];
  let fenced = fenceState(null, expand(first));
  let end = at + 1;
  let blank = false;
  while (end < reader.lines.length) {
    const line = reader.lines[end];
    const deeper = indentOf(line) >= indent.length + 2;
    const goesOn = !blank && !interrupts(reader, end) && !ITEM.test(line);
    if (!isBlank(line) && !deeper && !goesOn && !fenced) break;
    const text = unindent(reader.raw[end], content);
    fenced = fenceState(fenced, expand(text));
    blank = isBlank(line);
    inner.push(text);
    end += 1;
  }
  const open = reader.open && end >= reader.lines.length;
  if (!open) while (inner.length > 1 && isBlank(inner.at(-1))) inner.pop();
  return { node: { tag: 'li', ...task(inner), children: nodesOf(inner, open, reader.depth + 1) }, end };
}

/** The marker of the fence that is open after a line. */
function fenceState(marker, line) {
  if (marker) return closesFence(line, marker) ? null : marker;
  return FENCE.exec(line)?.[2] ?? null;
}

/** `[ ]` and `[x]`: the box is taken from the text. */
function task(inner) {
  const box = /^\[([ xX])\][ \t]/.exec(inner[0]);
  if (!box) return {};
  inner[0] = inner[0].slice(box[0].length);
  return { done: box[1] !== ' ' };
}

function tableBegins(reader, at) {
  const line = reader.lines[at];
  if (!line.includes('|')) return false;
  const next = reader.lines[at + 1];
  if (next !== undefined && !ITEM.test(next) && rulerOf(next)?.length === cellsOf(line).length) return true;
  return pendingTable(reader, at);
}

/** While it is written, a line that begins with a bar is the head of a table, before its ruler is there. */
function pendingTable(reader, at) {
  if (!reader.open || !reader.lines[at].trimStart().startsWith('|')) return false;
  const after = reader.lines.slice(at + 1, at + 3);
  return at + 2 >= reader.lines.length && after.every(mayBecomeRuler);
}

function table(reader, at) {
  const head = cellsOf(reader.lines[at]);
  const aligns = rulerOf(reader.lines[at + 1] ?? '');
  const ruled = aligns?.length === head.length;
  let end = Math.min(at + 2, reader.lines.length);
  while (ruled && end < reader.lines.length && rowGoesOn(reader, end)) end += 1;
  const row = (tag, cells, line) => ({
    tag: 'tr',
    children: head.map((_, column) => ({
      tag,
      align: ruled ? aligns[column] : '',
      children: inline(reader, cells[column] ?? '', line + 1),
    })),
  });
  const rows = [];
  for (let line = at + 2; line < end; line += 1) rows.push(row('td', cellsOf(reader.lines[line]), line));
  const children = [
    { tag: 'thead', children: [row('th', head, at)] },
    { tag: 'tbody', children: rows },
  ];
  // A ruler that is still being written may come to have a column too many.
  const pending = reader.open && (!ruled || at + 2 >= reader.lines.length);
  return { node: { tag: 'table', children }, end, pending };
}

/** A row need not have a bar, so text right under a table is in it; another kind of block is not. */
function rowGoesOn(reader, at) {
  const line = reader.lines[at];
  return !isBlank(line) && [FENCE, HEADING, QUOTE, RULE, ITEM].every((begins) => !begins.test(line));
}

function isBlank(line) {
  return line.trim() === '';
}

function expand(line) {
  return line.replaceAll('\t', TAB);
}

/** In columns. */
function indentOf(line) {
  return expand(line.slice(0, line.length - line.trimStart().length)).length;
}

function unindent(line, columns) {
  return withoutColumns(line, Math.min(columns, indentOf(line)));
}

/** What is left of a tab that is cut in two is blanks. */
function withoutColumns(line, columns) {
  let [at, seen] = [0, 0];
  for (; seen < columns; at += 1) seen += line[at] === '\t' ? TAB.length : 1;
  return ' '.repeat(seen - columns) + line.slice(at);
}
