// The list of instances, with what it is filtered by and searched for.
import { cost, count, firstLine, hasTokens, plural, shortTokens, STATES, timeAgo } from './format.js';
import { STATE_FILTERS } from './instances.js';
import { html, useState } from './ui.js';

const LABELS_SHOWN = 3; // of a row

/**
 * `hrefOf(id, changes)`: the link to an instance; without an id, to the list. `changes` to what the list shows: `state`
 * (a key of STATE_FILTERS), `labels` (each as key=value), `search`. `onView(changes)` makes them.
 */
export function InstanceList({ instances, view, current, now, hrefOf, onView }) {
  const { shown, hasMore, loading, failure } = instances;
  const found = shown.filter(matcher(view.search));
  return html`
    <${Search} instances=${instances} view=${view} onView=${onView} />
    <nav class="filters" aria-label="Filter by state">
      ${Object.entries(STATE_FILTERS).map(
        ([state, { name }]) =>
          html`<a key=${state} href=${hrefOf(current, { state })} aria-current=${state === view.state ? 'true' : null}>${name}</a>`,
      )}
    </nav>
    ${view.labels.length > 0 &&
    html`<ul class="labels" aria-label="Filtered by">
      ${view.labels.map((label) => {
        const labels = view.labels.filter((each) => each !== label);
        return html`<li key=${label}>
          <a class="tag" href=${hrefOf(current, { labels })} aria-label=${`Remove the filter ${label}`}>${label}<span aria-hidden="true"> ×</span></a>
        </li>`;
      })}
    </ul>`}
    <p class="count" role="status">${!loading || found.length > 0 ? countOf(found, shown, hasMore, view) : ''}</p>
    <ul class="instances" aria-label="Instances" aria-busy=${loading}>
      ${found.map(
        (instance) => html`<li key=${instance.id}>
          <${Item} instance=${instance} now=${now} href=${hrefOf(instance.id)} isCurrent=${instance.id === current} />
        </li>`,
      )}
    </ul>
    ${failure &&
    html`<p class="failure" role="alert">${failure.message}</p>
      <button type="button" onClick=${() => instances.retry()}>Try again</button>`}
    ${hasMore &&
    html`<button type="button" class="more" disabled=${loading} onClick=${() => instances.more({ toSearch: view.search !== '' })}>
      ${view.search ? 'Search older ones' : 'Show older'}
    </button>`}
  `;
}

/** What is searched is what is loaded; labels are asked of the service. */
function Search({ instances, view, onView }) {
  const [label, setLabel] = useState('');
  const isLabel = (text) => /^[^=]+=/.test(text);

  function add(event) {
    event.preventDefault();
    const added = label.trim();
    if (!isLabel(added)) return;
    setLabel('');
    if (!view.labels.includes(added)) onView({ labels: [...view.labels, added] });
  }

  return html`<div class="search" role="search">
    <label class="field">
      <span class="hidden">Search</span>
      <input
        type="search"
        name="search"
        placeholder="Search ids, prompts…"
        value=${view.search}
        onInput=${(event) => onView({ search: event.target.value })}
      />
    </label>
    <form onSubmit=${add}>
      <label class="field">
        <span class="hidden">Filter by label</span>
        <input
          name="label"
          list="labels"
          placeholder="label=value"
          pattern="[^=]+=.*"
          title="a label, as key=value"
          autocapitalize="off"
          autocomplete="off"
          value=${label}
          onInput=${(event) => setLabel(event.target.value)}
        />
      </label>
      <button class="add" disabled=${!isLabel(label)}>Filter</button>
      <datalist id="labels">${[...instances.labels].map((each) => html`<option key=${each} value=${each} />`)}</datalist>
    </form>
  </div>`;
}

/** Whether an instance has all words of a text somewhere in its id, its prompt or its labels. */
function matcher(search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return () => true;
  return ({ id, prompt, labels }) => {
    const text = [id, prompt, ...Object.entries(labels).map((pair) => pair.join('='))].join('\n').toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

function countOf(found, shown, hasMore, { search, state, labels }) {
  const loaded = hasMore ? `the ${plural(shown.length, 'newest instance')}` : plural(shown.length, 'instance');
  if (search.trim()) {
    const rest = hasMore ? '; older ones are not searched' : '';
    return `${count(found.length)} of ${loaded}, by id, prompt and label${rest}`;
  }
  if (shown.length > 0) return hasMore ? `${loaded[0].toUpperCase()}${loaded.slice(1)}, there are older ones` : loaded;
  if (labels.length > 0) return 'None has these labels.';
  return state === 'all' ? 'Nothing here yet: start with a prompt.' : `Nothing is ${STATE_FILTERS[state].name.toLowerCase()}.`;
}

function Item({ instance, now, href, isCurrent }) {
  const { name, tone } = STATES[instance.state] ?? STATES.STATE_QUEUED;
  const subtasks = [...instance.subtasks.values()];
  const share = (...states) => subtasks.filter(({ state }) => states.includes(state)).length;
  const labels = Object.entries(instance.labels).map((pair) => pair.join('='));
  return html`<a class="item" href=${href} aria-current=${isCurrent ? 'page' : null}>
    <span class=${`dot ${tone}`} aria-hidden="true"></span>
    <span class="title" dir="auto">${firstLine(instance.prompt)}</span>
    <span class="about">
      <span class=${`tone ${tone}`}>${name}</span>
      <span>${timeAgo(instance.createTime, now)}</span>
      ${instance.forkedFrom &&
      html`<span title=${`forked from ${instance.forkedFrom}: what it copied from there was used there`}>fork</span>`}
      ${hasTokens(instance.ownUsage) && html`<span>${shortTokens(instance.ownUsage)}</span>`}
      ${instance.ownUsage.costUsd > 0 && html`<span>${cost(instance.ownUsage.costUsd)}</span>`}
      ${labels.slice(0, LABELS_SHOWN).map((label) => html`<span class="tag" key=${label}>${label}</span>`)}
      ${labels.length > LABELS_SHOWN && html`<span>+${labels.length - LABELS_SHOWN}</span>`}
    </span>
    ${instance.error && html`<span class="why" dir="auto"><b>${instance.error.reason}</b> ${instance.error.message}</span>`}
    ${instance.waitingReason && html`<span class="why waits" dir="auto">${instance.waitingReason}</span>`}
    ${subtasks.length > 0 &&
    html`<span class="progress" role="img" aria-label=${`${share('COMPLETED')} of ${subtasks.length} subtasks done`}>
      ${subtasks.map(({ id, state }) => html`<i key=${id} class=${state.toLowerCase()}></i>`)}
    </span>`}
  </a>`;
}
