// One instance: where it stands, what may be done, its plan in review, its timeline, its result.
import { Actions } from './actions.js';
import { resultPath } from './api.js';
import { CopyButton } from './copy.js';
import { TERMINAL } from './fold.js';
import { cost, dateTime, duration, elapsed, firstLine, hasTokens, inputAndOutputTokens, STATES, timeAgo, tokens, usageSummary } from './format.js';
import { EventLog } from './log.js';
import { Markdown } from './markdown.js';
import { LateReview, Review } from './review.js';
import { SYNTHESIS } from './texts.js';
import { Timeline } from './timeline.js';
import { html } from './ui.js';

const TITLE_SHOWN = 120; // characters that a heading has room for

function StateBadge({ state }) {
  const { name, tone } = STATES[state] ?? { name: 'Loading', tone: 'idle' };
  return html`<span class=${`badge ${tone}`}>${name}</span>`;
}

/** `hrefOf(id)`: the link to another instance. */
export function InstanceView({ watch, now, hrefOf, onSteered }) {
  const { instance } = watch;
  if (watch.isMissing) return html`<${Missing} id=${watch.id} />`;
  if (instance.lastSequence === 0) return html`<p class="hint" role="status">Reading its events…</p>`;
  const written = watch.texts.get(SYNTHESIS);
  return html`<article class="instance" aria-labelledby="instance-title">
    <header>
      <h1 id="instance-title" tabindex="-1" dir="auto">${titleOf(instance.prompt)}</h1>
      <${Prompt} text=${instance.prompt} />
      <p class="identity">
        <${StateBadge} state=${instance.state} />
        <code>${instance.id}</code>
        <time datetime=${new Date(instance.createTime).toISOString()} title=${dateTime(instance.createTime)}>
          ${timeAgo(instance.createTime, now)}
        </time>
        ${instance.forkedFrom && html`<span>forked from <a href=${hrefOf(instance.forkedFrom)}>${instance.forkedFrom}</a>${copiedBy(instance)}</span>`}
        ${Object.entries(instance.labels).map(([key, value]) => html`<span class="tag" key=${key}>${key}=${value}</span>`)}
      </p>
      ${watch.isDeleted
        ? html`<p class="failure" role="alert">This instance was deleted. What you see is all that is left of it.</p>`
        : html`<${Actions} instance=${instance} onSteered=${onSteered}>
        ${(instance.finalResult || written) &&
        html`<a class="button" href=${location.hash} onClick=${jumpToResult}>Result <span aria-hidden="true">${'\u00a0↓'}</span></a>`}
      <//>`}
    </header>
    ${instance.waitingReason && html`<${Waits} instance=${instance} />`}
    <${Facts} instance=${instance} now=${now} />
    ${instance.error && html`<${ErrorCard} error=${instance.error} subtask=${instance.subtasks.get(instance.error.subtaskId)} />`}
    ${!watch.isDeleted &&
    (instance.state === 'STATE_WAITING'
      ? html`<${Review} key=${`review-${instance.lastSequence}`} watch=${watch} onSteered=${onSteered} />`
      : watch.review && html`<${LateReview} watch=${watch} />`)}
    <${Timeline} key=${`timeline-${instance.id}`} watch=${watch} now=${now} />
    ${instance.finalResult
      ? html`<${Result} id=${instance.id} text=${instance.finalResult} isWhole isThere=${!watch.isDeleted} />`
      : written && html`<${Result} id=${instance.id} text=${written} isWriting=${instance.state === 'STATE_RUNNING'} />`}
    <${Configuration} config=${instance.config} />
    <${EventLog} events=${watch.events} />
  </article>`;
}

function Missing({ id }) {
  return html`<div class="empty">
    <h1 tabindex="-1">No such instance</h1>
    <p class="hint">There is no instance <code>${id}</code>. It may have been deleted.</p>
  </div>`;
}

/** What a fork was spared, because its source had done it. */
function copiedBy({ usage, ownUsage }) {
  const less = (name) => Math.max(0, usage[name] - ownUsage[name]);
  const copied = usageSummary({ inputTokens: less('inputTokens'), outputTokens: less('outputTokens'), costUsd: less('costUsd') });
  return copied && `, which paid for what is copied (${copied})`;
}

function Facts({ instance, now }) {
  const { ownUsage: usage, config } = instance;
  const subtasks = [...instance.subtasks.values()];
  const done = subtasks.filter((subtask) => subtask.state === 'COMPLETED').length;
  const finished = TERMINAL.has(instance.state);
  const took = instance.startTime ? (finished ? instance.endTime : now) - instance.startTime : 0;
  const facts = [
    [finished ? 'Took' : 'So far', took ? (finished ? duration(took) : elapsed(took)) : '-'],
    ['Subtasks', subtasks.length ? `${done} of ${subtasks.length}` : '-'],
    ['Model calls', usage.modelCalls],
    ['Used', html`${tokens(usage)}${hasTokens(usage) && html`<br /><span class="about">${inputAndOutputTokens(usage)}</span>`}`],
    ['Cost', cost(usage.costUsd)],
    ...(config.bigModel === config.smallModel
      ? [['Model', config.bigModel]]
      : [['Big model', config.bigModel], ['Small model', config.smallModel]]),
  ];
  return html`<dl class="facts">
    ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** Why nothing happens. */
function Waits({ instance }) {
  const isPaused = instance.state === 'STATE_PAUSED' || instance.state === 'STATE_WAITING_FOR_PAUSE';
  return html`<section class="card waiting" role="status" aria-labelledby="waiting-title">
    <h2 id="waiting-title">${isPaused ? 'Paused by the service' : 'Waits'}</h2>
    <p dir="auto">${instance.waitingReason}</p>
    <p class="hint">${isPaused ? 'Resume lets it try again.' : 'It goes on by itself once that is over.'}</p>
  </section>`;
}

function ErrorCard({ error, subtask }) {
  return html`<section class="card error" role="alert" aria-labelledby="error-title">
    <h2 id="error-title">${error.reason}</h2>
    <p dir="auto">${error.message}</p>
    ${subtask && html`<p class="about">Subtask <code>${subtask.id}</code> ${subtask.title}</p>`}
  </section>`;
}

/** The address says which instance is shown, so a link within the page moves by itself. */
function jumpToResult(event) {
  event.preventDefault();
  const title = document.getElementById('result-title');
  title.scrollIntoView();
  title.focus({ preventScroll: true });
}

function titleOf(prompt) {
  const line = firstLine(prompt);
  return line.length > TITLE_SHOWN ? `${line.slice(0, TITLE_SHOWN).trimEnd()}…` : line;
}

/** The whole of a prompt that the heading cuts. */
function Prompt({ text }) {
  if (text.trim() === titleOf(text)) return null;
  return html`<details class="prompt">
    <summary>The whole prompt</summary>
    <div class="text">
      <${CopyButton} text=${text} what="what was asked" />
      <p class="pre" dir="auto">${text}</p>
    </div>
  </details>`;
}

/** `isWhole`: it is complete; `isThere`: it is in the log, so that the service gives it as a file. */
function Result({ id, text, isWhole = false, isThere = true, isWriting = false }) {
  const title = isWhole ? 'Result' : isWriting ? 'Result, as it is written' : 'Result, as far as it was written';
  return html`<section class="card result" aria-labelledby="result-title" aria-busy=${isWriting}>
    <header>
      <h2 id="result-title" tabindex="-1">${title}</h2>
      ${!isWriting &&
      html`<span class="tools">
        <${CopyButton} text=${text} what="the result as Markdown" label="Copy Markdown" />
        ${isWhole && isThere && html`<a class="button quiet" href=${resultPath(id)} download=${`${id}.md`}>Download .md</a>`}
      </span>`}
    </header>
    <${Markdown} text=${text} isWriting=${isWriting} />
  </section>`;
}

function Configuration({ config }) {
  return html`<details class="card asked">
    <summary>Configuration</summary>
    <pre class="scrollable" tabindex="0" role="region" aria-label="Configuration">${JSON.stringify(config, null, 2)}</pre>
  </details>`;
}
