// The actions that the transition table of core/state.py allows in a state, as buttons.
import { steer } from './api.js';
import { DeleteDialog, ForkDialog, RestartDialog, RetryDialog } from './dialogs.js';
import { FailureMessage, useFailure } from './failure.js';
import { TERMINAL } from './fold.js';
import { steerAsSeen } from './seen.js';
import { html, useState } from './ui.js';

const ALLOWED = {
  resume: ['STATE_PAUSED', 'STATE_WAITING_FOR_PAUSE'],
  retry: ['STATE_ERRORED', 'STATE_TERMINATED'],
  pause: ['STATE_QUEUED', 'STATE_RUNNING', 'STATE_WAITING'],
  terminate: ['STATE_QUEUED', 'STATE_RUNNING', 'STATE_WAITING', 'STATE_PAUSED', 'STATE_WAITING_FOR_PAUSE'],
};
// What stops a machine must work whatever has happened meanwhile: an instance at work goes on all the time, and who wants
// it to stop wants that. What lets one go on is of what was shown, which is at rest.
const STOPS = new Set(['pause', 'terminate']);
const RESTS = new Set([...TERMINAL, 'STATE_PAUSED']);
const NEEDS_CHANGES = ['BUDGET_EXCEEDED', 'DEADLINE_EXCEEDED', 'MODEL_NOT_FOUND', 'MODEL_REFUSED'];
const DIALOGS = { change: RetryDialog, restart: RestartDialog, fork: ForkDialog, delete: DeleteDialog };

/**
 * `onSteered(instance)`: after an action; null when the instance is gone; another instance after a fork. `children`:
 * what else stands in the row, before the actions.
 */
export function Actions({ instance, onSteered, children }) {
  const [dialog, setDialog] = useState('');
  const [sending, setSending] = useState(false);
  const { state, lastSequence } = instance; // as it is shown
  const [failure, setFailure] = useFailure(state);
  const [late, setLate] = useState(null); // RequestError: somebody else was faster; it outlives the change that it tells

  async function send(action) {
    setSending(true);
    setFailure(null);
    setLate(null);
    try {
      const isOfWhatIsShown = !STOPS.has(action) && RESTS.has(state);
      const seen = { sequence: lastSequence };
      onSteered(isOfWhatIsShown ? await steerAsSeen(instance.id, seen, action) : await steer(instance.id, action));
    } catch (error) {
      if (error.reason === 'SEQUENCE_MISMATCH') setLate(error);
      else setFailure(error);
    }
    setSending(false);
  }

  function open(name) {
    setFailure(null);
    setLate(null);
    setDialog(name);
  }

  const sends = (action, label, look = '') =>
    ALLOWED[action].includes(state) &&
    html`<button type="button" class=${look} disabled=${sending} onClick=${() => send(action)}>${label}</button>`;
  const asks = (name, label, look = '') =>
    html`<button type="button" class=${look} aria-haspopup="dialog" onClick=${() => open(name)}>${label}</button>`;
  const finished = TERMINAL.has(state);
  const [retry, change] = NEEDS_CHANGES.includes(instance.error?.reason) ? ['', 'primary'] : ['primary', ''];

  return html`<div class="actions" role="group" aria-label="Actions">
    ${children} ${sends('resume', 'Resume', 'primary')} ${sends('retry', 'Retry', retry)}
    ${ALLOWED.retry.includes(state) && asks('change', 'Retry with changes…', change)} ${sends('pause', 'Pause')}
    ${sends('terminate', 'Terminate', 'danger')}
    ${finished && asks('restart', 'Restart…')} ${asks('fork', 'Fork…')} ${finished && asks('delete', 'Delete…', 'danger')}
    <${FailureMessage} error=${failure ?? late} />
    ${dialog && html`<${DIALOGS[dialog]} instance=${instance} onDone=${onSteered} onClose=${() => setDialog('')} />`}
  </div>`;
}
