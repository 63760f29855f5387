// The dialogs of the actions that take a configuration, or cannot be undone.
import { deleteInstance, steer } from './api.js';
import { ConfigFields, EMPTY_FIELDS, toConfig, updateMaskOf } from './config.js';
import { FailureMessage, useFailure } from './failure.js';
import { steerIfUnchanged, useShownSequence } from './steering.js';
import { html, useLayoutEffect, useRef, useState } from './ui.js';

/** A modal dialog with a form, which closes after `onSubmit()`; the RequestError that it throws is shown instead. */
export function Dialog({ title, submitLabel, isDangerous = false, onSubmit, onClose, children }) {
  const dialog = useRef();
  const [failure, setFailure] = useFailure();
  const [isSending, setIsSending] = useState(false);
  useLayoutEffect(() => dialog.current.showModal(), []);
  async function send(event) {
    event.preventDefault();
    setIsSending(true);
    setFailure(null);
    try {
      await onSubmit();
      dialog.current.close();
    } catch (error) {
      setFailure(error);
      setIsSending(false);
    }
  }
  return html`<dialog ref=${dialog} aria-labelledby="dialog-title" onClose=${onClose}>
    <form onSubmit=${send} onInput=${() => setFailure(null)}>
      <h2 id="dialog-title">${title}</h2>
      ${children}
      <${FailureMessage} error=${failure} />
      <div class="buttons">
        <button class=${isDangerous ? 'danger' : 'primary'} disabled=${isSending}>${submitLabel}</button>
        <button type="button" onClick=${() => dialog.current.close()}>Cancel</button>
      </div>
    </form>
  </dialog>`;
}

export function RetryDialog({ instance, onSteered, onClose }) {
  const [fields, setFields] = useState(EMPTY_FIELDS);
  const shown = useShownSequence(instance);
  const onSubmit = async () => onSteered(await steerIfUnchanged(instance.id, shown, 'retry', { config: toConfig(fields) }));
  return html`<${Dialog} title="Retry with changes" submitLabel="Retry" onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">Only what failed runs again. What you leave empty stays as it is.</p>
    <${ConfigFields} fields=${fields} onChange=${setFields} current=${instance.config} withReview=${false} />
  <//>`;
}

export function RestartDialog({ instance, onSteered, onClose }) {
  const [fields, setFields] = useState({ ...EMPTY_FIELDS, reviewPlan: instance.config.reviewPlan ?? false });
  const [discardsPlan, setDiscardsPlan] = useState(false);
  const shown = useShownSequence(instance);
  const onSubmit = async () => {
    const config = { ...toConfig(fields), reviewPlan: fields.reviewPlan };
    const changes = { config, ...(discardsPlan && { updateMask: updateMaskOf(config, 'subtasks') }) };
    onSteered(await steerIfUnchanged(instance.id, shown, 'restart', changes));
  };
  return html`<${Dialog} title="Restart" submitLabel="Restart" onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">
      Begins anew under the same id and pays for every call again. To keep this result, fork instead. What you leave
      empty stays as it is.
    </p>
    ${instance.config.subtasks?.length > 0 &&
    html`<label class="check">
      <input type="checkbox" name="discardsPlan" checked=${discardsPlan} onChange=${(event) => setDiscardsPlan(event.target.checked)} />
      <span>Let the big model plan, instead of keeping the plan that was given</span>
    </label>`}
    <${ConfigFields} fields=${fields} onChange=${setFields} current=${instance.config} />
  <//>`;
}

export function ForkDialog({ instance, onSteered, onClose }) {
  const [fields, setFields] = useState({ ...EMPTY_FIELDS, reviewPlan: instance.config.reviewPlan ?? false });
  const [stage, setStage] = useState('STAGE_PLAN');
  const [newId, setNewId] = useState('');
  const isCompleted = (subtask) => subtask.state === 'COMPLETED';
  const hasOutputs = instance.synthesis.attempt > 0 || (instance.isPlanned && [...instance.subtasks.values()].every(isCompleted));
  const stages = [
    ['STAGE_PLAN', 'Plan again', true],
    ['STAGE_SUBTASKS', 'Keep the plan, work on every subtask again', instance.isPlanned],
    ['STAGE_SYNTHESIS', 'Keep the outputs, synthesise again', hasOutputs],
  ];
  const onSubmit = async () => {
    const config = { ...toConfig(fields), reviewPlan: fields.reviewPlan };
    onSteered(await steer(instance.id, 'fork', { stage, config, ...(newId && { newId }) }));
  };
  return html`<${Dialog} title="Fork" submitLabel="Fork" onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">Makes a new instance that goes on from a stage of this one, which stays as it is.</p>
    <fieldset class="stages">
      <legend>From where</legend>
      ${stages.map(
        ([value, label, isReached]) => html`<label class="check" key=${value}>
          <input
            type="radio"
            name="stage"
            value=${value}
            checked=${stage === value}
            disabled=${!isReached}
            onChange=${() => setStage(value)}
          />
          <span>${label}</span>
        </label>`,
      )}
    </fieldset>
    <label class="field">
      <span>Id of the new instance</span>
      <input name="newId" value=${newId} placeholder="made by the service" onInput=${(event) => setNewId(event.target.value)} />
    </label>
    <${ConfigFields} fields=${fields} onChange=${setFields} current=${instance.config} />
  <//>`;
}

export function DeleteDialog({ instance, onSteered, onClose }) {
  const onSubmit = async () => {
    await deleteInstance(instance.id);
    onSteered(null);
  };
  return html`<${Dialog} title="Delete this instance?" submitLabel="Delete" isDangerous onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">It and all of its events are removed. This cannot be undone.</p>
  <//>`;
}
