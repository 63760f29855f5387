// The list: pages from ListInstances, kept current by the stream of all instances' events.
import { allEventsPath, getInstance, lastPosition, listInstances } from './api.js';
import { Feed } from './feed.js';
import { apply, empty, fromResource, mayWait } from './fold.js';
import { onRecovered, reportRecorded } from './recovery.js';

const PAGE_SIZE = 30;
const LARGEST_PAGE = 1000;
const SEARCH_PAGE = 200;
const REFRESH_MS = 200;
const ASK_WHY_MS = 5000; // how often the service is asked why instances wait, while some do nothing
const MOST_ASKED = 200;
const SUGGESTED_LABELS = 50;
const PROMPT_KEPT = 4096; // characters: about as much as ListInstances gives

export const STATE_FILTERS = {
  all: { name: 'All', states: [] },
  active: { name: 'Active', states: ['STATE_QUEUED', 'STATE_RUNNING', 'STATE_WAITING_FOR_PAUSE'] },
  waiting: { name: 'Waiting', states: ['STATE_WAITING', 'STATE_PAUSED'] },
  complete: { name: 'Complete', states: ['STATE_COMPLETE'] },
  errored: { name: 'Errored', states: ['STATE_ERRORED'] },
  terminated: { name: 'Terminated', states: ['STATE_TERMINATED'] },
};

export class Instances {
  models = new Set(); // that instances were given, to suggest them again
  labels = new Set(); // likewise, each as key=value
  failure = null; // RequestError of what was asked for last
  #state = 'all';
  #only = []; // labels that an instance must have
  #known = new Map(); // by id, whether they fit or not
  #order = []; // ids in the order of ListInstances, newest first; those that have come to fit no more stay in it
  #older = new Set(); // ids that fit, but belong to pages that were not asked for
  #created = new Map(); // id -> position of its InstanceCreated, of those that came by
  #asked = new Set(); // ids whose instance is being fetched
  #pageToken = '';
  #position = 0; // of the last event of all before the first page was read
  #load = 0; // counts loads: an answer to an earlier one is dropped
  #pending = 0; // requests for pages under way
  #refresh = 0; // a timer
  #failed = null; // what to do again once the service is back
  #feed = null;
  #following = true;

  /**
   * `onChange()` when there is something new to show; `onEvent(event)` for every event of any instance; `onDeleted(id)` when
   * one is gone.
   */
  constructor(onChange, onEvent, onDeleted) {
    this.onChange = onChange;
    this.onEvent = onEvent;
    this.onDeleted = onDeleted;
    onRecovered(() => this.retry());
    setInterval(() => this.#askWhy(), ASK_WHY_MS);
  }

  get loading() {
    return this.#pending > 0 || this.#load === 0;
  }

  get hasMore() {
    return this.#pageToken !== '';
  }

  get connected() {
    return this.#following && !this.failure?.isOutage;
  }

  /** What fits the filters, in the order of ListInstances. */
  get shown() {
    return this.#order.map((id) => this.#known.get(id)).filter(this.#fits);
  }

  #fits = (instance) => {
    const { states } = STATE_FILTERS[this.#state];
    const isLabelled = (label) => {
      const [key, value] = split(label);
      return instance.labels[key] === value;
    };
    return (states.length === 0 || states.includes(instance.state)) && this.#only.every(isLabelled);
  };

  /** `state`: a key of STATE_FILTERS. `labels`: each as key=value; an instance must have all of them. */
  show(state, labels) {
    if (this.#feed && state === this.#state && JSON.stringify(labels) === JSON.stringify(this.#only)) return;
    this.#state = state;
    this.#only = labels;
    this.reload();
  }

  /** Ask again for what could not be read. */
  retry() {
    this.#failed?.();
  }

  /** Begin with the first page. */
  reload() {
    this.#pageToken = '';
    return this.#read(PAGE_SIZE);
  }

  /** The next page; a large one to look for something in it. */
  more({ toSearch = false } = {}) {
    const load = this.#load;
    return this.#loading(async () => {
      const page = await this.#page(toSearch ? SEARCH_PAGE : PAGE_SIZE, this.#pageToken);
      if (load !== this.#load) return;
      this.#keep(page.instances);
      const known = new Set(this.#order);
      this.#order.push(...page.instances.map(({ id }) => id).filter((id) => !known.has(id)));
      this.#pageToken = page.nextPageToken;
      this.#older.clear();
    });
  }

  forget(id) {
    this.#known.delete(id);
    this.#older.delete(id);
    this.#created.delete(id);
    this.#order = this.#order.filter((each) => each !== id);
    this.onChange();
  }

  /** Read so many of the newest instances anew. The stream begins where the log ended before: nothing falls between. */
  #read(count) {
    const load = ++this.#load;
    return this.#loading(async () => {
      const read = [];
      let token = '';
      let position = null;
      do {
        const page = await this.#page(Math.min(LARGEST_PAGE, count - read.length), token);
        if (load !== this.#load) return;
        position ??= Number(page.lastPosition);
        read.push(...page.instances);
        token = page.nextPageToken;
      } while (token && read.length < count);
      this.#keep(read);
      const listed = new Set(read.map(({ id }) => id));
      const isNewer = (id) => this.#created.get(id) > position && !listed.has(id);
      this.#order = [...this.#order.filter(isNewer), ...listed];
      this.#pageToken = token;
      this.#position = position;
      this.#older.clear();
      const placed = new Set(this.#order);
      for (const instance of this.#known.values()) {
        if (this.#fits(instance) && !placed.has(instance.id)) this.#older.add(instance.id);
      }
      if (!this.#feed) this.#follow(position);
    });
  }

  async #loading(work) {
    this.#pending += 1;
    this.#failed = null;
    this.onChange();
    try {
      await work();
      this.failure = null;
    } catch (error) {
      this.failure = error;
      this.#failed = () => this.#loading(work);
    }
    this.#pending -= 1;
    this.onChange();
  }

  #page(pageSize, pageToken) {
    return listInstances({ states: STATE_FILTERS[this.#state].states, labels: this.#only, pageSize, pageToken });
  }

  #keep(resources) {
    for (const resource of resources) {
      const instance = this.#strip(fromResource(resource));
      const known = this.#known.get(instance.id);
      const isAnother = known && known.createTime !== instance.createTime;
      if (!known || isAnother || known.lastSequence < instance.lastSequence) this.#known.set(instance.id, instance);
      else if (known.lastSequence === instance.lastSequence) known.waitingReason = instance.waitingReason;
    }
  }

  #follow(position) {
    this.#feed = new Feed(allEventsPath, position, {
      event: (event, id) => this.#take(event, Number(id)),
      deleted: (id, position) => this.#drop(id, Number(position)),
      live: (is) => {
        this.#following = is;
        this.onChange();
      },
      lost: async (last) => {
        if (BigInt(await lastPosition()) >= BigInt(last)) return 'again';
        // The log is another one, or an older copy of it: what is shown is not true any more.
        this.#feed = null;
        this.#known.clear();
        this.#order = [];
        this.#created.clear();
        this.reload();
        return 'stop';
      },
    });
  }

