// A stream of events that outlives its connections. Each one begins after the last event that was seen, so
// nothing is missed or shown twice, whatever happened to the server in between.
//
// The EventSource is not left to reconnect by itself: it gives up for good when a proxy answers 503, and it
// cannot tell an instance that is finished (204) from one that is gone (404). So the owner is asked instead.
import { EVENT_NAMES } from './fold.js';
import { onRecovered, reportRecovery } from './recovery.js';

const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 5000;

export class Feed {
  #source = null;
  #timer = 0;
  #failures = 0;
  #closed = false;
  #forget; // what ends being told of recoveries

  /**
   * `path`: where the events are. `after`: the last id seen. `on.event(event, id)`, `on.delta(delta)`, `on.end()`,
   * `on.deleted(instanceId, id)`, `on.live(is)`: whether it is connected. `on.lost(last)` is asked when it is not, after the id last seen; it
   * gives 'again', or 'stop' when no more will come. It throws while the service cannot be reached.
   */
  constructor(path, after, on) {
    this.path = path;
    this.last = after;
    this.on = on;
    document.addEventListener('visibilitychange', this.#look);
    window.addEventListener('online', this.#look);
    this.#forget = onRecovered(this.#look);
    this.#look();
  }

  close() {
    this.#closed = true;
    this.#hangUp();
    document.removeEventListener('visibilitychange', this.#look);
    window.removeEventListener('online', this.#look);
    this.#forget();
  }

  // A browser has six connections a host for all its tabs: one that nobody looks at lets go of its own.
  #look = () => {
    if (document.hidden) this.#hangUp();
    else if (!this.#source) this.#connect();
  };

  #hangUp() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #connect() {
    this.#hangUp();
    if (this.#closed) return;
    const separator = this.path.includes('?') ? '&' : '?';
    const source = new EventSource(`${this.path}${separator}after_sequence=${this.last}`);
    this.#source = source;
    source.onopen = () => {
      if (this.#failures > 0) reportRecovery();
      this.#failures = 0;
      this.on.live(true);
    };
    source.onerror = () => this.#lose();
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

  async #lose() {
    this.#hangUp();
    const delay = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.on.live(false);
    try {
      if ((await this.on.lost(this.last)) === 'stop') this.close();
    } catch {
      // It cannot be reached: the next attempt will tell.
    }
    if (!this.#closed && !document.hidden && !this.#source) {
      this.#timer = setTimeout(() => this.#connect(), delay * (0.5 + Math.random() / 2));
    }
  }
}
