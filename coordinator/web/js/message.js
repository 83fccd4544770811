// One message as DOM. A view is made once and updated as its message grows; what the reader opened, selected
// or typed stays. It asks nothing of the server: its buttons call what the thread gave it.

import { el, isSending } from './dom.js';
import { MarkdownView, copyText } from './markdown/render.js';
import { problemWords } from './problem.js';
import { WEATHER_SAMPLE } from './request.js';
import { brief, rough, seconds, t } from './words.js';

/** `actions`: edit(message, text), retry(), sendResults(message). */
export function messageView(message, actions) {
  return message.role === 'user' ? new UserView(message, actions) : new AnswerView(message, actions);
}

class UserView {
  constructor(message, actions) {
    Object.assign(this, { message, actions });
    this.element = el('article', { class: 'message user', 'aria-label': t('you') });
    this.show();
  }

  show() {
    const edit = el('button', { type: 'button', class: 'quiet edit', onclick: () => this.edit() }, t('edit'));
    this.element.replaceChildren(
      el('div', { class: 'text' }, this.message.content),
      el('footer', {}, copyButton(() => this.message.content), edit),
    );
    this.editButton = edit;
  }

  edit() {
    const field = el('textarea', { 'aria-label': t('editLabel'), rows: '3', class: 'grow' });
    field.value = this.message.content;
    const send = () => field.value.trim() && this.actions.edit(this.message, field.value.trim());
    const cancel = () => {
      this.show();
      this.editButton.focus();
    };
    field.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') cancel();
      else if (isSending(event)) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.element.replaceChildren(
      field,
      el(
        'footer',
        { class: 'editing' },
        el('span', { class: 'note' }, t('editNote')),
        el('button', { type: 'button', onclick: cancel }, t('cancel')),
        el('button', { type: 'button', class: 'primary', onclick: send }, t('sendEdited')),
      ),
    );
    field.focus();
  }

  update() {}
}

class AnswerView {
  constructor(message, actions) {
    Object.assign(this, { message, actions, calls: [], touched: false });
    this.reasoningText = el('div', { class: 'reasoning-text' });
    this.reasoningLabel = el('span');
    this.reasoning = el('details', { class: 'reasoning', hidden: true },
      el('summary', { onclick: () => (this.touched = true) }, this.reasoningLabel),
      this.reasoningText,
    );
    this.text = el('div', { class: 'markdown' });
    this.callsBox = el('div', { class: 'calls' });
    this.notes = el('div', { class: 'notes' });
    this.meta = el('span', { class: 'meta' });
    this.copy = copyButton(() => this.message.content);
    this.retry = el('button', { type: 'button', class: 'quiet retry', onclick: () => actions.retry() }, t('retry'));
    this.waiting = el('p', { class: 'waiting', hidden: true }, t('waiting'));
    this.footer = el('footer', {}, this.meta, this.copy, this.retry);
    this.element = el('article', { class: 'message answer', 'aria-label': t('assistant') },
      this.reasoning, this.waiting, this.text, this.callsBox, this.notes, this.footer,
    );
    this.markdown = new MarkdownView(this.text);
  }

  /** `state`: running, and last for the one that can be asked anew. */
  update({ running, last }) {
    const message = this.message;
    this.element.setAttribute('aria-busy', String(running));
    this.element.classList.toggle('running', running);
    this.updateReasoning(running);
    this.markdown.update(message.content, running);
    this.waiting.hidden = !running || Boolean(message.reasoning || message.content || message.calls.length);
    this.updateCalls(running || !last || message.stopped || message.problem !== null);
    this.updateNotes(running);
    this.meta.textContent = metaOf(message);
    this.copy.hidden = running || message.content === '';
    this.retry.hidden = running || !last;
  }

  /** Open while the model thinks, folded when it answers, unless the reader chose otherwise. */
  updateReasoning(running) {
    const { reasoning, reasoningSeconds, content, calls } = this.message;
    this.reasoning.hidden = reasoning === '';
    if (reasoning === '') return;
    const thinking = running && content === '' && calls.length === 0;
    this.reasoningLabel.textContent = thoughtWords(thinking, reasoningSeconds ?? 0);
    this.reasoning.classList.toggle('live', thinking);
    if (!this.touched) this.reasoning.open = thinking;
    const atEnd = this.reasoningText.scrollHeight - this.reasoningText.scrollTop - this.reasoningText.clientHeight < 24;
    this.reasoningText.textContent = reasoning;
    if (thinking && atEnd) this.reasoningText.scrollTop = this.reasoningText.scrollHeight;
  }

