"""Tokens: what they look like. They hold 256 random bits, so a bare SHA-256 of one gives nothing away."""

import hashlib
import secrets
import zlib
from typing import Final

PREFIX: Final = "orc_"
"""What secret scanners find one by: `orc_[0-9a-f]{72}`."""
_RANDOM_BYTES: Final = 32
_CHECKSUM_DIGITS: Final = 8
_LENGTH: Final = len(PREFIX) + 2 * _RANDOM_BYTES + _CHECKSUM_DIGITS


def generate() -> str:
    """Return a new token: the prefix, random hexadecimal digits, and their CRC-32."""
    text = PREFIX + secrets.token_hex(_RANDOM_BYTES)
    return text + _checksum(text)


def is_well_formed(text: str) -> bool:
    """Return whether this can be a token: one that was cut or mistyped has a wrong checksum."""
    body, checksum = text[:-_CHECKSUM_DIGITS], text[-_CHECKSUM_DIGITS:]
    return len(text) == _LENGTH and text.isascii() and text.startswith(PREFIX) and checksum == _checksum(body)


def digest(text: str) -> str:
    """Return what is stored of a token: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):0{_CHECKSUM_DIGITS}x}"
