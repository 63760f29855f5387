// An instance's events, each in a line that expands to its payload.
import { CopyButton } from './copy.js';
import { kindOf } from './fold.js';
import { plural } from './format.js';
import { html, useState } from './ui.js';

const timeFormat = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });

export function EventLog({ events }) {
  return html`<details class="card log">
    <summary>${plural(events.length, 'event')}</summary>
    <ol>${events.map((event) => html`<${EventEntry} key=${event.sequence} event=${event} />`)}</ol>
  </details>`;
}

function EventEntry({ event }) {
  const [isOpen, setOpen] = useState(false);
  const kind = kindOf(event);
  const payload = event[kind] ?? {};
  const omitted = Number(event.omittedBytes ?? 0);
  const details = [
    payload.subtaskId ?? payload.subtask?.id,
    payload.attempt && `attempt ${payload.attempt}`,
    payload.error?.reason,
    omitted > 0 && `without ${plural(omitted, 'byte')} of its texts`,
  ];
  return html`<li value=${event.sequence}>
    <details onToggle=${(toggle) => setOpen(toggle.currentTarget.open)}>
      <summary>
        <time datetime=${event.eventTime}>${timeFormat.format(Date.parse(event.eventTime))}</time>
        <span class="kind">${kind?.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)}</span>
        <span class="meta">${details.filter(Boolean).join(' · ')}</span>
      </summary>
      ${isOpen && html`<${Payload} sequence=${event.sequence} payload=${payload} />`}
    </details>
  </li>`;
}

function Payload({ sequence, payload }) {
  const text = JSON.stringify(payload, null, 2);
  return html`<div class="text">
    <${CopyButton} text=${text} what=${`event ${sequence}`} />
    <pre class="pre">${text}</pre>
  </div>`;
}
