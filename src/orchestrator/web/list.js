// The list of instances, with its filters and its search.
import { cost, count, firstLine, hasTokens, plural, shortTokens, STATES, timeAgo } from './format.js';
import { STATE_FILTERS } from './instances.js';
import { html, useState } from './ui.js';

const MAX_ROW_LABELS = 3;

/**
 * `filters`: `state` (a key of STATE_FILTERS), `labels` (each as key=value), `search`. `hrefOf(id, changes)`: the link to
 * an instance, or without an id to the list, with changes of the filters. `onFiltersChange(changes)` applies such changes.
 */
export function InstanceList({ store, filters, currentId, now, hrefOf, onFiltersChange }) {
  const { matching, hasMore, isLoading, failure } = store;
  const found = matching.filter(searchPredicate(filters.search));
  return html`
    <${Search} labelSuggestions=${store.labelSuggestions} filters=${filters} onFiltersChange=${onFiltersChange} />
    <nav class="filters" aria-label="Filter by state">
      ${Object.entries(STATE_FILTERS).map(
        ([state, { name }]) =>
          html`<a key=${state} href=${hrefOf(currentId, { state })} aria-current=${state === filters.state ? 'true' : null}>${name}</a>`,
      )}
    </nav>
    ${filters.labels.length > 0 &&
    html`<ul class="labels" aria-label="Filtered by">
      ${filters.labels.map((label) => {
        const labels = filters.labels.filter((each) => each !== label);
        return html`<li key=${label}>
          <a class="tag" href=${hrefOf(currentId, { labels })} aria-label=${`Remove the filter ${label}`}>${label}<span aria-hidden="true"> ×</span></a>
        </li>`;
      })}
    </ul>`}
    <p class="count" role="status">${!isLoading || found.length > 0 ? countText(found, matching, hasMore, filters) : ''}</p>
    <ul class="instances" aria-label="Instances" aria-busy=${isLoading}>
      ${found.map(
        (instance) => html`<li key=${instance.id}>
          <${InstanceRow} instance=${instance} now=${now} href=${hrefOf(instance.id)} isCurrent=${instance.id === currentId} />
        </li>`,
      )}
    </ul>
    ${failure &&
    html`<p class="failure" role="alert">${failure.message}</p>
      <button type="button" onClick=${() => store.retry()}>Try again</button>`}
    ${hasMore &&
    html`<button type="button" class="more" disabled=${isLoading} onClick=${() => store.loadMore({ isSearch: filters.search !== '' })}>
      ${filters.search ? 'Search older ones' : 'Show older'}
    </button>`}
  `;
}

/** The fields for searching the loaded instances, and for filtering all by label, which the service does. */
function Search({ labelSuggestions, filters, onFiltersChange }) {
  const [label, setLabel] = useState('');
  const isLabel = (text) => /^[^=]+=/.test(text);

  function addLabel(event) {
    event.preventDefault();
    const added = label.trim();
    if (!isLabel(added)) return;
    setLabel('');
    if (!filters.labels.includes(added)) onFiltersChange({ labels: [...filters.labels, added] });
  }

  return html`<div class="search" role="search">
    <label class="field">
      <span class="visually-hidden">Search</span>
      <input
        type="search"
        name="search"
        placeholder="Search ids, prompts…"
        value=${filters.search}
        onInput=${(event) => onFiltersChange({ search: event.target.value })}
      />
    </label>
    <form onSubmit=${addLabel}>
      <label class="field">
        <span class="visually-hidden">Filter by label</span>
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
      <datalist id="labels">${[...labelSuggestions].map((each) => html`<option key=${each} value=${each} />`)}</datalist>
    </form>
  </div>`;
}

/** Return a predicate for instances that have all words of `search` in their id, prompt and labels. */
function searchPredicate(search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return () => true;
  return ({ id, prompt, labels }) => {
    const text = [id, prompt, ...Object.entries(labels).map((pair) => pair.join('='))].join('\n').toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

function countText(found, matching, hasMore, { search, state, labels }) {
  const loaded = hasMore ? `the ${plural(matching.length, 'newest instance')}` : plural(matching.length, 'instance');
  if (search.trim()) {
    const rest = hasMore ? '; older ones are not searched' : '';
    return `${count(found.length)} of ${loaded}, by id, prompt and label${rest}`;
  }
  if (matching.length > 0) return hasMore ? `${loaded[0].toUpperCase()}${loaded.slice(1)}, there are older ones` : loaded;
  if (labels.length > 0) return 'None has these labels.';
  return state === 'all' ? 'Nothing here yet: start with a prompt.' : `Nothing is ${STATE_FILTERS[state].name.toLowerCase()}.`;
}

function InstanceRow({ instance, now, href, isCurrent }) {
  const { name, tone } = STATES[instance.state] ?? STATES.STATE_QUEUED;
  const subtasks = [...instance.subtasks.values()];
  const completed = subtasks.filter(({ state }) => state === 'COMPLETED').length;
  const labels = Object.entries(instance.labels).map((pair) => pair.join('='));
  return html`<a class="item" href=${href} aria-current=${isCurrent ? 'page' : null}>
    <span class=${`dot ${tone}`} aria-hidden="true"></span>
    <span class="title" dir="auto">${firstLine(instance.prompt)}</span>
    <span class="meta">
      <span class=${`tone ${tone}`}>${name}</span>
      <span>${timeAgo(instance.createTime, now)}</span>
      ${instance.forkedFrom &&
      html`<span title=${`forked from ${instance.forkedFrom}: what it copied from there was used there`}>fork</span>`}
      ${instance.continues && html`<span title=${`continues ${instance.continues}`}>follow-up</span>`}
      ${hasTokens(instance.ownUsage) && html`<span>${shortTokens(instance.ownUsage)}</span>`}
      ${instance.ownUsage.costUsd > 0 && html`<span>${cost(instance.ownUsage.costUsd)}</span>`}
      ${labels.slice(0, MAX_ROW_LABELS).map((label) => html`<span class="tag" key=${label}>${label}</span>`)}
      ${labels.length > MAX_ROW_LABELS && html`<span>+${labels.length - MAX_ROW_LABELS}</span>`}
    </span>
    ${instance.error && html`<span class="reason" dir="auto"><b>${instance.error.reason}</b> ${instance.error.message}</span>`}
    ${instance.waitingReason && html`<span class="reason waiting" dir="auto">${instance.waitingReason}</span>`}
    ${subtasks.length > 0 &&
    html`<span class="progress" role="img" aria-label=${`${completed} of ${subtasks.length} subtasks done`}>
      ${subtasks.map(({ id, state }) => html`<i key=${id} class=${state.toLowerCase()}></i>`)}
    </span>`}
  </a>`;
}
