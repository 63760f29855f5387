// What an instance is, folded from its events, as core/state.py folds them: the same transitions, and besides
// them every attempt with its times, which the timeline draws.

export const TERMINAL = new Set(['STATE_COMPLETE', 'STATE_ERRORED', 'STATE_TERMINATED']);

const AWAITING = new Set(['STATE_WAITING', 'STATE_WAITING_FOR_PAUSE', 'STATE_PAUSED']); // perhaps a review
const INTERRUPTED = { reason: 'INTERRUPTED', message: 'stopped together with the instance' };
const NO_USAGE = { inputTokens: 0, outputTokens: 0, modelCalls: 0, costUsd: 0 };
const CUT_OFF = { ...NO_USAGE, modelCalls: 1 }; // such a call is paid for, but nobody tells how many tokens it used

/** A piece of work (planning, a subtask, the synthesis) that has not begun. */
function newWork() {
  return { state: 'PENDING', attempt: 0, model: '', error: null, retryTime: 0, usage: NO_USAGE, attempts: [] };
}

/** An instance of which no event is known yet. */
export function empty(id) {
  return {
    id,
    state: 'STATE_UNSPECIFIED',
    prompt: '',
    config: {},
    labels: {},
    forkedFrom: '',
    summary: '',
    planned: false,
    reviewed: false,
    planning: newWork(),
    subtasks: new Map(),
    kept: new Map(), // completed subtasks of plans whose attempt failed: the next plan may have them too
    synthesis: newWork(),
    finalResult: '',
    usage: NO_USAGE, // since the last restart, and with what a fork copied
    ownUsage: NO_USAGE, // of all calls that it made itself
    copiedEvents: 0, // behind the first one: a fork's, of what its source has done
    error: null,
    waitingReason: '', // why nothing happens: of a pause by the service its events tell, of all else the service
    createTime: 0,
    startTime: 0,
    endTime: 0,
    updateTime: 0,
    lastSequence: 0,
  };
}

/** An instance as ListInstances shows it. Its past attempts are not known, only where each subtask stands. */
export function fromResource(resource) {
  const subtasks = resource.subtasks.map((subtask) => ({
    ...planned(subtask),
    state: subtask.state.replace('SUBTASK_STATE_', ''),
    attempt: subtask.attempt,
    usage: usageOf(subtask.usage),
  }));
  return {
    ...empty(resource.id),
    ...resource,
    planned: subtasks.length > 0,
    reviewed: subtasks.length > 0 && (!AWAITING.has(resource.state) || subtasks.some((subtask) => subtask.attempt)),
    planning: newWork(),
    synthesis: newWork(),
    subtasks: new Map(subtasks.map((subtask) => [subtask.id, subtask])),
    usage: usageOf(resource.usage),
    ownUsage: usageOf(resource.ownUsage),
    createTime: time(resource.createTime),
    startTime: time(resource.startTime),
    endTime: time(resource.endTime),
    updateTime: time(resource.updateTime),
    lastSequence: Number(resource.lastSequence),
  };
}

/** The name of an event's payload, in camelCase. */
export function kindOf(event) {
  return Object.keys(event).find((key) => key in EVOLVE);
}

/** Apply one event to an instance, in place; one that it has seen changes nothing. */
export function apply(instance, event) {
  const sequence = Number(event.sequence);
  const kind = kindOf(event);
  if (sequence <= instance.lastSequence) return;
  const now = time(event.eventTime);
  if (kind !== 'instancePaused') instance.waitingReason = '';
  if (kind) EVOLVE[kind](instance, event[kind], now);
  instance.endTime = TERMINAL.has(instance.state) ? now : 0;
  instance.updateTime = now;
  instance.lastSequence = sequence;
}

/** Whether there is something to do, and as far as its events tell, no call under way. */
export function mayWait(instance) {
  const isActive = instance.state === 'STATE_QUEUED' || instance.state === 'STATE_RUNNING';
  return isActive && works(instance).every(({ state }) => state !== 'RUNNING');
}

export function works(instance) {
  return [instance.planning, ...instance.subtasks.values(), instance.synthesis];
}

function time(text) {
  return text ? Date.parse(text) : 0;
}

function usageOf(usage) {
  return {
    inputTokens: Number(usage?.inputTokens ?? 0),
    outputTokens: Number(usage?.outputTokens ?? 0),
    modelCalls: usage?.modelCalls ?? 0,
    costUsd: usage?.costUsd ?? 0,
  };
}

function sum(one, other) {
  return {
    inputTokens: one.inputTokens + other.inputTokens,
    outputTokens: one.outputTokens + other.outputTokens,
    modelCalls: one.modelCalls + other.modelCalls,
    costUsd: one.costUsd + other.costUsd,
  };
}

