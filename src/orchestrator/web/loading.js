// Loads what a component shows and no event holds.
import { onRecovered } from './recovery.js';
import { useEffect, useState } from './ui.js';

const NOT_LOADED = { value: null, failure: null };

/** Call `load()` when `key` has changed, and again after an outage; return {value, failure}, both null until it has ended. */
export function useLoaded(key, load) {
  const [loaded, setLoaded] = useState({ ...NOT_LOADED, key: null });
  useEffect(() => {
    let isCurrent = true;
    let unsubscribe = () => {};
    async function run() {
      unsubscribe();
      let result;
      try {
        result = { value: await load(), failure: null };
      } catch (failure) {
        result = { value: null, failure };
      }
      if (!isCurrent) return;
      if (result.failure?.isOutage) unsubscribe = onRecovered(run);
      setLoaded({ ...result, key });
    }
    run();
    return () => {
      isCurrent = false;
      unsubscribe();
    };
  }, [key]);
  return loaded.key === key ? loaded : NOT_LOADED;
}
