// The service's REST bindings, as orchestrator.proto has them.
import { reportResponse, reportOutage } from './recovery.js';

/** The service refused, or could not be reached: `message` is for people, `reason` and `status` for code. */
export class RequestError extends Error {
  constructor(message, { status = 0, reason = '', metadata = {} } = {}) {
    super(message);
    this.status = status; // HTTP; 0: no answer
    this.reason = reason;
    this.metadata = metadata;
  }

  /** Whether the same request may succeed later. */
  get isTransient() {
    return this.status === 0 || this.status >= 500;
  }

  /** Whether the service gave no answer, or was shutting down: over when the service is back. */
  get isOutage() {
    return this.status === 0 || (this.status === 503 && (!this.reason || this.reason === 'SHUTTING_DOWN'));
  }
}

let skewMs = 0;

/** The service's clock, in milliseconds: bars that are still growing are measured against its times. */
export function serviceNow() {
  return Date.now() + skewMs;
}

async function request(method, path, body) {
  return (await exchange(method, path, body)).answer;
}

/** Send a request; return the answer and its headers, and report whether the service can be reached. */
async function exchange(method, path, body) {
  try {
    const exchanged = await send(method, path, body);
    reportResponse();
    return exchanged;
  } catch (error) {
    if (error.isOutage) reportOutage();
    else reportResponse();
    throw error;
  }
}

async function send(method, path, body) {
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
  if (response.ok && answer) return { answer, headers: response.headers };
  const info = answer?.details?.find((detail) => detail.reason) ?? {};
  throw new RequestError(answer?.message || `The service answered ${response.status}.`, {
    status: response.status,
    reason: info.reason,
    metadata: info.metadata,
  });
}

const pathOf = (id) => `/${encodeURIComponent(id)}`;

/** A page, and the position of the last event of all before it was read. */
export async function listInstances({ states = [], labels = [], pageSize, pageToken }) {
  const query = new URLSearchParams({ pageSize });
  for (const state of states) query.append('states', state);
  for (const label of labels) query.append('labels', label);
  if (pageToken) query.set('pageToken', pageToken);
  const { answer, headers } = await exchange('GET', `/?${String(query).replaceAll('+', '%20')}`); // to Envoy a plus is no space
  return { ...answer, lastPosition: headers.get('last-position') };
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

/** The position of the last event of all. */
export async function lastPosition() {
  return (await listInstances({ pageSize: 1 })).lastPosition;
}

/** What the service is set to. */
export function getServiceInfo() {
  return request('GET', '/-/info');
}

/** Where the final result is, as a file. */
export function resultPath(id) {
  return `${pathOf(id)}/result`;
}

export const allEventsPath = '/-/events';

export function eventsPath(id) {
  return `${pathOf(id)}/events?include_deltas=true`;
}