function planned(subtask) {
  return {
    ...newWork(),
    id: subtask.id,
    title: subtask.title || subtask.id,
    instructions: subtask.instructions ?? '',
    dependsOn: subtask.dependsOn ?? [],
    worker: subtask.worker ?? '',
    merges: subtask.merges ?? false,
    output: '',
  };
}

const definition = (it) => JSON.stringify([it.title, it.instructions, it.dependsOn, it.worker]);

/** Forget the plan; what was paid for in it is kept, but for what was made from another result. */
function setAside(instance) {
  const done = new Map([...instance.subtasks].filter(([, subtask]) => subtask.state === 'COMPLETED'));
  const replaced = new Set([...done.keys()].filter((name) => (instance.kept.get(name) ?? done.get(name)) !== done.get(name)));
  const kept = new Map([...instance.kept, ...done]);
  const isStale = (subtask) => !done.has(subtask.id) && subtask.dependsOn.some((name) => replaced.has(name));
  for (let stale; (stale = [...kept.values()].find(isStale)); kept.delete(stale.id)) replaced.add(stale.id);
  Object.assign(instance, { kept, subtasks: new Map(), summary: '' });
}

/** Whether a subtask that has not begun is one whose result is kept, made from the same results. */
function isKept({ kept, subtasks }, subtask) {
  const done = kept.get(subtask.id);
  const isSame = (name) => subtasks.has(name) && subtasks.get(name) === kept.get(name);
  return done && !subtask.attempt && definition(done) === definition(subtask) && done.dependsOn.every(isSame);
}

function begin(instance, work, { attempt, model }, now) {
  if (instance.state === 'STATE_QUEUED') instance.state = 'STATE_RUNNING';
  instance.startTime ||= now;
  Object.assign(work, { state: 'RUNNING', attempt, model, retryTime: 0 });
  work.attempts.push({ number: attempt, model, start: now, end: 0, outcome: 'RUNNING', error: null, usage: NO_USAGE });
}

function end(instance, work, payload, state, now) {
  const usage = usageOf(payload.usage);
  const attempt = work.attempts.at(-1);
  if (attempt) {
    Object.assign(attempt, { end: now, usage, error: payload.error ?? null });
    attempt.outcome = payload.error ? 'FAILED' : 'COMPLETED';
  }
  Object.assign(work, { state, error: payload.error ?? null, usage: sum(work.usage, usage) });
  addUsage(instance, usage);
}

function addUsage(instance, usage) {
  instance.usage = sum(instance.usage, usage);
  // The event's own sequence is one more.
  if (instance.lastSequence > instance.copiedEvents) instance.ownUsage = sum(instance.ownUsage, usage);
}

function fail(instance, work, payload, now) {
  end(instance, work, payload, payload.retryTime ? 'PENDING' : 'FAILED', now);
  work.retryTime = time(payload.retryTime);
}

/** The same work, to be tried afresh. */
function renew(work) {
  Object.assign(work, { state: 'PENDING', model: '', error: null, retryTime: 0 });
}

function cutOff(instance, usage, now) {
  for (const work of works(instance)) {
    work.retryTime = 0;
    if (work.state !== 'RUNNING') continue;
    Object.assign(work, { state: 'FAILED', error: INTERRUPTED, usage: sum(work.usage, usage) });
    addUsage(instance, usage);
    const attempt = work.attempts.at(-1);
    if (attempt) Object.assign(attempt, { end: now, outcome: 'FAILED', error: INTERRUPTED, usage });
  }
}

function choose(instance) {
  if (instance.planned && instance.config.reviewPlan && !instance.reviewed) return 'STATE_WAITING';
  return instance.startTime || instance.planned ? 'STATE_RUNNING' : 'STATE_QUEUED';
}

