// One instance: where it stands, what may be done, its plan in review, its timeline, its result.
import { Actions } from './actions.js';
import { CopyButton } from './copy.js';
import { kindOf, TERMINAL } from './fold.js';
import { cost, duration, elapsed, firstLine, moment, plural, since, STATES, tokens } from './format.js';
import { Markdown } from './markdown.js';
import { Review } from './review.js';
import { SYNTHESIS } from './texts.js';
import { Timeline } from './timeline.js';
import { html } from './ui.js';

const clock = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });

export function StateBadge({ state }) {
  const { name, tone } = STATES[state] ?? { name: 'Loading', tone: 'idle' };
  return html`<span class=${`badge ${tone}`}>${name}</span>`;
}

/** `hrefOf(id)`: the link to another instance. */
export function InstanceView({ watch, now, hrefOf, onSteered }) {
  const { instance } = watch;
  if (watch.missing) return html`<${Missing} id=${watch.id} />`;
  if (instance.lastSequence === 0) return html`<p class="hint" role="status">Reading its events…</p>`;
  const written = watch.texts.of(SYNTHESIS);
  return html`<article class="instance" aria-labelledby="instance-title">
    <header>
      <h1 id="instance-title" tabindex="-1" dir="auto">${firstLine(instance.prompt)}</h1>
      <p class="identity">
        <${StateBadge} state=${instance.state} />
        <code>${instance.id}</code>
        <time datetime=${new Date(instance.createTime).toISOString()} title=${moment(instance.createTime)}>
          ${since(instance.createTime, now)}
        </time>
        ${instance.forkedFrom && html`<span>forked from <a href=${hrefOf(instance.forkedFrom)}>${instance.forkedFrom}</a></span>`}
        ${Object.entries(instance.labels).map(([key, value]) => html`<span class="tag" key=${key}>${key}=${value}</span>`)}
      </p>
      <${Actions} instance=${instance} onSteered=${onSteered} />
    </header>
    <${Facts} instance=${instance} now=${now} />
    ${instance.error && html`<${ErrorCard} error=${instance.error} subtask=${instance.subtasks.get(instance.error.subtaskId)} />`}
    ${instance.state === 'STATE_WAITING' &&
    html`<${Review} key=${`review-${instance.lastSequence}`} instance=${instance} onSteered=${onSteered} />`}
    <${Timeline} key=${`timeline-${instance.id}`} watch=${watch} now=${now} />
    ${instance.finalResult
      ? html`<${Result} text=${instance.finalResult} />`
      : written && html`<${Result} text=${written} isWriting=${instance.state === 'STATE_RUNNING'} />`}
    <${Asked} instance=${instance} />
    <${EventLog} events=${watch.events} />
  </article>`;
}

function Missing({ id }) {
  return html`<div class="empty">
    <h1 tabindex="-1">No such instance</h1>
    <p class="hint">There is no instance <code>${id}</code>. It may have been deleted.</p>
  </div>`;
}

function Facts({ instance, now }) {
  const { usage, config } = instance;
  const subtasks = [...instance.subtasks.values()];
  const done = subtasks.filter((subtask) => subtask.state === 'COMPLETED').length;
  const finished = TERMINAL.has(instance.state);
  const took = instance.startTime ? (finished ? instance.endTime : now) - instance.startTime : 0;
  const facts = [
    [finished ? 'Took' : 'So far', took ? (finished ? duration(took) : elapsed(took)) : '–'],
    ['Subtasks', subtasks.length ? `${done} of ${subtasks.length}` : '–'],
    ['Model calls', usage.modelCalls],
    ['Tokens in', tokens(usage.inputTokens)],
    ['Tokens out', tokens(usage.outputTokens)],
    ['Cost', cost(usage.costUsd)],
    ...(config.bigModel === config.smallModel
      ? [['Model', config.bigModel]]
      : [['Big model', config.bigModel], ['Small model', config.smallModel]]),
  ];
  return html`<dl class="facts">
    ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

function ErrorCard({ error, subtask }) {
  return html`<section class="card error" role="alert" aria-labelledby="error-title">
    <h2 id="error-title">${error.reason}</h2>
    <p dir="auto">${error.message}</p>
    ${subtask && html`<p class="about">Subtask <code>${subtask.id}</code> ${subtask.title}</p>`}
  </section>`;
}

function Result({ text, isWriting = false }) {
  return html`<section class="card result" aria-labelledby="result-title" aria-busy=${isWriting}>
    <header>
      <h2 id="result-title">${isWriting ? 'Result, as it is written' : 'Result'}</h2>
      ${!isWriting && html`<${CopyButton} text=${text} what="the result as Markdown" label="Copy Markdown" />`}
    </header>
    <${Markdown} text=${text} />
  </section>`;
}

function Asked({ instance }) {
  return html`<details class="card asked">
    <summary>Prompt and configuration</summary>
    <p class="pre" dir="auto">${instance.prompt}</p>
    <pre class="scrolling" tabindex="0" role="region" aria-label="Configuration">${JSON.stringify(instance.config, null, 2)}</pre>
  </details>`;
}

function EventLog({ events }) {
  return html`<details class="card log">
    <summary>${plural(events.length, 'event')}</summary>
    <ol>
      ${events.map((event) => {
        const payload = event[kindOf(event)] ?? {};
        const about = [payload.subtaskId ?? payload.subtask?.id, payload.attempt && `attempt ${payload.attempt}`, payload.error?.reason];
        return html`<li key=${event.sequence} value=${event.sequence}>
          <time datetime=${event.eventTime}>${clock.format(Date.parse(event.eventTime))}</time>
          <span>${kindOf(event)?.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)}</span>
          <span class="about">${about.filter(Boolean).join(' · ')}</span>
        </li>`;
      })}
    </ol>
  </details>`;
}
