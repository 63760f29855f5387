// A stream of events that reconnects. Each connection starts after the last event received, so that none is missed
// or delivered twice, also across restarts of the server.
//
// An EventSource's own reconnection does not suffice: it stops for good when a proxy responds with 503, and it does not
// distinguish an instance that is finished (204) from one that was deleted (404). So `onConnectionLost` decides.
import { EVENT_NAMES } from './fold.js';
import { onRecovered, reportRecovery } from './recovery.js';
import { isSignedOut } from './session.js';

const MIN_DELAY_MS = 250;
const MAX_DELAY_MS = 5000;

export class Feed {
  #source = null;
  #reconnectTimer = 0;
  #failures = 0;
  #isClosed = false;
  #unsubscribe; // from onRecovered

  /**
   * `path`: of the event stream. `lastId`: the last id received before. `handlers`: `onEvent(event, id)`,
   * `onDelta(delta)`, `onEnd()`, `onDeleted(instanceId, id)`, `onConnectionChange(isConnected)`, and
   * `onConnectionLost(lastId)`, which returns 'reconnect', or 'stop' when there are no more events, and throws while
   * the service cannot be reached.
   */
  constructor(path, lastId, handlers) {
    this.path = path;
    this.lastId = lastId;
    this.handlers = handlers;
    document.addEventListener('visibilitychange', this.#updateConnection);
    window.addEventListener('online', this.#updateConnection);
    this.#unsubscribe = onRecovered(this.#updateConnection);
    this.#updateConnection();
  }

  close() {
    this.#isClosed = true;
    this.#disconnect();
    document.removeEventListener('visibilitychange', this.#updateConnection);
    window.removeEventListener('online', this.#updateConnection);
    this.#unsubscribe();
  }

  // All tabs of a browser share six connections a host, so a hidden page closes its connection.
  #updateConnection = () => {
    if (document.hidden) this.#disconnect();
    else if (!this.#source) this.#connect();
  };

  #disconnect() {
    clearTimeout(this.#reconnectTimer);
    this.#source?.close();
    this.#source = null;
  }

  #connect() {
    this.#disconnect();
    if (this.#isClosed || isSignedOut()) return;
    const separator = this.path.includes('?') ? '&' : '?';
    const source = new EventSource(`${this.path}${separator}after_sequence=${this.lastId}`);
    this.#source = source;
    source.onopen = () => {
      if (this.#failures > 0) reportRecovery();
      this.#failures = 0;
      this.handlers.onConnectionChange(true);
    };
    source.onerror = () => this.#reconnect();
    for (const name of EVENT_NAMES) {
      source.addEventListener(name, (message) => {
        this.lastId = message.lastEventId;
        this.handlers.onEvent(JSON.parse(message.data), this.lastId);
      });
    }
    source.addEventListener('deleted', (message) => {
      this.lastId = message.lastEventId;
      this.handlers.onDeleted?.(JSON.parse(message.data).instanceId, this.lastId);
    });
    source.addEventListener('delta', (message) => this.handlers.onDelta?.(JSON.parse(message.data)));
    source.addEventListener('end', () => {
      this.close();
      this.handlers.onEnd?.();
    });
  }

  async #reconnect() {
    this.#disconnect();
    const delay = Math.min(MAX_DELAY_MS, MIN_DELAY_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.handlers.onConnectionChange(false);
    try {
      if ((await this.handlers.onConnectionLost(this.lastId)) === 'stop') this.close();
    } catch {
      // The service cannot be reached: reconnect below.
    }
    if (!this.#isClosed && !document.hidden && !this.#source) {
      this.#reconnectTimer = setTimeout(() => this.#connect(), delay * (0.5 + Math.random() / 2));
    }
  }
}
