// What stays in this browser: conversations, each under a key of its own so that two tabs do not overwrite
// each other's, and the settings. Of one conversation in two tabs each takes over what the other keeps, unless
// it is at an answer itself: see chat.js. The API key is not here: see client.js.

const CONVERSATION = 'flotilla.conversation.';
const SETTINGS = 'flotilla.settings';

export const DEFAULTS = {
  effort: 'medium',
  system: '',
  offerWeather: false,
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  max_tokens: null,
  seed: null,
};

export function newConversation(nowMs) {
  const id = `${nowMs.toString(36)}${Math.random().toString(36).slice(2, 8)}`;
  return { id, title: '', updatedMs: nowMs, messages: [] };
}

/** Latest first. What cannot be read is passed over. */
export function listConversations() {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(CONVERSATION));
    const all = keys.map((key) => parsed(localStorage.getItem(key))).filter(isConversation);
    return all.sort((a, b) => b.updatedMs - a.updatedMs);
  } catch {
    return [];
  }
}

/** Whether there was room. */
export function keepConversation(conversation) {
  try {
    localStorage.setItem(CONVERSATION + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

export function deleteConversation(id) {
  try {
    localStorage.removeItem(CONVERSATION + id);
  } catch {
    // Then it was not kept either.
  }
}

export function readSettings() {
  try {
    return { ...DEFAULTS, ...parsed(localStorage.getItem(SETTINGS)) };
  } catch {
    return { ...DEFAULTS };
  }
}

export function keepSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // They hold for this page.
  }
}

function parsed(text) {
  try {
    return JSON.parse(text ?? 'null');
  } catch {
    return null;
  }
}

function isConversation(it) {
  return typeof it?.id === 'string' && Number.isFinite(it.updatedMs) && Array.isArray(it.messages) && it.messages.every(isMessage);
}

function isMessage(it) {
  return typeof it?.content === 'string' && (it.role === 'user' || (it.role === 'assistant' && Array.isArray(it.calls)));
}
