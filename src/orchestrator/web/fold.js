// Folds an instance from its events with the transitions of core/state.py, and records the times of every attempt
// for the timeline.

export const TERMINAL = new Set(['STATE_COMPLETE', 'STATE_ERRORED', 'STATE_TERMINATED']);

const MAYBE_IN_REVIEW = new Set(['STATE_WAITING', 'STATE_WAITING_FOR_PAUSE', 'STATE_PAUSED']);
const INTERRUPTED = { reason: 'INTERRUPTED', message: 'stopped together with the instance' };
const DISCARDED = new Set(['PLAN_INVALID', 'RESULT_INVALID']); // of such an answer nothing is kept
const NO_USAGE = { inputTokens: 0, outputTokens: 0, modelCalls: 0, costUsd: 0 };
const CUT_OFF_USAGE = { ...NO_USAGE, modelCalls: 1 }; // a cancelled call is paid for, but its tokens are never reported

/** Build a piece of work (planning, a subtask, the synthesis) that has not started. */
function newWork() {
  return {
    state: 'PENDING',
    attempt: 0,
    parts: 0, // of the latest attempt: answers that were cut off at the token limit
    output: '',
    isPartial: false, // whether the output is only the beginning of an answer
    model: '',
    error: null,
    retryTime: 0,
    usage: NO_USAGE,
    attempts: [],
  };
}

/** Build an instance before its first event. */
export function emptyInstance(id) {
  return {
    id,
    state: 'STATE_UNSPECIFIED',
    prompt: '',
    config: {},
    labels: {},
    forkedFrom: '',
    continues: '', // the finished instance that it goes on from
    files: [], // what it was given, without contents
    summary: '',
    isPlanned: false,
    planSequence: 0, // of the event that completed the plan
    isReviewed: false,
    planning: newWork(),
    subtasks: new Map(),
    reusable: new Map(), // completed subtasks of discarded plans, by id: the next plan may contain them too
    synthesis: newWork(),
    finalResult: '',
    isPartial: false, // whether the final result is only its beginning
    usage: NO_USAGE, // since the last restart, and with what a fork copied
    ownUsage: NO_USAGE, // of its own calls, over all restarts
    copiedEvents: 0, // after the first one, which a fork copied from its source
    error: null,
    waitingReason: '', // why no call is open: from the events for a pause by the service, otherwise from the resource
    createTime: 0,
    startTime: 0,
    endTime: 0,
    updateTime: 0,
    lastSequence: 0,
  };
}

/** Build an instance from an Instance of ListInstances, which has the state of each subtask but no past attempts. */
export function fromResource(resource) {
  const subtasks = resource.subtasks.map((subtask) => ({
    ...newSubtask(subtask),
    state: subtask.state.replace('SUBTASK_STATE_', ''),
    attempt: subtask.attempt,
    usage: parseUsage(subtask.usage),
  }));
  return {
    ...emptyInstance(resource.id),
    ...resource,
    isPlanned: subtasks.length > 0,
    isReviewed: subtasks.length > 0 && (!MAYBE_IN_REVIEW.has(resource.state) || subtasks.some((subtask) => subtask.attempt)),
    planning: newWork(),
    synthesis: newWork(),
    subtasks: new Map(subtasks.map((subtask) => [subtask.id, subtask])),
    usage: parseUsage(resource.usage),
    ownUsage: parseUsage(resource.ownUsage),
    createTime: parseTime(resource.createTime),
    startTime: parseTime(resource.startTime),
    endTime: parseTime(resource.endTime),
    updateTime: parseTime(resource.updateTime),
    lastSequence: Number(resource.lastSequence),
  };
}

/** Return the name of an event's payload, in camelCase; undefined for one that is unknown to this version. */
export function kindOf(event) {
  return Object.keys(event).find((key) => key in EVOLVE);
}

/** Apply an event to an instance, in place; an event that was applied before changes nothing. */
export function apply(instance, event) {
  const sequence = Number(event.sequence);
  const kind = kindOf(event);
  if (sequence <= instance.lastSequence) return;
  const now = parseTime(event.eventTime);
  if (kind !== 'instancePaused') instance.waitingReason = '';
  if (kind) EVOLVE[kind](instance, event[kind], now);
  instance.endTime = TERMINAL.has(instance.state) ? now : 0;
  instance.updateTime = now;
  instance.lastSequence = sequence;
}

