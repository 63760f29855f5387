"""Bodies that an endpoint compressed, decompressed in pieces of a bounded size.

A few bytes may stand for a thousand times as many: what is decompressed in one go is bounded.
"""

import zlib
from collections.abc import Iterator
from typing import Any, Final

ACCEPTED: Final = "gzip, deflate"
"""The encodings that are asked for; no other is understood, nor are several on top of each other."""

_MAX_PIECE_BYTES: Final = 16 * 1024
_GZIP: Final = ("gzip", "x-gzip")
_GZIP_BITS: Final = zlib.MAX_WBITS | 16
_METHOD_BITS: Final = 0x0F
_DEFLATE: Final = 8
"""The compression method in the first byte of zlib's header; a bare stream never begins with these bits."""


class EncodingError(ValueError):
    """A body cannot be decompressed."""


class Decompressor:
    """Takes a body's bytes as they come, and gives what they stand for."""

    def __init__(self, encoding: str) -> None:
        """Take the header Content-Encoding; raise EncodingError where it is not understood."""
        self._name = encoding.strip().lower()
        if self._name not in (*_GZIP, "deflate", "identity", ""):
            raise EncodingError(f"its encoding is {encoding[:40]!r}, which was not asked for")
        self._decompressor: Any = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk stands for, piece by piece; raise EncodingError where it is damaged."""
        if self._name in ("identity", ""):
            yield chunk
            return
        self._decompressor = self._decompressor or self._begin(chunk)
        while not self._decompressor.eof:
            try:
                piece = self._decompressor.decompress(chunk, _MAX_PIECE_BYTES)
            except zlib.error as error:
                raise EncodingError(f"its {self._name} is damaged ({error})") from None
            if piece:
                yield piece
            chunk = self._decompressor.unconsumed_tail
            if not chunk and len(piece) < _MAX_PIECE_BYTES:
                return

    def _begin(self, chunk: bytes) -> Any:
        if self._name in _GZIP:
            return zlib.decompressobj(_GZIP_BITS)
        # Some leave out the header that the standard wants.
        has_header = not chunk or chunk[0] & _METHOD_BITS == _DEFLATE
        return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
