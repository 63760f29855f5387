// Acting on what a person has seen: where the instance has gone on since, nothing is done, and it is said what happened.
import { eventsPath, RequestError, steer } from './api.js';
import { EVENT_NAMES } from './fold.js';
import { plural } from './format.js';
import { useState } from './ui.js';

const SHOWN = 4; // events that are told: the first and the last ones
const LONGEST_MS = 3000;

/** The last event that a person has seen of an instance that stood there when this was first called. */
export function useSeen(instance) {
  const [seen] = useState({ sequence: instance.lastSequence });
  return seen;
}

/**
 * As `steer`, if `seen.sequence` is still the instance's last event. Otherwise it throws, saying what has happened, and that
 * counts as seen then: what is decided next is decided of it.
 */
export async function steerAsSeen(id, seen, action, fields = {}) {
  try {
    return await steer(id, action, { ...fields, expectedSequence: seen.sequence });
  } catch (error) {
    if (error.reason !== 'SEQUENCE_MISMATCH') throw error;
    const last = Number(error.metadata.last_sequence);
    const since = await eventsSince(id, seen.sequence, last);
    seen.sequence = last;
    const { status, reason, metadata } = error;
    const what = since.length > 0 ? `: ${told(since)}` : '';
    throw new RequestError(`It has gone on meanwhile${what}. Nothing was changed: look at it, then decide again.`, {
      status,
      reason,
      metadata,
    });
  }
}

function told(names) {
  const words = names.map((name) => name.replace(/^instance_/, '').replaceAll('_', ' '));
  const more = words.length - SHOWN;
  if (more > 0) words.splice(SHOWN / 2, more, `${plural(more, 'event')} more`);
  return words.join(', ');
}

/** The names of the events behind one up to another; those that come within a few seconds. */
function eventsSince(id, after, last) {
  return new Promise((resolve) => {
    const names = [];
    if (!(last > after)) {
      resolve(names); // another instance has the id now
      return;
    }
    const source = new EventSource(`${eventsPath(id)}&after_sequence=${after}`);
    const finish = () => {
      clearTimeout(timer);
      source.close();
      resolve(names);
    };
    const timer = setTimeout(finish, LONGEST_MS);
    source.onerror = finish;
    for (const name of EVENT_NAMES) {
      source.addEventListener(name, ({ lastEventId }) => {
        names.push(name);
        if (Number(lastEventId) >= last) finish();
      });
    }
  });
}
