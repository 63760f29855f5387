// Formats values for display.

const countFormat = new Intl.NumberFormat('en');
const timeAgoFormat = new Intl.RelativeTimeFormat('en', { numeric: 'always', style: 'narrow' });
const dateTimeFormat = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
const TIME_AGO_UNITS = [['day', 86_400], ['hour', 3600], ['minute', 60]];

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
  if (seconds < 3600) return twoUnits(seconds, 60, 'min', 's');
  return twoUnits(Math.floor(seconds / 60), 60, 'h', 'min');
}

function twoUnits(number, size, large, small) {
  const rest = number % size;
  return `${Math.floor(number / size)} ${large}${rest ? ` ${rest} ${small}` : ''}`;
}

/** Parse a Duration of protobuf's JSON, such as `90s`, to milliseconds. */
export function parseDurationMs(text) {
  return Number.parseFloat(text) * 1000;
}

/** As `duration`, but in whole seconds: for a time that is still running. */
export function elapsed(ms) {
  return ms < 60_000 ? `${Math.max(0, Math.floor(ms / 1000))} s` : duration(ms);
}

export function hasTokens({ inputTokens, outputTokens }) {
  return inputTokens + outputTokens > 0;
}

/** `12,340 tokens`, input and output together, as on the command line; `-` where they are not known. */
export function tokens(usage) {
  return hasTokens(usage) ? plural(usage.inputTokens + usage.outputTokens, 'token') : '-';
}

/** `12,340 tok`, for rows. */
export function shortTokens(usage) {
  return tokens(usage).replace(/tokens?$/, 'tok');
}

/** `810 in, 1,204 out`. */
export function inputAndOutputTokens({ inputTokens, outputTokens }) {
  return `${count(inputTokens)} in, ${count(outputTokens)} out`;
}

/** US dollars, `$0.0123`, as on the command line; `-` for 0, which means that no price is known. */
export function cost(usd) {
  if (!usd) return '-';
  const isTie = (usd * 32) % 2 === 1; // halfway between two ten-thousandths: Python rounds to the even one
  const below = Math.floor(usd * 10_000);
  return `$${(isTie ? (below + (below % 2)) / 10_000 : usd).toFixed(4)}`;
}

/** `12,340 tokens, $0.0123`, without what is not known, as on the command line. */
export function usageSummary(usage) {
  return [hasTokens(usage) && tokens(usage), usage.costUsd > 0 && cost(usage.costUsd)].filter(Boolean).join(', ');
}

export function dateTime(ms) {
  return dateTimeFormat.format(ms);
}

/** `5m ago`, or `just now`. */
export function timeAgo(ms, now) {
  const seconds = (now - ms) / 1000;
  for (const [unit, size] of TIME_AGO_UNITS) {
    if (seconds >= size) return timeAgoFormat.format(-Math.floor(seconds / size), unit);
  }
  return 'just now';
}

/** `12,340`. */
export function count(number) {
  return countFormat.format(number);
}

/** `812 bytes`, `3.4 KiB`, `1.2 MiB`. */
export function bytes(number) {
  if (number < 1024) return plural(number, 'byte');
  if (number < 1024 ** 2) return `${(number / 1024).toFixed(1)} KiB`;
  return `${(number / 1024 ** 2).toFixed(1)} MiB`;
}

export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? '' : 's'}`;
}

/** The first line of a text that is not empty. */
export function firstLine(text) {
  return text.trim().split('\n', 1)[0];
}
