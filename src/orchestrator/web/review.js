// The review of a plan: approve it as it is or edited, or reject it with feedback.
import { CopyButton } from './copy.js';
import { FailureMessage, useFailure } from './failure.js';
import { plural } from './format.js';
import { steerIfUnchanged, useShownSequence } from './steering.js';
import { html, useState } from './ui.js';

const TITLE_LINE_LENGTH = 60; // characters, for browsers without field-sizing

const draftOf = ({ id, title, instructions, dependsOn, worker, files }) => ({ id, title, instructions, dependsOn, worker, files });

/**
 * Return the review of the current plan, {planSequence, plan}, from the one that `watch.review` retained, if any. A review
 * has the plan and its sequence, the edited draft, the feedback, the decision that was sent ({planSequence} of its plan; an
 * accepted one stays, since the stream may show it later), and the RequestError of one that was refused. A plan
 * is identified by its sequence, since the text of the next one may be the same.
 */
function reviewOf(retained, current) {
  const unedited = { ...current, draft: current.plan, feedback: '', decision: null, refusal: null };
  if (!retained) return unedited;
  // A new plan ends the decision on the last one, whose response may be later.
  if (retained.decision) return retained.decision.planSequence === current.planSequence ? retained : unedited;
  if (retained.planSequence === current.planSequence || isEdited(retained)) return retained;
  return { ...unedited, feedback: retained.feedback, refusal: retained.refusal };
}

const isEdited = ({ plan, draft }) => !isSame(plan, draft);

/** The form of the plan to review. It is created again at each event. */
export function Review({ watch, onSteered }) {
  const { instance } = watch;
  const shown = useShownSequence(instance);
  const [current] = useState(() => ({
    planSequence: instance.planSequence,
    plan: [...instance.subtasks.values()].map(draftOf),
  }));
  const [, redraw] = useState(0);
  const [failure, setFailure] = useFailure();
  const { planSequence, draft, feedback, decision, refusal } = reviewOf(watch.review, current);
  const workers = instance.config.workers ?? [];
  const hasChanges = !isSame(draft, current.plan);
  const isOfEarlierPlan = hasChanges && planSequence !== current.planSequence;
  const isSending = decision !== null;

  /** Change the review; an error about the draft is removed, since it may no longer hold. */
  function update(changes) {
    setFailure(null);
    watch.review = { ...reviewOf(watch.review, current), refusal: null, ...changes };
    redraw((count) => count + 1);
  }

  const changeDraft = (next) => update({ draft: next });

  function showCurrentPlan() {
    update({ ...current, draft: current.plan });
  }

  const changeSubtask = (index, changes) => changeDraft(draft.map((each, at) => (at === index ? { ...each, ...changes } : each)));

  function removeSubtask(index) {
    const { id } = draft[index];
    const rest = draft.filter((_, at) => at !== index);
    changeDraft(rest.map((each) => ({ ...each, dependsOn: each.dependsOn.filter((other) => other !== id) })));
  }

  function addSubtask() {
    let number = draft.length + 1;
    while (draft.some((each) => each.id === `t${number}`)) number += 1;
    changeDraft([...draft, { id: `t${number}`, title: '', instructions: '', dependsOn: [], worker: '', files: [] }]);
  }

  async function decide(fields) {
    const sentDecision = { planSequence: current.planSequence };
    update({ decision: sentDecision });
    try {
      onSteered(await steerIfUnchanged(instance.id, shown, 'review', fields));
    } catch (error) {
      if (watch.review?.decision !== sentDecision) return; // the next plan came first, and may have been edited
      watch.review = { ...watch.review, decision: null, refusal: error.isTransient ? null : error };
      if (error.isTransient) setFailure(error);
      watch.onChange();
    }
  }

  function approve(event) {
    event.preventDefault();
    decide({ decision: 'DECISION_APPROVE', ...(hasChanges && { subtasks: draft }) });
  }

  return html`<form class="card review" aria-labelledby="review-title" onSubmit=${approve}>
    <header>
      <h2 id="review-title">Review the plan</h2>
      <span class="hint">${plural(draft.length, 'subtask')}${hasChanges && ', edited'}. Nothing runs before you decide.</span>
    </header>
    ${isOfEarlierPlan &&
    html`<p class="notice" role="status">
      This is your edit of an earlier plan; another plan waits now.
      <button type="button" onClick=${showCurrentPlan}>Show the new plan</button>
    </p>`}
    ${instance.summary && html`<p class="summary" dir="auto">${instance.summary}</p>`}
    <ol class="drafts">
      ${draft.map(
        (subtask, index) => html`<${SubtaskFields}
          key=${subtask.id}
          subtask=${subtask}
          others=${draft.filter((other) => other.id !== subtask.id)}
          workers=${workers}
          onChange=${(changes) => changeSubtask(index, changes)}
          onRemove=${() => removeSubtask(index)}
        />`,
      )}
    </ol>
    <button type="button" onClick=${addSubtask}>Add a subtask</button>
    <label class="field">
      <span>What should the next plan do better? Goes with Reject</span>
      <textarea name="feedback" rows="2" value=${feedback} onInput=${(event) => update({ feedback: event.target.value })}></textarea>
    </label>
    <div class="buttons">
      <${FailureMessage} error=${failure ?? refusal} />
      <button class="primary" disabled=${isSending || draft.length === 0}>
        ${hasChanges ? 'Approve the edited plan' : 'Approve'}
      </button>
      <button
        type="button"
        class="danger"
        disabled=${isSending}
        onClick=${() => decide({ decision: 'DECISION_REJECT', feedback })}
      >
        Reject and plan again
      </button>
    </div>
  </form>`;
}