const EVOLVE = {
  instanceCreated(instance, payload, now) {
    Object.assign(instance, {
      state: 'STATE_QUEUED',
      prompt: payload.prompt,
      config: payload.config ?? {},
      labels: payload.labels ?? {},
      forkedFrom: payload.forkedFrom ?? '',
      copiedEvents: payload.copiedEvents ?? 0,
      createTime: now,
    });
  },
  planningStarted(instance, payload, now) {
    begin(instance, instance.planning, payload, now);
    setAside(instance);
  },
  planningFailed(instance, payload, now) {
    fail(instance, instance.planning, payload, now);
    setAside(instance);
  },
  subtaskPlanned(instance, payload) {
    const subtask = planned(payload.subtask);
    if (payload.summary) instance.summary = payload.summary;
    instance.subtasks.set(subtask.id, subtask);
    const isTakenOver = (each) => each !== instance.kept.get(each.id) && isKept(instance, each);
    for (let found; (found = [...instance.subtasks.values()].find(isTakenOver)); ) {
      instance.subtasks.set(found.id, instance.kept.get(found.id));
    }
  },
  planCompleted(instance, payload, now) {
    if (payload.attempt) end(instance, instance.planning, payload, 'COMPLETED', now);
    else instance.planning.state = 'COMPLETED';
    Object.assign(instance, { planned: true, summary: payload.summary ?? '' });
    if (instance.state !== 'STATE_WAITING_FOR_PAUSE') instance.state = choose(instance);
    if (instance.state === 'STATE_RUNNING') instance.startTime ||= now;
  },
  planReviewed(instance, payload, now) {
    // A page that is older than its service may not know what was decided: the next events tell.
    if (!['DECISION_APPROVE', 'DECISION_REJECT'].includes(payload.decision)) return;
    instance.state = 'STATE_RUNNING';
    instance.startTime ||= now;
    if (payload.decision === 'DECISION_REJECT') {
      renew(instance.planning);
      instance.planned = false;
      setAside(instance);
      return;
    }
    instance.reviewed = true;
    if (payload.subtasks?.length) {
      const known = instance.subtasks;
      const isDone = (it) => known.get(it.id)?.state === 'COMPLETED' && definition(known.get(it.id)) === definition(it);
      const edited = payload.subtasks.map(planned).map((it) => (isDone(it) ? known.get(it.id) : it));
      instance.subtasks = new Map(edited.map((subtask) => [subtask.id, subtask]));
    }
  },
  subtaskStarted(instance, payload, now) {
    begin(instance, instance.subtasks.get(payload.subtaskId), payload, now);
  },
  subtaskCompleted(instance, payload, now) {
    const subtask = instance.subtasks.get(payload.subtaskId);
    end(instance, subtask, payload, 'COMPLETED', now);
    subtask.output = payload.output ?? '';
  },
  subtaskFailed(instance, payload, now) {
    fail(instance, instance.subtasks.get(payload.subtaskId), payload, now);
  },
  subtaskSkipped(instance, payload) {
    Object.assign(instance.subtasks.get(payload.subtaskId), { state: 'SKIPPED', error: payload.error });
  },
  synthesisStarted(instance, payload, now) {
    begin(instance, instance.synthesis, payload, now);
  },
  synthesisFailed(instance, payload, now) {
    fail(instance, instance.synthesis, payload, now);
  },
  synthesisCompleted(instance, payload, now) {
    end(instance, instance.synthesis, payload, 'COMPLETED', now);
    instance.finalResult = payload.finalResult ?? '';
  },
  instancePauseRequested(instance, payload) {
    instance.state = 'STATE_WAITING_FOR_PAUSE';
    instance.waitingReason = payload.cause?.message ?? '';
  },
  instancePaused(instance) {
    instance.state = 'STATE_PAUSED';
  },
  instanceResumed(instance) {
    instance.state = choose(instance);
  },
  instanceRetried(instance, payload) {
    Object.assign(instance, { state: 'STATE_QUEUED', config: payload.config ?? {}, error: null });
    if (!instance.planned) {
      renew(instance.planning);
      setAside(instance);
    }
    for (const subtask of instance.subtasks.values()) {
      if (subtask.state !== 'COMPLETED') renew(subtask);
    }
    renew(instance.synthesis);
    if (choose(instance) === 'STATE_WAITING') instance.state = 'STATE_WAITING';
  },
  instanceRestarted(instance, payload) {
    const { id, prompt, labels, forkedFrom, createTime, ownUsage, copiedEvents } = instance;
    Object.assign(instance, empty(id), { prompt, labels, forkedFrom, createTime, ownUsage, copiedEvents });
    Object.assign(instance, { state: 'STATE_QUEUED', config: payload.config ?? {} });
  },
  instanceCompleted(instance) {
    instance.state = 'STATE_COMPLETE';
  },
  instanceErrored(instance, payload, now) {
    cutOff(instance, NO_USAGE, now);
    Object.assign(instance, { state: 'STATE_ERRORED', error: payload.error });
  },
  instanceTerminated(instance, payload, now) {
    cutOff(instance, payload.cutOffCalls ? CUT_OFF : NO_USAGE, now); // earlier versions counted none
    instance.state = 'STATE_TERMINATED';
  },
};

/** Every event's name on the stream: an EventSource must ask for each by name. */
export const EVENT_NAMES = Object.keys(EVOLVE).map((kind) => kind.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
