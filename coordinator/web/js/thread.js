// The messages of one conversation, one under the other, and where the reader is in them: while an answer
// grows the end stays in sight, unless the reader scrolled away from it.

import { byId, el } from './dom.js';
import { messageView } from './message.js';
import { t } from './words.js';

const AT_END_PX = 80;

export class Thread {
  /** `actions` are those of messages, and suggest(text) of the empty thread. */
  constructor(actions) {
    this.actions = actions;
    this.scroller = byId('scroller');
    this.list = byId('thread');
    this.toEnd = byId('to-end');
    this.views = [];
    this.following = true;
    this.top = 0;
    this.scroller.addEventListener('scroll', () => this.onScroll(), { passive: true });
    this.toEnd.addEventListener('click', () => this.scrollToEnd());
  }

  /** Everything anew: another conversation, or another language. */
  show(messages, running) {
    this.views = [];
    this.list.replaceChildren();
    this.update(messages, running);
    this.scrollToEnd();
  }

  /** Views of messages that are still the same objects stay. */
  update(messages, running) {
    const kept = messages.findIndex((message, index) => this.views[index]?.message !== message);
    const first = kept < 0 ? messages.length : kept;
    for (const view of this.views.splice(first)) view.element.remove();
    this.list.querySelector('.welcome')?.remove();
    for (const message of messages.slice(first)) {
      const view = messageView(message, this.actions);
      this.views.push(view);
      this.list.append(view.element);
    }
    const last = messages.length - 1;
    this.views.forEach((view, index) => {
      if (index >= last - 2 || index >= first) view.update({ running: running && index === last, last: index === last });
    });
    if (messages.length === 0) this.list.append(this.welcome());
    if (this.following) this.scrollToEnd();
    else this.showToEnd();
  }

  welcome() {
    const suggestion = (key) => {
      // Thin spaces are for the eye; people type plain ones, and models learn from those.
      const text = t(key).replaceAll('\u202f', ' ');
      return el('button', { type: 'button', onclick: () => this.actions.suggest(text, key === 'try4') }, t(key));
    };
    return el('div', { class: 'welcome' },
      el('h1', {}, t('welcome')),
      el('p', { class: 'note' }, t('welcomeNote')),
      el('div', { class: 'suggestions' }, ...['try1', 'try2', 'try3', 'try4'].map(suggestion)),
    );
  }

  /** Any way up, however short, is the reader's; near the end again, the reader has come back. */
  onScroll() {
    const { top } = this;
    this.top = this.scroller.scrollTop;
    // What became shorter leaves the end at the end.
    if (this.top < top && this.toGo() >= 1) this.following = false;
    else if (this.top > top && this.toGo() < AT_END_PX) this.following = true;
    this.showToEnd();
  }

  toGo() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  showToEnd() {
    this.toEnd.hidden = this.following || this.toGo() < AT_END_PX;
  }

  scrollToEnd() {
    this.following = true;
    this.toEnd.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.top = this.scroller.scrollTop;
  }
}
