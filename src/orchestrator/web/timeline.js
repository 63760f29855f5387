// The timeline of an instance: a lane each for planning, every subtask and the synthesis, with a bar for each attempt.
import { CopyButton } from './copy.js';
import { allWork, TERMINAL } from './fold.js';
import { cost, duration, elapsed, hasTokens, inputAndOutputTokens, plural, shortTokens, tokens } from './format.js';
import { Markdown } from './markdown.js';
import { timeScale } from './scale.js';
import { SYNTHESIS } from './texts.js';
import { html, useLayoutEffect, useRef, useState } from './ui.js';

const PREVIEW_LENGTH = 140; // characters of live text beside a bar
const MARKS = { PENDING: '○', RUNNING: '●', COMPLETED: '✓', FAILED: '✕', SKIPPED: '–' };

export function Timeline({ watch, now }) {
  const { instance } = watch;
  const [openKey, setOpenKey] = useState(''); // of a lane
  const [highlightedKey, setHighlightedKey] = useState('');
  const lanes = lanesOf(instance);
  const isGrowing = allWork(instance).some((work) => work.state === 'RUNNING' || work.retryTime);
  const to = TERMINAL.has(instance.state) ? instance.endTime : isGrowing ? now : instance.updateTime;
  const spans = allWork(instance).flatMap((work) => work.attempts.map(({ start, end }) => [start, end || now]));
  const from = Math.min(instance.startTime || instance.createTime, ...spans.map(([start]) => start));
  const scale = timeScale(spans, from, Math.max(to, from), { isGrowing });
  const relatedKeys = relatedTo(highlightedKey, instance);
  return html`<section class="card timeline" aria-labelledby="timeline-title">
    <header><h2 id="timeline-title">Timeline</h2></header>
    <div class="axis" aria-hidden="true">
      <div class="track">
        ${scale.ticks.map(
          ({ position, ms }) => html`<span class="tick" key=${ms} style=${{ left: percent(position) }}>${ms % 1000 ? duration(ms) : elapsed(ms)}</span>`,
        )}
      </div>
    </div>
    <div class="lanes">
      <div class="grid" aria-hidden="true">
        <div class="track">
          ${scale.ticks.map(({ position, ms }) => html`<i key=${ms} style=${{ left: percent(position) }}></i>`)}
          ${scale.breaks.map(
            (gap) => html`<i
              class="break"
              key=${gap.from}
              title=${`nothing ran for ${duration(gap.to - gap.from)}`}
              style=${{ left: percent(gap.start), width: percent(gap.end - gap.start) }}
            ></i>`,
          )}
        </div>
      </div>
      <${DependencyLinks} lanes=${lanes} highlightedKey=${highlightedKey} />
      <ol>
        ${lanes.map(
          (lane) => html`<${Lane}
            key=${lane.key}
            lane=${lane}
            scale=${scale}
            now=${now}
            isPaused=${instance.state === 'STATE_PAUSED'}
            text=${watch.texts.get(lane.writer)}
            isOpen=${openKey === lane.key}
            isRelated=${relatedKeys.has(lane.key)}
            onToggle=${() => setOpenKey(openKey === lane.key ? '' : lane.key)}
            onHighlight=${setHighlightedKey}
          />`,
        )}
      </ol>
    </div>
  </section>`;
}

function lanesOf(instance) {
  const subtasks = [...instance.subtasks.values()].map((subtask) => ({
    key: `subtask-${subtask.id}`,
    writer: subtask.id,
    title: subtask.title,
    id: subtask.id,
    work: subtask,
    dependsOn: subtask.dependsOn,
  }));
  return [
    { key: 'planning', title: 'Planning', work: instance.planning, dependsOn: [], summary: instance.summary },
    ...subtasks,
    { key: 'synthesis', writer: SYNTHESIS, title: 'Synthesis', work: instance.synthesis, dependsOn: [] },
  ];
}

/** Return the keys of the lanes that a lane depends on, and of those that depend on it. */
function relatedTo(key, instance) {
  const [, id] = key.match(/^subtask-(.*)/) ?? [];
  const dependents = [...instance.subtasks.values()].filter((subtask) => subtask.dependsOn.includes(id));
  const dependencies = instance.subtasks.get(id)?.dependsOn ?? [];
  return new Set([...dependencies, ...dependents.map((subtask) => subtask.id)].map((each) => `subtask-${each}`));
}

