// Renders Markdown of a model's output as DOM. It is not trusted: raw HTML in it is shown as text (markdown-it), the
// result is reduced to the tags and attributes below (DOMPurify), and the page's Content-Security-Policy blocks scripts
// in any case. Images become links: loading one would reveal the reader to its server.
import { CopyButton } from './copy.js';
import { highlight } from './highlighting.js';
import { html, render, useLayoutEffect, useRef } from './ui.js';
import DOMPurify from './vendor/dompurify.js';
import MarkdownIt from './vendor/markdown-it.js';

const SANITIZER = {
  ALLOWED_TAGS: [
    ...['h3', 'h4', 'h5', 'h6', 'p', 'br', 'hr', 'blockquote', 'pre', 'code', 'strong', 'em', 's', 'a'],
    ...['ul', 'ol', 'li', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ],
  ALLOWED_ATTR: ['href', 'title', 'start', 'class'],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};
const MAX_LENGTH = 500_000; // characters; a longer text is shown as it is

const markdown = new MarkdownIt({ html: false, linkify: false });

// The page has h1 and h2 of its own.
markdown.core.ruler.push('headings', ({ tokens }) => {
  for (const token of tokens) {
    if (token.type.startsWith('heading_')) token.tag = `h${Math.min(6, Number(token.tag[1]) + 2)}`;
  }
});

markdown.renderer.rules.image = (tokens, index) => {
  const { escapeHtml } = markdown.utils;
  const [source, name] = [tokens[index].attrGet('src'), tokens[index].content];
  return `<a href="${escapeHtml(source)}">${escapeHtml(name || source)}</a>`;
};

/** Render Markdown to a DocumentFragment that cannot run scripts; its code is highlighted asynchronously. */
function toFragment(text, { highlightsCode = true } = {}) {
  const fragment = DOMPurify.sanitize(markdown.render(text), SANITIZER);
  for (const link of fragment.querySelectorAll('a')) {
    if (!link.hasAttribute('href')) continue; // its address was not allowed: a path of this service, for example
    link.target = '_blank';
    link.rel = 'noopener noreferrer nofollow';
  }
  for (const pre of fragment.querySelectorAll('pre')) wrapCode(pre, highlightsCode);
  for (const table of fragment.querySelectorAll('table')) table.replaceWith(scrollable(table.cloneNode(true), 'Table'));
  return fragment;
}

/** Wrap code in a figure with its language and a button that copies it. */
function wrapCode(pre, highlightsCode) {
  const code = pre.querySelector('code');
  const language = (code?.className ?? '').replace('language-', '');
  code?.removeAttribute('class');
  const figure = document.createElement('figure');
  figure.className = 'code';
  pre.replaceWith(figure);
  render(
    html`<figcaption>${language || 'text'}<${CopyButton} text=${pre.textContent} what="code" /></figcaption>`,
    figure,
  );
  figure.append(scrollable(pre, `Code, ${language || 'text'}`));
  if (highlightsCode && code) highlight(code, language);
}

/** Wrap an element in a group that scrolls sideways, by keyboard too; there may be hundreds, so they are no landmarks. */
function scrollable(element, name) {
  const group = document.createElement('div');
  group.className = 'scrollable';
  group.tabIndex = 0;
  group.role = 'group';
  group.ariaLabel = name;
  group.append(element);
  return group;
}

/** `isWriting`: more of the text is coming; it is rendered ten times a second, so its code is highlighted at the end. */
export function Markdown({ text, isWriting = false }) {
  const element = useRef();
  useLayoutEffect(() => {
    element.current.classList.toggle('pre', text.length > MAX_LENGTH);
    if (text.length > MAX_LENGTH) element.current.textContent = text;
    else element.current.replaceChildren(toFragment(text, { highlightsCode: !isWriting }));
  }, [text, isWriting]);
  return html`<div class="markdown" dir="auto" ref=${element}></div>`;
}
