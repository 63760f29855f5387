// The list of instances: pages of ListInstances, updated from the stream of all instances' events.
import { allEventsPath, getInstance, lastPosition, listInstances } from './api.js';
import { Feed } from './feed.js';
import { apply, emptyInstance, fromResource, isIdle } from './fold.js';
import { onRecovered, reportEventRecorded } from './recovery.js';

const PAGE_SIZE = 30;
const SEARCH_PAGE_SIZE = 200;
const WAITING_REASONS_PAGE_SIZE = 200;
const MAX_PAGE_SIZE = 1000;
const RELOAD_DELAY_MS = 200;
const WAITING_REASONS_INTERVAL_MS = 5000;
const MAX_LABEL_SUGGESTIONS = 50;
const MAX_PROMPT_LENGTH = 4096; // characters: about as many as ListInstances returns

export const STATE_FILTERS = {
  all: { name: 'All', states: [] },
  active: { name: 'Active', states: ['STATE_QUEUED', 'STATE_RUNNING', 'STATE_WAITING_FOR_PAUSE'] },
  waiting: { name: 'Waiting', states: ['STATE_WAITING', 'STATE_PAUSED'] },
  complete: { name: 'Complete', states: ['STATE_COMPLETE'] },
  errored: { name: 'Errored', states: ['STATE_ERRORED'] },
  terminated: { name: 'Terminated', states: ['STATE_TERMINATED'] },
};

export class InstanceStore {
  modelSuggestions = new Set();
  labelSuggestions = new Set(); // each as key=value
  failure = null; // RequestError of the last request
  #state = 'all';
  #requiredLabels = []; // each as key=value
  #byId = new Map(); // instances, whether they match the filters or not
  #order = []; // ids in the order of ListInstances, newest first; those that no longer match stay in it
  #unread = new Set(); // ids that match, but belong to pages that were not read
  #createdPositions = new Map(); // id -> position of its InstanceCreated, of those in the stream
  #fetchSequences = new Map(); // id -> sequence of the last event of an instance that is being fetched
  #deletedPositions = new Map(); // id -> position of its deletion, of those since a page was requested
  #pageToken = '';
  #position = 0; // of the log's last event before the first page was read
  #generation = 0; // of the list: a response to a request of an earlier one is dropped
  #openRequests = 0; // for pages
  #reloadTimer = 0;
  #retryFailed = null; // repeats the failed request
  #feed = null;
  #isStreaming = true;

