import { html, useState } from './ui.js';

/** Copies a text; browsers let only pages of a secure context do so, which loopback is. */
export function CopyButton({ text, what, label = 'Copy' }) {
  const [said, say] = useState('');
  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
      say('Copied');
    } catch {
      say('The browser does not allow it');
    }
  }
  return html`<button type="button" class="copy" aria-label=${`${label} ${what}`} onClick=${copy} onBlur=${() => say('')}>
    ${label}<span class="said" role="status">${said}</span>
  </button>`;
}
