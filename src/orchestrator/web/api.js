// The service's REST bindings, as orchestrator.proto has them.

/** The service refused, or could not be reached: `message` is for people, `reason` and `status` for code. */
export class RequestError extends Error {
  constructor(message, { status = 0, reason = '', metadata = {} } = {}) {
    super(message);
    this.status = status; // HTTP; 0: nobody answered
    this.reason = reason;
    this.metadata = metadata;
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.status === 0 || this.status >= 500;
  }
}

const LAST = '9223372036854775807'; // int64's

let skewMs = 0;

/** The service's clock, in milliseconds: bars that are still growing are measured against its times. */
export function serviceNow() {
  return Date.now() + skewMs;
}

async function request(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: { accept: 'application/json', ...(body && { 'content-type': 'application/json' }) },
      body: body && JSON.stringify(body),
    });
  } catch {
    throw new RequestError('The service cannot be reached. Is it running? What you see stays; try again.');
  }
  const skew = Date.parse(response.headers.get('date')) - Date.now();
  skewMs = Math.abs(skew) > 2000 ? skew : 0; // the header counts whole seconds
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const info = answer?.details?.find((detail) => detail.reason) ?? {};
  throw new RequestError(answer?.message || `The service answered ${response.status}.`, {
    status: response.status,
    reason: info.reason,
    metadata: info.metadata,
  });
}

const pathOf = (id) => `/${encodeURIComponent(id)}`;

export function listInstances({ states, pageSize, pageToken }) {
  const query = new URLSearchParams({ pageSize });
  for (const state of states) query.append('states', state);
  if (pageToken) query.set('pageToken', pageToken);
  return request('GET', `/?${query}`);
}

export async function getInstance(id) {
  return (await request('GET', pathOf(id))).instance;
}

export async function createInstance(fields) {
  return (await request('POST', '/', fields)).id;
}

/** Pause, resume, terminate, retry, restart, fork or review; gives the instance after it. */
export async function steer(id, action, fields = {}) {
  return (await request('POST', `${pathOf(id)}:${action}`, fields)).instance;
}

export function deleteInstance(id) {
  return request('DELETE', pathOf(id));
}

/** The position of the last event of all: asking for more than there is, is answered with what there is. */
export async function lastPosition() {
  try {
    await request('GET', `/-/events?after_sequence=${LAST}`);
  } catch (error) {
    if (error.reason === 'SEQUENCE_OUT_OF_RANGE') return error.metadata.last_sequence;
    throw error;
  }
  throw new RequestError('The service did not say where its events end.');
}

export const allEventsPath = '/-/events';

export function eventsPath(id) {
  return `${pathOf(id)}/events?include_deltas=true`;
}
