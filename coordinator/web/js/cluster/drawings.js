// The three drawings of the page: a line over the last two minutes, a share of a whole, and parts of a sum.
// Sizes are in units of the drawing's own box, so they follow the width that the page gives them.

import { el, svg } from '../dom.js';

const WIDTH = 240;
const HEIGHT = 48;
/** Up to so many, each of a kind is a cell; more would be too thin to see. */
const CELLS_MAX = 40;
const CELL_GAP = 1.2;

/** `points`: age 0 (now) to 1, and a rate. The line is scaled to its own highest point. */
export function sparkline(points, label) {
  const top = Math.max(1, ...points.map((point) => point.rate));
  const place = ({ age, rate }) => [(1 - age) * WIDTH, HEIGHT - 2 - (rate / top) * (HEIGHT - 4)];
  const line = points.map((point) => place(point).map((it) => it.toFixed(1)).join(' ')).join(' L ');
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label });
  drawing.append(svg('path', { d: `M 0 ${HEIGHT - 1} H ${WIDTH}`, class: 'base' }));
  if (points.length > 1) {
    const [from] = place(points[0]);
    const [to] = place(points.at(-1));
    drawing.append(svg('path', { d: `M ${from} ${HEIGHT} L ${line} L ${to} ${HEIGHT} Z`, class: 'area' }));
    drawing.append(svg('path', { d: `M ${line}`, class: 'stroke' }));
  }
  return drawing;
}

/** The range [from, to) of a total: as cells where they can be told apart, else as one bar. */
export function share([from, to], total, label) {
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} 14`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label });
  if (total > 0 && total <= CELLS_MAX) {
    const width = WIDTH / total;
    for (let at = 0; at < total; at += 1) drawing.append(cell(at * width, width - CELL_GAP, at >= from && at < to));
  } else {
    const scale = WIDTH / Math.max(total, 1);
    drawing.append(cell(0, WIDTH, false), cell(from * scale, (to - from) * scale, to > from));
  }
  return drawing;
}

function cell(x, width, held) {
  return svg('rect', { x, y: 0, width: Math.max(width, 0.5), height: 14, class: held ? 'held' : 'track' });
}

/** `parts`: [{name, amount}], of `whole`. */
export function stack(parts, whole, label) {
  const bar = el('div', { class: 'stack', role: 'img', 'aria-label': label });
  for (const { name, amount } of parts) {
    const part = el('span', { class: `part ${name}` });
    part.style.width = `${(100 * amount) / Math.max(whole, 1)}%`;
    bar.append(part);
  }
  return bar;
}

/** `entries`: [{name, text}]. */
export function legend(entries) {
  const entry = ({ name, text }) => el('span', {}, el('i', { class: `part ${name}` }), text);
  return el('span', { class: 'legend' }, ...entries.map(entry));
}
