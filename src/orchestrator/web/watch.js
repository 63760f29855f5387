// One instance as it is shown: all of its events folded, and the text that is being written.
import { eventsPath, getInstance } from './api.js';
import { Feed } from './feed.js';
import { apply, empty, kindOf, TERMINAL } from './fold.js';
import { LiveTexts, SYNTHESIS } from './texts.js';

export class Watch {
  events = [];
  texts = new LiveTexts();
  connected = true;
  missing = false; // there is no such instance
  #feed = null;

  /** `onChange()` when there is something new to show; `onNews(event, instance)` after each event that is news. */
  constructor(id, onChange, onNews) {
    this.id = id;
    this.onChange = onChange;
    this.onNews = onNews;
    this.instance = empty(id);
    this.follow();
  }

  close() {
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
    if (event.instanceId !== this.id || this.#feed || Number(event.sequence) <= this.instance.lastSequence) return;
    this.missing = false;
    this.follow();
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
      this.missing = true;
      this.#feed = null;
      this.#connect(true);
      return 'stop';
    }
    const last = Number(found.lastSequence);
    if (last < instance.lastSequence) {
      // Another instance of the same id, or an older copy of the log: what was shown is not true any more.
      this.instance = empty(this.id);
      this.events = [];
      this.texts.clear();
      this.follow();
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
