// A stream of events that reconnects. Each connection starts after the last event received, so that none is missed
// or delivered twice, also across restarts of the server.
//
// The EventSource is not left to reconnect by itself: it gives up for good when a proxy answers 503, and it
// cannot tell an instance that is finished (204) from one that is gone (404). So `on.lost` decides instead.
import { EVENT_NAMES } from './fold.js';
import { onRecovered, reportRecovery } from './recovery.js';

const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 5000;

export class Feed {
  #source = null;
  #timer = 0;
  #failures = 0;
  #closed = false;
  #unsubscribe; // from recoveries

  /**
   * `path`: where the events are. `after`: the last id received. `on.event(event, id)`, `on.delta(delta)`, `on.end()`,
   * `on.deleted(instanceId, id)`, `on.live(isConnected)`: after each change. `on.lost(last)` is called when the
   * connection is lost, with the last id received; it returns 'again', or 'stop' when no more will come, and throws
   * while the service cannot be reached.
   */
  constructor(path, after, on) {
    this.path = path;
    this.last = after;
    this.on = on;
    document.addEventListener('visibilitychange', this.#followVisibility);
    window.addEventListener('online', this.#followVisibility);
    this.#unsubscribe = onRecovered(this.#followVisibility);
    this.#followVisibility();
  }

  close() {
    this.#closed = true;
    this.#disconnect();
    document.removeEventListener('visibilitychange', this.#followVisibility);
    window.removeEventListener('online', this.#followVisibility);
    this.#unsubscribe();
  }

  // A browser has six connections a host for all its tabs: a hidden one closes its own.
  #followVisibility = () => {
    if (document.hidden) this.#disconnect();
    else if (!this.#source) this.#connect();
  };

  #disconnect() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #connect() {
    this.#disconnect();
    if (this.#closed) return;
    const separator = this.path.includes('?') ? '&' : '?';
    const source = new EventSource(`${this.path}${separator}after_sequence=${this.last}`);
    this.#source = source;
    source.onopen = () => {
      if (this.#failures > 0) reportRecovery();
      this.#failures = 0;
      this.on.live(true);
    };
    source.onerror = () => this.#reconnect();
    for (const name of EVENT_NAMES) {
      source.addEventListener(name, (message) => {
        this.last = message.lastEventId;
        this.on.event(JSON.parse(message.data), this.last);
      });
    }
    source.addEventListener('deleted', (message) => {
      this.last = message.lastEventId;
      this.on.deleted?.(JSON.parse(message.data).instanceId, this.last);
    });
    source.addEventListener('delta', (message) => this.on.delta?.(JSON.parse(message.data)));
    source.addEventListener('end', () => {
      this.close();
      this.on.end?.();
    });
  }

  async #reconnect() {
    this.#disconnect();
    const delay = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.on.live(false);
    try {
      if ((await this.on.lost(this.last)) === 'stop') this.close();
    } catch {
      // The service cannot be reached: try again below.
    }
    if (!this.#closed && !document.hidden && !this.#source) {
      this.#timer = setTimeout(() => this.#connect(), delay * (0.5 + Math.random() / 2));
    }
  }
}
