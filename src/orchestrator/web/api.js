// A client of the service's REST bindings in orchestrator.proto.
import { reportResponse, reportOutage } from './recovery.js';
import { reportSignedOut } from './session.js';

/** A request that was rejected or had no response: `message` is for people, `reason` and `status` for code. */
export class RequestError extends Error {
  constructor(message, { status = 0, reason = '', metadata = {} } = {}) {
    super(message);
    this.status = status; // of HTTP; 0: no response
    this.reason = reason;
    this.metadata = metadata;
  }

  /** Return whether the same request may succeed later. */
  get isTransient() {
    return this.status === 0 || this.status >= 500;
  }

  /** Return whether the service cannot be reached or is shutting down: the error is obsolete once it is back. */
  get isOutage() {
    return this.status === 0 || (this.status === 503 && (!this.reason || this.reason === 'SHUTTING_DOWN'));
  }
}

let clockSkewMs = 0;

/** Return the time of the service's clock, in milliseconds: event times are relative to that clock. */
export function serviceNow() {
  return Date.now() + clockSkewMs;
}

async function request(method, path, body, read = readJson) {
  return (await requestWithHeaders(method, path, body, read)).body;
}

/** Send a request; return the response's {body, headers}, and report whether the service can be reached. */
async function requestWithHeaders(method, path, body, read = readJson) {
  try {
    const response = await send(method, path, body, read);
    reportResponse();
    return response;
  } catch (error) {
    if (error.isOutage) reportOutage();
    else reportResponse();
    throw error;
  }
}

const readJson = (response) => response.json();

/** Read a text as it is, with a byte-order mark where it has one. */
async function readText(response) {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(await response.arrayBuffer());
}

async function send(method, path, body, read) {
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
  clockSkewMs = Math.abs(skew) > 2000 ? skew : 0; // the header counts whole seconds
  const parsed = await (response.ok ? read : readJson)(response).catch(() => null);
  if (response.ok && parsed !== null) return { body: parsed, headers: response.headers };
  const info = parsed?.details?.find((detail) => detail.reason) ?? {};
  if (response.status === 401) reportSignedOut(info.reason);
  throw new RequestError(parsed?.message || `The service answered ${response.status}.`, {
    status: response.status,
    reason: info.reason,
    metadata: info.metadata,
  });
}

const instancePath = (id) => `/${encodeURIComponent(id)}`;

/** Return a page of instances, and `lastPosition`: the position of the log's last event before the page was read. */
export async function listInstances({ states = [], labels = [], pageSize, pageToken }) {
  const query = new URLSearchParams({ pageSize });
  for (const state of states) query.append('states', state);
  for (const label of labels) query.append('labels', label);
  if (pageToken) query.set('pageToken', pageToken);
  const path = `/?${String(query).replaceAll('+', '%20')}`; // Envoy does not decode a plus as a space
  const { body, headers } = await requestWithHeaders('GET', path);
  return { ...body, lastPosition: headers.get('last-position') };
}

export async function getInstance(id) {
  return (await request('GET', instancePath(id))).instance;
}

export async function createInstance(fields) {
  return (await request('POST', '/', fields)).id;
}

/** Pause, resume, terminate, retry, restart, fork or review an instance; return the instance afterwards. */
export async function steer(id, action, fields = {}) {
  return (await request('POST', `${instancePath(id)}:${action}`, fields)).instance;
}

export function deleteInstance(id) {
  return request('DELETE', instancePath(id));
}

/** Return the position of the log's last event. */
export async function lastPosition() {
  return (await listInstances({ pageSize: 1 })).lastPosition;
}

/** Return the service's version and settings. */
export function getServiceInfo() {
  return request('GET', '/-/info');
}

/** Return the service's metrics, in Prometheus' text format; null where there are none, or not for this caller. */
export async function getMetrics() {
  const response = await fetch('/-/metrics').catch(() => null);
  return response?.ok ? response.text() : null;
}

/** Return the path of the final result as a file. */
export function resultPath(id) {
  return `${instancePath(id)}/result`;
}

/** List the files of a complete instance's result, without their texts. */
export async function listFiles(id) {
  return (await request('GET', `${instancePath(id)}/files`)).files;
}

/** Return the text of one of these files. */
export function getFileText(id, path) {
  return request('GET', filePath(id, path), undefined, readText);
}

export function filePath(id, path) {
  return `${instancePath(id)}/files/${path.split('/').map(encodeURIComponent).join('/')}`;
}

/** Return the path of all of these files as a zip. */
export function archivePath(id) {
  return `${instancePath(id)}/archive`;
}

export const allEventsPath = '/-/events';

export function eventsPath(id) {
  return `${instancePath(id)}/events?include_deltas=true`;
}
