// Markdown that is still being written. Text comes in pieces; blocks that are over are parsed once and stay
// as they are, and only the last is parsed again with every piece, so a long answer costs no more a piece
// than a short one.

import { parseBlocks } from './blocks.js';

export class MarkdownStream {
  constructor() {
    this.text = '';
    this.tail = '';
    /** Nodes that no further text changes. */
    this.finished = [];
    /** Nodes of what may still go on. */
    this.last = [];
  }

  /** All of the text so far, and whether more will come. Returns the number of nodes that were over before. */
  update(text, open) {
    if (!text.startsWith(this.text)) Object.assign(this, new MarkdownStream());
    const kept = this.finished.length;
    this.tail += text.slice(this.text.length).replaceAll('\r', '');
    this.text = text;
    this.parse(open);
    return kept;
  }

  parse(open) {
    const lines = this.tail.split('\n');
    const blocks = parseBlocks(lines, open);
    const over = open ? Math.max(0, blocks.length - (blocks.at(-1)?.pending ? 2 : 1)) : 0;
    this.finished.push(...blocks.slice(0, over).map((block) => block.node));
    this.last = blocks.slice(over).map((block) => block.node);
    if (over > 0) this.tail = lines.slice(blocks[over].line).join('\n');
  }
}

export function parseMarkdown(text) {
  const stream = new MarkdownStream();
  stream.update(text, false);
  return stream.last;
}
