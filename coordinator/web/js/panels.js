// The two panels beside the thread: conversations at its left, settings at its right. Where there is room
// they stand beside it, else they lie over it and go when something else is touched.

import { byId } from './dom.js';

const WIDE = matchMedia('(min-width: 60rem)');

export class Panel {
  constructor(panelId, buttonId, openWhenWide) {
    this.panel = byId(panelId);
    this.button = byId(buttonId);
    this.set(WIDE.matches && openWhenWide);
    this.button.addEventListener('click', () => this.toggle());
    this.panel.querySelector('.close').addEventListener('click', () => this.close());
    document.addEventListener('pointerdown', (event) => this.onPointer(event));
    WIDE.addEventListener('change', () => this.set(WIDE.matches && openWhenWide));
  }

  get isOpen() {
    return !this.panel.hidden;
  }

  /** Whether it hides what is under it. */
  get covers() {
    return this.isOpen && !WIDE.matches;
  }

  set(open) {
    this.panel.hidden = !open;
    this.button.setAttribute('aria-expanded', String(open));
  }

  toggle() {
    this.set(!this.isOpen);
    if (this.isOpen) this.panel.querySelector('button, input, textarea')?.focus();
  }

  close() {
    this.set(false);
    this.button.focus();
  }

  closeIfCovering() {
    if (this.covers) this.set(false);
  }

  onPointer(event) {
    const outside = !this.panel.contains(event.target) && !this.button.contains(event.target);
    if (this.covers && outside) this.set(false);
  }
}
