// The root of the page: routes by the address, and renders again after changes of the data.
import { serviceNow } from './api.js';
import { CreateForm } from './create.js';
import { firstLine, plural, STATES } from './format.js';
import { InstanceView } from './instance.js';
import { InstanceStore, STATE_FILTERS } from './instances.js';
import { InstanceList } from './list.js';
import { ModelSuggestions, ServiceSettings, useServiceInfo } from './service.js';
import { SignedIn, SignIn, useSignedOutReason } from './session.js';
import { TERMINAL } from './fold.js';
import { html, render, useEffect, useRef, useState } from './ui.js';
import { Watch } from './watch.js';

const REDRAW_INTERVAL_MS = 100; // at least: deltas of text may be much more frequent
const reducedMotion = matchMedia('(prefers-reduced-motion: reduce)');
const narrowScreen = matchMedia('(max-width: 760px)'); // shows either the list or one instance, as in style.css

/** Parse `#/instances/{id}`, `#/new` or `#/`, each with the filters `?state=`, `&label=` (any number) and `&search=`. */
function parseAddress() {
  const [path, query] = location.hash.slice(1).split('?');
  const [, page = '', id = ''] = path.split('/');
  const parameters = new URLSearchParams(query);
  const state = parameters.get('state');
  return {
    id: page === 'instances' ? decodeURIComponent(id) : '',
    isNew: page === 'new',
    filters: {
      state: Object.hasOwn(STATE_FILTERS, state) ? state : 'all',
      labels: parameters.getAll('label').filter((label) => label.includes('=')),
      search: parameters.get('search') ?? '',
    },
  };
}

