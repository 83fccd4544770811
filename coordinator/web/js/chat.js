// The chat page: which conversation is open, what happens to it, and the one answer that may be under way.
// Views show, the client asks, the store keeps; only this file changes messages.

import { Receiving, emptyAnswer } from './answer.js';
import { Problem, chat } from './client.js';
import { Composer } from './composer.js';
import { byId } from './dom.js';
import { Panel } from './panels.js';
import { requestBody } from './request.js';
import { ServerState } from './server-state.js';
import { Settings } from './settings.js';
import { Sidebar, notice } from './sidebar.js';
import { deleteConversation, keepConversation, listConversations, newConversation } from './store.js';
import { Thread } from './thread.js';
import { onLanguage, startLanguage, t } from './words.js';

const TITLE_CHARS_MAX = 60;
const KEEP_EVERY_MS = 1000;
const TICK_MS = 200;

class ChatPage {
  constructor() {
    this.running = null;
    /** Settled once the answer under way is over, however it ended. */
    this.answering = Promise.resolve();
    this.conversation = newConversation(Date.now());
    this.state = new ServerState();
    this.settings = new Settings(() => this.state.ask());
    this.panels = [new Panel('sidebar', 'sidebar-button', true), new Panel('settings', 'settings-button', false)];
    this.sidebar = new Sidebar({
      begin: () => this.open(newConversation(Date.now())),
      open: (id) => this.open(listConversations().find((it) => it.id === id)),
      remove: (id) => this.remove(listConversations().find((it) => it.id === id)),
    });
    this.composer = new Composer({ send: (text) => this.send(text), stop: () => this.stop() });
    this.thread = new Thread({
      edit: (message, text) => this.edit(message, text),
      retry: () => this.retry(),
      sendResults: (message) => this.sendResults(message),
      suggest: (text, withTool) => this.suggest(text, withTool),
    });
    this.listen();
    this.showAll();
    this.composer.focus();
  }

  listen() {
    onLanguage(() => this.showAll());
    addEventListener('storage', () => this.onStored());
    addEventListener('pagehide', () => this.running && this.keep());
    document.addEventListener('keydown', (event) => event.key === 'Escape' && this.escape());
  }

  escape() {
    const covering = this.panels.find((panel) => panel.covers);
    if (covering) covering.close();
    else this.stop();
  }

  showAll() {
    this.showList();
    this.state.show();
    this.thread.show(this.conversation.messages, Boolean(this.running));
    this.composer.show(Boolean(this.running));
  }

  showList() {
    this.sidebar.show(listConversations(), this.conversation.id);
  }

  /** Another tab kept something. What it made of the conversation that is open here goes on here too. */
  onStored() {
    const all = listConversations();
    const stored = all.find((it) => it.id === this.conversation.id);
    // What is older lacks what could not be kept here.
    if (stored && !this.running && stored.updatedMs >= this.conversation.updatedMs) this.takeOver(stored);
    this.sidebar.show(all, this.conversation.id);
  }

  /** Messages that are as they were keep their views, and what is being typed in them. */
  takeOver(stored) {
    const { messages } = this.conversation;
    const isAsBefore = (message, index) => JSON.stringify(message) === JSON.stringify(messages[index]);
    stored.messages = stored.messages.map((message, index) => (isAsBefore(message, index) ? messages[index] : message));
    this.conversation = stored;
    this.update();
  }

  update() {
    this.thread.update(this.conversation.messages, Boolean(this.running));
  }

  keep() {
    this.conversation.updatedMs = Date.now();
    if (!keepConversation(this.conversation)) notice(t('storageFull'));
  }

  open(conversation) {
    if (!conversation) return;
    this.stop();
    this.conversation = conversation;
    for (const panel of this.panels) panel.closeIfCovering();
    this.showAll();
    this.composer.focus();
  }

  remove(conversation) {
    if (!conversation) return;
    const current = conversation.id === this.conversation.id;
    if (current) this.stop();
    deleteConversation(conversation.id);
    if (current) this.conversation = newConversation(Date.now());
    this.showAll();
    // The button that was pressed is gone.
    byId('new-chat').focus();
    const restore = () => {
      keepConversation(conversation);
      this.open(conversation);
    };
    notice(t('deleted'), { label: t('undo'), run: restore });
  }

  suggest(text, withTool) {
    if (withTool) this.settings.offerWeather();
    this.send(text);
  }

  send(text) {
    if (this.running) return;
    const { conversation } = this;
    conversation.messages.push({ role: 'user', content: text });
    conversation.title ||= text.replace(/\s+/g, ' ').slice(0, TITLE_CHARS_MAX);
    this.answer();
  }

  /** An answer under way is over only after its end was heard: until then nothing else can be asked. */
  async edit(message, text) {
    this.stop();
    await this.answering;
    const { messages } = this.conversation;
    const at = messages.indexOf(message);
    // Another conversation was opened, or it was sent already.
    if (at < 0 || this.running) return;
    messages.splice(at);
    if (messages.length === 0) this.conversation.title = '';
    this.send(text);
  }

  retry() {
    if (this.running) return;
    const { messages } = this.conversation;
    if (messages.at(-1)?.role === 'assistant') messages.pop();
    this.answer();
  }

  sendResults(message) {
    if (!this.running && message.calls.every((call) => call.result !== undefined)) {
      this.answer();
      return;
    }
    this.keep();
    this.update();
  }

  stop() {
    this.running?.abort();
  }

  /** Asks for the message that comes next, and shows it as it comes. */
  async answer() {
    const { conversation } = this;
    const body = requestBody(conversation.messages, this.settings.values, this.state.model);
    conversation.messages.push(emptyAnswer());
    // As it lies in the conversation: what is shown is what is kept.
    const message = conversation.messages.at(-1);
    const abort = new AbortController();
    this.begin(abort);
    const received = this.receive(message, body, abort.signal).finally(() => this.finish(conversation, abort));
    this.answering = received.catch(() => {});
    await received;
  }

  begin(abort) {
    this.running = abort;
    this.keep();
    this.showList();
    this.thread.scrollToEnd();
    this.update();
    this.composer.show(true);
    // What was pressed, or typed in, may be gone with its view.
    if (document.activeElement === document.body) this.composer.focus();
    announce(t('answering'));
  }

  async receive(message, body, signal) {
    const receiving = new Receiving(message, performance.now());
    const ticking = setInterval(() => {
      receiving.tick(performance.now());
      this.soon();
    }, TICK_MS);
    try {
      for await (const chunk of chat(body, signal)) {
        receiving.chunk(chunk, performance.now());
        this.soon();
      }
    } catch (error) {
      if (error.name === 'AbortError') message.stopped = true;
      else if (error instanceof Problem) message.problem = { ...error, message: error.message };
      else throw error;
    } finally {
      clearInterval(ticking);
    }
  }

  /** Many chunks, one update of what is on the screen. */
  soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (this.running) this.update();
    });
    const now = Date.now();
    if (now - (this.keptMs ?? 0) < KEEP_EVERY_MS) return;
    this.keptMs = now;
    this.keep();
  }

  /** Another conversation may be open by now, or another answer under way. */
  finish(conversation, abort) {
    const stillListed = listConversations().some((it) => it.id === conversation.id);
    if (stillListed) keepConversation(conversation);
    if (this.running !== abort) return;
    this.running = null;
    this.update();
    this.composer.show(false);
    this.showList();
    if (conversation.messages.at(-1)?.problem) this.state.ask();
    else announce(t('answered'));
  }
}

function announce(text) {
  byId('announcer').textContent = text;
}

startLanguage();
new ChatPage();
