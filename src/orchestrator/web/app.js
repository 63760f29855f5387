// The page: the address determines what is shown, events of the streams redraw it.
import { serviceNow } from './api.js';
import { CreateForm } from './create.js';
import { firstLine, plural, STATES } from './format.js';
import { InstanceView } from './instance.js';
import { Instances, STATE_FILTERS } from './instances.js';
import { InstanceList } from './list.js';
import { ModelSuggestions, ServiceSettings } from './service.js';
import { TERMINAL } from './fold.js';
import { html, render, useEffect, useRef, useState } from './ui.js';
import { Watch } from './watch.js';

const REDRAW_EVERY_MS = 100; // at most: text may come in much faster
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const narrow = matchMedia('(max-width: 760px)'); // either the list or one instance, as in style.css

/** `#/instances/{id}`, `#/new` or `#/`, each with what the list shows: `?state=`, `&label=` (any number), `&search=`. */
function readAddress() {
  const [path, query] = location.hash.slice(1).split('?');
  const [, page = '', id = ''] = path.split('/');
  const asked = new URLSearchParams(query);
  const state = asked.get('state');
  return {
    id: page === 'instances' ? decodeURIComponent(id) : '',
    isNew: page === 'new',
    view: {
      state: Object.hasOwn(STATE_FILTERS, state) ? state : 'all',
      labels: asked.getAll('label').filter((label) => label.includes('=')),
      search: asked.get('search') ?? '',
    },
  };
}

/** The link to an instance, or to the list; `changes` to what the list shows. */
function hrefOf(id, changes = {}) {
  const { state, labels, search } = { ...readAddress().view, ...changes };
  const query = new URLSearchParams();
  if (state !== 'all') query.set('state', state);
  for (const label of labels) query.append('label', label);
  if (search) query.set('search', search);
  return `#/${id ? `instances/${encodeURIComponent(id)}` : ''}${query.size ? `?${query}` : ''}`;
}

/** Focus the heading of the content. */
function focusContent() {
  document.querySelector(':is(main, [role="main"]) h1')?.focus();
}

function announcementOf(event, instance) {
  const title = (payload) => instance.subtasks.get(payload.subtaskId)?.title ?? payload.subtaskId;
  if (event.planCompleted) return `Planned: ${plural(instance.subtasks.size, 'subtask')}.`;
  if (event.subtaskCompleted) return `${title(event.subtaskCompleted)}: done.`;
  if (event.subtaskFailed && !event.subtaskFailed.retryTime) return `${title(event.subtaskFailed)}: failed.`;
  const announced = ['instancePaused', 'instanceResumed', 'instanceCompleted', 'instanceErrored', 'instanceTerminated'];
  return announced.some((kind) => event[kind]) ? `${STATES[instance.state].name}.` : '';
}

/** Return a function that redraws the page soon, at most every REDRAW_EVERY_MS. */
function useRedraw() {
  const [, draw] = useState(0);
  const timer = useRef(0);
  return useRef(() => {
    timer.current ||= setTimeout(() => {
      timer.current = 0;
      draw((count) => count + 1);
    }, REDRAW_EVERY_MS);
  }).current;
}