/** Return whether an instance is active, but has no open call as far as its events show. */
export function isIdle(instance) {
  const isActive = instance.state === 'STATE_QUEUED' || instance.state === 'STATE_RUNNING';
  return isActive && allWork(instance).every(({ state }) => state !== 'RUNNING');
}

/** List the work of an instance: the planning, the subtasks in the order of the plan, and the synthesis. */
export function allWork(instance) {
  return [instance.planning, ...instance.subtasks.values(), instance.synthesis];
}

function parseTime(text) {
  return text ? Date.parse(text) : 0;
}

function parseUsage(usage) {
  return {
    inputTokens: Number(usage?.inputTokens ?? 0),
    outputTokens: Number(usage?.outputTokens ?? 0),
    modelCalls: usage?.modelCalls ?? 0,
    costUsd: usage?.costUsd ?? 0,
  };
}

function sumUsage(one, other) {
  return {
    inputTokens: one.inputTokens + other.inputTokens,
    outputTokens: one.outputTokens + other.outputTokens,
    modelCalls: one.modelCalls + other.modelCalls,
    costUsd: one.costUsd + other.costUsd,
  };
}

function newSubtask(subtask) {
  return {
    ...newWork(),
    id: subtask.id,
    title: subtask.title || subtask.id,
    instructions: subtask.instructions ?? '',
    dependsOn: subtask.dependsOn ?? [],
    worker: subtask.worker ?? '',
    files: subtask.files ?? [],
    merges: subtask.merges ?? false,
  };
}

const definitionOf = (it) => JSON.stringify([it.title, it.instructions, it.dependsOn, it.worker, it.files ?? []]);

/** Discard the plan; its completed subtasks stay reusable, except those that depend on a replaced result. */
function discardPlan(instance) {
  const completed = new Map([...instance.subtasks].filter(([, subtask]) => subtask.state === 'COMPLETED'));
  const isReplacement = ([id, subtask]) => (instance.reusable.get(id) ?? subtask) !== subtask;
  const replacedIds = new Set([...completed].filter(isReplacement).map(([id]) => id));
  const reusable = new Map([...instance.reusable, ...completed]);
  const isStale = (subtask) => !completed.has(subtask.id) && subtask.dependsOn.some((id) => replacedIds.has(id));
  for (let stale; (stale = [...reusable.values()].find(isStale)); reusable.delete(stale.id)) replacedIds.add(stale.id);
  Object.assign(instance, { reusable, subtasks: new Map(), summary: '' });
}

/** Return whether a subtask that has not started has a reusable result, made from the same dependencies. */
function isReusable({ reusable, subtasks }, subtask) {
  const completed = reusable.get(subtask.id);
  const isReused = (id) => subtasks.has(id) && subtasks.get(id) === reusable.get(id);
  return completed && !subtask.attempt && definitionOf(completed) === definitionOf(subtask) && completed.dependsOn.every(isReused);
}

/** Make a queued instance a running one, since there is work on it. */
function markRunning(instance, now) {
  if (instance.state === 'STATE_QUEUED') instance.state = 'STATE_RUNNING';
  if (instance.state === 'STATE_RUNNING') instance.startTime ||= now;
}

function startAttempt(instance, work, { attempt, model }, now) {
  markRunning(instance, now);
  Object.assign(work, { state: 'RUNNING', attempt, parts: 0, model, retryTime: 0 });
  work.attempts.push({ number: attempt, model, start: now, end: 0, outcome: 'RUNNING', error: null, usage: NO_USAGE });
}

/** Add a part of an answer that was cut off: the same attempt goes on behind it. */
function continueAttempt(instance, work, payload) {
  const usage = parseUsage(payload.usage);
  const attempt = work.attempts.at(-1);
  if (attempt) attempt.usage = sumUsage(attempt.usage, usage);
  Object.assign(work, { parts: payload.part, usage: sumUsage(work.usage, usage) });
  setPartial(instance, work, joined(work, payload));
  addUsage(instance, usage);
}

/** Return what there is of an answer, with what was added last. */
function joined(work, { text, replaces }) {
  return replaces ? (text ?? '') : work.output + (text ?? '');
}

function setPartial(instance, work, output) {
  Object.assign(work, { output, isPartial: output !== '' });
  if (work === instance.synthesis) Object.assign(instance, { finalResult: output, isPartial: work.isPartial });
}

