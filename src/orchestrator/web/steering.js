// Steering under the condition that the instance is still as it was shown: no event was recorded since.
import { eventsPath, RequestError, steer } from './api.js';
import { EVENT_NAMES } from './fold.js';
import { plural } from './format.js';
import { useState } from './ui.js';

const MAX_NAMED_EVENTS = 4; // in a message: the first and the last ones
const TIMEOUT_MS = 3000;

/** Return {sequence}: that of the last event when the component was first rendered. */
export function useShownSequence(instance) {
  const [shown] = useState({ sequence: instance.lastSequence });
  return shown;
}

/**
 * As `steer`, if `shown.sequence` is still that of the instance's last event. Otherwise throw a RequestError that names the
 * events since, and update `shown.sequence`: the person has read that message when deciding again.
 */
export async function steerIfUnchanged(id, shown, action, fields = {}) {
  try {
    return await steer(id, action, { ...fields, expectedSequence: shown.sequence });
  } catch (error) {
    if (error.reason !== 'SEQUENCE_MISMATCH') throw error;
    const last = Number(error.metadata.last_sequence);
    const names = await eventNamesBetween(id, shown.sequence, last);
    shown.sequence = last;
    const { status, reason, metadata } = error;
    const events = names.length > 0 ? `: ${describe(names)}` : '';
    throw new RequestError(`It has gone on meanwhile${events}. Nothing was changed: look at it, then decide again.`, {
      status,
      reason,
      metadata,
    });
  }
}

function describe(names) {
  const words = names.map((name) => name.replace(/^instance_/, '').replaceAll('_', ' '));
  const more = words.length - MAX_NAMED_EVENTS;
  if (more > 0) words.splice(MAX_NAMED_EVENTS / 2, more, `${plural(more, 'event')} more`);
  return words.join(', ');
}

/** Return the names of the events after one sequence up to another; only those that arrive in time. */
function eventNamesBetween(id, after, last) {
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
    const timer = setTimeout(finish, TIMEOUT_MS);
    source.onerror = finish;
    for (const name of EVENT_NAMES) {
      source.addEventListener(name, ({ lastEventId }) => {
        names.push(name);
        if (Number(lastEventId) >= last) finish();
      });
    }
  });
}
