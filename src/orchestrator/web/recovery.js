// Whether the service can be reached, as the last request or stream found. While it cannot, it is asked every second,
// so that what waits for it (a list that could not be read, a message that says so) learns that it is back.
const PROBE_MS = 1000;
const whenBack = new Set();
const whenRecorded = new Set();
let timer = 0; // not 0: it could not be reached

/** Call `listener` each time the service is back after an outage; gives what ends that. */
export function onRecovered(listener) {
  return listen(whenBack, listener);
}

/** Call `listener` each time the service has recorded a new event; gives what ends that. */
export function onRecorded(listener) {
  return listen(whenRecorded, listener);
}

/** A request was not answered. */
export function reportOutage() {
  timer ||= setTimeout(probe, PROBE_MS);
}

/** A request was answered. */
export function reportAnswer() {
  if (timer) reportRecovery();
}

/** A stream that was lost is open again: perhaps no request fell into the time between. */
export function reportRecovery() {
  clearTimeout(timer);
  timer = 0;
  notify(whenBack);
}

/** A new event came by: the service can write. */
export function reportRecorded() {
  notify(whenRecorded);
}

function listen(listeners, listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function notify(listeners) {
  for (const listener of [...listeners]) listener();
}

async function probe() {
  const isReady = await fetch('/-/ready').then(({ ok }) => ok, () => false);
  if (isReady) reportAnswer();
  else if (timer) timer = setTimeout(probe, PROBE_MS);
}