function endAttempt(instance, work, payload, state, now) {
  const usage = parseUsage(payload.usage);
  const attempt = work.attempts.at(-1);
  if (attempt) {
    Object.assign(attempt, { end: now, usage: sumUsage(attempt.usage, usage), error: payload.error ?? null });
    attempt.outcome = payload.error ? 'FAILED' : 'COMPLETED';
  }
  Object.assign(work, { state, error: payload.error ?? null, usage: sumUsage(work.usage, usage) });
  addUsage(instance, usage);
}

function addUsage(instance, usage) {
  instance.usage = sumUsage(instance.usage, usage);
  // The event's own sequence is one more.
  if (instance.lastSequence > instance.copiedEvents) instance.ownUsage = sumUsage(instance.ownUsage, usage);
}

function failAttempt(instance, work, payload, now) {
  endAttempt(instance, work, payload, payload.retryTime ? 'PENDING' : 'FAILED', now);
  setPartial(instance, work, DISCARDED.has(payload.error?.reason) ? '' : joined(work, payload));
  work.retryTime = parseTime(payload.retryTime);
}

/** Return work to the state before its next attempt. */
function reset(work) {
  Object.assign(work, { state: 'PENDING', model: '', error: null, retryTime: 0 });
}

function interruptCalls(instance, usage, now) {
  for (const work of allWork(instance)) {
    work.retryTime = 0;
    if (work.state !== 'RUNNING') continue;
    Object.assign(work, { state: 'FAILED', error: INTERRUPTED, usage: sumUsage(work.usage, usage) });
    addUsage(instance, usage);
    const attempt = work.attempts.at(-1);
    if (attempt) Object.assign(attempt, { end: now, outcome: 'FAILED', error: INTERRUPTED, usage });
  }
}

function deriveState(instance) {
  if (instance.isPlanned && instance.config.reviewPlan && !instance.isReviewed) return 'STATE_WAITING';
  return instance.startTime || instance.isPlanned ? 'STATE_RUNNING' : 'STATE_QUEUED';
}

