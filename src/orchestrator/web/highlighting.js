// Syntax colours for code in a model's output. The highlighter is loaded when the first code is shown; its HTML is
// sanitised by DOMPurify, as all other HTML is.
import DOMPurify from './vendor/dompurify.js';

const SANITIZER = { ALLOWED_TAGS: ['span'], ALLOWED_ATTR: ['class'], RETURN_DOM_FRAGMENT: true };
const MAX_LENGTH = 100_000; // characters; longer code stays plain, since highlighting it would block the page
// Names of languages that models use and the highlighter does not know.
const ALIASES = { console: 'shell', docker: 'dockerfile', containerfile: 'dockerfile', env: 'ini', dotenv: 'ini', jsonl: 'json', vue: 'xml' };

let loading = null; // a promise of the highlighter

/** Colour the code in an element; the language starts the fence's info string, as in `ts`, `js{1,3}` or `python:app.py`. */
export async function highlight(element, infoString) {
  const text = element.textContent;
  const name = infoString.toLowerCase().match(/^[\w+#.-]*/)[0];
  if (!name || text.length > MAX_LENGTH) return;
  loading ??= load();
  const highlighter = await loading.catch(() => (loading = null)); // the next code loads it again
  const language = ALIASES[name] ?? name;
  if (!highlighter?.getLanguage(language)) return;
  const { value } = highlighter.highlight(text, { language, ignoreIllegals: true });
  element.replaceChildren(DOMPurify.sanitize(value, SANITIZER));
}

async function load() {
  const [{ default: highlighter }, { default: dockerfile }] = await Promise.all([
    import('./vendor/highlight.js'),
    import('./vendor/highlight-dockerfile.js'),
  ]);
  highlighter.registerLanguage('dockerfile', dockerfile);
  return highlighter;
}
