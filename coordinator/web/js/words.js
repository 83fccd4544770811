// The language of the page: which one, how to switch, and how numbers, sizes and times are written in it.
// The words themselves are in words-en.js and words-fr.js; a page's fixed words are marked in its HTML by
// data-word (text), data-label (aria-label, and title of buttons) and data-hint (placeholder).

import { english } from './words-en.js';
import { french } from './words-fr.js';

const TABLES = { en: english, fr: french };
const STORED = 'flotilla.language';
const listeners = [];
let code = 'en';

/** Words of a key. `{name}` stands for a value; an entry with `one` and `other` goes by `count`. */
export function t(key, values = {}) {
  const entry = TABLES[code][key];
  if (entry === undefined) throw new Error(`no words for ${key}`);
  const text = typeof entry === 'string' ? entry : entry[new Intl.PluralRules(code).select(values.count)] ?? entry.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === 'number' ? number(value) : String(value);
  });
}

export function language() {
  return code;
}

/** Called after the language changed. */
export function onLanguage(listener) {
  listeners.push(listener);
}

export function startLanguage() {
  const wanted = readStored() ?? navigator.language ?? 'en';
  code = wanted.toLowerCase().startsWith('fr') ? 'fr' : 'en';
  const select = document.getElementById('language');
  select.value = code;
  select.addEventListener('change', () => setLanguage(select.value));
  wordPage();
}

function setLanguage(wanted) {
  code = wanted;
  try {
    localStorage.setItem(STORED, wanted);
  } catch {
    // Without storage the choice holds for this page.
  }
  wordPage();
  for (const listener of listeners) listener();
}

function readStored() {
  try {
    const stored = localStorage.getItem(STORED);
    return stored in TABLES ? stored : null;
  } catch {
    return null;
  }
}

function wordPage() {
  document.documentElement.lang = code;
  for (const element of document.querySelectorAll('[data-word]')) element.textContent = t(element.dataset.word);
  for (const element of document.querySelectorAll('[data-hint]')) element.placeholder = t(element.dataset.hint);
  for (const element of document.querySelectorAll('[data-label]')) {
    element.setAttribute('aria-label', t(element.dataset.label));
    // Of what can be pressed; a title of a whole part of the page would follow the pointer over all of it.
    if (element.matches('button, select')) element.title = t(element.dataset.label);
  }
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(code, { maximumFractionDigits: digits }).format(value);
}

/** Three figures at most: 0.42, 8.1, 143. */
export function rough(value) {
  return number(value, value < 1 ? 2 : value < 100 ? 1 : 0);
}

export function percent(share) {
  const digits = share > 0 && share < 0.1 ? 1 : 0;
  const text = new Intl.NumberFormat(code, { style: 'percent', maximumFractionDigits: digits }).format(share);
  return text.replace(/\s/g, '\u202f');
}

const PREFIXES = ['', 'k', 'M', 'G', 'T'];

/** Decimal, as `flotilla plan` prints them. */
export function bytes(count) {
  let value = count;
  let prefix = 0;
  while (value >= 1000 && prefix + 1 < PREFIXES.length) {
    value /= 1000;
    prefix += 1;
  }
  return `${number(value, prefix === 0 ? 0 : value < 100 ? 2 : 1)}\u202f${PREFIXES[prefix]}${t('byte')}`;
}

export function seconds(value) {
  return `${number(value, value < 10 ? 1 : 0)}\u202fs`;
}

/** For short waits: milliseconds below a second. */
export function brief(value) {
  return value < 1 ? `${number(value * 1000)}\u202fms` : seconds(value);
}

/** `3 h 05 min`, for people: no smaller unit than says something. */
export function duration(total) {
  const whole = Math.floor(total);
  const [days, hours] = [Math.floor(whole / 86400), Math.floor((whole % 86400) / 3600)];
  const [minutes, rest] = [Math.floor((whole % 3600) / 60), whole % 60];
  if (days > 0) return `${number(days)}\u202f${t('day')} ${hours}\u202fh`;
  if (hours > 0) return `${hours}\u202fh ${String(minutes).padStart(2, '0')}\u202fmin`;
  if (minutes > 0) return `${minutes}\u202fmin ${String(rest).padStart(2, '0')}\u202fs`;
  return `${rest}\u202fs`;
}
