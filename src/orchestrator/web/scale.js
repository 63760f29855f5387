// The timeline's scale. Long gaps in which nothing ran (a pause over night, a retry on the next day) are collapsed to a
// break of fixed width, so that the bars stay readable.

const MIN_BREAK_MS = 3000;
const BREAK_SHARE = 0.25; // a gap is collapsed when it is longer than this share of the time in which something ran
const BREAK_WIDTH = 0.04; // of the whole width, for each break
const MAX_TICKS = 6;
const HOUR_MS = 3_600_000;
const TICK_STEPS_MS = [100, 200, 500, ...[1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].map((s) => s * 1000)];

/**
 * Build the scale of the times `from` to `to`; all times are in milliseconds. `spans`: [start, end] of each call, in any
 * order. `isGrowing`: leave room to the right, so that growing bars change the scale only now and then.
 * Return `positionOf(time)`, from 0 to 1; `breaks` [{from, to, start, end}], with the positions start and end;
 * and `ticks` [{position, ms}], with the time since `from` without breaks.
 */
export function timeScale(spans, from, to, { isGrowing = false } = {}) {
  const gaps = idleGaps(spans, from, to);
  const idleMs = gaps.reduce((total, gap) => total + gap.to - gap.from, 0);
  const busyMs = Math.max(1, to - from - idleMs);
  const collapsed = gaps.filter((gap) => gap.to - gap.from > Math.max(MIN_BREAK_MS, busyMs * BREAK_SHARE));
  const visibleMs = Math.max(1, to - from - collapsed.reduce((total, gap) => total + gap.to - gap.from, 0));
  const scaleMs = isGrowing ? roundUp(visibleMs) : visibleMs;
  const width = collapsed.length ? Math.min(BREAK_WIDTH, 0.5 / collapsed.length) : 0;
  const perMs = (1 - width * collapsed.length) / scaleMs;

  let since = from;
  let position = 0;
  const breaks = collapsed.map((gap) => {
    const start = position + (gap.from - since) * perMs;
    position = start + width;
    since = gap.to;
    return { ...gap, start, end: position };
  });

  function positionOf(time) {
    let [origin, offset] = [from, 0];
    for (const each of breaks) {
      if (time <= each.from) break;
      if (time < each.to) return each.start + ((time - each.from) / (each.to - each.from)) * width;
      [origin, offset] = [each.to, each.end];
    }
    return Math.min(1, Math.max(0, offset + (time - origin) * perMs));
  }

  return { positionOf, breaks, ticks: ticksOf(breaks, scaleMs, perMs, width) };
}

function tickStep(ms) {
  return TICK_STEPS_MS.find((step) => step * MAX_TICKS >= ms) ?? Math.ceil(ms / MAX_TICKS / HOUR_MS) * HOUR_MS;
}

/** Return a somewhat longer time span, in whole ticks. */
function roundUp(ms) {
  const step = tickStep(ms * 1.1);
  return Math.ceil((ms * 1.05) / step) * step;
}

/** List the gaps {from, to} in which nothing ran. */
function idleGaps(spans, from, to) {
  const gaps = [];
  let busyUntil = from;
  for (const [start, end] of [...spans].sort((a, b) => a[0] - b[0])) {
    if (start > busyUntil) gaps.push({ from: busyUntil, to: start });
    busyUntil = Math.max(busyUntil, end);
  }
  if (to > busyUntil && spans.length === 0) gaps.push({ from: busyUntil, to });
  return gaps;
}

function ticksOf(breaks, scaleMs, perMs, width) {
  const step = tickStep(scaleMs);
  const ticks = [];
  for (let ms = 0; ms <= scaleMs; ms += step) {
    let position = ms * perMs;
    for (const each of breaks) if (position > each.start) position += width;
    ticks.push({ position, ms });
  }
  return ticks;
}