const EVOLVE = {
  instanceCreated(instance, payload, now) {
    Object.assign(instance, {
      state: 'STATE_QUEUED',
      prompt: payload.prompt,
      config: payload.config ?? {},
      labels: payload.labels ?? {},
      forkedFrom: payload.forkedFrom ?? '',
      continues: payload.predecessor?.id ?? '',
      files: (payload.files ?? []).map(({ content, ...file }) => file), // their contents may be large
      copiedEvents: payload.copiedEvents ?? 0,
      createTime: now,
    });
  },
  planningStarted(instance, payload, now) {
    startAttempt(instance, instance.planning, payload, now);
    discardPlan(instance);
  },
  planningContinued(instance, payload) {
    continueAttempt(instance, instance.planning, payload);
  },
  planningFailed(instance, payload, now) {
    failAttempt(instance, instance.planning, payload, now);
    discardPlan(instance);
  },
  subtaskPlanned(instance, payload, now) {
    markRunning(instance, now);
    const subtask = newSubtask(payload.subtask);
    if (payload.summary) instance.summary = payload.summary;
    instance.subtasks.set(subtask.id, subtask);
    const hasReusableResult = (each) => each !== instance.reusable.get(each.id) && isReusable(instance, each);
    for (let found; (found = [...instance.subtasks.values()].find(hasReusableResult)); ) {
      instance.subtasks.set(found.id, instance.reusable.get(found.id));
    }
  },
  planCompleted(instance, payload, now) {
    setPartial(instance, instance.planning, '');
    if (payload.attempt) endAttempt(instance, instance.planning, payload, 'COMPLETED', now);
    else instance.planning.state = 'COMPLETED';
    // The event's own sequence is one more.
    Object.assign(instance, { isPlanned: true, planSequence: instance.lastSequence + 1, summary: payload.summary ?? '' });
    if (instance.state !== 'STATE_WAITING_FOR_PAUSE') instance.state = deriveState(instance);
    if (instance.state === 'STATE_RUNNING') instance.startTime ||= now;
  },
  planReviewed(instance, payload, now) {
    // A decision that is unknown to this version: later events show its effect.
    if (!['DECISION_APPROVE', 'DECISION_REJECT'].includes(payload.decision)) return;
    instance.state = 'STATE_RUNNING';
    instance.startTime ||= now;
    if (payload.decision === 'DECISION_REJECT') {
      reset(instance.planning);
      instance.isPlanned = false;
      discardPlan(instance);
      return;
    }
    instance.isReviewed = true;
    if (payload.subtasks?.length) {
      const planned = instance.subtasks;
      const isCompleted = ({ id }) => planned.get(id)?.state === 'COMPLETED';
      const isUnchanged = (it) => isCompleted(it) && definitionOf(planned.get(it.id)) === definitionOf(it);
      const subtasks = payload.subtasks.map(newSubtask).map((it) => (isUnchanged(it) ? planned.get(it.id) : it));
      instance.subtasks = new Map(subtasks.map((subtask) => [subtask.id, subtask]));
    }
  },
  subtaskStarted(instance, payload, now) {
    startAttempt(instance, instance.subtasks.get(payload.subtaskId), payload, now);
  },
  subtaskContinued(instance, payload) {
    continueAttempt(instance, instance.subtasks.get(payload.subtaskId), payload);
  },
  subtaskCompleted(instance, payload, now) {
    const subtask = instance.subtasks.get(payload.subtaskId);
    endAttempt(instance, subtask, payload, 'COMPLETED', now);
    Object.assign(subtask, { output: payload.output ?? '', isPartial: false });
  },
  subtaskFailed(instance, payload, now) {
    failAttempt(instance, instance.subtasks.get(payload.subtaskId), payload, now);
  },
  subtaskSkipped(instance, payload, now) {
    markRunning(instance, now);
    Object.assign(instance.subtasks.get(payload.subtaskId), { state: 'SKIPPED', error: payload.error });
  },
  synthesisStarted(instance, payload, now) {
    startAttempt(instance, instance.synthesis, payload, now);
  },
  synthesisContinued(instance, payload) {
    continueAttempt(instance, instance.synthesis, payload);
  },
  synthesisFailed(instance, payload, now) {
    failAttempt(instance, instance.synthesis, payload, now);
  },
  synthesisCompleted(instance, payload, now) {
    endAttempt(instance, instance.synthesis, payload, 'COMPLETED', now);
    Object.assign(instance.synthesis, { output: '', isPartial: false });
    Object.assign(instance, { finalResult: payload.finalResult ?? '', isPartial: false });
  },
  instancePauseRequested(instance, payload) {
    instance.state = 'STATE_WAITING_FOR_PAUSE';
    instance.waitingReason = payload.cause?.message ?? '';
  },
  instancePaused(instance) {
    instance.state = 'STATE_PAUSED';
  },
  instanceResumed(instance) {
    instance.state = deriveState(instance);
  },
  instanceRetried(instance, payload) {
    Object.assign(instance, { state: 'STATE_QUEUED', config: payload.config ?? {}, error: null });
    if (!instance.isPlanned) {
      reset(instance.planning);
      discardPlan(instance);
    }
    for (const subtask of instance.subtasks.values()) {
      if (subtask.state !== 'COMPLETED') reset(subtask);
    }
    reset(instance.synthesis);
    if (deriveState(instance) === 'STATE_WAITING') instance.state = 'STATE_WAITING';
  },
  instanceRestarted(instance, payload) {
    const { id, prompt, labels, forkedFrom, continues, files, createTime, ownUsage, copiedEvents } = instance;
    const kept = { prompt, labels, forkedFrom, continues, files, createTime, ownUsage, copiedEvents };
    Object.assign(instance, emptyInstance(id), kept);
    Object.assign(instance, { state: 'STATE_QUEUED', config: payload.config ?? {} });
  },
  instanceCompleted(instance) {
    instance.state = 'STATE_COMPLETE';
  },
  instanceErrored(instance, payload, now) {
    interruptCalls(instance, NO_USAGE, now);
    Object.assign(instance, { state: 'STATE_ERRORED', error: payload.error });
  },
  instanceTerminated(instance, payload, now) {
    interruptCalls(instance, payload.cutOffCalls ? CUT_OFF_USAGE : NO_USAGE, now); // earlier versions counted none
    instance.state = 'STATE_TERMINATED';
  },
};

/** The names of all events on the stream: an EventSource needs a listener for each. */
export const EVENT_NAMES = Object.keys(EVOLVE).map((kind) => kind.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
