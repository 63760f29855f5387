// One instance as it is shown: all of its events folded, and the text that is being written.
import { eventsPath, getInstance } from './api.js';
import { Feed } from './feed.js';
import { apply, empty, kindOf, mayWait, TERMINAL } from './fold.js';
import { LiveTexts, SYNTHESIS } from './texts.js';

const ASK_WHY_MS = 2000;

export class Watch {
  events = [];
  texts = new LiveTexts();
  connected = true;
  missing = false; // there is no such instance
  deleted = false; // there was one, and what is shown is all that is left of it
  review = null; // what a person has made of the plan that waits; see review.js
  #feed = null;
  #timer = setInterval(() => this.#askWhy(), ASK_WHY_MS);

  /** `onChange()` when there is something new to show; `onNews(event, instance)` after each event that is news. */
  constructor(id, onChange, onNews) {
    this.id = id;
    this.onChange = onChange;
    this.onNews = onNews;
    this.instance = empty(id);
    this.follow();
  }

  close() {
    clearInterval(this.#timer);
    this.#feed?.close();
    this.#feed = null;
  }

  /** Read on from the last event seen: also after the end, since a finished instance may be retried. */
  follow() {
    this.#feed?.close();
    const openedAt = Date.now();
    this.#feed = new Feed(eventsPath(this.id), this.instance.lastSequence, {
      event: (event) => this.#take(event, openedAt),
      delta: (delta) => {
        if (this.texts.take(delta)) this.onChange();
      },
      end: () => {
        this.#feed = null;
        this.#connect(true);
      },
      live: (is) => this.#connect(is),
      lost: () => this.#lost(),
    });
  }

  /** Events of all instances come by: one of this instance, after its end, says that it goes on. */
  hear(event) {
    if (this.deleted && event.instanceId === this.id && event.instanceCreated) this.#begin();
    if (event.instanceId !== this.id || this.#feed || Number(event.sequence) <= this.instance.lastSequence) return;
    this.missing = false;
    this.follow();
  }

  /** An instance is gone. The stream of this one may have ended long ago, or ends now. */
  async hearDeleted(id) {
    if (id !== this.id || this.deleted) return;
    try {
      if (Number((await getInstance(id)).lastSequence) >= this.instance.lastSequence && this.#feed) return;
      this.#begin(); // another one has the id
    } catch (error) {
      if (!error.passing) this.#miss();
    }
  }

  #miss() {
    this.#feed?.close();
    this.#feed = null;
    this.missing = this.instance.lastSequence === 0;
    this.deleted = !this.missing;
    this.instance.waitingReason = '';
    this.#connect(true);
  }

  /** Read anew: another instance of the same id, or an older copy of the log. What was shown is not true any more. */
  #begin() {
    this.instance = empty(this.id);
    this.events = [];
    this.review = null;
    this.missing = this.deleted = false;
    this.texts.clear();
    this.follow();
  }

  /** No event tells why nothing happens: while nothing does, the service is asked. */
  async #askWhy() {
    const { instance } = this;
    if (document.hidden || !this.connected || this.deleted || !mayWait(instance)) return;
    try {
      const found = await getInstance(this.id);
      if (Number(found.lastSequence) !== instance.lastSequence) return;
      instance.waitingReason = found.waitingReason;
      this.onChange();
    } catch {
      // The stream tells that it cannot be reached, or is gone.
    }
  }

  #connect(is) {
    this.connected = is;
    this.onChange();
  }

  async #lost() {
    const { instance } = this;
    let found;
    try {
      found = await getInstance(this.id);
    } catch (error) {
      if (error.passing) throw error;
      this.#miss();
      return 'stop';
    }
    const last = Number(found.lastSequence);
    if (last < instance.lastSequence) {
      this.#begin();
      return 'stop';
    }
    if (last === instance.lastSequence && TERMINAL.has(instance.state)) {
      this.#feed = null;
      this.#connect(true);
      return 'stop';
    }
    return 'again';
  }

  #take(event, openedAt) {
    if (Number(event.sequence) <= this.instance.lastSequence) return;
    apply(this.instance, event);
    this.events.push(event);
    this.#readCatalogue();
    this.#follow(event);
    if (Date.parse(event.eventTime) >= openedAt) this.onNews(event, this.instance);
    this.onChange();
  }

  /** Events only name the service's catalogue of workers: the instance as a whole tells what is in it. */
  async #readCatalogue() {
    const { config } = this.instance;
    if (!config.catalogue || config.workers) return;
    config.workers = []; // asked for once
    try {
      const found = await getInstance(this.id);
      if (found.config.catalogue === config.catalogue) config.workers = found.config.workers;
    } catch {
      delete config.workers; // the next event asks again
    }
    this.onChange();
  }

  /** What the log says puts an end to what was being written, or begins it anew. */
  #follow(event) {
    const payload = event[kindOf(event)];
    if (event.subtaskStarted) this.texts.begin(payload.subtaskId, payload.attempt);
    else if (event.synthesisStarted) this.texts.begin(SYNTHESIS, payload.attempt);
    else if (event.subtaskCompleted) this.texts.drop(payload.subtaskId);
    else if (event.synthesisCompleted) this.texts.drop(SYNTHESIS);
    else if (event.instanceRestarted || event.planReviewed) this.texts.clear();
  }
}
