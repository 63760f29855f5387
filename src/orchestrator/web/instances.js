// The list of instances: pages of ListInstances, updated from the stream of all instances' events.
import { allEventsPath, getInstance, lastPosition, listInstances } from './api.js';
import { Feed } from './feed.js';
import { apply, emptyInstance, fromResource, mayWait } from './fold.js';
import { onRecovered, reportEventRecorded } from './recovery.js';

const PAGE_SIZE = 30;
const LARGEST_PAGE = 1000;
const SEARCH_PAGE = 200;
const REFRESH_MS = 200;
const WAITING_REASON_MS = 5000; // how often waiting reasons are read, while some instance does nothing
const MOST_ASKED = 200;
const SUGGESTED_LABELS = 50;
const RETAINED_PROMPT = 4096; // characters: about as much as ListInstances gives

export const STATE_FILTERS = {
  all: { name: 'All', states: [] },
  active: { name: 'Active', states: ['STATE_QUEUED', 'STATE_RUNNING', 'STATE_WAITING_FOR_PAUSE'] },
  waiting: { name: 'Waiting', states: ['STATE_WAITING', 'STATE_PAUSED'] },
  complete: { name: 'Complete', states: ['STATE_COMPLETE'] },
  errored: { name: 'Errored', states: ['STATE_ERRORED'] },
  terminated: { name: 'Terminated', states: ['STATE_TERMINATED'] },
};

export class Instances {
  models = new Set(); // of instances, as suggestions
  labels = new Set(); // likewise, each as key=value
  failure = null; // RequestError of the last request
  #state = 'all';
  #required = []; // labels that an instance must have
  #known = new Map(); // by id, whether they fit or not
  #order = []; // ids in the order of ListInstances, newest first; those that no longer fit stay in it
  #older = new Set(); // ids that fit, but belong to pages that were not read
  #created = new Map(); // id -> position of its InstanceCreated, of those in the stream
  #fetching = new Set(); // ids whose instance is being fetched
  #pageToken = '';
  #position = 0; // of the last event of all before the first page was read
  #load = 0; // counts loads: an answer to an earlier one is dropped
  #pending = 0; // requests for pages under way
  #refresh = 0; // a timer
  #retryFailed = null; // runs the failed request again
  #feed = null;
  #isStreaming = true;

  /** `onChange()`: after each change. `onEvent(event)`: for every event of any instance. `onDeleted(id)`: after a deletion. */
  constructor(onChange, onEvent, onDeleted) {
    this.onChange = onChange;
    this.onEvent = onEvent;
    this.onDeleted = onDeleted;
    onRecovered(() => this.retry());
    setInterval(() => this.#readWaitingReason(), WAITING_REASON_MS);
  }

  get loading() {
    return this.#pending > 0 || this.#load === 0;
  }

  get hasMore() {
    return this.#pageToken !== '';
  }

  get connected() {
    return this.#isStreaming && !this.failure?.isOutage;
  }

  /** The instances that fit the filters, in the order of ListInstances. */
  get shown() {
    return this.#order.map((id) => this.#known.get(id)).filter(this.#fits);
  }

  #fits = (instance) => {
    const { states } = STATE_FILTERS[this.#state];
    const isLabelled = (label) => {
      const [key, value] = split(label);
      return instance.labels[key] === value;
    };
    return (states.length === 0 || states.includes(instance.state)) && this.#required.every(isLabelled);
  };

  /** `state`: a key of STATE_FILTERS. `labels`: each as key=value; an instance must have all of them. */
  show(state, labels) {
    if (this.#feed && state === this.#state && JSON.stringify(labels) === JSON.stringify(this.#required)) return;
    this.#state = state;
    this.#required = labels;
    this.reload();
  }

  /** Run the failed request again. */
  retry() {
    this.#retryFailed?.();
  }

  /** Read the first page. */
  reload() {
    this.#pageToken = '';
    return this.#read(PAGE_SIZE);
  }

  /** Read the next page, or a larger one to search. */
  more({ toSearch = false } = {}) {
    const load = this.#load;
    return this.#loading(async () => {
      const page = await this.#page(toSearch ? SEARCH_PAGE : PAGE_SIZE, this.#pageToken);
      if (load !== this.#load) return;
      this.#store(page.instances);
      const known = new Set(this.#order);
      this.#order.push(...page.instances.map(({ id }) => id).filter((id) => !known.has(id)));
      this.#pageToken = page.nextPageToken;
      this.#older.clear();
    });
  }

  remove(id) {
    this.#known.delete(id);
    this.#older.delete(id);
    this.#created.delete(id);
    this.#order = this.#order.filter((each) => each !== id);
    this.onChange();
  }

  /** Read the newest instances. The stream starts at the log's end before the first page, so that no event is missed. */
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
      this.#store(read);
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
    this.#retryFailed = null;
    this.onChange();
    try {
      await work();
      this.failure = null;
    } catch (error) {
      this.failure = error;
      this.#retryFailed = () => this.#loading(work);
    }
    this.#pending -= 1;
    this.onChange();
  }

  #page(pageSize, pageToken) {
    return listInstances({ states: STATE_FILTERS[this.#state].states, labels: this.#required, pageSize, pageToken });
  }

  #store(resources) {
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
      event: (event, id) => this.#applyEvent(event, Number(id)),
      deleted: (id, position) => this.#removeDeleted(id, Number(position)),
      live: (isConnected) => {
        this.#isStreaming = isConnected;
        this.onChange();
      },
      lost: async (last) => {
        if (BigInt(await lastPosition()) >= BigInt(last)) return 'again';
        // Another log, or an older copy of it: what is shown is no longer valid.
        this.#feed = null;
        this.#known.clear();
        this.#order = [];
        this.#created.clear();
        this.reload();
        return 'stop';
      },
    });
  }

