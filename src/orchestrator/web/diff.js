// Compares two texts line by line: the shortest edit script by the greedy algorithm of E. Myers, "An O(ND) Difference
// Algorithm and Its Variations" (1986).

const CONTEXT_LINES = 3; // around each change
const MAX_LINES = 100_000; // of both texts, without what is the same at their starts and ends
const MAX_EDITS = 2000; // lines removed and added; time and memory grow with their square

/**
 * Compare two texts. Return {removed, added, hunks}: the numbers of lines, and [{before, after, lines}] with the numbers of
 * each hunk's first lines, from 1, and its lines [{sign, text}], with the sign `-`, `+` or a space, and the line break in
 * `text` where there is one. Return null for texts that differ too much.
 */
export function diff(before, after) {
  const [old, current] = [linesOf(before), linesOf(after)];
  const shorter = Math.min(old.length, current.length);
  let start = 0;
  while (start < shorter && old[start] === current[start]) start += 1;
  let end = 0;
  while (end < shorter - start && old.at(-1 - end) === current.at(-1 - end)) end += 1;
  const edits = shortestEdits(old.slice(start, old.length - end), current.slice(start, current.length - end));
  if (!edits) return null;
  const keep = (text) => ({ sign: ' ', text });
  const lines = [...old.slice(0, start).map(keep), ...edits, ...old.slice(old.length - end).map(keep)];
  const countOf = (sign) => edits.filter((line) => line.sign === sign).length;
  return { removed: countOf('-'), added: countOf('+'), hunks: hunksOf(lines) };
}

/** Split a text into lines, each with its line break. */
function linesOf(text) {
  return text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
}

/** Return the lines of both texts, each kept, removed or added; null if there is too much to compare. */
function shortestEdits(before, after) {
  if (before.length + after.length > MAX_LINES) return null;
  const bound = Math.min(before.length + after.length, MAX_EDITS);
  const origin = bound + 1;
  const reached = new Int32Array(2 * bound + 3); // by diagonal: how many lines of `before` the furthest path has behind it
  const rounds = []; // of each number of edits: `reached` before it, of the diagonals around its own
  for (let count = 0; count <= bound; count += 1) {
    rounds.push(reached.slice(origin - count - 1, origin + count + 2));
    for (let diagonal = -count; diagonal <= count; diagonal += 2) {
      const at = origin + diagonal;
      let x = isAddition(reached, at, diagonal, count) ? reached[at + 1] : reached[at - 1] + 1;
      while (x < before.length && x - diagonal < after.length && before[x] === after[x - diagonal]) x += 1;
      reached[at] = x;
      if (x >= before.length && x - diagonal >= after.length) return backtrack(rounds, before, after);
    }
  }
  return null;
}

/** Return whether a diagonal is best reached by adding a line. */
function isAddition(reached, at, diagonal, count) {
  return diagonal === -count || (diagonal !== count && reached[at - 1] < reached[at + 1]);
}

function backtrack(rounds, before, after) {
  const lines = [];
  let [x, y] = [before.length, after.length];
  for (let count = rounds.length - 1; count >= 0; count -= 1) {
    const diagonal = x - y;
    const at = diagonal + count + 1;
    const isAdded = isAddition(rounds[count], at, diagonal, count);
    const fromX = rounds[count][isAdded ? at + 1 : at - 1];
    const fromY = fromX - (isAdded ? diagonal + 1 : diagonal - 1);
    for (; x > fromX && y > fromY && x > 0 && y > 0; x -= 1, y -= 1) lines.push({ sign: ' ', text: before[x - 1] });
    if (count > 0) lines.push(isAdded ? { sign: '+', text: after[fromY] } : { sign: '-', text: before[fromX] });
    [x, y] = [fromX, fromY];
  }
  return lines.reverse();
}

/** Group the changed lines, with the lines around them. */
function hunksOf(lines) {
  const hunks = [];
  let shownUntil = 0; // index in `lines`
  let [before, after] = [1, 1]; // numbers of the line at `counted`
  let counted = 0;
  lines.forEach(({ sign }, index) => {
    if (sign === ' ') return;
    const from = Math.max(shownUntil, index - CONTEXT_LINES);
    if (hunks.length === 0 || from > shownUntil) {
      for (; counted < from; counted += 1) {
        if (lines[counted].sign !== '+') before += 1;
        if (lines[counted].sign !== '-') after += 1;
      }
      hunks.push({ before, after, lines: [] });
    }
    const until = Math.min(lines.length, index + CONTEXT_LINES + 1);
    hunks.at(-1).lines.push(...lines.slice(from, until));
    shownUntil = until;
  });
  return hunks;
}