const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** A review of a plan that is no longer to review: it was decided elsewhere, paused, or planned again. */
export function StaleReview({ watch }) {
  const { draft, feedback, decision, refusal } = watch.review;
  const hasChanges = isEdited(watch.review);
  if (decision || (!hasChanges && !feedback && !refusal)) return null;
  function discard() {
    watch.review = null;
    watch.onChange();
  }
  return html`<section class="card stale-review" aria-labelledby="stale-review-title">
    <h2 id="stale-review-title">${refusal ? 'Your decision was not taken' : 'The plan waits no more'}</h2>
    ${refusal && html`<p role="alert">${refusal.message}</p>`}
    ${(hasChanges || feedback) && html`<p class="hint">What you have made of the plan is kept here; it is offered again if a plan waits.</p>`}
    <div class="buttons">
      ${hasChanges && html`<${CopyButton} text=${JSON.stringify(draft, null, 2)} what="your edited plan as JSON" label="Copy my edit" />`}
      ${feedback && html`<${CopyButton} text=${feedback} what="what you wrote" label="Copy my words" />`}
      <button type="button" onClick=${discard}>Discard</button>
    </div>
  </section>`;
}

function SubtaskFields({ subtask, others, workers, onChange, onRemove }) {
  const { id, title, instructions, dependsOn } = subtask;
  const set = (name) => (event) => onChange({ [name]: event.target.value });
  const setDependency = (other, isOn) => onChange({ dependsOn: isOn ? [...dependsOn, other] : dependsOn.filter((each) => each !== other) });
  return html`<li class="draft">
    <fieldset>
      <legend><code>${id}</code></legend>
      <label class="field">
        <span>Title</span>
        <textarea
          name="title"
          maxlength="200"
          rows=${Math.ceil(title.length / TITLE_LINE_LENGTH) || 1}
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
      html`<fieldset class="dependencies">
        <legend>Starts after</legend>
        ${others.map(
          (other) => html`<label class="chip" key=${other.id}>
            <input
              type="checkbox"
              checked=${dependsOn.includes(other.id)}
              onChange=${(event) => setDependency(other.id, event.target.checked)}
            />
            <span>${other.id}</span>
            ${other.title !== other.id && html`<span class="dependency-title">${other.title}</span>`}
          </label>`,
        )}
      </fieldset>`}
      <button type="button" class="quiet" aria-label=${`Remove ${title || id}`} onClick=${onRemove}>Remove</button>
    </fieldset>
  </li>`;
}

/** The field for the worker of a subtask: one of the instance's catalogue, or its small model. */
function WorkerField({ workers, value, onChange }) {
  const selected = workers.find(({ name }) => name === value);
  if (workers.length === 0 && !value) return null;
  return html`<label class="field">
    <span>Worker</span>
    <select name="worker" value=${value} onChange=${(event) => onChange(event.target.value)}>
      <option value="">The small model</option>
      ${workers.map(({ name, model }) => html`<option key=${name} value=${name}>${name}${model && ` (${model})`}</option>`)}
      ${value && !selected && html`<option value=${value}>${value}: not in the catalogue, the small model works</option>`}
    </select>
    ${selected?.use && html`<span class="meta">${selected.use}</span>`}
  </label>`;
}
