// What to tell a person about a Problem: one sentence on what happened, one on when to come back. The
// server's own words stand below for those who want them.

import { duration, t } from './words.js';

const BY_CODE = {
  network: 'errorNetwork',
  cut: 'errorCut',
  interrupted: 'errorCut',
  context_length_exceeded: 'errorContext',
  deadline_exceeded: 'errorDeadline',
  body_too_large: 'errorLarge',
};

const BY_STATUS = {
  401: 'errorKey',
  403: 'errorForbidden',
  413: 'errorLarge',
  429: 'errorBusy',
  503: 'errorLoading',
};

export function problemWords(problem) {
  const sentence = t(keyOf(problem), { param: problem.param });
  if (problem.retryAfterSeconds === null || problem.retryAfterSeconds === undefined) return sentence;
  return `${sentence} ${t('retryIn', { time: duration(problem.retryAfterSeconds) })}`;
}

function keyOf({ code, status, param }) {
  const known = BY_CODE[code] ?? BY_STATUS[status];
  if (known) return known;
  if (status >= 500) return 'errorServer';
  return param ? 'errorParameter' : 'errorRequest';
}
