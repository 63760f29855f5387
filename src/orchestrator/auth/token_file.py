"""The file of tokens, TOML: read by the service, changed by `orchestrator token`, or by hand.

[[tokens]]
name = "ci"
tenant = "acme"
role = "write"
sha256 = "…"
created = 2026-11-28T10:00:00Z
expires = 2027-02-26T10:00:00Z   # optional

[tenants.acme]                   # optional, as is each key
max_active = 10
max_queued = 100
max_cost_usd_per_day = 20.0
"""

import fcntl
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from orchestrator.auth.caller import TENANT, Caller, Role
from orchestrator.core.quota import NO_QUOTA, Quota
from orchestrator.encoding import decode
from orchestrator.errors import SettingsError

ANY_TENANT: Final = "*"
"""Under this name the file has the quotas of tenants that have none of their own."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TOKEN_KEYS: Final = frozenset({"name", "tenant", "role", "sha256", "created", "expires"})
_WRITABLE_BY_OTHERS: Final = 0o022
_OWN: Final = 0o600


class Token(NamedTuple):
    """A token, as the file has it."""

    name: str
    tenant: str
    role: Role
    sha256: str
    created: datetime | None = None
    expires: datetime | None = None
    """None: never."""

    @property
    def caller(self) -> Caller:
        """Who calls with it."""
        return Caller(self.name, self.tenant, self.role)

    def is_expired(self, now: datetime) -> bool:
        """Return whether its time is over."""
        return self.expires is not None and self.expires <= now


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the file holds."""

    tokens: Sequence[Token] = ()
    quotas: Mapping[str, Quota] = field(default_factory=dict)

    def quota(self, tenant: str) -> Quota:
        """Return a tenant's quota."""
        return self.quotas.get(tenant) or self.quotas.get(ANY_TENANT) or NO_QUOTA


def load(path: Path) -> Tokens:
    """Read the file; raise SettingsError that says what is wrong with it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _WRITABLE_BY_OTHERS:
                raise SettingsError(
                    f"{path} can be written by others, who could add tokens: chmod 600 {path}"
                )
            text = decode(file.read())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path} {error}") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Tokens:
    """Read the text of a file; raise SettingsError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    if unknown := sorted(table.keys() - {"tokens", "tenants"}):
        raise SettingsError(f"{path}: unknown key {unknown[0]!r}: known are [[tokens]] and [tenants.NAME]")
    entries, tenants = table.get("tokens", []), table.get("tenants", {})
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SettingsError(f"{path}: tokens must be a list of tables, each under [[tokens]]")
    if not isinstance(tenants, dict) or not all(isinstance(entry, dict) for entry in tenants.values()):
        raise SettingsError(f"{path}: tenants must be tables, as in [tenants.acme]")
    tokens = [_token(entry, f"{path}: token {number}") for number, entry in enumerate(entries, 1)]
    names = [token.name for token in tokens]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"{path}: two tokens are called {twice!r}: give each its own name")
    return Tokens(
        tokens, {name: _quota(entry, f"{path}: [tenants.{name}]") for name, entry in tenants.items()}
    )


def _token(entry: Mapping[str, Any], place: str) -> Token:
    if unknown := sorted(entry.keys() - _TOKEN_KEYS):
        raise SettingsError(
            f"{place}: unknown key {unknown[0]!r}: known are {', '.join(sorted(_TOKEN_KEYS))}"
        )
    texts = {key: entry.get(key, "") for key in ("name", "tenant", "role", "sha256")}
    if wrong := next((key for key, value in texts.items() if not isinstance(value, str)), None):
        raise SettingsError(f"{place}: {wrong} must be a text in quotes")
    name, tenant = texts["name"], texts["tenant"]
    check_name("name", name, place)
    if tenant:
        check_name("tenant", tenant, place)
    if not _SHA256.fullmatch(texts["sha256"]):
        raise SettingsError(f"{place}, {name}: sha256 must be the 64 hexadecimal digits of its SHA-256")
    return Token(
        name, tenant, role(texts["role"], f"{place}, {name}"), texts["sha256"],
        _time(entry, "created", f"{place}, {name}"), _time(entry, "expires", f"{place}, {name}"),
    )  # fmt: skip


