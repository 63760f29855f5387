// The message about the last failed request, which is removed once its cause is gone.
import { onEventRecorded, onRecovered } from './recovery.js';
import { html, useEffect, useRef, useState } from './ui.js';

/**
 * Return the RequestError of the last attempt, or null, and its setter. The error is cleared once its cause is gone: an
 * outage when the service is back, a full disk when an event is recorded again, any other when `dependency` (the value
 * that the attempt depended on) has changed.
 */
export function useFailure(dependency = null) {
  const [failure, storeFailure] = useState(null); // {error, dependency}
  const latest = useRef(dependency);
  latest.current = dependency;
  const isOutdated = failure !== null && failure.dependency !== dependency;
  useEffect(() => {
    if (isOutdated) storeFailure(null);
  }, [isOutdated]);
  useEffect(() => {
    if (failure?.error.isOutage) return onRecovered(() => storeFailure(null));
    if (failure?.error.reason === 'STORAGE_READ_ONLY') return onEventRecorded(() => storeFailure(null));
    return undefined;
  }, [failure]);
  const setFailure = (error) => storeFailure(error && { error, dependency: latest.current });
  return [failure && !isOutdated ? failure.error : null, setFailure];
}

export function FailureMessage({ error }) {
  return error && html`<p class="failure" role="alert">${error.message}</p>`;
}
