"""Which language a file's name says that it is in, as code blocks name languages."""

from collections.abc import Mapping
from typing import Final

_EXTENSIONS: Final = {
    "ada": "adb ads",
    "asciidoc": "adoc asciidoc",
    "asm": "asm s",
    "astro": "astro",
    "awk": "awk",
    "bat": "bat cmd",
    "bazel": "bazel bzl",
    "bibtex": "bib",
    "bicep": "bicep",
    "c": "c h",
    "clojure": "clj cljc cljs edn",
    "cmake": "cmake",
    "coffeescript": "coffee",
    "cpp": "cc cpp cxx c++ hh hpp hxx h++ ino ipp",
    "crystal": "cr",
    "csharp": "cs csx",
    "css": "css",
    "csv": "csv",
    "cuda": "cu cuh",
    "cython": "pyx pxd",
    "dart": "dart",
    "diff": "diff patch",
    "dockerfile": "dockerfile containerfile",
    "dot": "dot gv",
    "elixir": "ex exs eex heex leex",
    "elm": "elm",
    "erlang": "erl hrl",
    "fortran": "f f03 f08 f90 f95",
    "fsharp": "fs fsi fsx fsproj",
    "gdscript": "gd",
    "gherkin": "feature",
    "glsl": "glsl vert frag",
    "go": "go",
    "gradle": "gradle",
    "graphql": "gql graphql graphqls",
    "groovy": "groovy",
    "haml": "haml",
    "handlebars": "handlebars hbs",
    "haskell": "hs lhs cabal",
    "hcl": "hcl tf tfvars nomad",
    "html": "html htm xhtml",
    "ini": "cfg conf ini properties service",
    "java": "java",
    "javascript": "js cjs mjs",
    "jinja": "j2 jinja jinja2 tmpl tpl",
    "json": "json webmanifest ipynb geojson har",
    "json5": "json5",
    "jsonc": "jsonc code-workspace",
    "jsonl": "jsonl ndjson",
    "jsx": "jsx",
    "julia": "jl",
    "just": "just",
    "kotlin": "kt kts",
    "less": "less",
    "liquid": "liquid",
    "lisp": "el lisp lsp scm",
    "lua": "lua",
    "makefile": "mak mk",
    "markdown": "markdown md",
    "mdx": "mdx",
    "mermaid": "mermaid mmd",
    "meson": "meson",
    "metal": "metal",
    "nim": "nim nims nimble",
    "nix": "nix",
    "objectivec": "m mm",
    "ocaml": "ml mli mly",
    "pascal": "pas pp dpr",
    "perl": "pl pm",
    "php": "php phtml",
    "plaintext": "txt lock",
    "powershell": "ps1 psd1 psm1",
    "prisma": "prisma",
    "protobuf": "proto",
    "pug": "pug jade",
    "puppet": "puppet",
    "python": "py pyi pyw wsgi",
    "qml": "qml",
    "r": "r rmd",
    "racket": "rkt",
    "rego": "rego",
    "rst": "rst",
    "ruby": "rb erb gemspec rake ru",
    "rust": "rs",
    "sass": "sass",
    "scala": "scala sbt sc",
    "scss": "scss",
    "shell": "sh bash zsh fish ksh",
    "solidity": "sol",
    "sql": "sql psql",
    "stylus": "styl",
    "svelte": "svelte",
    "svg": "svg",
    "swift": "swift",
    "tcl": "tcl",
    "tex": "tex latex sty",
    "thrift": "thrift",
    "toml": "toml",
    "tsv": "tsv",
    "tsx": "tsx",
    "typescript": "ts cts mts",
    "vala": "vala",
    "verilog": "sv svh v vh",
    "vhdl": "vhd vhdl",
    "vim": "vim",
    "vue": "vue",
    "wasm": "wat wast",
    "wgsl": "wgsl",
    "xml": "xml csproj dtd plist resx targets vbproj xaml xsd xsl xslt wsdl",
    "yaml": "yaml yml",
    "zig": "zig",
}
_NAMES: Final = {
    "bash": ".bashrc .bash_profile .profile .zshrc",
    "cmake": "CMakeLists.txt",
    "dockerfile": "Containerfile Dockerfile",
    "git": ".dockerignore .eslintignore .gitattributes .gitignore .gitmodules .helmignore .npmignore "
    ".prettierignore",
    "dotenv": ".env",
    "go.mod": "go.mod",
    "go.sum": "go.sum",
    "groovy": "Jenkinsfile",
    "ini": ".editorconfig .flake8 .npmrc .pylintrc",
    "json": ".babelrc .eslintrc .prettierrc .stylelintrc .swcrc",
    "just": "Justfile justfile",
    "makefile": "GNUmakefile Makefile makefile",
    "plaintext": "AUTHORS CHANGELOG CODEOWNERS CONTRIBUTING COPYING LICENCE LICENSE NOTICE Procfile README "
    "UNLICENSE py.typed .browserslistrc .coveragerc .htaccess .mailmap .node-version .nvmrc .python-version "
    ".ruby-version .tool-versions",
    "ruby": "Brewfile Capfile Fastfile Gemfile Guardfile Podfile Rakefile Vagrantfile",
    "starlark": "Tiltfile",
    "caddyfile": "Caddyfile",
    "yaml": ".clang-format .clang-tidy",
}


def _inverted(table: Mapping[str, str]) -> Mapping[str, str]:
    return {name: language for language, names in table.items() for name in names.split()}


_BY_EXTENSION: Final = _inverted(_EXTENSIONS)
_BY_NAME: Final = _inverted(_NAMES)


def of(path: str) -> str:
    """Return the language of a file, as in `python`; empty: its name does not tell."""
    name = path.rpartition("/")[2]
    stem, _, extension = name.rpartition(".")
    found = _BY_NAME.get(name) or (_BY_EXTENSION.get(extension.lower()) if stem else None)
    return found or _BY_NAME.get(name[:1] + name[1:].partition(".")[0], "")


def is_known(path: str) -> bool:
    """Return whether a file's name is a usual one, as `Makefile`, or has a usual ending, as `.py`."""
    return bool(of(path))
