// What is asked before an instance is changed for good, or goes on under another configuration.
import { deleteInstance, steer } from './api.js';
import { ConfigFields, updateMaskOf, EMPTY_FIELDS, toConfig } from './config.js';
import { FailureMessage, useFailure } from './failure.js';
import { steerAsSeen, useSeen } from './seen.js';
import { html, useLayoutEffect, useRef, useState } from './ui.js';

/** A modal dialog around a form; `onSubmit` does it or throws, and the dialog says why. */
function Dialog({ title, submit, danger, onSubmit, onClose, children }) {
  const dialog = useRef();
  const [failure, setFailure] = useFailure();
  const [sending, setSending] = useState(false);
  useLayoutEffect(() => dialog.current.showModal(), []);
  async function send(event) {
    event.preventDefault();
    setSending(true);
    setFailure(null);
    try {
      await onSubmit();
      dialog.current.close();
    } catch (error) {
      setFailure(error);
      setSending(false);
    }
  }
  return html`<dialog ref=${dialog} aria-labelledby="dialog-title" onClose=${onClose}>
    <form onSubmit=${send} onInput=${() => setFailure(null)}>
      <h2 id="dialog-title">${title}</h2>
      ${children}
      <${FailureMessage} error=${failure} />
      <div class="buttons">
        <button class=${danger ? 'danger' : 'primary'} disabled=${sending}>${submit}</button>
        <button type="button" onClick=${() => dialog.current.close()}>Cancel</button>
      </div>
    </form>
  </dialog>`;
}

export function RetryDialog({ instance, onDone, onClose }) {
  const [fields, setFields] = useState(EMPTY_FIELDS);
  const seen = useSeen(instance);
  const onSubmit = async () => onDone(await steerAsSeen(instance.id, seen, 'retry', { config: toConfig(fields) }));
  return html`<${Dialog} title="Retry with changes" submit="Retry" onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">Only what failed runs again. What you leave empty stays as it is.</p>
    <${ConfigFields} fields=${fields} onChange=${setFields} current=${instance.config} withReview=${false} />
  <//>`;
}

export function RestartDialog({ instance, onDone, onClose }) {
  const [fields, setFields] = useState({ ...EMPTY_FIELDS, reviewPlan: instance.config.reviewPlan ?? false });
  const [plansAnew, setPlansAnew] = useState(false);
  const seen = useSeen(instance);
  const onSubmit = async () => {
    const config = { ...toConfig(fields), reviewPlan: fields.reviewPlan };
    const changes = { config, ...(plansAnew && { updateMask: updateMaskOf(config, 'subtasks') }) };
    onDone(await steerAsSeen(instance.id, seen, 'restart', changes));
  };
  return html`<${Dialog} title="Restart" submit="Restart" onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">
      Begins anew under the same id and pays for every call again. To keep this result, fork instead. What you leave
      empty stays as it is.
    </p>
    ${instance.config.subtasks?.length > 0 &&
    html`<label class="check">
      <input type="checkbox" name="plansAnew" checked=${plansAnew} onChange=${(event) => setPlansAnew(event.target.checked)} />
      <span>Let the big model plan, instead of keeping the plan that was given</span>
    </label>`}
    <${ConfigFields} fields=${fields} onChange=${setFields} current=${instance.config} />
  <//>`;
}

export function ForkDialog({ instance, onDone, onClose }) {
  const [fields, setFields] = useState({ ...EMPTY_FIELDS, reviewPlan: instance.config.reviewPlan ?? false });
  const [stage, setStage] = useState('STAGE_PLAN');
  const [newId, setNewId] = useState('');
  const isDone = (subtask) => subtask.state === 'COMPLETED';
  const hasOutputs = instance.synthesis.attempt > 0 || (instance.isPlanned && [...instance.subtasks.values()].every(isDone));
  const stages = [
    ['STAGE_PLAN', 'Plan again', true],
    ['STAGE_SUBTASKS', 'Keep the plan, work on every subtask again', instance.isPlanned],
    ['STAGE_SYNTHESIS', 'Keep the outputs, synthesise again', hasOutputs],
  ];
  const onSubmit = async () => {
    const config = { ...toConfig(fields), reviewPlan: fields.reviewPlan };
    onDone(await steer(instance.id, 'fork', { stage, config, ...(newId && { newId }) }));
  };
  return html`<${Dialog} title="Fork" submit="Fork" onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">Makes a new instance that goes on from a stage of this one, which stays as it is.</p>
    <fieldset class="stages">
      <legend>From where</legend>
      ${stages.map(
        ([value, label, reached]) => html`<label class="check" key=${value}>
          <input
            type="radio"
            name="stage"
            value=${value}
            checked=${stage === value}
            disabled=${!reached}
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

export function DeleteDialog({ instance, onDone, onClose }) {
  const onSubmit = async () => {
    await deleteInstance(instance.id);
    onDone(null);
  };
  return html`<${Dialog} title="Delete this instance?" submit="Delete" danger onSubmit=${onSubmit} onClose=${onClose}>
    <p class="hint">It and all of its events are removed. This cannot be undone.</p>
  <//>`;
}