  /** `onChange()`: after each change. `onEvent(event)`: for every event of any instance. `onDeleted(id)`: after a deletion. */
  constructor(onChange, onEvent, onDeleted) {
    this.onChange = onChange;
    this.onEvent = onEvent;
    this.onDeleted = onDeleted;
    onRecovered(() => this.retry());
    setInterval(() => this.#updateWaitingReasons(), WAITING_REASONS_INTERVAL_MS);
  }

  get isLoading() {
    return this.#openRequests > 0 || this.#generation === 0;
  }

  get hasMore() {
    return this.#pageToken !== '';
  }

  get isConnected() {
    return this.#isStreaming && !this.failure?.isOutage;
  }

  /** Return the instances that match the filters, in the order of ListInstances. */
  get matching() {
    return this.#order.map((id) => this.#byId.get(id)).filter(this.#matches);
  }

  #matches = (instance) => {
    const { states } = STATE_FILTERS[this.#state];
    const hasLabel = (label) => {
      const [key, value] = parseLabel(label);
      return instance.labels[key] === value;
    };
    return (states.length === 0 || states.includes(instance.state)) && this.#requiredLabels.every(hasLabel);
  };

  /** Filter by `state`, a key of STATE_FILTERS, and by `labels`, each as key=value, all of which an instance must have. */
  setFilters(state, labels) {
    if (this.#feed && state === this.#state && JSON.stringify(labels) === JSON.stringify(this.#requiredLabels)) return;
    this.#state = state;
    this.#requiredLabels = labels;
    this.reload();
  }

  /** Repeat the failed request. */
  retry() {
    this.#retryFailed?.();
  }

  /** Read the first page. */
  reload() {
    this.#pageToken = '';
    return this.#loadNewest(PAGE_SIZE);
  }

  /** Read the next page, or a larger one to search. */
  loadMore({ isSearch = false } = {}) {
    const generation = this.#generation;
    return this.#trackRequest(async () => {
      const page = await this.#fetchPage(isSearch ? SEARCH_PAGE_SIZE : PAGE_SIZE, this.#pageToken);
      if (generation !== this.#generation) return;
      const resources = this.#withoutDeleted(page.instances, Number(page.lastPosition));
      this.#store(resources);
      const listed = new Set(this.#order);
      this.#order.push(...resources.map(({ id }) => id).filter((id) => !listed.has(id)));
      this.#pageToken = page.nextPageToken;
      this.#unread.clear();
    });
  }

  remove(id) {
    this.#byId.delete(id);
    this.#unread.delete(id);
    this.#createdPositions.delete(id);
    this.#order = this.#order.filter((each) => each !== id);
    this.onChange();
  }

  /** Read the newest instances. The stream starts at the log's end before the first page, so that no event is missed. */
  #loadNewest(count) {
    const generation = ++this.#generation;
    return this.#trackRequest(async () => {
      const received = [];
      let token = '';
      let position = null;
      do {
        const page = await this.#fetchPage(Math.min(MAX_PAGE_SIZE, count - received.length), token);
        if (generation !== this.#generation) return;
        position ??= Number(page.lastPosition);
        received.push(...page.instances);
        token = page.nextPageToken;
      } while (token && received.length < count);
      const resources = this.#withoutDeleted(received, position);
      this.#store(resources);
      const listed = new Set(resources.map(({ id }) => id));
      const isNewer = (id) => this.#createdPositions.get(id) > position && !listed.has(id);
      this.#order = [...this.#order.filter(isNewer), ...listed];
      this.#pageToken = token;
      this.#position = position;
      this.#unread.clear();
      const ordered = new Set(this.#order);
      for (const instance of this.#byId.values()) {
        if (this.#matches(instance) && !ordered.has(instance.id)) this.#unread.add(instance.id);
      }
      if (!this.#feed) this.#follow(position);
    });
  }

  /** Run `request` for pages; record that it is open, and whether it failed. */
  async #trackRequest(request) {
    this.#openRequests += 1;
    this.#retryFailed = null;
    this.onChange();
    try {
      await request();
      this.failure = null;
    } catch (error) {
      this.failure = error;
      this.#retryFailed = () => this.#trackRequest(request);
    }
    this.#openRequests -= 1;
    if (this.#openRequests === 0) this.#deletedPositions.clear();
    this.onChange();
  }

  #fetchPage(pageSize, pageToken) {
    return listInstances({ states: STATE_FILTERS[this.#state].states, labels: this.#requiredLabels, pageSize, pageToken });
  }

  /** Filter out the instances deleted after `position`: the page may have been read before. */
  #withoutDeleted(resources, position) {
    return resources.filter(({ id }) => !(this.#deletedPositions.get(id) > position));
  }

  #store(resources) {
    for (const resource of resources) {
      const instance = fromResource(resource);
      this.#collectSuggestions(instance);
      dropTexts(instance);
      const known = this.#byId.get(instance.id);
      const isAnother = known && known.createTime !== instance.createTime;
      if (!known || isAnother || known.lastSequence < instance.lastSequence) this.#byId.set(instance.id, instance);
      else if (known.lastSequence === instance.lastSequence) known.waitingReason = instance.waitingReason;
    }
  }

  #follow(position) {
    this.#feed = new Feed(allEventsPath, position, {
      onEvent: (event, id) => this.#applyEvent(event, Number(id)),
      onDeleted: (instanceId, id) => this.#removeDeleted(instanceId, Number(id)),
      onConnectionChange: (isConnected) => {
        this.#isStreaming = isConnected;
        this.onChange();
      },
      onConnectionLost: async (lastId) => {
        if (BigInt(await lastPosition()) >= BigInt(lastId)) return 'reconnect';
        // The log was replaced, or restored from an older copy: the list is no longer valid.
        this.#feed = null;
        this.#byId.clear();
        this.#order = [];
        this.#createdPositions.clear();
        this.reload();
        return 'stop';
      },
    });
  }

  #applyEvent(event, position) {
    const id = event.instanceId;
    if (event.instanceCreated) this.#addCreated(id, position);
    const instance = this.#byId.get(id);
    if (instance && Number(event.sequence) <= instance.lastSequence + 1) {
      apply(instance, event);
      this.#collectSuggestions(instance);
      dropTexts(instance);
      this.#reloadFor(instance);
    } else {
      this.#fetch(id, Number(event.sequence));
    }
    reportEventRecorded();
    this.onEvent(event);
    this.onChange();
  }

  /** Remove a deleted instance, unless a page read since has another one of the same id. */
  #removeDeleted(id, position) {
    if (position <= this.#position && this.#order.includes(id)) return;
    if (this.#openRequests > 0) this.#deletedPositions.set(id, position);
    this.remove(id);
    this.onDeleted(id);
  }

  /** Read the waiting reasons, which are in no event, while an instance of the list has no open call. */
  async #updateWaitingReasons() {
    if (document.hidden || !this.isConnected || this.isLoading || !this.matching.some(isIdle)) return;
    try {
      const states = ['STATE_QUEUED', 'STATE_RUNNING'];
      const page = await listInstances({ states, labels: this.#requiredLabels, pageSize: WAITING_REASONS_PAGE_SIZE });
      this.#store(page.instances.filter(({ id }) => this.#byId.has(id)));
      this.onChange();
    } catch {
      // The stream reports an outage; the next interval tries again.
    }
  }

  #collectSuggestions({ config, labels }) {
    const { bigModel, smallModel, workers = [] } = config;
    for (const model of [bigModel, smallModel, ...workers.map((worker) => worker.model)]) {
      if (model) this.modelSuggestions.add(model);
    }
    for (const pair of Object.entries(labels)) {
      if (this.labelSuggestions.size < MAX_LABEL_SUGGESTIONS) this.labelSuggestions.add(pair.join('='));
    }
  }

  /** Add a created instance at the top: it is newer than all instances of the list. */
  #addCreated(id, position) {
    if (position <= this.#position || position <= this.#createdPositions.get(id)) return;
    this.#createdPositions.set(id, position);
    this.#byId.set(id, emptyInstance(id)); // it replaces a deleted one of the same id
    this.#order = [id, ...this.#order.filter((each) => each !== id)];
  }

  /** Reload the list if an instance matches that is not in it: only the service knows its position. */
  #reloadFor(instance) {
    const { id } = instance;
    if (!this.#matches(instance)) this.#unread.delete(id);
    else if (!this.#order.includes(id) && !this.#unread.has(id)) {
      this.#reloadTimer ||= setTimeout(this.#reloadAll, RELOAD_DELAY_MS);
    }
  }

  #reloadAll = () => {
    this.#reloadTimer = this.isLoading ? setTimeout(this.#reloadAll, RELOAD_DELAY_MS) : 0;
    if (!this.#reloadTimer) this.#loadNewest(Math.max(PAGE_SIZE, this.#order.length));
  };

  /** Fetch an instance that changed and is on no page read: it may match the filters at event `sequence`. */
  async #fetch(id, sequence) {
    const isFetching = this.#fetchSequences.has(id);
    this.#fetchSequences.set(id, sequence);
    if (isFetching) return;
    try {
      let resource = await getInstance(id);
      // The response may have been read before an event that arrived during the request.
      for (let last = sequence; Number(resource.lastSequence) < this.#fetchSequences.get(id) && last < this.#fetchSequences.get(id); ) {
        last = this.#fetchSequences.get(id);
        resource = await getInstance(id);
      }
      this.#store([resource]);
      this.#reloadFor(this.#byId.get(id));
      this.onChange();
    } catch (error) {
      if (!error.isTransient) this.remove(id); // it was deleted; after an outage its next event fetches it
    } finally {
      this.#fetchSequences.delete(id);
    }
  }
}

/** Delete the texts, which the list does not show, so that a page open for long does not accumulate them. */
function dropTexts(instance) {
  const { reviewPlan } = instance.config;
  instance.config = { reviewPlan }; // which fold.js reads
  instance.prompt = instance.prompt.slice(0, MAX_PROMPT_LENGTH);
  instance.finalResult = '';
  for (const subtask of instance.subtasks.values()) Object.assign(subtask, { output: '', instructions: '' });
}

/** Return a label's key and value. */
function parseLabel(label) {
  const separator = label.indexOf('=');
  return [label.slice(0, separator), label.slice(separator + 1)];
}
