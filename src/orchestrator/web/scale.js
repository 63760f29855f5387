// The timeline's scale: time to the right, except that long stretches in which nothing ran (a pause over night, a
// retry on the next day) are cut short, so that what ran stays readable.

const SHORTEST_BREAK_MS = 3000;
const BREAK_SHARE = 0.25; // a gap is cut when it is longer than this share of all the time at work
const BREAK_WIDTH = 0.04; // of the whole, for each cut
const MOST_TICKS = 6;
const HOUR_MS = 3_600_000;
const STEPS_MS = [100, 200, 500, ...[1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].map((s) => s * 1000)];

/**
 * `spans`: [start, end] of what ran, in milliseconds, in any order. `from`, `to`: what to show. `grows`: leave
 * room to the right, so that bars which grow are laid out anew only now and then.
 * Gives `at(time)`, from 0 to 1; `breaks` [{from, to, start, end}] with start and end from 0 to 1;
 * and `ticks` [{at, ms}], ms of time at work and short waits since `from`.
 */
export function timeScale(spans, from, to, { grows = false } = {}) {
  const gaps = idle(spans, from, to);
  const idleMs = gaps.reduce((total, gap) => total + gap.to - gap.from, 0);
  const workMs = Math.max(1, to - from - idleMs);
  const cuts = gaps.filter((gap) => gap.to - gap.from > Math.max(SHORTEST_BREAK_MS, workMs * BREAK_SHARE));
  const seenMs = Math.max(1, to - from - cuts.reduce((total, cut) => total + cut.to - cut.from, 0));
  const shownMs = grows ? roundUp(seenMs) : seenMs;
  const width = cuts.length ? Math.min(BREAK_WIDTH, 0.5 / cuts.length) : 0;
  const perMs = (1 - width * cuts.length) / shownMs;

  let before = from;
  let x = 0;
  const breaks = cuts.map((cut) => {
    const start = x + (cut.from - before) * perMs;
    x = start + width;
    before = cut.to;
    return { ...cut, start, end: x };
  });

  function at(time) {
    let [since, position] = [from, 0];
    for (const cut of breaks) {
      if (time <= cut.from) break;
      if (time < cut.to) return cut.start + ((time - cut.from) / (cut.to - cut.from)) * width;
      [since, position] = [cut.to, cut.end];
    }
    return Math.min(1, Math.max(0, position + (time - since) * perMs));
  }

  return { at, breaks, ticks: ticks(breaks, shownMs, perMs, width) };
}

function stepFor(ms) {
  return STEPS_MS.find((step) => step * MOST_TICKS >= ms) ?? Math.ceil(ms / MOST_TICKS / HOUR_MS) * HOUR_MS;
}

/** A round time span, somewhat longer. */
function roundUp(ms) {
  const step = stepFor(ms * 1.1);
  return Math.ceil((ms * 1.05) / step) * step;
}

function idle(spans, from, to) {
  const gaps = [];
  let busyUntil = from;
  for (const [start, end] of [...spans].sort((a, b) => a[0] - b[0])) {
    if (start > busyUntil) gaps.push({ from: busyUntil, to: start });
    busyUntil = Math.max(busyUntil, end);
  }
  if (to > busyUntil && spans.length === 0) gaps.push({ from: busyUntil, to });
  return gaps;
}

function ticks(breaks, shownMs, perMs, width) {
  const step = stepFor(shownMs);
  const marks = [];
  for (let ms = 0; ms <= shownMs; ms += step) {
    let x = ms * perMs;
    for (const cut of breaks) if (x > cut.start) x += width;
    marks.push({ at: x, ms });
  }
  return marks;
}
