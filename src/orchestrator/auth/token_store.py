"""The tokens that the service takes: the file, read again when it has changed."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from orchestrator.auth import last_used, token_file, tokens
from orchestrator.auth.caller import Caller
from orchestrator.auth.token_file import Token, Tokens
from orchestrator.core.quota import Quota
from orchestrator.errors import SettingsError, UnauthenticatedError

_LOGGER: Final = logging.getLogger(__name__)

_CHECK_S: Final = 1.0
"""How often, at most, the file is looked at."""
_WRITE_S: Final = 10.0
"""How often, at most, the times of last use are written."""
_Version = tuple[int, int, int, int]


class TokenStore:
    """Authenticates tokens. Make it with `open`, and close it."""

    def __init__(self, path: Path, clock_s: Callable[[], float]) -> None:
        self._path = path
        self._clock_s = clock_s
        self._checked_s = clock_s()
        self._version: _Version | None = None
        self._file = Tokens()
        self._by_digest: dict[str, Token] = {}
        self._used_s: dict[str, float] = {}
        """Uses that are not written yet, by digest."""
        self._written_s = -_WRITE_S
        self._writing: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, path: Path, clock_s: Callable[[], float] = time.monotonic) -> Self:
        """Read the file; raise SettingsError where it cannot be."""
        store = cls(path, clock_s)
        store._version = _version(path)
        store._set(token_file.load(path))
        return store

    def quota(self, tenant: str) -> Quota:
        """Return what a tenant may use."""
        self._refresh()
        return self._file.quota(tenant)

    def authenticate(self, text: str) -> Caller:
        """Return who calls with a token; raise UnauthenticatedError."""
        self._refresh()
        digest = tokens.digest(text)
        token = self._by_digest.get(digest)
        # The look-up may tell by its time about digests, which no one can choose; no token follows from them.
        if token is None or not hmac.compare_digest(token.sha256, digest):
            why = "was revoked, or is another service's" if tokens.is_well_formed(text) else "is not whole"
            raise UnauthenticatedError("TOKEN_INVALID", f"the token is not known here: it {why}")
        if token.is_expired(datetime.now(UTC)):
            raise UnauthenticatedError(
                "TOKEN_INVALID", f"the token {token.name!r} has expired: ask for a new one"
            )
        self._note_use(digest)
        return token.caller

    async def aclose(self) -> None:
        """Write the times of last use."""
        if self._writing:
            await self._writing
        if self._used_s:
            await self._write()

    def _note_use(self, digest: str) -> None:
        self._used_s[digest] = time.time()
        is_due = self._clock_s() - self._written_s >= _WRITE_S
        if is_due and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        used_s, self._used_s = self._used_s, {}
        self._written_s = self._clock_s()
        await asyncio.to_thread(last_used.merge, last_used.path_beside(self._path), used_s)

    def _refresh(self) -> None:
        """Read the file again where it has changed.

        One that is gone means no tokens. One that cannot be read is a mistake that must not lock all callers
        out: the tokens stay as they were.
        """
        now_s = self._clock_s()
        if now_s - self._checked_s < _CHECK_S:
            return
        self._checked_s = now_s
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        if version is None:
            _LOGGER.error("%s is gone: no token is taken until it is back", self._path)
            self._set(Tokens())
            return
        try:
            self._set(token_file.load(self._path))
        except SettingsError as error:
            _LOGGER.error("the tokens stay as they were: %s", error)  # noqa: TRY400  the message says it all
        else:
            _LOGGER.info("%s has changed: %d tokens", self._path, len(self._by_digest))

    def _set(self, file: Tokens) -> None:
        self._file = file
        self._by_digest = {token.sha256: token for token in file.tokens}


def _version(path: Path) -> _Version | None:
    """Return what changes with the file; None: it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size, stat.st_mode
