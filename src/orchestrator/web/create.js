// The form that creates an instance from a prompt.
import { Attachments, useAttachments } from './attachments.js';
import { ConfigFields, EMPTY_FIELDS, toConfig } from './config.js';
import { useCreateInstance } from './creation.js';
import { FailureMessage, useFailure } from './failure.js';
import { useServiceInfo } from './service.js';
import { html, useState } from './ui.js';

const isMac = navigator.platform.startsWith('Mac');

export function CreateForm({ onCreated }) {
  const [prompt, setPrompt] = useState('');
  const [fields, setFields] = useState(EMPTY_FIELDS);
  const attachments = useAttachments();
  const [failure, setFailure] = useFailure(attachments.files);
  const [isSending, setIsSending] = useState(false);
  const createInstance = useCreateInstance();
  const info = useServiceInfo();

  async function submit(event) {
    event?.preventDefault();
    if (isSending || attachments.isReading) return;
    setIsSending(true);
    setFailure(null);
    try {
      const files = attachments.files.map(({ path, content }) => ({ path, content }));
      onCreated(await createInstance({ prompt, files, config: toConfig(fields) }));
    } catch (error) {
      setFailure(error);
      setIsSending(false);
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
      ${info && html` Here: <${ModelRoles} ...${info.models} />.`}
    </p>
    <label class="field">
      <span class="visually-hidden">Prompt</span>
      <textarea
        name="prompt"
        rows="7"
        required
        value=${prompt}
        placeholder="Build a TypeScript REST API for a todo list, with tests and a Dockerfile"
        onInput=${(event) => setPrompt(event.target.value)}
      ></textarea>
    </label>
    <${Attachments} ...${attachments} />
    <details class="options">
      <summary>Options</summary>
      <${ConfigFields} fields=${fields} onChange=${setFields} current=${info && { ...info.defaultConfig, workers: info.workers }} />
    </details>
    <${FailureMessage} error=${failure} />
    <div class="buttons">
      <button class="primary" disabled=${isSending || attachments.isReading || !prompt.trim()}>${isSending ? 'Starting…' : 'Start'}</button>
      <span class="hint"><kbd>${isMac ? '⌘' : 'Ctrl'}</kbd> <kbd>Enter</kbd></span>
    </div>
  </form>`;
}

function ModelRoles({ bigModel, smallModel }) {
  if (bigModel === smallModel) return html`<code>${bigModel}</code> does both`;
  return html`<code>${bigModel}</code> plans, <code>${smallModel}</code> works`;
}
