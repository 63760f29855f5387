// Files of this computer that a new instance is given: chosen, or dropped on the form, alone or in folders. What may not be
// given is refused here by name, with the limits of core/input_files.py.
import { bytes, count, plural } from './format.js';
import { html, useEffect, useRef, useState } from './ui.js';

const MAX_FILES = 1000;
const MAX_FILE_BYTES = 1024 ** 2;
const MAX_BYTES = 8 * 1024 ** 2;
const MAX_CANDIDATES = 20_000; // more are not even looked at
const MAX_NAMED = 5; // in a message
const MAX_ROWS = 100; // of the list, until all are asked for
const SNIFFED_BYTES = 8192;
const TOOL_FOLDERS = new Set(['.git', '.hg', '.svn', 'node_modules', '__pycache__', '.venv', '.tox', '.mypy_cache', '.pytest_cache', '.ruff_cache']);
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/**
 * Return {files, isReading, notice, failure, add, remove, clear}: the files {path, content, sizeBytes} by path, what was left
 * out of the last addition, or why nothing was added.
 */
export function useAttachments() {
  const [files, setFiles] = useState([]);
  const [status, setStatus] = useState({ notice: '', failure: '' });
  const latest = useRef(files); // two additions may be read at once
  const reading = useRef(0); // how many are

  function set(changed) {
    latest.current = changed;
    setFiles(changed);
  }

  /** Add what `collect()` finds: {candidates: [{path, file}], leftOut: names of folders}. */
  async function add(collect) {
    reading.current += 1;
    let outcome;
    setStatus({ notice: '', failure: '' });
    try {
      const { candidates, leftOut } = await collect();
      const { texts, binaries, tooLarge } = await readTexts(candidates, latest.current);
      set(merged(latest.current, texts));
      outcome = { notice: noticeOf(texts, binaries, tooLarge, leftOut), failure: '' };
    } catch (error) {
      outcome = { notice: '', failure: error.message };
    }
    reading.current -= 1;
    setStatus(outcome);
  }

  function remove(path) {
    set(latest.current.filter((file) => file.path !== path));
    setStatus({ notice: '', failure: '' });
  }

  function clear() {
    set([]);
    setStatus({ notice: '', failure: '' });
  }

  return { files, isReading: reading.current > 0, ...status, add, remove, clear };
}

/** Return the files by path, with added ones in the place of others with the same path. */
function merged(files, added) {
  const byPath = new Map([...files, ...added].map((file) => [file.path, file]));
  return [...byPath.values()].sort((one, other) => (one.path < other.path ? -1 : 1));
}

/** Read what is text; throw an Error if there would be too many files, or too large ones together. */
async function readTexts(candidates, present) {
  checkCandidates(candidates);
  const tooLarge = candidates.filter(({ file }) => file.size > MAX_FILE_BYTES);
  const readable = candidates.filter(({ file }) => file.size <= MAX_FILE_BYTES);
  const hasNul = await Promise.all(readable.map(({ file }) => holdsNul(file.slice(0, SNIFFED_BYTES))));
  const binaries = readable.filter((_, index) => hasNul[index]);
  const likelyTexts = readable.filter((_, index) => !hasNul[index]);
  const sizes = likelyTexts.map(({ path, file }) => ({ path, sizeBytes: file.size }));
  checkLimits(merged(present, sizes));
  const texts = [];
  for (const candidate of likelyTexts) {
    const content = await readText(candidate.file);
    if (content === null) binaries.push(candidate);
    else texts.push({ path: candidate.path, content, sizeBytes: candidate.file.size });
  }
  return { texts, binaries, tooLarge };
}

function checkCandidates({ length }) {
  if (length > MAX_CANDIDATES) {
    throw new Error(`Nothing was added: there are more than ${plural(MAX_CANDIDATES, 'file')}, and there may be ${count(MAX_FILES)}.`);
  }
}

function checkLimits(files) {
  const total = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const largest = [...files].sort((one, other) => other.sizeBytes - one.sizeBytes).slice(0, MAX_NAMED);
  const named = `The largest: ${largest.map(({ path, sizeBytes }) => `${path} (${bytes(sizeBytes)})`).join(', ')}.`;
  if (files.length > MAX_FILES) {
    throw new Error(`Nothing was added: there would be ${plural(files.length, 'file')}, and there may be ${count(MAX_FILES)}. ${named}`);
  }
  if (total > MAX_BYTES) {
    throw new Error(`Nothing was added: the files would have ${bytes(total)} together, and may have ${bytes(MAX_BYTES)}. ${named}`);
  }
}

async function holdsNul(blob) {
  return new Uint8Array(await blob.arrayBuffer()).includes(0);
}

/** Return a file's text; null if it is none in UTF-8. */
async function readText(file) {
  const buffer = await file.arrayBuffer();
  try {
    const text = decoder.decode(buffer);
    return text.includes('\0') ? null : text;
  } catch {
    return null;
  }
}

function noticeOf(texts, binaries, tooLarge, leftOut) {
  const largest = [...tooLarge].sort((one, other) => other.file.size - one.file.size);
  return [
    `${plural(texts.length, 'file')} added.`,
    binaries.length > 0 && `No text in UTF-8, left out: ${listed(binaries.map(({ path }) => path))}.`,
    largest.length > 0 &&
      `Over ${bytes(MAX_FILE_BYTES)}, left out: ${listed(largest.map(({ path, file }) => `${path} (${bytes(file.size)})`))}.`,
    leftOut.length > 0 && `Folders left out: ${listed(leftOut)}.`,
  ]
    .filter(Boolean)
    .join(' ');
}