  #take(event, position) {
    const id = event.instanceId;
    if (event.instanceCreated) this.#begin(id, position);
    const instance = this.#known.get(id);
    if (instance && Number(event.sequence) <= instance.lastSequence + 1) {
      apply(instance, event);
      this.#strip(instance);
      this.#place(instance);
    } else {
      this.#ask(id);
    }
    reportRecorded();
    this.onEvent(event);
    this.onChange();
  }

  /** An instance is gone; one that the list was read with since is another of the same id. */
  #drop(id, position) {
    if (position <= this.#position && this.#order.includes(id)) return;
    this.forget(id);
    this.onDeleted(id);
  }

  /** No event tells why nothing happens: while something that is shown does nothing, the service is asked. */
  async #askWhy() {
    if (document.hidden || !this.connected || this.loading || !this.shown.some(mayWait)) return;
    try {
      const states = ['STATE_QUEUED', 'STATE_RUNNING'];
      const page = await listInstances({ states, labels: this.#only, pageSize: MOST_ASKED });
      this.#keep(page.instances.filter(({ id }) => this.#known.has(id)));
      this.onChange();
    } catch {
      // Whether it can be reached, the stream tells; the next look asks again.
    }
  }

  /** Drop the texts, which the list does not show: a page that stays open all day must not gather them. */
  #strip(instance) {
    const { bigModel, smallModel, reviewPlan, workers = [] } = instance.config;
    instance.config = { reviewPlan }; // which fold.js asks for
    instance.prompt = instance.prompt.slice(0, PROMPT_KEPT);
    instance.finalResult = '';
    for (const subtask of instance.subtasks.values()) Object.assign(subtask, { output: '', instructions: '' });
    for (const model of [bigModel, smallModel, ...workers.map((worker) => worker.model)]) if (model) this.models.add(model);
    for (const pair of Object.entries(instance.labels)) {
      if (this.labels.size < SUGGESTED_LABELS) this.labels.add(pair.join('='));
    }
    return instance;
  }

  /** An instance begins. What was created after the list was read is newer than all that the list has. */
  #begin(id, position) {
    if (position <= this.#position || position <= this.#created.get(id)) return;
    this.#created.set(id, position);
    this.#known.set(id, empty(id)); // also where another one had this id, and was deleted
    this.#order = [id, ...this.#order.filter((each) => each !== id)];
  }

  /** One that has come to fit and has no place yet: where its place is, only the service knows. */
  #place(instance) {
    const { id } = instance;
    if (!this.#fits(instance)) this.#older.delete(id);
    else if (!this.#order.includes(id) && !this.#older.has(id)) {
      this.#refresh ||= setTimeout(this.#readAgain, REFRESH_MS);
    }
  }

  #readAgain = () => {
    this.#refresh = this.loading ? setTimeout(this.#readAgain, REFRESH_MS) : 0;
    if (!this.#refresh) this.#read(Math.max(PAGE_SIZE, this.#order.length));
  };

  /** An instance that was not among the pages has changed: it may fit the filters now. */
  async #ask(id) {
    if (this.#asked.has(id)) return;
    this.#asked.add(id);
    try {
      const resource = await getInstance(id);
      this.#keep([resource]);
      this.#place(this.#known.get(id));
      this.onChange();
    } catch (error) {
      if (!error.passing) this.forget(id); // deleted meanwhile; one out of reach is asked for by its next event
    } finally {
      this.#asked.delete(id);
    }
  }
}

/** A label's key and value. */
function split(label) {
  const at = label.indexOf('=');
  return [label.slice(0, at), label.slice(at + 1)];
}
