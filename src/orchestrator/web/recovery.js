// Tracks whether the service can be reached, from the last request or stream. During an outage it is probed every second,
// and listeners (a list that could not be read, a message about the outage) are notified when it is back.
const PROBE_INTERVAL_MS = 1000;
const recoveredListeners = new Set();
const recordedListeners = new Set();
let probeTimer = 0; // not 0 during an outage

/** Call `listener` each time the service is back after an outage; return a function that unsubscribes it. */
export function onRecovered(listener) {
  return subscribe(recoveredListeners, listener);
}

/** Call `listener` each time the service has recorded a new event; return a function that unsubscribes it. */
export function onEventRecorded(listener) {
  return subscribe(recordedListeners, listener);
}

/** Report a request without a response. */
export function reportOutage() {
  probeTimer ||= setTimeout(probe, PROBE_INTERVAL_MS);
}

/** Report a request with a response. */
export function reportResponse() {
  if (probeTimer) reportRecovery();
}

/** Report a stream that is open again: there may have been no request in between. */
export function reportRecovery() {
  clearTimeout(probeTimer);
  probeTimer = 0;
  notify(recoveredListeners);
}

/** Report a new event: the service can write. */
export function reportEventRecorded() {
  notify(recordedListeners);
}

function subscribe(listeners, listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function notify(listeners) {
  for (const listener of [...listeners]) listener();
}

async function probe() {
  const isReady = await fetch('/-/ready').then(({ ok }) => ok, () => false);
  if (isReady) reportResponse();
  else if (probeTimer) probeTimer = setTimeout(probe, PROBE_INTERVAL_MS);
}
