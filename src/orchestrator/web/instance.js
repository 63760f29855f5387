// One instance: its state, actions, plan to review, timeline and result.
import { Actions } from './actions.js';
import { resultPath } from './api.js';
import { CopyButton } from './copy.js';
import { mayHaveFiles, ResultFiles } from './files.js';
import { TERMINAL } from './fold.js';
import { cost, dateTime, duration, elapsed, firstLine, hasTokens, inputAndOutputTokens, STATES, timeAgo, tokens, usageSummary } from './format.js';
import { InputFiles, Predecessors } from './input_files.js';
import { EventLog } from './log.js';
import { Markdown } from './markdown.js';
import { Review, StaleReview } from './review.js';
import { SYNTHESIS } from './texts.js';
import { Timeline } from './timeline.js';
import { html } from './ui.js';

const MAX_TITLE_LENGTH = 120; // characters

function StateBadge({ state }) {
  const { name, tone } = STATES[state] ?? { name: 'Loading', tone: 'idle' };
  return html`<span class=${`badge ${tone}`}>${name}</span>`;
}

/** `hrefOf(id)`: the link to another instance. */
export function InstanceView({ watch, now, hrefOf, onSteered }) {
  const { instance } = watch;
  if (watch.isMissing) return html`<${MissingInstance} id=${watch.id} />`;
  if (instance.lastSequence === 0) return html`<p class="hint" role="status">Reading its events…</p>`;
  const liveResult = watch.texts.get(SYNTHESIS);
  return html`<article class="instance" aria-labelledby="instance-title">
    <header>
      <h1 id="instance-title" tabindex="-1" dir="auto">${titleOf(instance.prompt)}</h1>
      <${WholePrompt} text=${instance.prompt} />
      <p class="identity">
        <${StateBadge} state=${instance.state} />
        <code>${instance.id}</code>
        <time datetime=${new Date(instance.createTime).toISOString()} title=${dateTime(instance.createTime)}>
          ${timeAgo(instance.createTime, now)}
        </time>
        ${instance.forkedFrom && html`<span>forked from <a href=${hrefOf(instance.forkedFrom)}>${instance.forkedFrom}</a>${copiedUsageText(instance)}</span>`}
        ${instance.continues && html`<${Predecessors} instance=${instance} hrefOf=${hrefOf} />`}
        ${Object.entries(instance.labels).map(([key, value]) => html`<span class="tag" key=${key}>${key}=${value}</span>`)}
      </p>
      ${watch.isDeleted
        ? html`<p class="failure" role="alert">This instance was deleted. What you see is all that is left of it.</p>`
        : html`<${Actions} instance=${instance} onSteered=${onSteered}>
        ${(instance.finalResult || liveResult) &&
        html`<a class="button" href=${location.hash} onClick=${jumpToResult}>Result <span aria-hidden="true">${'\u00a0↓'}</span></a>`}
      <//>`}
    </header>
    ${instance.waitingReason && html`<${WaitingReason} instance=${instance} />`}
    <${Facts} instance=${instance} now=${now} />
    ${instance.error && html`<${ErrorCard} error=${instance.error} subtask=${instance.subtasks.get(instance.error.subtaskId)} />`}
    ${!watch.isDeleted &&
    (instance.state === 'STATE_WAITING'
      ? html`<${Review} key=${`review-${instance.lastSequence}`} watch=${watch} onSteered=${onSteered} />`
      : watch.review && html`<${StaleReview} watch=${watch} />`)}
    <${InputFiles} files=${instance.files} />
    <${Timeline} key=${`timeline-${instance.id}`} watch=${watch} now=${now} />
    ${instance.state === 'STATE_COMPLETE' && mayHaveFiles(instance) && html`<${ResultFiles} key=${`files-${instance.lastSequence}`} watch=${watch} />`}
    ${instance.finalResult && !instance.isPartial
      ? html`<${Result} id=${instance.id} text=${instance.finalResult} isComplete isRecorded=${!watch.isDeleted} />`
      : (liveResult || instance.finalResult) &&
        html`<${Result} id=${instance.id} text=${liveResult || instance.finalResult} isWriting=${instance.state === 'STATE_RUNNING'} />`}
    <${Configuration} config=${instance.config} />
    <${EventLog} events=${watch.events} />
  </article>`;
}

function MissingInstance({ id }) {
  return html`<div class="empty">
    <h1 tabindex="-1">No such instance</h1>
    <p class="hint">There is no instance <code>${id}</code>. It may have been deleted.</p>
  </div>`;
}

/** Describe the usage of the calls that a fork copied from its source. */
function copiedUsageText({ usage, ownUsage }) {
  const copiedAmount = (name) => Math.max(0, usage[name] - ownUsage[name]);
  const copied = usageSummary({
    inputTokens: copiedAmount('inputTokens'),
    outputTokens: copiedAmount('outputTokens'),
    costUsd: copiedAmount('costUsd'),
  });
  return copied && `, which paid for what is copied (${copied})`;
}

function Facts({ instance, now }) {
  const { ownUsage: usage, config } = instance;
  const subtasks = [...instance.subtasks.values()];
  const completed = subtasks.filter((subtask) => subtask.state === 'COMPLETED').length;
  const isFinished = TERMINAL.has(instance.state);
  const elapsedMs = instance.startTime ? (isFinished ? instance.endTime : now) - instance.startTime : 0;
  const facts = [
    [isFinished ? 'Took' : 'So far', elapsedMs ? (isFinished ? duration(elapsedMs) : elapsed(elapsedMs)) : '-'],
    ['Subtasks', subtasks.length ? `${completed} of ${subtasks.length}` : '-'],
    ['Model calls', usage.modelCalls],
    ['Used', html`${tokens(usage)}${hasTokens(usage) && html`<br /><span class="meta">${inputAndOutputTokens(usage)}</span>`}`],
    ['Cost', cost(usage.costUsd)],
    ...(config.bigModel === config.smallModel
      ? [['Model', config.bigModel]]
      : [['Big model', config.bigModel], ['Small model', config.smallModel]]),
  ];
  return html`<dl class="facts">
    ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

/** The reason why the instance has no open call. */
function WaitingReason({ instance }) {
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
    ${subtask && html`<p class="meta">Subtask <code>${subtask.id}</code> ${subtask.title}</p>`}
  </section>`;
}

/** Scroll to the result; a link to its id would replace the address, which has the id of the instance. */
function jumpToResult(event) {
  event.preventDefault();
  const title = document.getElementById('result-title');
  title.scrollIntoView();
  title.focus({ preventScroll: true });
}

function titleOf(prompt) {
  const line = firstLine(prompt);
  return line.length > MAX_TITLE_LENGTH ? `${line.slice(0, MAX_TITLE_LENGTH).trimEnd()}…` : line;
}

/** The whole prompt, if the heading truncates it. */
function WholePrompt({ text }) {
  if (text.trim() === titleOf(text)) return null;
  return html`<details class="prompt">
    <summary>The whole prompt</summary>
    <div class="text">
      <${CopyButton} text=${text} what="what was asked" />
      <p class="pre" dir="auto">${text}</p>
    </div>
  </details>`;
}

/** `isComplete`: the text is the whole result; `isRecorded`: it is in the log, so the service can return it as a file. */
function Result({ id, text, isComplete = false, isRecorded = true, isWriting = false }) {
  const title = isComplete ? 'Result' : isWriting ? 'Result, as it is written' : 'Result, as far as it was written';
  return html`<section class="card result" aria-labelledby="result-title" aria-busy=${isWriting}>
    <header>
      <h2 id="result-title" tabindex="-1">${title}</h2>
      ${!isWriting &&
      html`<span class="tools">
        <${CopyButton} text=${text} what="the result as Markdown" label="Copy Markdown" />
        ${isComplete && isRecorded && html`<a class="button quiet" href=${resultPath(id)} download=${`${id}.md`}>Download .md</a>`}
      </span>`}
    </header>
    <${Markdown} text=${text} isWriting=${isWriting} />
  </section>`;
}

function Configuration({ config }) {
  return html`<details class="card configuration">
    <summary>Configuration</summary>
    <pre class="scrollable" tabindex="0" role="region" aria-label="Configuration">${JSON.stringify(config, null, 2)}</pre>
  </details>`;
}