  #applyEvent(event, position) {
    const id = event.instanceId;
    if (event.instanceCreated) this.#addCreated(id, position);
    const instance = this.#known.get(id);
    if (instance && Number(event.sequence) <= instance.lastSequence + 1) {
      apply(instance, event);
      this.#strip(instance);
      this.#refreshFor(instance);
    } else {
      this.#fetch(id);
    }
    reportEventRecorded();
    this.onEvent(event);
    this.onChange();
  }

  /** Remove a deleted instance, except where a page read since has another of the same id. */
  #removeDeleted(id, position) {
    if (position <= this.#position && this.#order.includes(id)) return;
    this.remove(id);
    this.onDeleted(id);
  }

  /** Read the waiting reasons, which are in no event, while an instance shown does nothing. */
  async #readWaitingReason() {
    if (document.hidden || !this.connected || this.loading || !this.shown.some(mayWait)) return;
    try {
      const states = ['STATE_QUEUED', 'STATE_RUNNING'];
      const page = await listInstances({ states, labels: this.#required, pageSize: MOST_ASKED });
      this.#store(page.instances.filter(({ id }) => this.#known.has(id)));
      this.onChange();
    } catch {
      // The stream reports an outage; the next interval tries again.
    }
  }

  /** Delete the texts, which the list does not show, so that a page open for long does not accumulate them. */
  #strip(instance) {
    const { bigModel, smallModel, reviewPlan, workers = [] } = instance.config;
    instance.config = { reviewPlan }; // which fold.js reads
    instance.prompt = instance.prompt.slice(0, RETAINED_PROMPT);
    instance.finalResult = '';
    for (const subtask of instance.subtasks.values()) Object.assign(subtask, { output: '', instructions: '' });
    for (const model of [bigModel, smallModel, ...workers.map((worker) => worker.model)]) if (model) this.models.add(model);
    for (const pair of Object.entries(instance.labels)) {
      if (this.labels.size < SUGGESTED_LABELS) this.labels.add(pair.join('='));
    }
    return instance;
  }

  /** Add a created instance at the top: it is newer than all that the list has read. */
  #addCreated(id, position) {
    if (position <= this.#position || position <= this.#created.get(id)) return;
    this.#created.set(id, position);
    this.#known.set(id, emptyInstance(id)); // also where a deleted one had this id
    this.#order = [id, ...this.#order.filter((each) => each !== id)];
  }

  /** Read the list again where an instance fits that is not in it: only the service knows its position. */
  #refreshFor(instance) {
    const { id } = instance;
    if (!this.#fits(instance)) this.#older.delete(id);
    else if (!this.#order.includes(id) && !this.#older.has(id)) {
      this.#refresh ||= setTimeout(this.#readNewest, REFRESH_MS);
    }
  }

  #readNewest = () => {
    this.#refresh = this.loading ? setTimeout(this.#readNewest, REFRESH_MS) : 0;
    if (!this.#refresh) this.#read(Math.max(PAGE_SIZE, this.#order.length));
  };

  /** Fetch an instance that changed and is on no page read: it may fit the filters now. */
  async #fetch(id) {
    if (this.#fetching.has(id)) return;
    this.#fetching.add(id);
    try {
      const resource = await getInstance(id);
      this.#store([resource]);
      this.#refreshFor(this.#known.get(id));
      this.onChange();
    } catch (error) {
      if (!error.isTransient) this.remove(id); // deleted meanwhile; after an outage its next event fetches it
    } finally {
      this.#fetching.delete(id);
    }
  }
}

/** A label's key and value. */
function split(label) {
  const at = label.indexOf('=');
  return [label.slice(0, at), label.slice(at + 1)];
}
