// Follows one instance: folds all of its events, and accumulates the text of its calls under way.
import { eventsPath, getInstance } from './api.js';
import { Feed } from './feed.js';
import { apply, emptyInstance, kindOf, mayWait, TERMINAL } from './fold.js';
import { LiveTexts, SYNTHESIS } from './texts.js';

const WAITING_REASON_MS = 2000;

export class Watch {
  events = [];
  texts = new LiveTexts();
  connected = true;
  missing = false; // there is no such instance
  deleted = false; // after it was read: the page still shows it
  review = null; // what a person has made of the plan that waits; see review.js
  #feed = null;
  #timer = setInterval(() => this.#readWaitingReason(), WAITING_REASON_MS);

  /** `onChange()`: after each change of what is shown. `onLiveEvent(event, instance)`: after each event recorded since. */
  constructor(id, onChange, onLiveEvent) {
    this.id = id;
    this.onChange = onChange;
    this.onLiveEvent = onLiveEvent;
    this.instance = emptyInstance(id);
    this.follow();
  }

  close() {
    clearInterval(this.#timer);
    this.#feed?.close();
    this.#feed = null;
  }

  /** Stream from the last event applied: also after the end, since a finished instance may be retried. */
  follow() {
    this.#feed?.close();
    const openedAt = Date.now();
    this.#feed = new Feed(eventsPath(this.id), this.instance.lastSequence, {
      event: (event) => this.#applyEvent(event, openedAt),
      delta: (delta) => {
        if (this.texts.append(delta)) this.onChange();
      },
      end: () => {
        this.#feed = null;
        this.#setConnected(true);
      },
      live: (isConnected) => this.#setConnected(isConnected),
      lost: () => this.#checkLost(),
    });
  }

  /** Follow again where an event of the stream of all instances is a new one of this instance, after its end. */
  resumeFor(event) {
    if (this.deleted && event.instanceId === this.id && event.instanceCreated) this.#reset();
    if (event.instanceId !== this.id || this.#feed || Number(event.sequence) <= this.instance.lastSequence) return;
    this.missing = false;
    this.follow();
  }

  /** Handle a deletion in the stream of all instances; this instance's own stream may have ended before it. */
  async onDeleted(id) {
    if (id !== this.id || this.deleted) return;
    try {
      if (Number((await getInstance(id)).lastSequence) >= this.instance.lastSequence && this.#feed) return;
      this.#reset(); // another one has the id
    } catch (error) {
      if (!error.isTransient) this.#markMissing();
    }
  }

  #markMissing() {
    this.#feed?.close();
    this.#feed = null;
    this.missing = this.instance.lastSequence === 0;
    this.deleted = !this.missing;
    this.instance.waitingReason = '';
    this.#setConnected(true);
  }

  /** Follow from the first event: another instance of the same id, or an older copy of the log. */
  #reset() {
    this.instance = emptyInstance(this.id);
    this.events = [];
    this.review = null;
    this.missing = this.deleted = false;
    this.texts.clear();
    this.follow();
  }

  /** Read the waiting reason, which is in no event, while nothing happens. */
  async #readWaitingReason() {
    const { instance } = this;
    if (document.hidden || !this.connected || this.deleted || !mayWait(instance)) return;
    try {
      const found = await getInstance(this.id);
      if (Number(found.lastSequence) !== instance.lastSequence) return;
      instance.waitingReason = found.waitingReason;
      this.onChange();
    } catch {
      // The stream reports an outage or a deletion.
    }
  }

  #setConnected(isConnected) {
    this.connected = isConnected;
    this.onChange();
  }

  async #checkLost() {
    const { instance } = this;
    let found;
    try {
      found = await getInstance(this.id);
    } catch (error) {
      if (error.isTransient) throw error;
      this.#markMissing();
      return 'stop';
    }
    const last = Number(found.lastSequence);
    if (last < instance.lastSequence) {
      this.#reset();
      return 'stop';
    }
    if (last === instance.lastSequence && TERMINAL.has(instance.state)) {
      this.#feed = null;
      this.#setConnected(true);
      return 'stop';
    }
    return 'again';
  }

  #applyEvent(event, openedAt) {
    if (Number(event.sequence) <= this.instance.lastSequence) return;
    apply(this.instance, event);
    this.events.push(event);
    this.#readCatalogue();
    this.#updateTexts(event);
    if (Date.parse(event.eventTime) >= openedAt) this.onLiveEvent(event, this.instance);
    this.onChange();
  }

  /** Fetch the service's catalogue of workers, which events only name. */
  async #readCatalogue() {
    const { config } = this.instance;
    if (!config.catalogue || config.workers) return;
    config.workers = []; // requested once
    try {
      const found = await getInstance(this.id);
      if (found.config.catalogue === config.catalogue) config.workers = found.config.workers;
    } catch {
      delete config.workers; // the next event requests it again
    }
    this.onChange();
  }

  /** Delete live text that an event supersedes. */
  #updateTexts(event) {
    const payload = event[kindOf(event)];
    if (event.subtaskStarted) this.texts.startAttempt(payload.subtaskId, payload.attempt);
    else if (event.synthesisStarted) this.texts.startAttempt(SYNTHESIS, payload.attempt);
    else if (event.subtaskCompleted) this.texts.delete(payload.subtaskId);
    else if (event.synthesisCompleted) this.texts.delete(SYNTHESIS);
    else if (event.instanceRestarted || event.planReviewed) this.texts.clear();
  }
}
