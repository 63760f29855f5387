// The list of instances, with its filter.
import { cost, firstLine, since, STATES, tokens } from './format.js';
import { FILTERS } from './instances.js';
import { html } from './ui.js';

/** `hrefOf(id, filter)`: the link to an instance; without an id, to the list. */
export function InstanceList({ instances, current, now, hrefOf }) {
  const { shown, filter, hasMore, loading, failure } = instances;
  return html`
    <nav class="filters" aria-label="Filter by state">
      ${Object.entries(FILTERS).map(
        ([key, { name }]) => html`<a key=${key} href=${hrefOf(current, key)} aria-current=${key === filter ? 'true' : null}>${name}</a>`,
      )}
    </nav>
    <ul class="instances" aria-label="Instances" aria-busy=${loading}>
      ${shown.map(
        (instance) => html`<li key=${instance.id}>
          <${Item} instance=${instance} now=${now} href=${hrefOf(instance.id, filter)} isCurrent=${instance.id === current} />
        </li>`,
      )}
    </ul>
    ${failure &&
    html`<p class="failure" role="alert">${failure.message}</p>
      <button type="button" onClick=${() => instances.reload()}>Try again</button>`}
    ${!loading && !failure && shown.length === 0 &&
    html`<p class="hint">${filter === 'all' ? 'Nothing here yet: start with a prompt.' : `Nothing is ${FILTERS[filter].name.toLowerCase()}.`}</p>`}
    ${hasMore && html`<button type="button" class="more" disabled=${loading} onClick=${() => instances.more()}>Show older</button>`}
  `;
}

function Item({ instance, now, href, isCurrent }) {
  const { name, tone } = STATES[instance.state] ?? STATES.STATE_QUEUED;
  const subtasks = [...instance.subtasks.values()];
  const share = (...states) => subtasks.filter(({ state }) => states.includes(state)).length;
  return html`<a class="item" href=${href} aria-current=${isCurrent ? 'page' : null}>
    <span class=${`dot ${tone}`} aria-hidden="true"></span>
    <span class="title" dir="auto">${firstLine(instance.prompt)}</span>
    <span class="about">
      <span class=${`tone ${tone}`}>${name}</span>
      <span>${since(instance.createTime, now)}</span>
      ${instance.forkedFrom &&
      html`<span title=${`forked from ${instance.forkedFrom}: what it took over from there counts as used`}>fork</span>`}
      ${instance.usage.modelCalls > 0 && html`<span>${tokens(instance.usage.inputTokens + instance.usage.outputTokens)} tok</span>`}
      ${instance.usage.costUsd > 0 && html`<span>${cost(instance.usage.costUsd)}</span>`}
    </span>
    ${subtasks.length > 0 &&
    html`<span class="progress" role="img" aria-label=${`${share('COMPLETED')} of ${subtasks.length} subtasks done`}>
      ${subtasks.map(({ id, state }) => html`<i key=${id} class=${state.toLowerCase()}></i>`)}
    </span>`}
  </a>`;
}
