// Where the next message is written. Enter sends and Shift+Enter begins a line; while an answer is under way
// the button stops it.

import { byId, isSending } from './dom.js';
import { t } from './words.js';

export class Composer {
  /** `actions`: send(text), stop(). */
  constructor(actions) {
    this.actions = actions;
    this.field = byId('prompt');
    this.button = byId('send');
    this.running = false;
    byId('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.running) actions.stop();
      else this.send();
    });
    this.field.addEventListener('keydown', (event) => this.onKey(event));
    this.field.addEventListener('input', () => this.onInput());
  }

  onKey(event) {
    if (!isSending(event)) return;
    event.preventDefault();
    if (!this.running) this.send();
  }

  onInput() {
    this.grow();
    this.button.disabled = !this.running && this.field.value.trim() === '';
  }

  send() {
    const text = this.field.value.trim();
    if (text === '') return;
    this.field.value = '';
    this.onInput();
    this.actions.send(text);
  }

  /** The field is as high as its text; CSS bounds it. */
  grow() {
    this.field.style.height = 'auto';
    this.field.style.height = `${this.field.scrollHeight + 2}px`;
  }

  show(running) {
    this.running = running;
    this.button.textContent = t(running ? 'stop' : 'send');
    this.button.classList.toggle('stop', running);
    this.onInput();
  }

  focus() {
    // On a phone the keyboard would cover what there is to read.
    if (matchMedia('(pointer: fine)').matches) this.field.focus();
  }
}