function Lane({ lane, scale, now, isPaused, text, isOpen, isRelated, onToggle, onHighlight }) {
  const { key, title, id, work, dependsOn } = lane;
  const elapsedMs = work.attempts.reduce((total, { start, end }) => total + (end || now) - start, 0);
  const classes = ['lane', work.state.toLowerCase(), isOpen && 'open', isRelated && 'related'].filter(Boolean).join(' ');
  const details = [
    id,
    work.model?.split('/').slice(1).join('/'),
    dependsOn.length > 0 && `after ${dependsOn.join(', ')}`,
    work.attempts.length > 1 && plural(work.attempts.length, 'attempt'),
  ];
  const note = noteOf(work, text, now, isPaused);
  return html`<li class=${classes} data-lane=${key}>
    <button
      type="button"
      class="row"
      aria-expanded=${isOpen}
      aria-controls=${`panel-${key}`}
      onClick=${onToggle}
      onMouseEnter=${() => onHighlight(key)}
      onMouseLeave=${() => onHighlight('')}
      onFocus=${() => onHighlight(key)}
      onBlur=${() => onHighlight('')}
    >
      <span class="mark" aria-hidden="true">${MARKS[work.state]}</span>
      <span class="label">
        <span class="title" dir="auto">${title}</span>
        <span class="visually-hidden">, ${work.state.toLowerCase()}, </span>
        <span class="meta">${details.filter(Boolean).join(' · ')}</span>
      </span>
      <span class="track" aria-hidden="true">
        ${bars(work, scale, now)}
        ${note && html`<span class="note"><span>${note}</span></span>`}
      </span>
      <span class="totals">
        ${elapsedMs > 0 && html`<span>${work.state === 'RUNNING' ? elapsed(elapsedMs) : duration(elapsedMs)}</span>`}
        ${hasTokens(work.usage) && html`<span class="meta">${shortTokens(work.usage)}</span>`}
      </span>
    </button>
    <div id=${`panel-${key}`} hidden=${!isOpen}>${isOpen && html`<${Panel} lane=${lane} text=${text} now=${now} />`}</div>
  </li>`;
}

/** Render a bar for each attempt, and a line for each wait between two. */
function bars(work, scale, now) {
  return work.attempts.flatMap((attempt, index) => {
    const { start, end, outcome, number, error } = attempt;
    const next = work.attempts[index + 1];
    const waitEnd = next?.start ?? (work.retryTime ? now : 0);
    const tooltip = `attempt ${number}: ${error ? error.reason : outcome.toLowerCase()}, ${duration((end || now) - start)}`;
    return [
      html`<span
        class=${`bar ${outcome.toLowerCase()}`}
        key=${start}
        title=${tooltip}
        style=${spanStyle(scale, start, end || now)}
      ></span>`,
      error && waitEnd > 0
        ? html`<span class="retry-wait" key=${`wait-${start}`} title="waits for its next attempt" style=${spanStyle(scale, end, waitEnd)}></span>`
        : null,
    ];
  });
}

/** Return the text beside a lane's bars: the end of its live text, or its error. */
function noteOf(work, text, now, isPaused) {
  if (work.state === 'RUNNING') return text.slice(-PREVIEW_LENGTH).replace(/\s+/g, ' ');
  if (work.retryTime && isPaused) return `${work.error.reason}: tries again once resumed`;
  if (work.retryTime) return `${work.error.reason}: tries again in ${elapsed(Math.max(0, work.retryTime - now) + 999)}`;
  return work.error?.reason ?? '';
}

