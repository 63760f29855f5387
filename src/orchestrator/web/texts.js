// Text as models write it, put together from OutputDelta messages. It is not in the log and may come late, twice
// or in part; what counts is the output that the log has in the end.

export const SYNTHESIS = ''; // whose text it is: a subtask's id, or this

export class LiveTexts {
  #texts = new Map(); // whose -> {attempt, text, base and length: code points from the attempt's start}

  /** A new attempt of a writer begins: whatever an earlier one wrote is gone. */
  begin(writer, attempt) {
    if (attempt > (this.#texts.get(writer)?.attempt ?? 0)) this.#texts.set(writer, written(attempt, 0));
  }

  /** Take one OutputDelta as protobuf's JSON; give whether it changed anything. */
  take({ subtaskId: writer = SYNTHESIS, attempt = 0, offset = 0, text = '' }) {
    const start = Number(offset); // int64 travels as a string
    let entry = this.#texts.get(writer);
    if (attempt < (entry?.attempt ?? 0)) return false;
    if (!entry || attempt > entry.attempt || start > entry.length || start < entry.base) {
      // A new attempt, a piece is missing before this one, or the missed beginning comes: begin where it begins.
      entry = written(attempt, start);
      this.#texts.set(writer, entry);
    }
    if (start < entry.length) {
      // The piece replaces what was there from its place on: that were thoughts, or the same text again.
      entry.text = Array.from(entry.text).slice(0, start - entry.base).join('');
      entry.length = start;
    }
    entry.text += text;
    entry.length += Array.from(text).length; // offsets count code points, a string's length does not
    return text !== '';
  }

  /** What a writer has written so far; an ellipsis stands for a beginning that was missed. */
  of(writer) {
    const entry = this.#texts.get(writer);
    return entry ? (entry.base ? `… ${entry.text}` : entry.text) : '';
  }

  /** The writer's output is in the log. */
  drop(writer) {
    this.#texts.delete(writer);
  }

  clear() {
    this.#texts.clear();
  }
}

function written(attempt, base) {
  return { attempt, text: '', base, length: base };
}
