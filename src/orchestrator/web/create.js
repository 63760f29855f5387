// A new instance from a prompt.
import { createInstance } from './api.js';
import { ConfigFields, NO_CHANGES, toConfig } from './config.js';
import { Failure, useFailure } from './failure.js';
import { useServiceInfo } from './service.js';
import { html, useRef, useState } from './ui.js';

const isMac = navigator.platform.startsWith('Mac');

/** A key under which the service knows a request that is sent twice. */
function newRequestId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join('');
}

export function CreateForm({ onCreated }) {
  const [prompt, setPrompt] = useState('');
  const [fields, setFields] = useState(NO_CHANGES);
  const [failure, setFailure] = useFailure();
  const [sending, setSending] = useState(false);
  const requestId = useRef(newRequestId());
  const info = useServiceInfo();

  async function submit(event) {
    event?.preventDefault();
    if (sending) return;
    setSending(true);
    setFailure(null);
    try {
      onCreated(await createInstance({ prompt, requestId: requestId.current, config: toConfig(fields) }));
    } catch (error) {
      setFailure(error);
      setSending(false);
      // Only a request that may have arrived is repeated under its key.
      if (!error.isTransient) requestId.current = newRequestId();
    }
  }

  function onKeyDown(event) {
    if (event.key === 'Enter' && (event.metaKey || event.ctrlKey)) submit(event);
  }

  return html`<form
    class="create"
    aria-labelledby="create-title"
    onSubmit=${submit}
    onKeyDown=${onKeyDown}
    onInput=${() => setFailure(null)}
  >
    <h1 id="create-title" tabindex="-1">What is to be done?</h1>
    <p class="hint">
      A big model plans it into subtasks, smaller ones work on them in parallel, and the big one puts the answer together.
      ${info && html` Here: <${Models} ...${info.models} />.`}
    </p>
    <label class="field">
      <span class="hidden">Prompt</span>
      <textarea
        name="prompt"
        rows="7"
        required
        value=${prompt}
        placeholder="Build a TypeScript REST API for a todo list, with tests and a Dockerfile"
        onInput=${(event) => setPrompt(event.target.value)}
      ></textarea>
    </label>
    <details class="options">
      <summary>Options</summary>
      <${ConfigFields} fields=${fields} onChange=${setFields} current=${info && { ...info.defaultConfig, workers: info.workers }} />
    </details>
    <${Failure} error=${failure} />
    <div class="buttons">
      <button class="primary" disabled=${sending || !prompt.trim()}>${sending ? 'Starting…' : 'Start'}</button>
      <span class="hint"><kbd>${isMac ? '⌘' : 'Ctrl'}</kbd> <kbd>Enter</kbd></span>
    </div>
  </form>`;
}

function Models({ bigModel, smallModel }) {
  if (bigModel === smallModel) return html`<code>${bigModel}</code> does both`;
  return html`<code>${bigModel}</code> plans, <code>${smallModel}</code> works`;
}
