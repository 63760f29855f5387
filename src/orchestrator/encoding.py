"""Decode text files as editors and shells write them."""

import codecs
from typing import Final

_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MEND: Final = "save it as UTF-8"


def decode(data: bytes) -> str:
    r"""Decode UTF-8 bytes, without a byte-order mark and with \n at the end of its lines.

    Raise ValueError whose message follows the file's name: `is UTF-16 text: save it as UTF-8`.
    """
    if data.startswith(_UTF_16):
        raise ValueError(f"is UTF-16 text: {_MEND}")
    if b"\0" in data:
        raise ValueError(f"is not UTF-8 text, but UTF-16 or no text at all: {_MEND}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"is not UTF-8 text: {_MEND}") from None
    return text.replace("\r\n", "\n")
