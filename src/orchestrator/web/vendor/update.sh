#!/usr/bin/env bash
# Brings the libraries of README.md in here from their npm packages: bash update.sh
set -euo pipefail
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# package@version, the file in it, its name here
take() {
  local archive
  archive=$(npm pack --silent --pack-destination "$folder" "$1")
  rm -rf "$folder/package"
  tar -xzf "$folder/$archive" -C "$folder"
  # Without the maps that are not here, and with imports that need no bundler.
  sed -e '/^\/\/# sourceMappingURL=/d' -e 's|from"preact"|from"./preact.js"|' "$folder/package/$2" >"$3.js"
  cp "$folder/package/LICENSE" "licenses/$3.txt"
}

mkdir -p licenses
take preact@11.2.0 dist/preact.mjs preact
take preact@11.2.0 hooks/dist/hooks.mjs preact-hooks
take htm@3.1.1 dist/htm.mjs htm
take markdown-it@15.0.3 dist/browser/markdown-it.esm.min.mjs markdown-it
take dompurify@3.4.18 dist/purify.es.mjs dompurify
take @highlightjs/cdn-assets@11.12.0 es/highlight.min.js highlight
take @highlightjs/cdn-assets@11.12.0 es/languages/dockerfile.min.js highlight-dockerfile
rm licenses/preact-hooks.txt licenses/highlight-dockerfile.txt

# What markdown-it's browser build has inside.
for package in entities@8.1.0 linkify-it@6.1.0 mdurl@2.1.0 punycode.js@2.3.1 uc.micro@3.0.0; do
  archive=$(npm pack --silent --pack-destination "$folder" "$package")
  rm -rf "$folder/package"
  tar -xzf "$folder/$archive" -C "$folder" --wildcards 'package/LICENSE*'
  { echo "== ${package%@*}"; echo; cat "$folder"/package/LICENSE*; echo; } >>"$folder/inside"
done
cat "$folder/inside" >licenses/markdown-it-inside.txt
