// The lines of a table: its cells, and the ruler under its head.

const COLUMNS_MAX = 64;

/** The alignments that a ruler such as `|:--|--:|` says; null: it is none. */
export function rulerOf(line) {
  if (!line.includes('-') || !line.includes('|')) return null;
  const cells = cellsOf(line);
  if (!cells.every((cell) => /^:?-+:?$/.test(cell))) return null;
  return cells.map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'center' : 'right') : ''));
}

/** Cut at bars that are neither escaped nor in code. */
export function cellsOf(line) {
  const text = line.trim();
  const cells = [''];
  let code = false;
  for (let at = text.startsWith('|') ? 1 : 0; at < text.length; at += 1) {
    if (text[at] === '`') code = !code && text.indexOf('`', at + 1) > 0;
    if (text[at] === '\\' && text[at + 1] === '|') {
      cells[cells.length - 1] += '|';
      at += 1;
    } else if (text[at] === '|' && !code) cells.push('');
    else cells[cells.length - 1] += text[at];
  }
  if (text.length > 1 && text.endsWith('|') && cells.at(-1) === '') cells.pop();
  return cells.slice(0, COLUMNS_MAX).map((cell) => cell.trim());
}

/** Whether a line is the beginning of a ruler. */
export function mayBecomeRuler(line) {
  return /^[ \t|:-]*$/.test(line);
}
