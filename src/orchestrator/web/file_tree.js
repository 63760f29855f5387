// A tree of files: one stop of the Tab key, and arrow keys within, as the ARIA Authoring Practices have it. Only the rows in
// open folders are rendered.
import { html, useRef, useState } from './ui.js';

const MAX_OPEN_ROWS = 60; // more files than that: only folders with changed files are open at first
const CHANGES = { added: { mark: '+', name: 'new' }, edited: { mark: '±', name: 'changed' } };

/**
 * Build the tree of files {path, change, …} with any order: [{name, path, children}] for folders, [{name, path, file}] for
 * files, folders first, each by name.
 */
export function treeOf(files) {
  const root = { children: new Map() };
  for (const file of files) {
    const names = file.path.split('/');
    let folder = root;
    names.slice(0, -1).forEach((name, depth) => {
      const path = names.slice(0, depth + 1).join('/');
      if (!folder.children.has(`${name}/`)) folder.children.set(`${name}/`, { name, path, children: new Map() });
      folder = folder.children.get(`${name}/`);
    });
    const name = names.at(-1);
    folder.children.set(name, { name, path: file.path, file });
  }
  return sorted(root);
}

function sorted({ children }) {
  const nodes = [...children.values()].map((node) => (node.children ? { ...node, children: sorted(node) } : node));
  const isFile = (node) => Number(!node.children);
  return nodes.sort((one, other) => isFile(one) - isFile(other) || (one.name < other.name ? -1 : 1));
}

/** List the rows that are shown: {node, level, position, size, parent}, with the place among those of its folder. */
function rowsOf(nodes, openPaths, level = 1, parent = null) {
  return nodes.flatMap((node, index) => {
    const row = { node, level, position: index + 1, size: nodes.length, parent };
    return openPaths.has(node.path) ? [row, ...rowsOf(node.children, openPaths, level + 1, node.path)] : [row];
  });
}

/** Return the paths of the folders that are open at first. */
function initiallyOpen(files) {
  const shown = files.length > MAX_OPEN_ROWS ? files.filter(({ change }) => change) : files;
  const paths = new Set();
  if (shown.length > MAX_OPEN_ROWS) return paths;
  for (const { path } of shown) {
    const names = path.split('/');
    for (let depth = 1; depth < names.length; depth += 1) paths.add(names.slice(0, depth).join('/'));
  }
  return paths;
}

/** `files`: {path, change: 'added', 'edited' or ''}. `onSelect(path)`: a file was chosen. */
export function FileTree({ files, label, selectedPath, onSelect }) {
  const [tree] = useState(() => treeOf(files));
  const [openPaths, setOpenPaths] = useState(() => initiallyOpen(files));
  const [activePath, setActivePath] = useState(tree[0]?.path); // of the row that the Tab key reaches
  const list = useRef();
  const rows = rowsOf(tree, openPaths);
  const activeIndex = Math.max(0, rows.findIndex(({ node }) => node.path === activePath));

  function toggle(path) {
    const paths = new Set(openPaths);
    if (!paths.delete(path)) paths.add(path);
    setOpenPaths(paths);
  }

  function choose({ node }) {
    setActivePath(node.path);
    if (node.children) toggle(node.path);
    else onSelect(node.path);
  }

  const focusRow = (index) => list.current.children[index]?.focus();

  function onKeyDown(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const row = rows[activeIndex];
    const isOpen = openPaths.has(row.node.path);
    const actions = {
      ArrowDown: () => focusRow(activeIndex + 1),
      ArrowUp: () => focusRow(activeIndex - 1),
      Home: () => focusRow(0),
      End: () => focusRow(rows.length - 1),
      Enter: () => choose(row),
      ' ': () => choose(row),
      ArrowRight: () => row.node.children && (isOpen ? focusRow(activeIndex + 1) : toggle(row.node.path)),
      ArrowLeft: () => (isOpen ? toggle(row.node.path) : focusRow(rows.findIndex(({ node }) => node.path === row.parent))),
    };
    const action = actions[event.key] ?? (event.key.length === 1 && (() => focusNamed(event.key)));
    if (!action) return;
    event.preventDefault();
    action();
  }

  /** Focus the next row whose name starts with a letter. */
  function focusNamed(letter) {
    const following = [...rows.slice(activeIndex + 1), ...rows.slice(0, activeIndex)];
    const found = following.find(({ node }) => node.name.toLowerCase().startsWith(letter.toLowerCase()));
    if (found) focusRow(rows.indexOf(found));
  }

  return html`<ul class="file-tree" role="tree" aria-label=${label} ref=${list} onKeyDown=${onKeyDown}>
    ${rows.map(
      (row, index) => html`<${Row}
        key=${row.node.path}
        row=${row}
        isOpen=${openPaths.has(row.node.path)}
        isActive=${index === activeIndex}
        isSelected=${row.node.path === selectedPath}
        onFocus=${() => setActivePath(row.node.path)}
        onClick=${() => choose(row)}
      />`,
    )}
  </ul>`;
}

function Row({ row, isOpen, isActive, isSelected, onFocus, onClick }) {
  const { node, level, position, size } = row;
  const change = CHANGES[node.file?.change];
  return html`<li
    role="treeitem"
    class=${['file-row', node.file?.change, isSelected && 'selected'].filter(Boolean).join(' ')}
    style=${{ '--level': level }}
    tabindex=${isActive ? 0 : -1}
    aria-level=${level}
    aria-posinset=${position}
    aria-setsize=${size}
    aria-expanded=${node.children ? String(isOpen) : null}
    aria-selected=${node.children ? null : String(isSelected)}
    aria-label=${change ? `${node.name}, ${change.name}` : node.name}
    title=${node.path}
    onFocus=${onFocus}
    onClick=${onClick}
  >
    <span class="mark" aria-hidden="true">${node.children ? (isOpen ? '▾' : '▸') : ''}</span>
    <span class="name" dir="auto">${node.name}${node.children && '/'}</span>
    ${change && html`<span class="change" aria-hidden="true">${change.mark}</span>`}
  </li>`;
}
