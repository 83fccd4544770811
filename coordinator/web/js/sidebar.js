// The list of conversations: open one, delete one, think better of it.

import { byId, el } from './dom.js';
import { language, t } from './words.js';

const NOTICE_MS = 8000;

export class Sidebar {
  /** `actions`: open(id), remove(id), begin(). */
  constructor(actions) {
    this.actions = actions;
    this.list = byId('conversations');
    byId('new-chat').addEventListener('click', () => actions.begin());
  }

  /** Anew only where it says something else: focus, and a press that has begun, stay where they are. */
  show(conversations, currentId) {
    const shown = JSON.stringify([language(), currentId, conversations.map(({ id, title }) => [id, title])]);
    if (shown === this.shown) return;
    this.shown = shown;
    const items = conversations.map((conversation) => this.item(conversation, conversation.id === currentId));
    this.list.replaceChildren(...items);
    byId('no-conversations').hidden = conversations.length > 0;
  }

  item(conversation, current) {
    const title = conversation.title || t('newChat');
    const remove = el('button', {
      type: 'button',
      class: 'quiet delete',
      'aria-label': t('deleteChat', { title }),
      title: t('deleteChat', { title }),
      onclick: () => this.actions.remove(conversation.id),
    }, '×');
    const open = el('button', {
      type: 'button',
      class: 'open',
      'aria-current': current ? 'true' : null,
      onclick: () => this.actions.open(conversation.id),
    }, title);
    return el('li', { class: current ? 'current' : null }, open, remove);
  }
}

/** A line over the page, with something to do about it if there is. */
export function notice(text, action) {
  const box = byId('notice');
  const button = action && el('button', { type: 'button', onclick: () => (hide(), action.run()) }, action.label);
  const hide = () => (box.hidden = true);
  box.replaceChildren(el('span', {}, text), ...(button ? [button] : []));
  box.hidden = false;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(hide, NOTICE_MS);
}
