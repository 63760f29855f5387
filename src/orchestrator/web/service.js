// The service's settings from GetServiceInfo: loaded when the page opens, and when the service is back.
import { getServiceInfo } from './api.js';
import { cost, count, duration, parseDurationMs, plural } from './format.js';
import { onRecovered } from './recovery.js';
import { html, useEffect, useState } from './ui.js';

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
  return html`<details class="service">
    <summary>Version ${version} · ${names}</summary>
    <dl>${settings.map(([name, value]) => value && html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
  </details>`;
}

function Worker({ name, use, model }) {
  return html`<li>${name}${model && ` (${model})`}${use && html`<br /><span class="meta">${use}</span>`}</li>`;
}
