// The name of the model in the page's head, and whether it answers. Asked at the start and, until it is
// ready or wants a key, every few seconds.

import { getJson } from './client.js';
import { byId } from './dom.js';
import { problemWords } from './problem.js';
import { t } from './words.js';

const AGAIN_MS = 3000;
const STATES = { 401: 'locked', 403: 'locked', 503: 'loading' };

export class ServerState {
  constructor() {
    this.model = null;
    this.problem = null;
    this.show('connecting');
    this.ask();
  }

  async ask() {
    clearTimeout(this.timer);
    try {
      const models = await getJson('v1/models');
      this.model = models.data[0]?.id ?? null;
      await getJson('health');
      this.problem = null;
      this.show('ready');
    } catch (problem) {
      this.problem = problem;
      this.show(STATES[problem.status] ?? 'unreachable');
      // Without another key it stays as it is; a proxy's 502 and the like go by.
      if (STATES[problem.status] !== 'locked') this.timer = setTimeout(() => this.ask(), AGAIN_MS);
    }
  }

  show(state = this.state) {
    this.state = state;
    byId('model').textContent = this.model ?? '';
    const dot = byId('state');
    dot.dataset.state = state;
    dot.textContent = t(state);
    dot.title = this.problem ? problemWords(this.problem) : '';
  }
}
