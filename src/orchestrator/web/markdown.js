// Markdown that a model wrote, as DOM. It is not trusted: raw HTML in it is shown as text (markdown-it), what
// comes out is reduced to the tags and attributes below (DOMPurify), and the page's Content-Security-Policy
// would run nothing of it anyway. Pictures become links: showing one would tell its server who reads.
import { CopyButton } from './copy.js';
import { highlight } from './highlighting.js';
import { html, render, useLayoutEffect, useRef } from './ui.js';
import DOMPurify from './vendor/dompurify.js';
import MarkdownIt from './vendor/markdown-it.js';

const ALLOWED = {
  ALLOWED_TAGS: [
    ...['h3', 'h4', 'h5', 'h6', 'p', 'br', 'hr', 'blockquote', 'pre', 'code', 'strong', 'em', 's', 'a'],
    ...['ul', 'ol', 'li', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ],
  ALLOWED_ATTR: ['href', 'title', 'start', 'class'],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};
const LONGEST = 500_000; // characters; beyond that a text is shown as it is

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

/** Markdown as a DocumentFragment in which nothing can run; the code in it gets its colours a little later. */
export function toFragment(text, { isHighlighted = true } = {}) {
  const fragment = DOMPurify.sanitize(markdown.render(text), ALLOWED);
  for (const link of fragment.querySelectorAll('a')) {
    // A path of this service, or nothing at all, is not where a model may lead.
    if (!link.hasAttribute('href')) continue;
    link.target = '_blank';
    link.rel = 'noopener noreferrer nofollow';
  }
  for (const pre of fragment.querySelectorAll('pre')) frame(pre, isHighlighted);
  for (const table of fragment.querySelectorAll('table')) table.replaceWith(scrolling(table.cloneNode(true), 'Table'));
  return fragment;
}

/** Code in a frame that names its language and copies it. */
function frame(pre, isHighlighted) {
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
  figure.append(scrolling(pre, `Code, ${language || 'text'}`));
  if (isHighlighted && code) highlight(code, language);
}

/** What is wider than the page scrolls by itself, with the keyboard too. */
function scrolling(element, name) {
  const region = document.createElement('div');
  region.className = 'scrolling';
  region.tabIndex = 0;
  region.role = 'region';
  region.ariaLabel = name;
  region.append(element);
  return region;
}

/** `isWriting`: there will be more of it soon; colours wait until it is whole, since it is drawn anew ten times a second. */
export function Markdown({ text, isWriting = false }) {
  const element = useRef();
  useLayoutEffect(() => {
    element.current.classList.toggle('pre', text.length > LONGEST);
    if (text.length > LONGEST) element.current.textContent = text;
    else element.current.replaceChildren(toFragment(text, { isHighlighted: !isWriting }));
  }, [text, isWriting]);
  return html`<div class="markdown" dir="auto" ref=${element}></div>`;
}
