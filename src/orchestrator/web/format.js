// Values as people read them.

const count = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const ago = new Intl.RelativeTimeFormat('en', { numeric: 'always', style: 'narrow' });
const clock = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
const AGO_UNITS = [['day', 86_400], ['hour', 3600], ['minute', 60]];

export const STATES = {
  STATE_QUEUED: { name: 'Queued', tone: 'idle' },
  STATE_RUNNING: { name: 'Running', tone: 'active' },
  STATE_PAUSED: { name: 'Paused', tone: 'attention' },
  STATE_WAITING_FOR_PAUSE: { name: 'Pausing', tone: 'attention' },
  STATE_WAITING: { name: 'Plan to review', tone: 'attention' },
  STATE_COMPLETE: { name: 'Complete', tone: 'good' },
  STATE_ERRORED: { name: 'Errored', tone: 'bad' },
  STATE_TERMINATED: { name: 'Terminated', tone: 'idle' },
};

/** `820 ms`, `3.2 s`, `1 min 12 s`, `2 h 5 min`. */
export function duration(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return pair(seconds, 60, 'min', 's');
  return pair(Math.floor(seconds / 60), 60, 'h', 'min');
}

function pair(number, size, large, small) {
  const rest = number % size;
  return `${Math.floor(number / size)} ${large}${rest ? ` ${rest} ${small}` : ''}`;
}

/** As `duration`, but whole seconds: for what is counted while one looks at it. */
export function elapsed(ms) {
  return ms < 60_000 ? `${Math.max(0, Math.floor(ms / 1000))} s` : duration(ms);
}

export function tokens(number) {
  return count.format(number);
}

/** US dollars; a cost of 0 means that no price is known. */
export function cost(usd) {
  if (!usd) return '–';
  return `$${usd < 0.01 ? usd.toFixed(4) : usd.toFixed(2)}`;
}

export function moment(ms) {
  return clock.format(ms);
}

export function since(ms, now) {
  const seconds = (now - ms) / 1000;
  for (const [unit, size] of AGO_UNITS) {
    if (seconds >= size) return ago.format(-Math.floor(seconds / size), unit);
  }
  return 'just now';
}

export function plural(number, word) {
  return `${number} ${word}${number === 1 ? '' : 's'}`;
}

/** The first line of a text that is not empty. */
export function firstLine(text) {
  return text.trim().split('\n', 1)[0];
}
