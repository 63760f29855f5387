"""The service's settings: `ORCHESTRATOR_*` variables, `orchestrator.toml`, then flags; the later wins."""

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

from orchestrator.errors import SettingsError

PREFIX: Final = "ORCHESTRATOR_"
FILE: Final = "orchestrator.toml"
_NOT_YET: Final = ("AUTH_TOKENS_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA")
"""Settings that must not be passed over in silence: who sets them relies on what they do."""
_UNITS_S: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_ORIGIN: Final = re.compile(r"https?://(?:[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::\d{1,5})?")
"""What a browser sends as `Origin`. No wildcard: any page at all could start instances, which cost money."""
EMBEDDED_MODEL: Final = "llama/smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default; the field's name in upper case, prefixed, is the variable's."""

    grpc_address: str = "127.0.0.1:50051"
    """Where gRPC listens: `host:port`, port 0 picks a free one. Loopback only."""
    rest_address: str = "127.0.0.1:8787"
    """Where Envoy listens for REST: `host:port`."""
    cors_origins: str = ""
    """Whose web pages may call REST besides this machine's: `https://app.example.com,…`."""
    database: str = "data/orchestrator.db"
    """The event log: a path, made with its folder when it is not there."""
    engine: str = "local"
    """What runs instances: `local`, asyncio in this process."""
    big_model: str = EMBEDDED_MODEL
    """Plans and synthesises, as `provider/model`."""
    small_model: str = EMBEDDED_MODEL
    """Works on subtasks, as `provider/model`."""
    max_active_instances: int = 1000
    """How many instances run at once; the rest are queued."""
    max_queued_instances: int = 10_000
    """How many may wait for their turn; beyond that CreateInstance answers QUEUE_FULL."""
    max_concurrent_calls: int = 64
    """How many model calls are open at once, over all instances."""
    retention: str = ""
    """How long finished instances are kept, as in 30d, 12h, 45m or 90s; empty: for ever."""
    prices: Mapping[str, object] = field(default_factory=dict)
    """What models cost where the known prices are wrong or silent, in the file only: `[prices]` with
    `"provider/model" = {input_usd = 1.0, output_usd = 4.0}`, dollars per million tokens."""
    workers: Sequence[object] = field(default_factory=list)
    """The workers that the planner chooses from, in the file only: `[[workers]]` with a `name` and, as
    wanted, `use`, `model`, `instructions`, `temperature` and `top_p`; see Worker in instance.proto."""
    idle_timeout_s: int = 120
    """How many seconds a model that streams its answer may be silent before the call is given up."""
    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        if self.engine != "local":
            raise SettingsError(f"{PREFIX}ENGINE is {self.engine!r}: this version has the engine 'local'")
        if self.database.startswith("postgresql:"):
            raise SettingsError(f"{PREFIX}DATABASE must be a path: this version keeps its log in SQLite")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise SettingsError(f"{PREFIX}LOG_LEVEL is {self.log_level!r}: use debug, info, warning or error")
        for name in (
            "max_active_instances",
            "max_queued_instances",
            "max_concurrent_calls",
            "idle_timeout_s",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"{PREFIX}{name.upper()} is {getattr(self, name)}: it must be at least 1")
        _ = self.retention_s  # refused now rather than later
        for name in ("grpc_address", "rest_address"):
            setting, address = PREFIX + name.upper(), getattr(self, name)
            host, _ = split_address(address, setting)
            if not _is_loopback(host):
                raise SettingsError(
                    f"{setting} is {address!r}: this version has no authentication and listens on loopback "
                    "only, as in 127.0.0.1; put a proxy that authenticates in front of it"
                )

        _ = self.origins

    @property
    def retention_s(self) -> float | None:
        """How many seconds finished instances are kept; None: for ever."""
        if not self.retention:
            return None
        number, unit = self.retention[:-1], self.retention[-1]
        if not number.isdecimal() or not int(number) or unit not in _UNITS_S:
            raise SettingsError(
                f"{PREFIX}RETENTION is {self.retention!r}: it must be a whole number with d, h, m or s, "
                "as in 30d"
            )
        return int(number) * _UNITS_S[unit]

    @property
    def origins(self) -> tuple[str, ...]:
        """`cors_origins`, taken apart; raise SettingsError when one is no origin."""
        origins = tuple(origin.strip() for origin in self.cors_origins.split(",") if origin.strip())
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"{PREFIX}CORS_ORIGINS has {origin!r}: it must be origins with commas between them, each "
                    "without a path or a wildcard, as in https://app.example.com"
                )
        return origins

    @classmethod
    def load(
        cls, environment: Mapping[str, str] = os.environ, folder: Path = Path(), **flags: object
    ) -> Self:
        """Read the settings; a flag that is None counts as not given. Raise SettingsError."""
        found: dict[str, object] = {}
        known = {field.name: field for field in fields(cls)}
        for name in _NOT_YET:
            if environment.get(PREFIX + name):
                raise SettingsError(f"{PREFIX}{name} is set, and this version does not have it: unset it")
        for name in known:
            if value := environment.get(PREFIX + name.upper()):
                found[name] = value
        file = folder / FILE
        if file.exists():
            try:
                table = tomllib.loads(file.read_text())
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                raise SettingsError(f"{file} cannot be read: {error}") from None
            if unknown := sorted(set(table) - set(known)):
                raise SettingsError(f"{file}: unknown setting {unknown[0]!r}; known are {', '.join(known)}")
            found |= table
        found |= {name: value for name, value in flags.items() if value is not None}
        defaults = cls()
        return cls(
            **{name: _typed(name, value, type(getattr(defaults, name))) for name, value in found.items()}
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _typed(name: str, value: object, kind: type) -> Any:
    if kind is int and not isinstance(value, int):
        try:
            return int(str(value))
        except ValueError:
            raise SettingsError(f"{PREFIX}{name.upper()} is {value!r}: it must be a whole number") from None
    if not isinstance(value, kind):
        described = "list of tables, each under [[workers]]" if kind is list else kind.__name__
        raise SettingsError(f"{name} is {value!r}: it must be a {described}")
    return value


def split_address(address: str, name: str) -> tuple[str, int]:
    """Split `host:port`; raise SettingsError that names the setting."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004  the last port
        raise SettingsError(f"{name} is {address!r}: it must be host:port, as in 127.0.0.1:8787")
    return host.strip("[]"), int(port)