  /** Anew only where they say something else: an alert that is made anew is read aloud anew. */
  updateNotes(running) {
    const { problem, stopped, finish } = this.message;
    const said = JSON.stringify([problem, !running && stopped, finish]);
    if (said === this.said) return;
    this.said = said;
    this.notes.replaceChildren(...notesOf(this.message, running));
  }

  updateCalls(closed) {
    this.message.calls.forEach((call, index) => {
      this.calls[index] ??= new CallView(call, () => this.actions.sendResults(this.message));
      const view = this.calls[index];
      if (!view.element.parentNode) this.callsBox.append(view.element);
      view.update(closed);
    });
  }
}

/** One call of a tool: its name, what it is called with, and either its result or a form for it. */
class CallView {
  constructor(call, send) {
    Object.assign(this, { call, send, shown: null });
    this.name = el('code', { class: 'call-name' });
    this.input = el('pre', { tabindex: '0', class: 'call-arguments' });
    this.rest = el('div');
    this.element = el('section', { class: 'call' },
      el('h3', {}, `${t('callOf')} `, this.name),
      this.input,
      this.rest,
    );
  }

  update(closed) {
    const { name, result } = this.call;
    this.name.textContent = name;
    this.input.textContent = pretty(this.call.arguments, closed);
    const state = result !== undefined ? 'result' : closed ? 'closed' : 'form';
    if (state === this.shown) return;
    this.shown = state;
    this.rest.replaceChildren(...(state === 'result' ? resultOf(result) : state === 'form' ? this.form() : []));
  }

  form() {
    const field = el('textarea', { class: 'tool-result grow', rows: '2', 'aria-label': t('answerWith'), spellcheck: 'false' });
    field.value = WEATHER_SAMPLE;
    const submit = () => {
      this.call.result = field.value;
      this.send();
    };
    field.addEventListener('keydown', (event) => {
      if (!isSending(event)) return;
      event.preventDefault();
      submit();
    });
    return [
      el('h4', {}, t('answerWith')),
      el('p', { class: 'note' }, t('toolNote')),
      field,
      el('button', { type: 'button', class: 'primary send-result', onclick: submit }, t('sendResult')),
    ];
  }
}

function resultOf(result) {
  return [el('h4', {}, t('result')), el('pre', { tabindex: '0', class: 'call-result' }, pretty(result, true))];
}

/** Arguments come in pieces, so they are JSON only at the end; a model may write something else for good. */
function pretty(text, partial) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return partial ? text : `${text}\n(${t('badArguments')})`;
  }
}

function notesOf(message, running) {
  const notes = [];
  if (message.problem) notes.push(problemNote(message.problem));
  if (!running && message.stopped) notes.push(el('p', { class: 'note' }, t('stoppedByYou')));
  if (message.finish === 'length') notes.push(el('p', { class: 'note' }, t('cutAtLimit')));
  return notes;
}

function problemNote(problem) {
  const said = problem.message && el('details', {}, el('summary', {}, t('details')), el('p', {}, problem.message));
  return el('div', { class: 'problem', role: 'alert' }, el('p', {}, problemWords(problem)), said);
}

export function thoughtWords(thinking, taken) {
  if (!thinking && taken < 1) return t('thoughtBriefly');
  return t(thinking ? 'thinking' : 'thought', { time: seconds(taken) });
}

/** `42 tokens, 12 of them thinking · 31 tokens/s · first after 0.2 s · prompt 120`. */
function metaOf({ usage, rate, firstTokenSeconds }) {
  if (!usage) return '';
  const thinking = usage.reasoning > 0 ? `, ${t('ofThinking', { count: usage.reasoning })}` : '';
  const parts = [t('tokens', { count: usage.completion }) + thinking];
  if (rate !== null) parts.push(t('perSecond', { rate: rough(rate) }));
  if (firstTokenSeconds !== null) parts.push(t('firstAfter', { time: brief(firstTokenSeconds) }));
  const prompt = { count: usage.prompt, cached: usage.cached };
  if (usage.prompt > 0) parts.push(t(usage.cached > 0 ? 'promptCached' : 'prompt', prompt));
  return parts.join(' · ');
}

function copyButton(text) {
  const button = el('button', { type: 'button', class: 'quiet copy' }, t('copy'));
  button.addEventListener('click', () => copyText(text(), button));
  return button;
}
