// A message about what failed, which does not outlive its cause.
import { onRecorded, onRecovered } from './recovery.js';
import { html, useEffect, useRef, useState } from './ui.js';

/**
 * The RequestError of what was tried last, or null, and what sets it. It is forgotten once its cause is gone: an outage
 * when the service is back, a full disk when something is recorded again, any other when `about` (a value: what the attempt
 * depended on) has changed.
 */
export function useFailure(about = null) {
  const [failed, setFailed] = useState(null); // {error, about}
  const latest = useRef(about);
  latest.current = about;
  const isPast = failed !== null && failed.about !== about;
  useEffect(() => {
    if (isPast) setFailed(null);
  }, [isPast]);
  useEffect(() => {
    if (failed?.error.isOutage) return onRecovered(() => setFailed(null));
    if (failed?.error.reason === 'STORAGE_READ_ONLY') return onRecorded(() => setFailed(null));
    return undefined;
  }, [failed]);
  const setFailure = (error) => setFailed(error && { error, about: latest.current });
  return [failed && !isPast ? failed.error : null, setFailure];
}

export function Failure({ error }) {
  return error && html`<p class="failure" role="alert">${error.message}</p>`;
}
