// The files of a complete instance's result: a tree, each file's text, and what it changes of an input file. All of them are
// texts that models wrote: they are shown as text, and nothing of them is run.
import { archivePath, filePath, getFileText, listFiles } from './api.js';
import { CopyButton } from './copy.js';
import { diff } from './diff.js';
import { FailureMessage } from './failure.js';
import { FileTree } from './file_tree.js';
import { bytes, plural } from './format.js';
import { highlight } from './highlighting.js';
import { useLoaded } from './loading.js';
import { html, useLayoutEffect, useMemo, useRef, useState } from './ui.js';

const INPUT = 'input'; // the source of a file that nothing has changed
const RESULT = 'result'; // the source of a file that the synthesis wrote

/** Return whether a complete instance may have files: it was given some, or its result has a code block. */
export function mayHaveFiles({ files, finalResult }) {
  return files.length > 0 || /`{3}|~{3}/.test(finalResult);
}

/** The files of a complete instance; nothing while there are none. */
export function ResultFiles({ watch }) {
  const { instance, isDeleted } = watch;
  const { value, failure } = useLoaded(`${instance.id} ${instance.lastSequence}`, () => listFiles(instance.id));
  // The page is rendered ten times a second while another instance runs.
  return useMemo(() => {
    if (failure && failure.status !== 501) {
      return html`<section class="card files" aria-labelledby="files-title">
        <header><h2 id="files-title">Files</h2></header>
        <${FailureMessage} error=${failure} />
      </section>`;
    }
    return value?.length > 0 && html`<${Files} watch=${watch} files=${withChanges(value, instance)} isRecorded=${!isDeleted} />`;
  }, [value, failure, isDeleted]);
}

/** Add to each file its `change`: '', 'edited' (it replaces an input file) or 'added'. */
function withChanges(files, instance) {
  const inputPaths = new Set(instance.files.map(({ path }) => path));
  const changeOf = ({ path, source }) => (source === INPUT ? '' : inputPaths.has(path) ? 'edited' : 'added');
  return files.map((file) => ({ ...file, change: changeOf(file) }));
}

function Files({ watch, files, isRecorded }) {
  const { instance } = watch;
  const [selectedPath, setSelectedPath] = useState('');
  const selected = files.find(({ path }) => path === selectedPath);
  return html`<section class="card files" aria-labelledby="files-title">
    <header>
      <h2 id="files-title">Files</h2>
      <span class="meta">${summaryOf(files)}</span>
      ${isRecorded &&
      html`<span class="tools"><a class="button quiet" href=${archivePath(instance.id)} download=${`${instance.id}.zip`}>Download .zip</a></span>`}
    </header>
    <div class=${`file-panes ${selected ? 'shows-file' : ''}`}>
      <${FileTree} files=${files} label="Files of the result" selectedPath=${selectedPath} onSelect=${setSelectedPath} />
      ${selected && html`<${FileView} key=${selectedPath} watch=${watch} file=${selected} isRecorded=${isRecorded} />`}
    </div>
  </section>`;
}

function summaryOf(files) {
  const total = files.reduce((sum, { sizeBytes }) => sum + Number(sizeBytes), 0);
  const countOf = (wanted) => files.filter(({ change }) => change === wanted).length;
  const [added, edited, unchanged] = [countOf('added'), countOf('edited'), countOf('')];
  const changes = edited + unchanged > 0 && [added && `${added} new`, edited && `${edited} changed`, unchanged && `${unchanged} unchanged`];
  return [plural(files.length, 'file'), bytes(total), ...(changes || [])].filter(Boolean).join(' · ');
}

function FileView({ watch, file, isRecorded }) {
  const { instance } = watch;
  const { path, language, sizeBytes, change } = file;
  const [showsChanges, setShowsChanges] = useState(false);
  const { value: text, failure } = useLoaded(path, () => getFileText(instance.id, path));
  const name = path.split('/').at(-1);
  return html`<div class="file" role="group" aria-labelledby="file-title">
    <header>
      <h3 id="file-title"><code>${path}</code></h3>
      <p class="meta"><${Source} file=${file} instance=${instance} /> · ${bytes(Number(sizeBytes))}</p>
      <span class="tools">
        ${change === 'edited' &&
        html`<button type="button" class="quiet" aria-pressed=${String(showsChanges)} onClick=${() => setShowsChanges(!showsChanges)}>Changes</button>`}
        ${text !== null && html`<${CopyButton} text=${text} what=${path} />`}
        ${isRecorded && html`<a class="button quiet" href=${filePath(instance.id, path)} download=${name} aria-label=${`Download ${path}`}>Download</a>`}
      </span>
    </header>
    <${FailureMessage} error=${failure} />
    ${text === null && !failure && html`<p class="hint" role="status">Reading it…</p>`}
    ${text !== null && (showsChanges ? html`<${Changes} path=${path} before=${inputText(watch, path)} after=${text} />` : html`<${Text} path=${path} text=${text} language=${language} />`)}
  </div>`;
}

/** Say what wrote a file, with a link to its lane. */
function Source({ file, instance }) {
  if (file.source === INPUT) return 'unchanged input';
  const subtask = instance.subtasks.get(file.source);
  const [lane, name] = file.source === RESULT ? ['synthesis', 'the synthesis'] : [`subtask-${file.source}`, subtask?.title ?? file.source];
  function showLane(event) {
    event.preventDefault();
    const row = document.querySelector(`[data-lane="${CSS.escape(lane)}"] .row`);
    if (row?.getAttribute('aria-expanded') === 'false') row.click();
    row?.scrollIntoView({ block: 'center' });
    row?.focus({ preventScroll: true });
  }
  return html`${file.change === 'edited' ? 'changed' : 'written'} by <a href=${location.hash} onClick=${showLane} dir="auto">${name}</a>`;
}

/** Return the text of an input file, which the first event holds; null if it was too large for the stream. */
function inputText(watch, path) {
  const created = watch.events[0];
  if (Number(created?.omittedBytes ?? 0) > 0) return null;
  const file = created?.instanceCreated?.files?.find((each) => each.path === path);
  return file ? (file.content ?? '') : null;
}

function Text({ path, text, language }) {
  const code = useRef();
  useLayoutEffect(() => {
    code.current.textContent = text; // a child of Preact's would be in the highlighter's way
    highlight(code.current, language);
  }, [text]);
  if (text === '') return html`<p class="hint">It is empty.</p>`;
  return html`<div class="code scrollable" tabindex="0" role="region" aria-label=${`Text of ${path}`}><pre><code ref=${code}></code></pre></div>`;
}

const LINE_TAGS = { '-': 'del', '+': 'ins', ' ': 'span' };

function Changes({ path, before, after }) {
  const changes = useMemo(() => (before === null ? null : diff(before, after)), [before, after]);
  if (!changes) return html`<p class="hint">There is too much to compare it line by line: compare the text with the input file.</p>`;
  return html`<p class="meta">${plural(changes.removed, 'line')} removed, ${plural(changes.added, 'line')} added, compared with the input file</p>
    <div class="code scrollable" tabindex="0" role="region" aria-label=${`Changes of ${path}`}>
      <pre class="diff">${changes.hunks.map(
        (hunk) => html`<span class="position" key=${`${hunk.before} ${hunk.after}`}>${`@@ -${hunk.before} +${hunk.after} @@\n`}</span>
          ${hunk.lines.map((line) => html`<${LINE_TAGS[line.sign]}>${lineText(line)}<//>`)}`,
      )}</pre>
    </div>`;
}

/** Return a line of a diff: with its sign, and with what ends it where that may be all that has changed. */
function lineText({ sign, text }) {
  if (!text.endsWith('\n')) return `${sign}${text}\n\\ no line break at the end\n`;
  return `${sign}${sign === ' ' ? text : text.replace(/\r\n$/, '␍\n')}`;
}
