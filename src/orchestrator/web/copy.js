import { html, useState } from './ui.js';

/** Copy a text when clicked. Browsers allow that only to pages of a secure context, which loopback is. */
export function CopyButton({ text, what, label = 'Copy' }) {
  const [status, setStatus] = useState('');
  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
      setStatus('Copied');
    } catch {
      setStatus('The browser does not allow it');
    }
  }
  return html`<button type="button" class="copy" aria-label=${`${label} ${what}`} onClick=${copy} onBlur=${() => setStatus('')}>
    ${label}<span class="status" role="status">${status}</span>
  </button>`;
}
