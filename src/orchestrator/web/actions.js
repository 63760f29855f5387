// Buttons for the actions that the transition table of core/state.py allows in the instance's state.
import { steer } from './api.js';
import { ContinueDialog } from './continuing.js';
import { DeleteDialog, ForkDialog, RestartDialog, RetryDialog } from './dialogs.js';
import { FailureMessage, useFailure } from './failure.js';
import { TERMINAL } from './fold.js';
import { steerIfUnchanged } from './steering.js';
import { html, useState } from './ui.js';

const ALLOWED = {
  resume: ['STATE_PAUSED', 'STATE_WAITING_FOR_PAUSE'],
  retry: ['STATE_ERRORED', 'STATE_TERMINATED'],
  pause: ['STATE_QUEUED', 'STATE_RUNNING', 'STATE_WAITING'],
  terminate: ['STATE_QUEUED', 'STATE_RUNNING', 'STATE_WAITING', 'STATE_PAUSED', 'STATE_WAITING_FOR_PAUSE'],
};
// Pause and terminate succeed whatever was recorded since: a running instance records events all the time. The other
// actions, on an instance at rest, are sent under the condition that it is still as it was shown.
const UNCONDITIONAL = new Set(['pause', 'terminate']);
const AT_REST = new Set([...TERMINAL, 'STATE_PAUSED']);
const REASONS_THAT_NEED_CHANGES = ['BUDGET_EXCEEDED', 'DEADLINE_EXCEEDED', 'MODEL_NOT_FOUND', 'MODEL_REFUSED'];
const DIALOGS = { continue: ContinueDialog, retry: RetryDialog, restart: RestartDialog, fork: ForkDialog, delete: DeleteDialog };

/**
 * `onSteered(instance)`: after an action, with the instance as it is then; null after a deletion, the new instance, at
 * least its `id`, after a fork or a follow-up. `children` are rendered before the actions.
 */
export function Actions({ instance, onSteered, children }) {
  const [dialog, setDialog] = useState('');
  const [isSending, setIsSending] = useState(false);
  const { state, lastSequence } = instance;
  const [failure, setFailure] = useFailure(state);
  const [conflict, setConflict] = useState(null); // RequestError of a failed condition; it outlives the change of state

  async function send(action) {
    setIsSending(true);
    setFailure(null);
    setConflict(null);
    try {
      const isConditional = !UNCONDITIONAL.has(action) && AT_REST.has(state);
      const shown = { sequence: lastSequence };
      onSteered(isConditional ? await steerIfUnchanged(instance.id, shown, action) : await steer(instance.id, action));
    } catch (error) {
      if (error.reason === 'SEQUENCE_MISMATCH') setConflict(error);
      else setFailure(error);
    }
    setIsSending(false);
  }

  function openDialog(name) {
    setFailure(null);
    setConflict(null);
    setDialog(name);
  }

  const actionButton = (action, label, className = '') =>
    ALLOWED[action].includes(state) &&
    html`<button type="button" class=${className} disabled=${isSending} onClick=${() => send(action)}>${label}</button>`;
  const dialogButton = (name, label, className = '') =>
    html`<button type="button" class=${className} aria-haspopup="dialog" onClick=${() => openDialog(name)}>${label}</button>`;
  const isFinished = TERMINAL.has(state);
  const needsChanges = REASONS_THAT_NEED_CHANGES.includes(instance.error?.reason);

  return html`<div class="actions" role="group" aria-label="Actions">
    ${children} ${actionButton('resume', 'Resume', 'primary')} ${actionButton('retry', 'Retry', needsChanges ? '' : 'primary')}
    ${ALLOWED.retry.includes(state) && dialogButton('retry', 'Retry with changes…', needsChanges ? 'primary' : '')}
    ${actionButton('pause', 'Pause')} ${actionButton('terminate', 'Terminate', 'danger')}
    ${state === 'STATE_COMPLETE' && dialogButton('continue', 'Continue…', 'primary')}
    ${isFinished && dialogButton('restart', 'Restart…')} ${dialogButton('fork', 'Fork…')} ${isFinished && dialogButton('delete', 'Delete…', 'danger')}
    <${FailureMessage} error=${failure ?? conflict} />
    ${dialog && html`<${DIALOGS[dialog]} instance=${instance} onSteered=${onSteered} onClose=${() => setDialog('')} />`}
  </div>`;
}
