// A plan that waits for a person: approve it as it is, edit it, or send it back with words.
import { steer } from './api.js';
import { Failure, useFailure } from './failure.js';
import { plural } from './format.js';
import { html, useState } from './ui.js';

const TITLE_LINE = 60; // characters, where the browser does not measure by itself

const draftOf = ({ id, title, instructions, dependsOn, worker }) => ({ id, title, instructions, dependsOn, worker });

export function Review({ instance, onSteered }) {
  const [plan] = useState(() => [...instance.subtasks.values()].map(draftOf));
  const [draft, setDraft] = useState(plan);
  const workers = instance.config.workers ?? [];
  const [feedback, setFeedback] = useState('');
  const [failure, setFailure] = useFailure();
  const [sending, setSending] = useState(false);
  const edited = JSON.stringify(draft) !== JSON.stringify(plan);

  /** What was wrong with a plan is not said of the next draft of it. */
  function edit(next) {
    setFailure(null);
    setDraft(next);
  }

  const change = (index, changes) => edit(draft.map((each, at) => (at === index ? { ...each, ...changes } : each)));

  function remove(index) {
    const { id } = draft[index];
    const rest = draft.filter((_, at) => at !== index);
    edit(rest.map((each) => ({ ...each, dependsOn: each.dependsOn.filter((other) => other !== id) })));
  }

  function add() {
    let number = draft.length + 1;
    while (draft.some((each) => each.id === `t${number}`)) number += 1;
    edit([...draft, { id: `t${number}`, title: '', instructions: '', dependsOn: [], worker: '' }]);
  }

  async function decide(fields) {
    setSending(true);
    setFailure(null);
    try {
      onSteered(await steer(instance.id, 'review', fields));
    } catch (error) {
      setFailure(error);
      setSending(false);
    }
  }

  function approve(event) {
    event.preventDefault();
    decide({ decision: 'DECISION_APPROVE', ...(edited && { subtasks: draft }) });
  }

  return html`<form class="card review" aria-labelledby="review-title" onSubmit=${approve} onInput=${() => setFailure(null)}>
    <header>
      <h2 id="review-title">Review the plan</h2>
      <span class="hint">${plural(draft.length, 'subtask')}${edited && ', edited'}. Nothing runs before you decide.</span>
    </header>
    ${instance.summary && html`<p class="summary" dir="auto">${instance.summary}</p>`}
    <ol class="drafts">
      ${draft.map(
        (subtask, index) => html`<${Draft}
          key=${subtask.id}
          subtask=${subtask}
          others=${draft.filter((other) => other.id !== subtask.id)}
          workers=${workers}
          onChange=${(changes) => change(index, changes)}
          onRemove=${() => remove(index)}
        />`,
      )}
    </ol>
    <button type="button" onClick=${add}>Add a subtask</button>
    <label class="field">
      <span>What should the next plan do better? Goes with Reject</span>
      <textarea name="feedback" rows="2" value=${feedback} onInput=${(event) => setFeedback(event.target.value)}></textarea>
    </label>
    <div class="buttons">
      <${Failure} error=${failure} />
      <button class="primary" disabled=${sending || draft.length === 0}>
        ${edited ? 'Approve the edited plan' : 'Approve'}
      </button>
      <button
        type="button"
        class="danger"
        disabled=${sending}
        onClick=${() => decide({ decision: 'DECISION_REJECT', feedback })}
      >
        Reject and plan again
      </button>
    </div>
  </form>`;
}

function Draft({ subtask, others, workers, onChange, onRemove }) {
  const { id, title, instructions, dependsOn } = subtask;
  const set = (name) => (event) => onChange({ [name]: event.target.value });
  const depend = (other, on) => onChange({ dependsOn: on ? [...dependsOn, other] : dependsOn.filter((each) => each !== other) });
  return html`<li class="draft">
    <fieldset>
      <legend><code>${id}</code></legend>
      <label class="field">
        <span>Title</span>
        <textarea
          name="title"
          maxlength="200"
          rows=${Math.ceil(title.length / TITLE_LINE) || 1}
          dir="auto"
          value=${title}
          onInput=${(event) => onChange({ title: event.target.value.replaceAll('\n', ' ') })}
          onKeyDown=${(event) => event.key === 'Enter' && event.preventDefault()}
        ></textarea>
      </label>
      <label class="field">
        <span>Instructions</span>
        <textarea
          name="instructions"
          required
          rows=${Math.min(8, instructions.split('\n').length + 1)}
          dir="auto"
          value=${instructions}
          onInput=${set('instructions')}
        ></textarea>
      </label>
      <${WorkerField} workers=${workers} value=${subtask.worker} onChange=${(worker) => onChange({ worker })} />
      ${others.length > 0 &&
      html`<fieldset class="after">
        <legend>Starts after</legend>
        ${others.map(
          (other) => html`<label class="chip" key=${other.id}>
            <input
              type="checkbox"
              checked=${dependsOn.includes(other.id)}
              onChange=${(event) => depend(other.id, event.target.checked)}
            />
            <span>${other.id}</span>
            ${other.title !== other.id && html`<span class="other">${other.title}</span>`}
          </label>`,
        )}
      </fieldset>`}
      <button type="button" class="quiet" aria-label=${`Remove ${title || id}`} onClick=${onRemove}>Remove</button>
    </fieldset>
  </li>`;
}

/** Who works on a subtask: one of the instance's catalogue, or its small model. */
function WorkerField({ workers, value, onChange }) {
  const chosen = workers.find(({ name }) => name === value);
  if (workers.length === 0 && !value) return null;
  return html`<label class="field">
    <span>Worker</span>
    <select name="worker" value=${value} onChange=${(event) => onChange(event.target.value)}>
      <option value="">The small model</option>
      ${workers.map(({ name, model }) => html`<option key=${name} value=${name}>${name}${model && ` (${model})`}</option>`)}
      ${value && !chosen && html`<option value=${value}>${value}: not in the catalogue, the small model works</option>`}
    </select>
    ${chosen?.use && html`<span class="about">${chosen.use}</span>`}
  </label>`;
}