function listed(names) {
  const more = names.length - MAX_NAMED;
  return `${names.slice(0, MAX_NAMED).join(', ')}${more > 0 ? ` and ${count(more)} more` : ''}`;
}

/** Collect from a file input; paths within a chosen folder are without that folder's own name. */
function collectChosen(list) {
  const leftOut = new Set();
  const candidates = [];
  for (const file of list) {
    const names = (file.webkitRelativePath || file.name).split('/').slice(file.webkitRelativePath ? 1 : 0);
    const toolDepth = names.slice(0, -1).findIndex((name) => TOOL_FOLDERS.has(name));
    if (toolDepth >= 0) leftOut.add(names.slice(0, toolDepth + 1).join('/'));
    else candidates.push({ path: names.join('/'), file });
  }
  return { candidates, leftOut: [...leftOut] };
}

/** Collect from dropped items; of a single folder, paths are without its own name. */
async function collectDropped(entries, files) {
  const found = { candidates: files.map((file) => ({ path: file.name, file })), leftOut: [] };
  const isOneFolder = entries.length === 1 && entries[0].isDirectory;
  for (const entry of entries) await collectEntry(entry, isOneFolder ? '' : entry.name, found);
  return found;
}

async function collectEntry(entry, path, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.candidates.push({ path, file });
    checkCandidates(found.candidates);
    return;
  }
  if (TOOL_FOLDERS.has(entry.name)) {
    found.leftOut.push(path || entry.name);
    return;
  }
  const reader = entry.createReader();
  const read = () => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
  for (let some; (some = await read()).length > 0; ) { // a folder is read in pieces
    for (const each of some) await collectEntry(each, path ? `${path}/${each.name}` : each.name, found);
  }
}

/** Let files be dropped on the form of an element. Return whether some are held over it. */
function useDrop(element, add) {
  const [isOver, setOver] = useState(false);
  const latestAdd = useRef(add);
  latestAdd.current = add;
  useEffect(() => {
    const form = element.current.closest('form');
    const hasFiles = (event) => event.dataTransfer?.types.includes('Files');
    const onDragOver = (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const onDragLeave = (event) => {
      if (!form.contains(event.relatedTarget)) setOver(false);
    };
    const onDrop = (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setOver(false);
      // They are only there during the event.
      const items = [...event.dataTransfer.items].filter(({ kind }) => kind === 'file').map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
      const files = items.filter((item) => item instanceof File);
      latestAdd.current(() => collectDropped(items.filter((item) => item && !(item instanceof File)), files));
    };
    form.addEventListener('dragover', onDragOver);
    form.addEventListener('dragleave', onDragLeave);
    form.addEventListener('drop', onDrop);
    return () => {
      form.removeEventListener('dragover', onDragOver);
      form.removeEventListener('dragleave', onDragLeave);
      form.removeEventListener('drop', onDrop);
    };
  }, []);
  return isOver;
}

/** The part of a form for files; the properties are what `useAttachments` returns. */
export function Attachments({ files, isReading, notice, failure, add, remove, clear }) {
  const element = useRef();
  const isOver = useDrop(element, add);
  return html`<fieldset class=${`attachments ${isOver ? 'drop-target' : ''}`} ref=${element}>
    <legend class="visually-hidden">Files to work on</legend>
    <div class="buttons">
      <${FileInput} name="files" label="Attach files…" onFiles=${add} />
      <${FileInput} name="folder" label="Attach a folder…" onFiles=${add} webkitdirectory />
      <span class="hint">or drop them here: text files to work on</span>
    </div>
    ${failure && html`<p class="failure" role="alert">${failure}</p>`}
    <p class="meta" role="status">${isReading ? 'Reading them…' : notice}</p>
    ${files.length > 0 && html`<${AttachedFiles} files=${files} onRemove=${remove} onClear=${clear} />`}
  </fieldset>`;
}

/** A button that opens a dialog for files. */
function FileInput({ name, label, onFiles, ...props }) {
  const input = useRef();
  function onChange({ target }) {
    const chosen = [...target.files];
    target.value = ''; // the same files may be chosen again
    if (chosen.length > 0) onFiles(() => collectChosen(chosen));
  }
  return html`<button type="button" onClick=${() => input.current.click()}>${label}</button>
    <input type="file" name=${name} aria-label=${label} multiple hidden ref=${input} onChange=${onChange} ...${props} />`;
}

function AttachedFiles({ files, onRemove, onClear }) {
  const [showsAll, setShowsAll] = useState(false);
  const shown = showsAll ? files : files.slice(0, MAX_ROWS);
  const total = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  return html`<ul class="file-list" aria-label="Attached files">
      ${shown.map(
        ({ path, sizeBytes }) => html`<li key=${path}>
          <code dir="auto">${path}</code> <span class="meta">${bytes(sizeBytes)}</span>
          <button type="button" class="quiet" aria-label=${`Remove ${path}`} onClick=${() => onRemove(path)}>Remove</button>
        </li>`,
      )}
    </ul>
    <p class="buttons">
      <span class="meta">${plural(files.length, 'file')}, ${bytes(total)}</span>
      ${shown.length < files.length && html`<button type="button" class="quiet" onClick=${() => setShowsAll(true)}>Show all</button>`}
      ${files.length > 1 && html`<button type="button" class="quiet" onClick=${onClear}>Remove all</button>`}
    </p>`;
}
