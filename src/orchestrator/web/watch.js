// Follows one instance: folds all of its events, and accumulates the text of its open calls.
import { eventsPath, getInstance } from './api.js';
import { Feed } from './feed.js';
import { apply, emptyInstance, isIdle, kindOf, TERMINAL } from './fold.js';
import { LiveTexts, SYNTHESIS } from './texts.js';

const WAITING_REASON_INTERVAL_MS = 2000;

export class Watch {
  events = [];
  texts = new LiveTexts();
  isConnected = true;
  isMissing = false; // there is no such instance
  isDeleted = false; // after it was read: the page still shows it
  review = null; // the edited review of a plan; see review.js
  #feed = null;
  #waitingReasonTimer = setInterval(() => this.#updateWaitingReason(), WAITING_REASON_INTERVAL_MS);

  /** `onChange()`: after each change. `onLiveEvent(event, instance)`: after each event recorded since `follow()`. */
  constructor(id, onChange, onLiveEvent) {
    this.id = id;
    this.onChange = onChange;
    this.onLiveEvent = onLiveEvent;
    this.instance = emptyInstance(id);
    this.follow();
  }

  close() {
    clearInterval(this.#waitingReasonTimer);
    this.#feed?.close();
    this.#feed = null;
  }

  /** Stream events after the last one applied; also after the end, since a finished instance may be retried. */
  follow() {
    this.#feed?.close();
    const openedAt = Date.now();
    this.#feed = new Feed(eventsPath(this.id), this.instance.lastSequence, {
      onEvent: (event) => this.#applyEvent(event, openedAt),
      onDelta: (delta) => {
        if (this.texts.append(delta)) this.onChange();
      },
      onEnd: () => {
        this.#feed = null;
        this.#setConnected(true);
      },
      onConnectionChange: (isConnected) => this.#setConnected(isConnected),
      onConnectionLost: () => this.#checkLostConnection(),
    });
  }

  /** Follow again if an event of the stream of all instances is a new one of this instance, after its stream ended. */
  resumeFor(event) {
    if (this.isDeleted && event.instanceId === this.id && event.instanceCreated) this.#reset();
    if (event.instanceId !== this.id || this.#feed || Number(event.sequence) <= this.instance.lastSequence) return;
    this.isMissing = false;
    this.follow();
  }

  /** Handle a deletion in the stream of all instances; this instance's own stream may have ended before it. */
  async onDeleted(id) {
    if (id !== this.id || this.isDeleted) return;
    try {
      if (Number((await getInstance(id)).lastSequence) >= this.instance.lastSequence && this.#feed) return;
      this.#reset(); // another instance has the id
    } catch (error) {
      if (!error.isTransient) this.#markMissing();
    }
  }

  #markMissing() {
    this.#feed?.close();
    this.#feed = null;
    this.isMissing = this.instance.lastSequence === 0;
    this.isDeleted = !this.isMissing;
    this.instance.waitingReason = '';
    this.#setConnected(true);
  }

  /** Follow from the first event, as another instance has the id, or the log is an older copy. */
  #reset() {
    this.instance = emptyInstance(this.id);
    this.events = [];
    this.review = null;
    this.isMissing = this.isDeleted = false;
    this.texts.clear();
    this.follow();
  }

  /** Read the waiting reason, which is in no event, while no call is open. */
  async #updateWaitingReason() {
    const { instance } = this;
    if (document.hidden || !this.isConnected || this.isDeleted || !isIdle(instance)) return;
    try {
      const resource = await getInstance(this.id);
      if (Number(resource.lastSequence) !== instance.lastSequence) return;
      instance.waitingReason = resource.waitingReason;
      this.onChange();
    } catch {
      // The stream reports an outage or a deletion.
    }
  }

  #setConnected(isConnected) {
    this.isConnected = isConnected;
    this.onChange();
  }

  /** Return whether to reconnect to the stream, or that it has no more events. */
  async #checkLostConnection() {
    const { instance } = this;
    let resource;
    try {
      resource = await getInstance(this.id);
    } catch (error) {
      if (error.isTransient) throw error;
      this.#markMissing();
      return 'stop';
    }
    const lastSequence = Number(resource.lastSequence);
    if (lastSequence < instance.lastSequence) {
      this.#reset();
      return 'stop';
    }
    if (lastSequence === instance.lastSequence && TERMINAL.has(instance.state)) {
      this.#feed = null;
      this.#setConnected(true);
      return 'stop';
    }
    return 'reconnect';
  }

  #applyEvent(event, openedAt) {
    if (Number(event.sequence) <= this.instance.lastSequence) return;
    apply(this.instance, event);
    this.events.push(event);
    this.#loadWorkers();
    this.#deleteSupersededTexts(event);
    if (Date.parse(event.eventTime) >= openedAt) this.onLiveEvent(event, this.instance);
    this.onChange();
  }

  /** Load the service's catalogue of workers, of which events have only the name. */
  async #loadWorkers() {
    const { config } = this.instance;
    if (!config.catalogue || config.workers) return;
    config.workers = []; // requested once
    try {
      const resource = await getInstance(this.id);
      if (resource.config.catalogue === config.catalogue) config.workers = resource.config.workers;
    } catch {
      delete config.workers; // the next event requests it again
    }
    this.onChange();
  }

  /** Delete live text that an event supersedes. */
  #deleteSupersededTexts(event) {
    const payload = event[kindOf(event)];
    if (event.subtaskStarted) this.texts.startAttempt(payload.subtaskId, payload.attempt);
    else if (event.synthesisStarted) this.texts.startAttempt(SYNTHESIS, payload.attempt);
    else if (event.subtaskCompleted) this.texts.delete(payload.subtaskId);
    else if (event.synthesisCompleted) this.texts.delete(SYNTHESIS);
    else if (event.instanceRestarted || event.planReviewed) this.texts.clear();
  }
}
