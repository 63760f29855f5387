// A plan that waits for a person: approve it as it is, edit it, or send it back with words.
import { CopyButton } from './copy.js';
import { FailureMessage, useFailure } from './failure.js';
import { plural } from './format.js';
import { steerAsSeen, useSeen } from './seen.js';
import { html, useState } from './ui.js';

const TITLE_LINE = 60; // characters, where the browser does not measure by itself

const draftOf = ({ id, title, instructions, dependsOn, worker }) => ({ id, title, instructions, dependsOn, worker });

/**
 * What a person has made of a plan, as `watch.review` keeps it: the plan and its sequence, the draft, the feedback, the
 * decision that was sent ({planSequence} of the plan that it is on; one that is taken stays, since the stream may show it
 * later), and the RequestError that refused one. `shown`: {planSequence, plan} of the plan that waits now. It is the
 * sequence that tells two plans apart: the next one may read the same.
 */
function reviewOf(kept, shown) {
  const fresh = { ...shown, draft: shown.plan, feedback: '', decision: null, refusal: null };
  if (!kept) return fresh;
  // A new plan ends the decision on the last one, whose answer may still be under way.
  if (kept.decision) return kept.decision.planSequence === shown.planSequence ? kept : fresh;
  if (kept.planSequence === shown.planSequence || isEdited(kept)) return kept;
  return { ...fresh, feedback: kept.feedback, refusal: kept.refusal };
}

const isEdited = ({ plan, draft }) => !isSame(plan, draft);

/** The plan of an instance that waits. It is made anew at each event. */
export function Review({ watch, onSteered }) {
  const { instance } = watch;
  const seen = useSeen(instance);
  const [shown] = useState(() => ({
    planSequence: instance.planSequence,
    plan: [...instance.subtasks.values()].map(draftOf),
  }));
  const [, redraw] = useState(0);
  const [failure, setFailure] = useFailure();
  const { planSequence, draft, feedback, decision, refusal } = reviewOf(watch.review, shown);
  const workers = instance.config.workers ?? [];
  const edited = !isSame(draft, shown.plan);
  const isOfAnother = edited && planSequence !== shown.planSequence;
  const isSending = decision !== null;

  /** What was wrong with a plan is not said of what is made of it next. */
  function keep(changes) {
    setFailure(null);
    watch.review = { ...reviewOf(watch.review, shown), refusal: null, ...changes };
    redraw((count) => count + 1);
  }

  const edit = (next) => keep({ draft: next });

  function showWhole() {
    keep({ ...shown, draft: shown.plan });
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
    const sent = { planSequence: shown.planSequence };
    keep({ decision: sent });
    try {
      onSteered(await steerAsSeen(instance.id, seen, 'review', fields));
    } catch (error) {
      if (watch.review?.decision !== sent) return; // the next plan came before the answer, and is worked on
      watch.review = { ...watch.review, decision: null, refusal: error.isTransient ? null : error };
      if (error.isTransient) setFailure(error);
      watch.onChange();
    }
  }

  function approve(event) {
    event.preventDefault();
    decide({ decision: 'DECISION_APPROVE', ...(edited && { subtasks: draft }) });
  }

  return html`<form class="card review" aria-labelledby="review-title" onSubmit=${approve}>
    <header>
      <h2 id="review-title">Review the plan</h2>
      <span class="hint">${plural(draft.length, 'subtask')}${edited && ', edited'}. Nothing runs before you decide.</span>
    </header>
    ${isOfAnother &&
    html`<p class="notice" role="status">
      This is your edit of an earlier plan; another plan waits now.
      <button type="button" onClick=${showWhole}>Show the new plan</button>
    </p>`}
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
      <textarea name="feedback" rows="2" value=${feedback} onInput=${(event) => keep({ feedback: event.target.value })}></textarea>
    </label>
    <div class="buttons">
      <${FailureMessage} error=${failure ?? refusal} />
      <button class="primary" disabled=${isSending || draft.length === 0}>
        ${edited ? 'Approve the edited plan' : 'Approve'}
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

/** What a person has made of a plan that waits no more: somebody else has decided, or it is paused or planned again. */
export function LateReview({ watch }) {
  const { draft, feedback, decision, refusal } = watch.review;
  const edited = isEdited(watch.review);
  if (decision || (!edited && !feedback && !refusal)) return null;
  function discard() {
    watch.review = null;
    watch.onChange();
  }
  return html`<section class="card late" aria-labelledby="late-title">
    <h2 id="late-title">${refusal ? 'Your decision was not taken' : 'The plan waits no more'}</h2>
    ${refusal && html`<p role="alert">${refusal.message}</p>`}
    ${(edited || feedback) && html`<p class="hint">What you have made of the plan is kept here; it is offered again if a plan waits.</p>`}
    <div class="buttons">
      ${edited && html`<${CopyButton} text=${JSON.stringify(draft, null, 2)} what="your edited plan as JSON" label="Copy my edit" />`}
      ${feedback && html`<${CopyButton} text=${feedback} what="what you wrote" label="Copy my words" />`}
      <button type="button" onClick=${discard}>Discard</button>
    </div>
  </section>`;
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
