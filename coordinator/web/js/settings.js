// The panel of settings: instructions, sampling, the tool for trying out, the key. It keeps what is entered;
// whether a value makes sense is the server's to say, by name.

import { apiKey, setApiKey } from './client.js';
import { byId } from './dom.js';
import { SAMPLING } from './request.js';
import { keepSettings, readSettings } from './store.js';

export class Settings {
  /** `changed` is called when the key is another. */
  constructor(changed) {
    this.values = readSettings();
    this.changed = changed;
    for (const name of SAMPLING) this.number(name);
    this.field('system');
    this.offer();
    this.effort();
    this.key();
    byId('reset').addEventListener('click', () => this.reset());
  }

  keep(name, value) {
    this.values[name] = value;
    keepSettings(this.values);
  }

  number(name) {
    const input = byId(name);
    input.value = this.values[name] ?? '';
    input.addEventListener('input', () => {
      const value = input.valueAsNumber;
      this.keep(name, Number.isNaN(value) ? null : value);
    });
  }

  field(name) {
    const input = byId(name);
    input.value = this.values[name];
    input.addEventListener('input', () => this.keep(name, input.value));
  }

  offer() {
    const box = byId('offer-weather');
    box.checked = this.values.offerWeather;
    box.addEventListener('change', () => this.keep('offerWeather', box.checked));
  }

  offerWeather() {
    byId('offer-weather').checked = true;
    this.keep('offerWeather', true);
  }

  effort() {
    for (const radio of document.querySelectorAll('input[name=effort]')) {
      radio.checked = radio.value === this.values.effort;
      radio.addEventListener('change', () => this.keep('effort', radio.value));
    }
  }

  key() {
    const input = byId('key');
    input.value = apiKey();
    input.addEventListener('change', () => {
      setApiKey(input.value.trim());
      this.changed();
    });
  }

  reset() {
    for (const name of SAMPLING) {
      byId(name).value = '';
      this.keep(name, null);
    }
  }
}
