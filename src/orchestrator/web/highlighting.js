// Colours for code that a model wrote. The highlighter is loaded with the first code that there is; what it makes is
// HTML, and goes through DOMPurify as all else does.
import DOMPurify from './vendor/dompurify.js';

const ALLOWED = { ALLOWED_TAGS: ['span'], ALLOWED_ATTR: ['class'], RETURN_DOM_FRAGMENT: true };
const LONGEST = 100_000; // characters; longer code stays plain, so that the page does not stand still
// What models call languages that the highlighter knows by another name.
const OTHER_NAMES = { console: 'shell', docker: 'dockerfile', containerfile: 'dockerfile', env: 'ini', dotenv: 'ini', jsonl: 'json', vue: 'xml' };

let highlighter = null; // a promise

/** Colour the code in an element, whose language is a fence's first word, as in `ts`, `js{1,3}` or `python:app.py`. */
export async function highlight(element, fence) {
  const text = element.textContent;
  const name = fence.toLowerCase().match(/^[\w+#.-]*/)[0];
  if (!name || text.length > LONGEST) return;
  highlighter ??= load();
  const hljs = await highlighter.catch(() => (highlighter = null)); // the next code asks for it again
  const language = OTHER_NAMES[name] ?? name;
  if (!hljs?.getLanguage(language)) return;
  const { value } = hljs.highlight(text, { language, ignoreIllegals: true });
  element.replaceChildren(DOMPurify.sanitize(value, ALLOWED));
}

async function load() {
  const [{ default: hljs }, { default: dockerfile }] = await Promise.all([
    import('./vendor/highlight.js'),
    import('./vendor/highlight-dockerfile.js'),
  ]);
  hljs.registerLanguage('dockerfile', dockerfile);
  return hljs;
}
