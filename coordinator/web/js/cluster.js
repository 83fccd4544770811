// The page of the cluster: asks for its state every second, and shows it. It keeps the last two minutes of
// totals for rates, and nothing else; the server is not asked while nobody looks.

import { getJson, setApiKey } from './client.js';
import { sparkline } from './cluster/drawings.js';
import { facts, kvUse, modelFacts, pools, totalFacts } from './cluster/facts.js';
import { Rates } from './cluster/rates.js';
import { holdings, memory } from './cluster/workers.js';
import { byId } from './dom.js';
import { duration, number, onLanguage, percent, rough, startLanguage, t } from './words.js';

const POLL_MS = 1000;
const ANSWER_WAIT_MS = 5000;
/** States that have words. A server that is newer than this page may be in another. */
const STATES = ['ready', 'loading', 'lost', 'dissolved', 'stopped', 'unreachable', 'connecting'];

class ClusterPage {
  constructor() {
    this.rates = new Rates();
    this.cluster = null;
    this.problem = null;
    this.drawn = new Map();
    onLanguage(() => {
      this.drawn.clear();
      this.show();
    });
    document.addEventListener('visibilitychange', () => !document.hidden && this.poll());
    byId('key-form').addEventListener('submit', (event) => {
      event.preventDefault();
      setApiKey(byId('key').value.trim());
      this.poll();
    });
    this.show();
    this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    if (this.asking || document.hidden) return;
    this.asking = true;
    await this.ask();
    this.asking = false;
    // First: whatever cannot be shown, the next answer may be.
    this.timer = setTimeout(() => this.poll(), POLL_MS);
    this.show();
  }

  async ask() {
    try {
      this.cluster = await getJson('v1/cluster', AbortSignal.timeout(ANSWER_WAIT_MS));
      this.problem = null;
      this.seenMs = performance.now();
      this.rates.push(this.cluster.totals, this.seenMs);
    } catch (problem) {
      this.problem = problem;
    }
  }

  show() {
    this.showStatus();
    byId('figures').hidden = !this.cluster;
    byId('figures').classList.toggle('stale', this.problem !== null);
    if (this.cluster) this.showFigures(this.cluster);
  }

  showStatus() {
    const state = this.problem ? 'unreachable' : (this.cluster?.status ?? 'connecting');
    byId('state').dataset.state = state;
    setText('state', STATES.includes(state) ? t(state) : state);
    byId('key-form').hidden = this.problem?.status !== 401;
    setText('status', byId('key-form').hidden ? this.statusWords() : '');
  }

  statusWords() {
    if (this.problem?.status === 404) return t('statusMissing');
    if (this.problem && !this.cluster) return t('statusNever');
    if (this.problem) return t('statusUnreachable', { time: duration((performance.now() - this.seenMs) / 1000) });
    if (!this.cluster) return '';
    const words = {
      ready: 'statusReady',
      loading: 'statusLoading',
      lost: 'statusLost',
      dissolved: 'statusDissolved',
      stopped: 'statusStopped',
    };
    const replicas = this.cluster.replicas ?? [];
    const ready = replicas.filter(({ status }) => status === 'ready').length;
    if (this.cluster.status === 'ready' && replicas.length > 1) return t('statusReplicas', { ready, total: replicas.length });
    const waiting = this.cluster.status === 'loading' && waitingWords(this.cluster);
    if (waiting) return waiting;
    const sentence = words[this.cluster.status] ? t(words[this.cluster.status]) : this.cluster.status;
    return this.cluster.reason ? `${sentence} (${this.cluster.reason})` : sentence;
  }

  showFigures(cluster) {
    const { model, workers, kv, totals, replicas = [], left_out: leftOut = [] } = cluster;
    setText('model', model.id);
    this.showSpeed(cluster);
    const several = replicas.length > 1;
    this.draw('holdings', [workers, model, several, leftOut], () => holdings(workers, model, { several, leftOut }));
    this.draw('memory', workers, () => memory(workers));
    this.draw('pools', kv, () => pools(kv));
    this.draw('model-facts', model, () => facts(modelFacts(model)));
    this.draw('totals', totals, () => facts(totalFacts(totals)));
    const blocks = workers[0]?.expert_blocks_total;
    setText('experts-note', blocks ? t('expertsNote', { count: model.experts, blocks }) : '');
    setText('memory-note', t(workers.every((worker) => worker.memory_bytes) ? 'memoryNote' : 'memoryNoteWhole'));
    setText('pools-note', t('poolsNote', { count: kv.block_tokens }));
    this.showFoot(cluster);
  }

  showFoot({ version, uptime_seconds: up, epoch }) {
    const parts = [`Flotilla ${version}`, t('uptime', { time: duration(up) })];
    // Before the first group there is none.
    if (epoch !== null) parts.push(t('epoch', { epoch }));
    setText('foot', parts.join(' · '));
  }

  showSpeed({ load, kv, step }) {
    this.showRate('generated', 'generated_tokens', t('generated'));
    this.showRate('prompt', 'prompt_tokens', t('promptRead'));
    setText('running', number(load.running));
    setText('running-word', t('requests', { count: load.running }));
    setText('waiting', number(load.waiting));
    setText('waiting-word', t('requests', { count: load.waiting }));
    setText('in-flight', t('inFlight', { count: load.steps_in_flight }));
    setText('kv-use', percent(kvUse(kv)));
    setText('step-time', `${rough(step.compute_us / 1000)}\u202fms`);
    const steps = this.rates.now('steps');
    setText('step-rate', steps === null ? '' : t('stepsPerSecond', { rate: rough(steps) }));
  }

  showRate(id, name, label) {
    const rate = this.rates.now(name);
    const text = rate === null ? '–' : rough(rate);
    setText(`${id}-rate`, text);
    const points = this.rates.series(name, performance.now());
    setText(`${id}-peak`, peakWords(points, this.rates.seconds()));
    byId(`${id}-line`).replaceChildren(sparkline(points, `${label}: ${text} ${t('tokensPerSecond')}`));
  }

  /** Anew only where something differs: what is selected or focused stays so. */
  draw(id, value, make) {
    const key = JSON.stringify(value);
    if (this.drawn.get(id) === key) return;
    this.drawn.set(id, key);
    byId(id).replaceChildren(...make());
  }
}

/** Of a group that is not there yet: for how many it waits, which only the reason says; null where they load. */
function waitingWords({ reason, workers }) {
  const [, joined, wanted] = /(\d+) of (\d+) workers have joined/.exec(reason ?? '') ?? [];
  if (wanted) return t('statusJoining', { joined, wanted });
  return workers.length === 0 && /no workers have joined/.test(reason ?? '') ? t('statusNobody') : null;
}

/** The highest rate, and of how long: two minutes only once so much is known. */
function peakWords(points, known) {
  if (points.length === 0) return '';
  const rate = rough(Math.max(...points.map((point) => point.rate)));
  return known < 120 ? t('lastSeconds', { count: Math.round(known), rate }) : t('lastMinutes', { rate });
}

function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

startLanguage();
new ClusterPage();
