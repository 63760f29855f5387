// Who uses the page: a service that asks for credentials is told them once, and the browser keeps them in a cookie that
// scripts cannot read. What was read under one session is not shown in another: the page is loaded again.
import { html, useEffect, useLayoutEffect, useRef, useState } from './ui.js';

const SESSION_PATH = '/-/session';
const listeners = new Set();
let signedOutReason = ''; // of the response that asked for credentials, as in errors of the service

/** Report a response that asks for credentials: the page asks for a token. */
export function reportSignedOut(reason) {
  signedOutReason ||= reason || 'TOKEN_MISSING';
  for (const listener of [...listeners]) listener(signedOutReason);
}

/** Return whether the service asks for credentials, so that requests are in vain. */
export function isSignedOut() {
  return signedOutReason !== '';
}

/** Return why the service asks for credentials; empty while it does not. */
export function useSignedOutReason() {
  const [reason, setReason] = useState(signedOutReason);
  useEffect(() => {
    listeners.add(setReason);
    setReason(signedOutReason);
    return () => listeners.delete(setReason);
  }, []);
  return reason;
}

/** Begin a session with a token; return what is wrong with it, for people, or null. */
async function signIn(token) {
  let response;
  try {
    response = await fetch(SESSION_PATH, { method: 'POST', headers: { authorization: `Bearer ${token}` } });
  } catch {
    return 'The service cannot be reached. Is it running? Try again.';
  }
  if (response.ok) return null;
  const { message } = await response.json().catch(() => ({}));
  if (response.status === 401) return 'The service does not know this token, or it has expired.';
  return message || `The service answered ${response.status}.`;
}

/** End the session, and show the page as it is without one. */
async function signOut() {
  await fetch(SESSION_PATH, { method: 'DELETE' });
  location.reload();
}

/** The form that asks for a token. `reason`: why. */
export function SignIn({ reason }) {
  const field = useRef();
  const [problem, setProblem] = useState('');
  const [isSending, setIsSending] = useState(false);
  useLayoutEffect(() => {
    field.current.focus();
    document.title = 'Sign in · Orchestrator';
  }, []);
  async function send(event) {
    event.preventDefault();
    setIsSending(true);
    // Headers hold bytes, so what is no token cannot even be sent.
    const token = field.current.value.trim();
    const found = /^[\x21-\x7e]+$/.test(token) ? await signIn(token) : 'This is no token: it has other characters than one.';
    if (!found) {
      location.reload();
      return;
    }
    setProblem(found);
    setIsSending(false);
    field.current.select();
  }
  return html`<main class="sign-in">
    <form onSubmit=${send}>
      <h1><img src="icon.svg" alt="" width="24" height="24" /> Sign in</h1>
      <p class="hint">${reason === 'TOKEN_MISSING' ? 'This service asks who you are.' : 'Your session has ended.'} A token is what <code>orchestrator token new</code> shows.</p>
      <label for="token">Token</label>
      <input id="token" ref=${field} type="password" autocomplete="current-password" required aria-describedby="token-problem" onInput=${() => setProblem('')} />
      <p id="token-problem" class="failure" role="alert">${problem}</p>
      <button class="primary" disabled=${isSending}>Sign in</button>
    </form>
  </main>`;
}

/** Who is signed in, `caller` of GetServiceInfo, and the way out; nothing where nobody has to sign in. */
export function SignedIn({ caller }) {
  if (!caller?.role) return null;
  return html`<span class="caller">
    <span class="meta" title=${`Signed in as ${caller.name}`}>${[caller.tenant, caller.role].filter(Boolean).join(' · ')}</span>
    <button class="quiet" onClick=${signOut}>Sign out</button>
  </span>`;
}
