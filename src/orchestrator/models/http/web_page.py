"""Web pages in the place of an API's answer: of a proxy, a login, or a server that has no such path."""

import html
import re
from typing import Final

_READ_CHARACTERS: Final = 2048
"""How much of a body is looked through: some 10 ms at the worst."""
_FLAGS: Final = re.IGNORECASE | re.DOTALL
_PAGE: Final = re.compile(
    r"[\s\ufeff]*(?:<!--.{0,500}?-->\s*|<\?xml[^>]{0,200}>\s*)?<(?:!doctype html|html|head|body)\b", _FLAGS
)
_TITLE: Final = re.compile(r"<(title|h1)\b[^>]*>(.*?)</\1>", _FLAGS)
_MARKUP: Final = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", _FLAGS)


def is_page(text: str) -> bool:
    """Return whether a body is HTML, whatever its type says."""
    return _PAGE.match(text[:_READ_CHARACTERS]) is not None


def title(text: str) -> str:
    """Return what a page is called, or else the text that it begins with; it may be empty."""
    text = text[:_READ_CHARACTERS]
    found = _TITLE.search(text)
    return html.unescape(_MARKUP.sub(" ", found[2] if found else text)).strip()
