// Accumulates the text of open calls from OutputDelta messages. They are not in the log and may be late, repeated or
// incomplete; the output in the completed event supersedes them.

export const SYNTHESIS = ''; // the writer of a text: a subtask's id, or this constant

export class LiveTexts {
  #texts = new Map(); // by writer: {attempt, text, base and length: code points from the attempt's start}

  /** Start an attempt of a writer, and delete the text of earlier ones. */
  startAttempt(writer, attempt) {
    if (attempt > (this.#texts.get(writer)?.attempt ?? 0)) this.#texts.set(writer, newEntry(attempt, 0));
  }

  /** Append one OutputDelta, as protobuf's JSON; return whether it has text. */
  append({ subtaskId: writer = SYNTHESIS, attempt = 0, offset = 0, text = '' }) {
    const start = Number(offset); // int64 travels as a string
    let entry = this.#texts.get(writer);
    if (attempt < (entry?.attempt ?? 0)) return false;
    if (!entry || attempt > entry.attempt || start > entry.length || start < entry.base) {
      // A new attempt, a gap before this delta, or one from before the text's start: start at its offset.
      entry = newEntry(attempt, start);
      this.#texts.set(writer, entry);
    }
    if (start < entry.length) {
      // The delta replaces the text from its offset on: reasoning that is no part of the answer, or a repeat.
      entry.text = Array.from(entry.text).slice(0, start - entry.base).join('');
      entry.length = start;
    }
    entry.text += text;
    entry.length += Array.from(text).length; // offsets count code points, a string's length does not
    return text !== '';
  }

  /** Return a writer's text so far; an ellipsis marks a missing start. */
  get(writer) {
    const entry = this.#texts.get(writer);
    return entry ? (entry.base ? `… ${entry.text}` : entry.text) : '';
  }

  /** Delete a writer's text: its output is in the log. */
  delete(writer) {
    this.#texts.delete(writer);
  }

  clear() {
    this.#texts.clear();
  }
}

function newEntry(attempt, base) {
  return { attempt, text: '', base, length: base };
}
