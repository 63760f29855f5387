// The list: pages from ListInstances, kept current by the stream of all instances' events.
import { allEventsPath, getInstance, lastPosition, listInstances } from './api.js';
import { Feed } from './feed.js';
import { apply, empty, fromResource } from './fold.js';

const PAGE_SIZE = 30;

export const FILTERS = {
  all: { name: 'All', states: [] },
  active: { name: 'Active', states: ['STATE_QUEUED', 'STATE_RUNNING', 'STATE_WAITING_FOR_PAUSE'] },
  waiting: { name: 'Waiting', states: ['STATE_WAITING', 'STATE_PAUSED'] },
  complete: { name: 'Complete', states: ['STATE_COMPLETE'] },
  errored: { name: 'Errored', states: ['STATE_ERRORED'] },
  terminated: { name: 'Terminated', states: ['STATE_TERMINATED'] },
};

export class Instances {
  loading = true; // until it is known what there is
  failure = null; // RequestError of the last page asked for
  connected = true;
  #filter = 'all';
  #known = new Map();
  #asked = new Set(); // ids whose instance is being fetched
  #pageToken = '';
  #oldest = 0; // createTime of the last instance of the pages so far; older ones come with later pages
  #load = 0; // counts loads: an answer to an earlier one is dropped
  #feed = null;

  /** `onChange()` when there is something new to show; `onEvent(event)` for every event of any instance. */
  constructor(onChange, onEvent) {
    this.onChange = onChange;
    this.onEvent = onEvent;
  }

  get filter() {
    return this.#filter;
  }

  get hasMore() {
    return this.#pageToken !== '';
  }

  /** What fits the filter, newest first. */
  get shown() {
    return [...this.#known.values()].filter(this.#fits).sort((a, b) => b.createTime - a.createTime);
  }

  #fits = (instance) => {
    const { states } = FILTERS[this.#filter];
    return states.length === 0 || states.includes(instance.state);
  };

  show(filter) {
    if (this.#feed && filter === this.#filter) return;
    this.#filter = filter;
    this.reload();
  }

  /** Begin with the first page. The stream begins where the log ended before the page was read: nothing falls between. */
  async reload() {
    const load = ++this.#load;
    this.#known.clear();
    this.#pageToken = '';
    this.#oldest = Infinity;
    this.failure = null;
    await this.#loading(async () => {
      const position = await this.#page(load);
      if (!this.#feed && load === this.#load) this.#follow(position);
    });
  }

  more() {
    return this.#loading(() => this.#page(this.#load));
  }

  forget(id) {
    this.#known.delete(id);
    this.onChange();
  }

  async #loading(work) {
    this.loading = true;
    this.onChange();
    try {
      await work();
      this.failure = null;
    } catch (error) {
      this.failure = error;
    }
    this.loading = false;
    this.onChange();
  }

  async #page(load) {
    const page = await listInstances({
      states: FILTERS[this.#filter].states,
      pageSize: PAGE_SIZE,
      pageToken: this.#pageToken,
    });
    if (load !== this.#load) return null;
    for (const resource of page.instances) this.#keep(fromResource(resource));
    this.#pageToken = page.nextPageToken;
    this.#oldest = page.nextPageToken ? Date.parse(page.instances.at(-1).createTime) : 0;
    return page.lastPosition;
  }

  #keep(instance) {
    const known = this.#known.get(instance.id);
    if (!known || known.lastSequence < instance.lastSequence) this.#known.set(instance.id, instance);
  }

  #follow(position) {
    this.#feed = new Feed(allEventsPath, position, {
      event: (event) => this.#take(event),
      live: (is) => {
        this.connected = is;
        this.onChange();
      },
      lost: async (last) => {
        if (BigInt(await lastPosition()) >= BigInt(last)) return 'again';
        // The log is another one, or an older copy of it: what is shown is not true any more.
        this.#feed = null;
        this.reload();
        return 'stop';
      },
    });
  }

  #take(event) {
    const id = event.instanceId;
    let instance = this.#known.get(id);
    if (!instance && event.instanceCreated) {
      instance = empty(id);
      this.#known.set(id, instance);
    }
    if (instance && Number(event.sequence) <= instance.lastSequence + 1) {
      apply(instance, event);
      // The list shows no texts; a page that stays open all day must not gather them.
      instance.finalResult = '';
      for (const subtask of instance.subtasks.values()) Object.assign(subtask, { output: '', instructions: '' });
    } else {
      this.#ask(id);
    }
    this.onEvent(event);
    this.onChange();
  }

  /** An instance that was not among the pages has changed: it may fit the filter now. */
  async #ask(id) {
    if (this.#asked.has(id)) return;
    this.#asked.add(id);
    try {
      const instance = fromResource(await getInstance(id));
      if (instance.createTime >= this.#oldest) this.#keep(instance);
      this.onChange();
    } catch (error) {
      if (!error.passing) this.forget(id); // deleted meanwhile; one out of reach is asked for by its next event
    } finally {
      this.#asked.delete(id);
    }
  }
}
