// What an instance was given: its files, and the finished instances that it goes on from.
import { getInstance } from './api.js';
import { bytes, plural } from './format.js';
import { html, useEffect, useMemo, useState } from './ui.js';

const MAX_PREDECESSORS = 10; // of a chain, the nearest ones

/** The files that an instance was given, listed when opened. */
export function InputFiles({ files }) {
  const [isOpen, setOpen] = useState(false);
  // The page is rendered ten times a second while an instance runs, and there may be a thousand files.
  return useMemo(() => {
    if (files.length === 0) return null;
    const total = files.reduce((sum, { sizeBytes }) => sum + Number(sizeBytes ?? 0), 0);
    return html`<details class="card input-files" onToggle=${(toggle) => setOpen(toggle.currentTarget.open)}>
      <summary>${plural(files.length, 'input file')}, ${bytes(total)}</summary>
      ${isOpen &&
      html`<ul class="file-list" aria-label="Input files">
        ${files.map(({ path, sizeBytes }) => html`<li key=${path}><code dir="auto">${path}</code> <span class="meta">${bytes(Number(sizeBytes ?? 0))}</span></li>`)}
      </ul>`}
    </details>`;
  }, [files, isOpen]);
}

/** The link to the instance that one goes on from, and to those before it, as far as they are still there. */
export function Predecessors({ instance, hrefOf }) {
  const [earlier, setEarlier] = useState([]); // the ids before `continues`, the nearest first
  useEffect(() => {
    let isCurrent = true;
    async function load() {
      const ids = [];
      for (let id = instance.continues; ids.length < MAX_PREDECESSORS; ids.push(id)) {
        ({ continues: id } = await getInstance(id));
        if (!isCurrent || !id || ids.includes(id)) break; // an id may have been given again
        setEarlier([...ids, id]);
      }
    }
    load().catch(() => {}); // it was deleted, or there is an outage: the link stays
    return () => {
      isCurrent = false;
    };
  }, [instance.continues]);
  return html`<span class="predecessors">
    continues <a href=${hrefOf(instance.continues)}>${instance.continues}</a>
    ${earlier.map((id) => html`<span key=${id}>, which continues <a href=${hrefOf(id)}>${id}</a></span>`)}
  </span>`;
}
