// The form fields for the part of InstanceConfig that the page can set.
import { parseDurationMs } from './format.js';
import { html } from './ui.js';

export const EMPTY_FIELDS = {
  bigModel: '',
  smallModel: '',
  instructions: '',
  maxCostUsd: '',
  maxTokens: '',
  maxMinutes: '',
  reviewPlan: false,
};

/** Convert the fields to an InstanceConfig without the empty ones: those keep their value, or the service's default. */
export function toConfig(fields) {
  const budget = {
    ...(fields.maxCostUsd && { maxCostUsd: Number(fields.maxCostUsd) }),
    ...(fields.maxTokens && { maxTokens: fields.maxTokens }),
    ...(fields.maxMinutes && { maxDuration: `${Number(fields.maxMinutes) * 60}s` }),
  };
  return {
    ...(fields.bigModel && { bigModel: fields.bigModel.trim() }),
    ...(fields.smallModel && { smallModel: fields.smallModel.trim() }),
    ...(fields.instructions && { instructions: fields.instructions }),
    ...(Object.keys(budget).length && { budget }),
    ...(fields.reviewPlan && { reviewPlan: true }),
  };
}

/** Build the update mask that applies the fields set in a config, and clears those in `cleared`. */
export function updateMaskOf({ budget = {}, ...config }, ...cleared) {
  const limits = Object.keys(budget).map((name) => `budget.${name}`);
  return [...Object.keys(config), ...limits, ...cleared].join(',');
}

/** `current`: the config that the fields change, if it is known; its values are the placeholders of empty fields. */
export function ConfigFields({ fields, onChange, current, withReview = true }) {
  const set = (name) => (event) => onChange({ ...fields, [name]: event.target.value });
  const { bigModel, smallModel, instructions, budget, workers = [] } = current ?? {};
  const { maxCostUsd, maxTokens, maxDuration } = budget ?? {};
  const modelProps = { list: 'models', autocomplete: 'off', autocapitalize: 'off', spellcheck: false };
  const field = (name, label, placeholder, { width, ...props } = {}) => html`<label class=${`field ${width ?? ''}`}>
    <span>${label}</span>
    <input name=${name} value=${fields[name]} placeholder=${placeholder} onInput=${set(name)} ...${props} />
  </label>`;
  const numberProps = { width: 'third', type: 'number', min: 0, step: 'any', inputmode: 'decimal' };
  const integerProps = { ...numberProps, min: 1, step: 1, inputmode: 'numeric' };
  return html`
    <div class="fields">
      ${field('bigModel', 'Big model: plans and synthesises', bigModel ?? 'as the service is set', modelProps)}
      ${field('smallModel', 'Small model: works on subtasks', smallModel ?? 'as the service is set', modelProps)}
      ${field('maxCostUsd', 'Stop at a cost of, US $', maxCostUsd ?? 'no limit', numberProps)}
      ${field('maxTokens', 'Stop at tokens', maxTokens ?? 'no limit', integerProps)}
      ${field('maxMinutes', 'Stop after minutes', maxDuration ? parseDurationMs(maxDuration) / 60_000 : 'no limit', numberProps)}
      <label class="field wide">
        <span>Instructions for every model</span>
        <textarea
          name="instructions"
          rows="2"
          value=${fields.instructions}
          placeholder=${instructions || 'none'}
          onInput=${set('instructions')}
        ></textarea>
      </label>
      ${workers.length > 0 &&
      html`<p class="wide meta">The planner chooses from the workers ${workers.map(({ name }) => name).join(', ')}.</p>`}
      ${withReview &&
      html`<label class="check wide">
        <input
          type="checkbox"
          name="reviewPlan"
          checked=${fields.reviewPlan}
          onChange=${(event) => onChange({ ...fields, reviewPlan: event.target.checked })}
        />
        <span>Let me review the plan before the subtasks start</span>
      </label>`}
    </div>
  `;
}
