// The dialog that makes a follow-up of a complete instance.
import { ConfigFields, EMPTY_FIELDS, toConfig } from './config.js';
import { useCreateInstance } from './creation.js';
import { Dialog } from './dialogs.js';
import { useServiceInfo } from './service.js';
import { html, useState } from './ui.js';

export function ContinueDialog({ instance, onSteered, onClose }) {
  const [prompt, setPrompt] = useState('');
  const [fields, setFields] = useState(EMPTY_FIELDS);
  const createInstance = useCreateInstance();
  const info = useServiceInfo();
  const onSubmit = async () => onSteered({ id: await createInstance({ prompt, continues: instance.id, config: toConfig(fields) }) });
  return html`<${Dialog} title="Continue" submitLabel="Continue" onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">Makes a new instance that is given this one's prompt, result and files. This one stays as it is.</p>
    <label class="field">
      <span>What is to be done next?</span>
      <textarea name="prompt" rows="4" required value=${prompt} onInput=${(event) => setPrompt(event.target.value)}></textarea>
    </label>
    <${ConfigFields} fields=${fields} onChange=${setFields} current=${info && { ...info.defaultConfig, workers: info.workers }} />
  <//>`;
}