/** Return the link to an instance, or without an id to the list, with changes of the filters. */
function hrefOf(id, changes = {}) {
  const { state, labels, search } = { ...parseAddress().filters, ...changes };
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

/** Return what to announce to screen readers after an event; empty if nothing. */
function announcementOf(event, instance) {
  const title = (payload) => instance.subtasks.get(payload.subtaskId)?.title ?? payload.subtaskId;
  if (event.planCompleted) return `Planned: ${plural(instance.subtasks.size, 'subtask')}.`;
  if (event.subtaskCompleted) return `${title(event.subtaskCompleted)}: done.`;
  if (event.subtaskFailed && !event.subtaskFailed.retryTime) return `${title(event.subtaskFailed)}: failed.`;
  const stateChanges = ['instancePaused', 'instanceResumed', 'instanceCompleted', 'instanceErrored', 'instanceTerminated'];
  return stateChanges.some((kind) => event[kind]) ? `${STATES[instance.state].name}.` : '';
}

/** Return a function that redraws the page soon, at most every REDRAW_INTERVAL_MS. */
function useRedraw() {
  const [, setDrawCount] = useState(0);
  const timer = useRef(0);
  return useRef(() => {
    timer.current ||= setTimeout(() => {
      timer.current = 0;
      setDrawCount((count) => count + 1);
    }, REDRAW_INTERVAL_MS);
  }).current;
}

/** The page, or what asks for a token first. */
function Root() {
  const reason = useSignedOutReason();
  return reason ? html`<${SignIn} reason=${reason} />` : html`<${App} />`;
}

function App() {
  const redraw = useRedraw();
  const [address, setAddress] = useState(parseAddress);
  const [announcement, setAnnouncement] = useState('');
  const watch = useRef(null);
  const store = useRef(null);
  store.current ??= new InstanceStore(
    redraw,
    (event) => watch.current?.resumeFor(event),
    (id) => watch.current?.onDeleted(id),
  );

  useEffect(() => {
    const onHashChange = () => setAddress(parseAddress());
    addEventListener('hashchange', onHashChange);
    return () => removeEventListener('hashchange', onHashChange);
  }, []);

  useEffect(() => {
    narrowScreen.addEventListener('change', redraw);
    return () => narrowScreen.removeEventListener('change', redraw);
  }, []);

  const { filters } = address;
  useEffect(() => {
    store.current.setFilters(filters.state, filters.labels);
  }, [filters.state, JSON.stringify(filters.labels)]);

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

  // An instance that was deleted before this page followed it is missing when it is opened.
  const currentWatch = watch.current?.id === address.id ? watch.current : null;
  useEffect(() => {
    if (currentWatch?.isMissing) store.current.remove(address.id);
  }, [address.id, currentWatch?.isMissing]);

  // If the content replaces the list, it gets the focus, except when the page opens.
  const hasOpened = useRef(false);
  const isLoaded = address.id ? Boolean(currentWatch && (currentWatch.isMissing || currentWatch.instance.lastSequence)) : true;
  useEffect(() => {
    if (!isLoaded) return;
    const replacesList = narrowScreen.matches || address.isNew;
    if (hasOpened.current && replacesList) focusContent();
    hasOpened.current = true;
  }, [address.id, address.isNew, isLoaded]);

  function onFiltersChange(changes) {
    const href = hrefOf(address.id, changes);
    if (!('search' in changes)) location.hash = href;
    else {
      history.replaceState(null, '', href); // without an entry in the history for each letter
      setAddress(parseAddress());
    }
  }

  const isConnected = store.current.isConnected && (currentWatch?.isConnected ?? true);
  const state = currentWatch?.instance.state;
  const isRunning = !document.hidden && state && !TERMINAL.has(state);
  useEffect(() => {
    const timer = setInterval(redraw, isRunning ? (reducedMotion.matches ? 1000 : 250) : 30_000);
    return () => clearInterval(timer);
  }, [isRunning]);
  const title = currentWatch?.instance.prompt ? `${STATES[state].name}: ${firstLine(currentWatch.instance.prompt).slice(0, 60)}` : 'Orchestrator';
  useEffect(() => {
    document.title = title;
  }, [title]);

  function onSteered(instance) {
    if (!instance) {
      store.current.remove(address.id);
      location.hash = hrefOf('');
    } else if (instance.id !== address.id) location.hash = hrefOf(instance.id);
    else watch.current?.resumeFor({ instanceId: instance.id, sequence: instance.lastSequence });
  }

  function skipToContent(event) {
    event.preventDefault();
    focusContent();
  }

  const info = useServiceInfo();
  const now = serviceNow();
  const isListMain = narrowScreen.matches && !address.id && !address.isNew;
  const page = address.id ? 'shows-instance' : address.isNew ? 'shows-new' : 'shows-list';
  return html`
    <header class="top-bar">
      <a class="skip-link" href=${location.hash || '#/'} onClick=${skipToContent}>Skip to the content</a>
      <a class="brand" href=${hrefOf('')}><img src="icon.svg" alt="" width="20" height="20" />Orchestrator</a>
      <span class=${`connection ${isConnected ? 'live' : 'lost'}`} role="status">${isConnected ? 'Live' : 'Reconnecting…'}</span>
      <${SignedIn} caller=${info?.caller} />
      <a class="button primary" href="#/new">New</a>
    </header>
    <div class=${`panes ${page}`}>
      <div class="sidebar" role=${isListMain ? 'main' : 'region'} aria-label="All instances">
        ${isListMain && html`<h1 class="visually-hidden" tabindex="-1">All instances</h1>`}
        <${InstanceList}
          store=${store.current}
          filters=${filters}
          currentId=${address.id}
          now=${now}
          hrefOf=${hrefOf}
          onFiltersChange=${onFiltersChange}
        />
        <${ServiceSettings} />
      </div>
      <main>
        <a class="back" href=${hrefOf('')}>‹ All instances</a>
        ${currentWatch && html`<${InstanceView} key=${address.id} watch=${currentWatch} now=${now} hrefOf=${hrefOf} onSteered=${onSteered} />`}
        ${!address.id && html`<${CreateForm} onCreated=${(id) => (location.hash = hrefOf(id))} />`}
      </main>
    </div>
    <${ModelSuggestions} more=${store.current.modelSuggestions} />
    <p class="visually-hidden" role="status" aria-live="polite">${announcement}</p>
  `;
}

render(html`<${Root} />`, document.body);