function App() {
  const redraw = useRedraw();
  const [address, setAddress] = useState(readAddress);
  const [announcement, setAnnouncement] = useState('');
  const watch = useRef(null);
  const instances = useRef(null);
  instances.current ??= new Instances(
    redraw,
    (event) => watch.current?.resumeFor(event),
    (id) => watch.current?.onDeleted(id),
  );

  useEffect(() => {
    const onHashChange = () => setAddress(readAddress());
    addEventListener('hashchange', onHashChange);
    return () => removeEventListener('hashchange', onHashChange);
  }, []);

  useEffect(() => {
    narrow.addEventListener('change', redraw);
    return () => narrow.removeEventListener('change', redraw);
  }, []);

  const { view } = address;
  useEffect(() => {
    instances.current.show(view.state, view.labels);
  }, [view.state, JSON.stringify(view.labels)]);

  useEffect(() => {
    if (!address.id) return undefined;
    const announce = (event, instance) => setAnnouncement((last) => announcementOf(event, instance) || last);
    watch.current = new Watch(address.id, redraw, announce);
    redraw();
    return () => {
      watch.current.close();
      watch.current = null;
    };
  }, [address.id]);

  // One that was deleted before this page followed it shows as missing when it is next read.
  const shown = watch.current?.id === address.id ? watch.current : null;
  useEffect(() => {
    if (shown?.missing) instances.current.remove(address.id);
  }, [address.id, shown?.missing]);

  // Where the content replaces the list, the focus moves with it.
  const arrived = useRef(false);
  const isThere = address.id ? Boolean(shown && (shown.missing || shown.instance.lastSequence)) : true;
  useEffect(() => {
    if (!isThere) return;
    const leads = narrow.matches || address.isNew;
    if (arrived.current && leads) focusContent();
    arrived.current = true;
  }, [address.id, address.isNew, isThere]);

  function onView(changes) {
    const href = hrefOf(address.id, changes);
    if (!('search' in changes)) location.hash = href;
    else {
      history.replaceState(null, '', href); // no entry in the history for each letter
      setAddress(readAddress());
    }
  }

  const connected = instances.current.connected && (shown?.connected ?? true);
  const state = shown?.instance.state;
  const isRunning = !document.hidden && state && !TERMINAL.has(state);
  useEffect(() => {
    const timer = setInterval(redraw, isRunning ? (calm.matches ? 1000 : 250) : 30_000);
    return () => clearInterval(timer);
  }, [isRunning]);
  const title = shown?.instance.prompt ? `${STATES[state].name}: ${firstLine(shown.instance.prompt).slice(0, 60)}` : 'Orchestrator';
  useEffect(() => {
    document.title = title;
  }, [title]);

  function onSteered(instance) {
    if (!instance) {
      instances.current.remove(address.id);
      location.hash = hrefOf('');
    } else if (instance.id !== address.id) location.hash = hrefOf(instance.id);
    else watch.current?.resumeFor({ instanceId: instance.id, sequence: instance.lastSequence });
  }

  function skip(event) {
    event.preventDefault();
    focusContent();
  }

  const now = serviceNow();
  const isListMain = narrow.matches && !address.id && !address.isNew;
  const page = address.id ? 'shows-instance' : address.isNew ? 'shows-new' : 'shows-list';
  return html`
    <header class="top">
      <a class="skip" href=${location.hash || '#/'} onClick=${skip}>Skip to the content</a>
      <a class="name" href=${hrefOf('')}><img src="icon.svg" alt="" width="20" height="20" />Orchestrator</a>
      <span class=${`connection ${connected ? 'live' : 'lost'}`} role="status">${connected ? 'Live' : 'Reconnecting…'}</span>
      <a class="button primary" href="#/new">New</a>
    </header>
    <div class=${`panes ${page}`}>
      <div class="side" role=${isListMain ? 'main' : 'region'} aria-label="All instances">
        ${isListMain && html`<h1 class="hidden" tabindex="-1">All instances</h1>`}
        <${InstanceList} instances=${instances.current} view=${view} current=${address.id} now=${now} hrefOf=${hrefOf} onView=${onView} />
        <${ServiceSettings} />
      </div>
      <main>
        <a class="back" href=${hrefOf('')}>‹ All instances</a>
        ${shown && html`<${InstanceView} key=${address.id} watch=${shown} now=${now} hrefOf=${hrefOf} onSteered=${onSteered} />`}
        ${!address.id && html`<${CreateForm} onCreated=${(id) => (location.hash = hrefOf(id))} />`}
      </main>
    </div>
    <${ModelSuggestions} more=${instances.current.models} />
    <p class="hidden" role="status" aria-live="polite">${announcement}</p>
  `;
}

render(html`<${App} />`, document.body);
