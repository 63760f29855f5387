"""The service's settings: `orchestrator.toml`, `ORCHESTRATOR_*` variables, then flags; the later wins."""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

import platformdirs

from orchestrator.encoding import decode
from orchestrator.errors import SettingsError
from orchestrator.tls import CertificateFiles

PREFIX: Final = "ORCHESTRATOR_"
FILE: Final = "orchestrator.toml"
_KUBERNETES_VARIABLE: Final = re.compile(
    r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
"""What Kubernetes sets, behind the prefix, in every container beside a service called orchestrator…."""
_FLAGS: Final = {"address": "grpc_address"}
"""Flags that are not called as the setting that they set."""
_IN_FILE_ONLY: Final[Mapping[type, str]] = {
    dict: "table, under [{name}] in " + FILE,
    bool: "true or false",
    list: "list of tables, each under [[{name}]] in " + FILE,
}
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_UNITS_S: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
_ORIGIN: Final = re.compile(r"https?://(?:[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::\d{1,5})?")
"""What a browser sends as `Origin`. No wildcard: any page at all could start instances, which cost money."""
_EARLIER_DATABASE: Final = "data/orchestrator.db"
EMBEDDED_MODEL: Final = "llama/smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default; the field's name in upper case, prefixed, is the variable's."""

    grpc_address: str = "127.0.0.1:50051"
    """Where gRPC listens: `host:port`, port 0 picks a free one. On another address than loopback it needs TLS
    and credentials; see `check_exposure`."""
    rest_address: str = "127.0.0.1:8787"
    """Where Envoy listens for REST: `host:port`."""
    cors_origins: str = ""
    """Whose web pages may call REST besides this machine's: `https://app.example.com,…`."""
    allowed_hosts: str = ""
    """By which names REST may be called besides this machine's, as a proxy in front hands them on:
    `app.example.com,…`."""
    tls_cert: str = ""
    """The certificate that the service shows, a file in PEM with those between it and the root; read again
    when it is renewed. Empty: no TLS."""
    tls_key: str = ""
    """Its key, a file in PEM without a password."""
    tls_client_ca: str = ""
    """Whose certificates clients must show, a file in PEM. Empty: they need none."""
    access_log: str = ""
    """Where each REST request is written down as a line of JSON: a file, or `-` for standard error. Empty:
    nowhere."""
    max_requests_per_second: int = 0
    """How many REST requests a client's address may send in a second; 0: as many as it likes."""
    insecure: bool = False
    """Whether the service may be reached by others without TLS and credentials, because a proxy in front of
    it does both."""
    auth_tokens_file: str = ""
    """The tokens that callers need, a TOML file that `orchestrator token` looks after, and what their tenants
    may use; read again when it changes. Empty: no tokens."""
    auth_oidc_issuer: str = ""
    """Whose JWTs callers may use in place of tokens, as in `https://id.example.com`. Empty: nobody's."""
    auth_oidc_audience: str = ""
    """The audience (`aud`) that JWTs must be made for: this service's name at the issuer."""
    auth_oidc_tenant_claim: str = "tenant"
    """The claim of a JWT that names the tenant; a path with dots leads into one, as in `org.id`."""
    auth_oidc_role_claim: str = "role"
    """The claim of a JWT that names the role, or lists several: read, write, admin or metrics."""
    token: str = field(default="", repr=False)
    """The token that commands send."""
    token_file: str = ""
    """The file that holds it, and nothing else."""
    tls_ca: str = ""
    """With which authority's certificate commands check that of a service, a file in PEM, or `system` for
    those of this machine. Empty: they speak without TLS."""
    tls_client_cert: str = ""
    """The certificate that commands show, a file in PEM, where the service asks for one."""
    tls_client_key: str = ""
    """Its key, a file in PEM without a password."""
    database: str = field(default_factory=lambda: default_database(Path()))
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
    max_output_tokens: int = 8192
    """The most tokens of one model call's answer, unless an instance's configuration says otherwise."""
    max_crashes: int = 3
    """How often in a row the service may crash at one piece of an instance's work before it pauses that one,
    unless an instance's configuration says otherwise."""
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
    """debug, info, warning or error. Failures are quoted in full with debug only: they may repeat prompts."""
    log_format: str = "text"
    """How log lines are written: `text`, or `json`, one object a line."""
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Not a setting: the source of each one that was given, as in `name_of`."""

    def __post_init__(self) -> None:
        if self.engine != "local":
            raise SettingsError(
                f"{self.name_of('engine')} is {self.engine!r}: this version has the engine 'local'"
            )
        if self.database.startswith("postgresql:"):
            raise SettingsError(
                f"{self.name_of('database')} must be a path: this version keeps its log in SQLite"
            )
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise SettingsError(
                f"{self.name_of('log_level')} is {self.log_level!r}: use debug, info, warning or error"
            )
        if self.log_format not in ("text", "json"):
            raise SettingsError(f"{self.name_of('log_format')} is {self.log_format!r}: use text or json")
        for name in (
            "max_active_instances",
            "max_queued_instances",
            "max_concurrent_calls",
            "max_output_tokens",
            "max_crashes",
            "idle_timeout_s",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"{self.name_of(name)} is {getattr(self, name)}: it must be at least 1")
        if self.max_requests_per_second < 0:
            raise SettingsError(
                f"{self.name_of('max_requests_per_second')} is {self.max_requests_per_second}: it must be at "
                "least 0, which is no limit"
            )
        self._check_limits_of_instances()
        _ = self.retention_s  # refused now rather than later
        for name in ("grpc_address", "rest_address"):
            split_address(getattr(self, name), self.name_of(name))
        if (self.tls_client_cert or self.tls_client_key) and not self.tls_ca:
            given = "tls_client_cert" if self.tls_client_cert else "tls_client_key"
            raise SettingsError(
                f"{self.name_of(given)} is set, and TLS needs {self.name_of('tls_ca')} too: the authority of "
                "the service's certificate"
            )
        if bool(self.tls_client_cert) != bool(self.tls_client_key):
            names = f"{self.name_of('tls_client_cert')} and {self.name_of('tls_client_key')}"
            raise SettingsError(f"{names} go together: set both")
        _ = self.origins, self.hosts, self.tls
        self._check_issuer()

    @property
    def asks_who_calls(self) -> bool:
        """Whether callers need credentials."""
        return bool(self.auth_tokens_file or self.auth_oidc_issuer)

    def check_exposure(self, *, edge: bool) -> None:
        """Raise SettingsError where others would reach the service without TLS or without credentials."""
        if self.insecure:
            return
        for name in ("grpc_address", *(["rest_address"] if edge else [])):
            setting, address = self.name_of(name), getattr(self, name)
            host, port = split_address(address, setting)
            missing = []
            if not self.tls:
                missing.append(f"{self.name_of('tls_cert')} and {self.name_of('tls_key')} for TLS")
            if not self.asks_who_calls:
                missing.append(f"{self.name_of('auth_tokens_file')} for tokens")
            if missing and not is_loopback(host):
                raise SettingsError(
                    f"{setting} is {address!r}, where others reach it: set {', and '.join(missing)}; or "
                    f"listen on loopback only, as in 127.0.0.1:{port}; or, with a proxy in front that does "
                    f"both, set {PREFIX}INSECURE=1"
                )

    def _check_issuer(self) -> None:
        if bool(self.auth_oidc_issuer) != bool(self.auth_oidc_audience):
            given, missing = "auth_oidc_issuer", "auth_oidc_audience"
            if not self.auth_oidc_issuer:
                given, missing = missing, given
            raise SettingsError(
                f"{self.name_of(given)} is set, and {self.name_of(missing)} is not: JWTs are taken of one "
                "issuer, if they were made for this service"
            )
        for name in ("auth_oidc_tenant_claim", "auth_oidc_role_claim"):
            if not getattr(self, name):
                raise SettingsError(f"{self.name_of(name)} is empty: name a claim of the JWTs")

    @property
    def client_token(self) -> str:
        """The token that commands send; empty: none. Raise SettingsError where its file cannot be read.

        Where both are given in one way, the token itself counts.
        """
        token_source, file_source = (self.sources.get(name, "") for name in ("token", "token_file"))
        if not self.token_file or (self.token and _rank(token_source) >= _rank(file_source)):
            return self.token.strip()
        try:
            text = Path(self.token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise SettingsError(
                f"{self.name_of('token_file')}: {self.token_file} cannot be read: {reason}"
            ) from None
        if not text or not text.isascii() or len(text.split()) != 1:
            raise SettingsError(
                f"{self.name_of('token_file')}: {self.token_file} must hold a token, and nothing else"
            )
        return text

    def _check_limits_of_instances(self) -> None:
        """Raise SettingsError for a default that no instance may have."""
        from orchestrator.core import limits  # noqa: PLC0415  protobuf is imported when a command runs
        from orchestrator.v1.instance_pb2 import InstanceConfig, RetryPolicy  # noqa: PLC0415

        for name, owner in (("max_output_tokens", InstanceConfig), ("max_crashes", RetryPolicy)):
            most = limits.of(owner, name).maximum
            if getattr(self, name) > most:
                raise SettingsError(
                    f"{self.name_of(name)} is {getattr(self, name)}: it must be at most {most:.0f}"
                )

    def name_of(self, path: str) -> str:
        """Return what a person changes to change a setting: a flag, a key of the file, or a variable.

        `path` may lead into a setting, as in `workers[0].model`: only the file has such.
        """
        if path not in {field.name for field in fields(self)}:
            return f"{path} in {FILE}"
        return self.sources.get(path, PREFIX + path.upper())

    @property
    def uses_earlier_database(self) -> bool:
        """Whether the event log is one that an earlier version made in the working folder."""
        return self.database.endswith(_EARLIER_DATABASE) and "database" not in self.sources

    @property
    def database_description(self) -> str:
        """Where the event log is, for people."""
        return f"{self.database} (found in this folder)" if self.uses_earlier_database else self.database

    @property
    def retention_s(self) -> float | None:
        """How many seconds finished instances are kept; None: for ever."""
        if not self.retention:
            return None
        number, unit = self.retention[:-1], self.retention[-1]
        if not number.isdecimal() or not int(number) or unit not in _UNITS_S:
            raise SettingsError(
                f"{self.name_of('retention')} is {self.retention!r}: it must be a whole number with "
                "d, h, m or s, as in 30d"
            )
        return int(number) * _UNITS_S[unit]

    @property
    def origins(self) -> tuple[str, ...]:
        """`cors_origins`, taken apart; raise SettingsError when one is no origin."""
        origins = tuple(origin.strip() for origin in self.cors_origins.split(",") if origin.strip())
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"{self.name_of('cors_origins')} has {origin!r}: it must be origins with commas between "
                    "them, each without a path or a wildcard, as in https://app.example.com"
                )
        return origins

    @property
    def hosts(self) -> tuple[str, ...]:
        """`allowed_hosts`, taken apart; raise SettingsError when one is no host's name."""
        hosts = tuple(host.strip().lower() for host in self.allowed_hosts.split(",") if host.strip())
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise SettingsError(
                    f"{self.name_of('allowed_hosts')} has {host!r}: it must be names of hosts with commas "
                    "between them, each without a scheme, a port or a wildcard, as in app.example.com"
                )
        return hosts

    @property
    def tls(self) -> CertificateFiles | None:
        """The certificate's files, not read yet; None without. Raise SettingsError when one is missing."""
        names = (self.name_of("tls_cert"), self.name_of("tls_key"), self.name_of("tls_client_ca"))
        if self.tls_cert and self.tls_key:
            client_ca = Path(self.tls_client_ca) if self.tls_client_ca else None
            return CertificateFiles(Path(self.tls_cert), Path(self.tls_key), client_ca, names)
        given = next((name for name in ("tls_cert", "tls_key", "tls_client_ca") if getattr(self, name)), "")
        if given:
            missing = " and ".join(
                name for name, value in zip(names, (self.tls_cert, self.tls_key), strict=False) if not value
            )
            raise SettingsError(f"{self.name_of(given)} is set, and TLS needs {missing} too")
        return None

    @classmethod
    def load(
        cls, environment: Mapping[str, str] = os.environ, folder: Path = Path(), **flags: object
    ) -> Self:
        """Read the settings; a flag that is None counts as not given. Raise SettingsError."""
        known = [field.name for field in fields(cls) if field.name != "sources"]
        file = folder / FILE
        given: dict[str, tuple[str, object]] = {}
        for name, setting in _read_file(file, known).items():
            given[name] = (f"{name} in {file}", setting)
        for name, value in _read_environment(environment, known).items():
            given[name] = (PREFIX + name.upper(), value)
        for flag, setting in flags.items():
            if setting is not None:
                given[_FLAGS.get(flag, flag)] = (f"--{flag.replace('_', '-')}", setting)
        defaults = cls()
        typed = {
            name: _coerce(name, source, value, type(getattr(defaults, name)))
            for name, (source, value) in given.items()
        }
        typed.setdefault("database", default_database(folder))
        return cls(**typed, sources={name: source for name, (source, _) in given.items()})


def _rank(source: str) -> int:
    """Return how late a source is read, and so what it wins over: the file, variables, flags."""
    return 2 if source.startswith("--") else 1 if source.startswith(PREFIX) else 0


def default_database(folder: Path) -> str:
    """Return the event log where none is set: the user's own, whatever folder one works in.

    Earlier versions made one in the working folder: where it is there, it is used.
    """
    found = folder / _EARLIER_DATABASE
    if found.exists():
        return str(found)
    data = platformdirs.user_data_path("orchestrator", appauthor=False)
    # Without a home folder, as a user that no file of users knows may be, `~` stays what it is.
    return str(data / "orchestrator.db" if data.is_absolute() else found)


def _read_environment(environment: Mapping[str, str], known: Sequence[str]) -> Mapping[str, str]:
    """Return the settings that variables hold; an empty variable counts as not set."""
    names = {PREFIX + name.upper(): name for name in known}
    found = {}
    for variable in sorted(environment):
        name, value = variable.removeprefix(PREFIX), environment[variable]
        if name == variable or not value:
            continue
        if variable in names:
            found[names[variable]] = value
        elif not _KUBERNETES_VARIABLE.fullmatch(name) and not value.startswith(
            ("tcp://", "udp://", "sctp://")
        ):
            raise SettingsError(f"{variable} is set, and is no setting: {suggestion(variable, [*names])}")
    return found


def _read_file(file: Path, known: Sequence[str]) -> Mapping[str, object]:
    """Return the settings that the file holds, where it is there."""
    if not file.exists():
        return {}
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    try:
        text = decode(data)
    except ValueError as error:
        raise SettingsError(f"{file} {error}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} cannot be read: {error}") from None
    if unknown := sorted(set(table) - set(known)):
        raise SettingsError(f"{file}: unknown setting {unknown[0]!r}: {suggestion(unknown[0], known)}")
    return table


def suggestion(name: str, known: Sequence[str]) -> str:
    """Suggest a known name for an unknown one; else list all."""
    # Without the prefix, which all of them share and which would make any two alike.
    short = {each.removeprefix(PREFIX): each for each in known}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), short, n=1)
    return f"did you mean {short[near[0]]}?" if near else f"known are {', '.join(known)}"


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _coerce(name: str, source: str, value: object, kind: type) -> Any:
    if kind is bool and isinstance(value, str):
        if value.lower() not in _BOOLEANS:
            raise SettingsError(f"{source} is {value!r}: it must be 1 or 0, or true or false")
        return _BOOLEANS[value.lower()]
    if kind is int and not isinstance(value, int):
        try:
            return int(str(value))
        except ValueError:
            raise SettingsError(f"{source} is {value!r}: it must be a whole number") from None
    if not isinstance(value, kind):
        described = _IN_FILE_ONLY.get(kind, "text in quotes").format(name=name)
        raise SettingsError(f"{source} is {value!r}: it must be a {described}")
    return value


def split_address(address: str, name: str) -> tuple[str, int]:
    """Split `host:port`; raise SettingsError that names the setting."""
    if "://" in address:
        netloc = address.partition("://")[2].strip("/").partition("/")[0]
        example = netloc if re.fullmatch(r"[^@]+:\d+", netloc) else "127.0.0.1:8787"
        raise SettingsError(
            f"{name} is {address!r}: an address is host:port without a scheme, as in {example}"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004  the last port
        raise SettingsError(f"{name} is {address!r}: it must be host:port, as in 127.0.0.1:8787")
    return host.strip("[]"), int(port)