def check_name(key: str, value: str, place: str) -> None:
    """Raise SettingsError unless it can be the name of a token or a tenant."""
    if not TENANT.fullmatch(value):
        raise SettingsError(
            f"{place}: {key} is {value[:120]!r}: it must be 1 to 100 letters, digits, and . _ @ -, "
            "and begin with none of . @ -"
        )


def role(name: str, place: str) -> Role:
    """Return a role by its name; raise SettingsError."""
    try:
        return Role(name)
    except ValueError:
        known = ", ".join(each.value for each in Role)
        raise SettingsError(f"{place}: role is {name[:120]!r}: it must be one of {known}") from None


def _time(entry: Mapping[str, Any], key: str, place: str) -> datetime | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise SettingsError(f"{place}: {key} must be a time, as in 2026-11-28T10:00:00Z")
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _quota(entry: Mapping[str, Any], place: str) -> Quota:
    if unknown := sorted(entry.keys() - set(Quota._fields)):
        raise SettingsError(f"{place}: unknown key {unknown[0]!r}: known are {', '.join(Quota._fields)}")
    for key, value in entry.items():
        kinds = (int, float) if key == "max_cost_usd_per_day" else (int,)
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value < float("inf"):
            what = "a number" if float in kinds else "a whole number"
            raise SettingsError(f"{place}: {key} is {value!r}: it must be {what} from 0")
    return Quota(**entry)


def add(path: Path, token: Token) -> None:
    """Add a token to the file, which is made when it is not there; raise SettingsError.

    What else the file holds stays as it is, comments too.
    """
    with _changing(path) as document:
        if any(entry.get("name") == token.name for entry in document.get("tokens", ())):
            raise SettingsError(
                f"{path} has a token {token.name!r} already: revoke that one, or choose another name"
            )
        entry = {
            "name": token.name,
            "tenant": token.tenant,
            "role": token.role.value,
            "sha256": token.sha256,
            "created": token.created,
            "expires": token.expires,
        }
        import tomlkit  # noqa: PLC0415  as in `_changing`

        table = tomlkit.table()
        table.update({key: value for key, value in entry.items() if value is not None})
        if "tokens" not in document:
            document.append("tokens", tomlkit.aot())
        document["tokens"].append(table)


def remove(path: Path, name: str) -> None:
    """Take a token out of the file; raise SettingsError where there is none of that name."""
    with _changing(path) as document:
        entries = document.get("tokens", [])
        found = [number for number, entry in enumerate(entries) if entry.get("name") == name]
        if not found:
            raise SettingsError(f"{path} has no token {name!r}: see `orchestrator token list`")
        del entries[found[0]]


@contextmanager
def _changing(path: Path) -> Iterator[Any]:
    """Change the file's document in one step, one writer at a time; readers see it before or after."""
    import tomlkit  # noqa: PLC0415  only the command changes the file, the service reads it

    try:
        path = path.resolve()  # a link stays a link
        with _locked(path):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            parse(text, path)
            document = tomlkit.parse(text)
            yield document
            changed = tomlkit.dumps(document)
            parse(changed, path)
            _replace(path, changed)
    except OSError as error:
        raise SettingsError(f"{path} cannot be changed: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text: save it as UTF-8") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock beside the file, which is itself replaced by each change."""
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _OWN)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace(path: Path, text: str) -> None:
    """Replace a file durably, with one that its owner alone can read; keep the owner that it has."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), _OWN)
            if path.exists() and os.geteuid() == 0:
                stat = path.stat()
                os.fchown(file.fileno(), stat.st_uid, stat.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
