// The service's settings from GetServiceInfo, loaded when the page opens and when the service is back; and how it
// does from GetMetrics, while that is looked at.
import { getMetrics, getServiceInfo } from './api.js';
import { cost, count, duration, parseDurationMs, plural } from './format.js';
import { onRecovered } from './recovery.js';
import { html, useEffect, useState } from './ui.js';

const LOOK_AGAIN_MS = 5000;
const SAMPLE = /^orchestrator_(\w+?)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

const listeners = new Set();
let currentInfo = null; // a GetServiceInfoResponse

async function load() {
  try {
    currentInfo = await getServiceInfo();
  } catch {
    return; // the list shows an outage; an older service does not have this method
  }
  for (const listener of [...listeners]) listener(currentInfo);
}

load();
onRecovered(load);

/** Return the GetServiceInfoResponse, or null until it is loaded. */
export function useServiceInfo() {
  const [info, setInfo] = useState(currentInfo);
  useEffect(() => {
    listeners.add(setInfo);
    setInfo(currentInfo);
    return () => listeners.delete(setInfo);
  }, []);
  return info;
}

/** The datalist `models`: the models of the service's settings, and `more`, those of instances. */
export function ModelSuggestions({ more }) {
  const { models, workers = [] } = useServiceInfo() ?? {};
  const names = new Set([models?.bigModel, models?.smallModel, ...workers.map(({ model }) => model), ...more]);
  return html`<datalist id="models">${[...names].filter(Boolean).map((name) => html`<option key=${name} value=${name} />`)}</datalist>`;
}

/** The settings in one line, and in full when opened. */
export function ServiceSettings() {
  const info = useServiceInfo();
  const [isOpen, setIsOpen] = useState(false);
  if (!info) return null;
  const { version, models, workers, limits, engine, grpcAddress, restAddress, defaultConfig } = info;
  const { retry, budget } = defaultConfig;
  const settings = [
    ['Big model', models.bigModel],
    ['Small model', models.smallModel],
    ['Workers', workers.length > 0 && html`<ul>${workers.map((worker) => html`<${Worker} key=${worker.name} ...${worker} />`)}</ul>`],
    ['At once', `${plural(limits.maxActiveInstances, 'instance')}, ${plural(limits.maxConcurrentCalls, 'model call')}`],
    ['Queue', plural(limits.maxQueuedInstances, 'instance')],
    ['A plan', `up to ${plural(defaultConfig.maxSubtasks, 'subtask')}, ${count(defaultConfig.maxParallelSubtasks)} at a time`],
    ['A call', `writes up to ${plural(defaultConfig.maxOutputTokens, 'token')}`],
    ['Attempts', retry && `${count(retry.maxAttempts)}, each up to ${duration(parseDurationMs(retry.attemptTimeout))}`],
    ['Budget', budget && [budget.maxCostUsd && cost(budget.maxCostUsd), budget.maxTokens && plural(Number(budget.maxTokens), 'token')].filter(Boolean).join(', ')],
    ['Engine', engine],
    ['gRPC', grpcAddress],
    ['REST', restAddress],
  ];
  const names = [...new Set([models.bigModel, models.smallModel])].join(', ');
  return html`<details class="service" onToggle=${(event) => setIsOpen(event.currentTarget.open)}>
    <summary>Version ${version} · ${names}</summary>
    ${isOpen && html`<${ServiceNow} />`}
    <dl>${settings.map(([name, value]) => value && html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
  </details>`;
}

/** How the service does: what runs and what waits, which endpoint is throttled, and what was used today. */
function ServiceNow() {
  const [samples, setSamples] = useState(null);
  useEffect(() => {
    let timer;
    let isGone = false;
    async function look() {
      const text = await getMetrics();
      if (isGone) return;
      setSamples(text && parseSamples(text));
      timer = setTimeout(look, LOOK_AGAIN_MS);
    }
    look();
    return () => {
      isGone = true;
      clearTimeout(timer);
    };
  }, []);
  if (!samples) return null;
  const values = (name) => samples.filter((sample) => sample.name === name);
  const value = (name) => values(name)[0]?.value ?? 0;
  const calls = values('gate_waiting_instances').filter(({ labels, value }) => labels.gate.includes('/') && value);
  const throttled = values('gate_closed').filter(({ value }) => value);
  const since = new Date(value('usage_today_start_timestamp_seconds') * 1000);
  const isWholeDay = since.getUTCHours() + since.getUTCMinutes() + since.getUTCSeconds() === 0;
  const rows = [
    ['At work', plural(value('instances_active'), 'instance')],
    ['Waiting', [plural(value('queue_length'), 'instance'), ...calls.map(({ labels, value }) => `${count(value)} for ${labels.gate}`)].join(', ')],
    ['Throttled', throttled.map(({ labels }) => labels.gate).join(', ') || 'nothing'],
    [isWholeDay ? 'Today' : html`<span title="Since the service was started">Since ${since.toLocaleTimeString([], { timeStyle: 'short' })}</span>`, usage(values)],
  ];
  return html`<dl class="now" aria-label="The service now">
    ${rows.map(([name, text], number) => html`<div key=${number}><dt>${name}</dt><dd>${text}</dd></div>`)}
  </dl>`;
}

function usage(values) {
  const tokens = new Map();
  for (const { labels, value } of values('tokens_today')) {
    const model = `${labels.provider}/${labels.model}`;
    tokens.set(model, (tokens.get(model) ?? 0) + value);
  }
  const costs = new Map(values('cost_usd_today').map(({ labels, value }) => [`${labels.provider}/${labels.model}`, value]));
  const used = [...tokens].filter(([, number]) => number);
  if (used.length === 0) return 'nothing used';
  return html`<ul>${used.map(([model, number]) => html`<li key=${model}>${model}: ${plural(number, 'token')}${costs.get(model) > 0 && `, ${cost(costs.get(model))}`}</li>`)}</ul>`;
}

/** Return what is in Prometheus' text format as [{name, labels, value}], the names without their prefix. */
function parseSamples(text) {
  return [...text.split('\n')].flatMap((line) => {
    const [, name, labels = '', value] = SAMPLE.exec(line) ?? [];
    if (!name) return [];
    const named = [...labels.matchAll(LABEL)].map(([, label, quoted]) => [label, JSON.parse(`"${quoted}"`)]);
    return [{ name, labels: Object.fromEntries(named), value: Number(value) }];
  });
}

function Worker({ name, use, model }) {
  return html`<li>${name}${model && ` (${model})`}${use && html`<br /><span class="meta">${use}</span>`}</li>`;
}