function Panel({ lane, text, now }) {
  const { work, summary } = lane;
  const facts = [
    work.model,
    work.worker && `worker ${work.worker}`,
    work.parts > 0 && `continued ${work.parts === 1 ? 'once' : `${work.parts} times`}`,
    hasTokens(work.usage) && `${tokens(work.usage)} (${inputAndOutputTokens(work.usage)})`,
    work.usage.costUsd > 0 && cost(work.usage.costUsd),
  ].filter(Boolean);
  const isWriting = work.state === 'RUNNING' && text;
  return html`<div class="panel">
    ${facts.length > 0 && html`<p class="meta">${facts.join(' · ')}</p>`}
    ${work.error && work.state !== 'RUNNING' && html`<p class="failure"><strong>${work.error.reason}</strong> ${work.error.message}</p>`}
    ${summary && html`<p class="summary" dir="auto">${summary}</p>`}
    ${work.isPartial && !isWriting && html`<p class="meta">The beginning of an answer that was cut off at the token limit:</p>`}
    ${work.output && !isWriting && lane.key !== 'planning' && lane.key !== 'synthesis'
      ? html`<div class="output">
          <${CopyButton} text=${work.output} what="the output" />
          <${Markdown} text=${work.output} />
        </div>`
      : text && lane.key !== 'synthesis' && html`<${LiveText} text=${text} />`}
    ${(work.attempts.length > 1 || work.error) && work.attempts.length > 0 &&
    html`<ol class="attempts" aria-label="Attempts">
      ${work.attempts.map(
        ({ number, model, start, end, outcome, error }) => html`<li key=${start}>
          <span class=${`mark ${outcome.toLowerCase()}`} aria-hidden="true">${MARKS[outcome]}</span>
          <span>Attempt ${number}: ${outcome.toLowerCase()}, ${duration((end || now) - start)}, ${model}
            ${error && html`<span class="meta"><br />${error.reason}: ${error.message}</span>`}
          </span>
        </li>`,
      )}
    </ol>`}
    ${work.instructions &&
    html`<details open=${!work.output && !text}>
      <summary>Instructions</summary>
      <p class="pre" dir="auto">${work.instructions}</p>
    </details>`}
    ${lane.key === 'synthesis' && work.state === 'COMPLETED' && html`<p class="meta">What it wrote is the result below.</p>`}
  </div>`;
}

/** Text that grows; it stays scrolled to its end until the reader scrolls up. */
function LiveText({ text }) {
  const element = useRef();
  const isAtEnd = useRef(true);
  useLayoutEffect(() => {
    if (isAtEnd.current) element.current.scrollTop = element.current.scrollHeight;
  }, [text]);
  const onScroll = ({ target }) => {
    isAtEnd.current = target.scrollHeight - target.scrollTop - target.clientHeight < 24;
  };
  return html`<div class="live-text pre" dir="auto" tabindex="0" role="region" aria-label="Text as it is written" ref=${element} onScroll=${onScroll}>
    ${text}
  </div>`;
}

const SVG_NAMESPACE = 'http://www.w3.org/2000/svg';

/** Draw a line from the end of each dependency to the start of its dependent, measured from the rendered bars. */
function DependencyLinks({ lanes, highlightedKey }) {
  const svg = useRef();
  useLayoutEffect(() => {
    const container = svg.current.parentElement;
    const origin = container.getBoundingClientRect();
    const barBox = (id, index) => {
      const bar = [...container.querySelectorAll(`[data-lane="subtask-${id}"] .bar`)].at(index);
      return bar?.getBoundingClientRect();
    };
    const paths = [];
    for (const { id, key, dependsOn } of lanes) {
      const target = id && barBox(id, 0);
      if (!target) continue;
      for (const dependency of dependsOn) {
        const source = barBox(dependency, -1);
        if (!source) continue;
        const path = document.createElementNS(SVG_NAMESPACE, 'path');
        const [x1, y1] = [source.right - origin.left, source.top + source.height / 2 - origin.top];
        const [x2, y2] = [target.left - origin.left, target.top + target.height / 2 - origin.top];
        const bend = Math.max(x1 + 3, x2 - 5);
        path.setAttribute('d', `M${x1} ${y1}H${bend}V${y2}H${x2}`);
        if (highlightedKey === key || highlightedKey === `subtask-${dependency}`) path.setAttribute('class', 'highlighted');
        paths.push(path);
      }
    }
    svg.current.replaceChildren(...paths);
  });
  return html`<svg class="links" aria-hidden="true" ref=${svg}></svg>`;
}

function percent(fraction) {
  return `${(fraction * 100).toFixed(3)}%`;
}

/** Return the CSS position and width of a time span. */
function spanStyle(scale, start, end) {
  const left = scale.positionOf(start);
  return { left: percent(left), width: percent(Math.max(0, scale.positionOf(end) - left)) };
}
