// Rates from totals that only grow: two polls and the time between them. Pure; times are arguments, in
// milliseconds. A total that fell means that the server started anew, so what was before says nothing.

const KEPT_MS = 120_000;
/** What is shown as now is the mean of so long: a step that falls on either side of a poll is no event. */
const NOW_MS = 3000;

export class Rates {
  constructor() {
    this.samples = [];
  }

  push(totals, nowMs) {
    const last = this.samples.at(-1);
    if (last && Object.keys(totals).some((name) => totals[name] < last.totals[name])) this.samples = [];
    this.samples.push({ totals, ms: nowMs });
    while (this.samples.length > 1 && nowMs - this.samples[0].ms > KEPT_MS + NOW_MS) this.samples.shift();
  }

  /** Per second, lately; null before there are two polls. */
  now(name) {
    const last = this.samples.at(-1);
    const from = this.samples.find((sample) => last.ms - sample.ms <= NOW_MS + 500);
    return from && from !== last ? perSecond(from, last, name) : null;
  }

  /** For how long the totals are known. */
  seconds() {
    return this.samples.length === 0 ? 0 : (this.samples.at(-1).ms - this.samples[0].ms) / 1000;
  }

  /** One point for each poll but the first: how long ago, as a share of what is kept, and per second. */
  series(name, nowMs) {
    const points = [];
    for (let at = 1; at < this.samples.length; at += 1) {
      const age = (nowMs - this.samples[at].ms) / KEPT_MS;
      if (age <= 1) points.push({ age, rate: perSecond(this.samples[at - 1], this.samples[at], name) });
    }
    return points;
  }
}

function perSecond(from, to, name) {
  return ((to.totals[name] - from.totals[name]) * 1000) / Math.max(to.ms - from.ms, 1);
}
