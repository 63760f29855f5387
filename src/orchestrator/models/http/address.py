"""The address of a model endpoint as a person sets it: checked, and shown without its secrets."""

import base64
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from orchestrator.errors import SettingsError

_SCHEMES: Final = ("http", "https")
_PUBLIC_PARAMETERS: Final = ("api-version",)
"""Parameters of a query whose values are no secrets, and worth seeing where a call fails."""
_AZURE_HOSTS: Final = (".azure.com", ".azure.us", ".azure.cn", ".azure-api.net")
_VERSION: Final = re.compile(r"/v\d+[a-z0-9]*(?:/|$)")


@dataclass(frozen=True, slots=True)
class Address:
    """Where an endpoint is called: its operations are below the path, and the query follows them."""

    scheme: str
    host: str
    """Without brackets, and without the port."""
    netloc: str
    """`host` or `host:port`."""
    path: str
    """Without a slash at its end; empty: none."""
    query: str = field(default="", repr=False)
    login: str = field(default="", repr=False)
    """`user:password`, sent as Basic auth; empty: none."""
    variable: str = ""
    """What a person changes to change it; empty: nothing."""

    @classmethod
    def parse(cls, text: str, variable: str = "", endings: Sequence[str] = ()) -> Self:
        """Take an `http(s)://` address apart; raise SettingsError, which shows no secret, where it is none.

        Of `endings`, which are operations of the API, the first that the path ends in is dropped.
        """
        text = text.strip()
        parts = _split(text)
        host = parts.hostname or ""
        netloc = f"[{host}]" if ":" in host else host
        if parts.port is not None:
            netloc = f"{netloc}:{parts.port}"
        path = parts.path.rstrip("/")
        for ending in endings:
            if path.endswith(f"/{ending}"):
                path = path.removesuffix(f"/{ending}").rstrip("/")
                break
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        login = f"{user}:{password}" if user or password else ""
        return cls(parts.scheme, host, netloc, path, parts.query, login, variable)

    @property
    def base(self) -> str:
        """The address without query and login."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    def url(self, operation: str) -> str:
        """Return what is called; the login is not part of it."""
        return f"{self.base}/{operation}{f'?{self.query}' if self.query else ''}"

    def shown(self, operation: str = "") -> str:
        """Return the address for people: no login, and of the query no value that may be a secret."""
        pairs = parse_qsl(self.query, keep_blank_values=True)
        query = "&".join(f"{name}={value if name in _PUBLIC_PARAMETERS else '***'}" for name, value in pairs)
        return f"{self.base}{f'/{operation}' if operation else ''}{f'?{query}' if query else ''}"

    @property
    def setting(self) -> str:
        """The setting that holds it, for messages."""
        return self.variable or "the address"

    @property
    def authorization(self) -> str:
        """The value of the header Authorization that its login makes; empty: it has none."""
        return f"Basic {base64.b64encode(self.login.encode()).decode()}" if self.login else ""

    @property
    def secrets(self) -> Sequence[str]:
        """What must not be shown, should an endpoint say it back."""
        user, _, password = self.login.partition(":")
        values = [value for name, value in parse_qsl(self.query) if name not in _PUBLIC_PARAMETERS]
        return [it for it in (password or user, self.authorization.removeprefix("Basic "), *values) if it]

    @property
    def is_azure(self) -> bool:
        """Whether the endpoint is one of Azure's, which wants keys in a header of its own."""
        has_version = any(name == "api-version" for name, _ in parse_qsl(self.query))
        return has_version or self.host.endswith(_AZURE_HOSTS)

    @property
    def with_version(self) -> str:
        """The address with the `/v1` that it may lack, for people; empty: it has a version, or needs none."""
        if _VERSION.search(self.path) or self.is_azure:
            return ""
        return f"{self.base}/v1"


def _split(text: str) -> SplitResult:
    """Split an address; raise SettingsError where it is none that can be called."""
    shown = _without_secrets(text)
    problem = ""
    if text[:1] in ("'", '"'):
        problem = "leave out the quotes"
    elif any(character.isspace() or not character.isprintable() for character in text):
        problem = "leave out the white space"
    elif "#" in text:
        problem = "leave out what begins with #, which in a password is written %23"
    if problem:
        raise SettingsError(f"{shown!r} is not an address: {problem}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise SettingsError(f"{shown!r} is not an address: it must be as in https://host:443/v1") from None
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise SettingsError(
            f"{shown!r} is not an address: it must begin with http:// or https://{_guess(text, shown)}"
        )
    if "@" in parts.query or re.search("[^/]@", parts.path):
        raise SettingsError(
            f"{shown!r} is not an address: special characters of a login are written with %, as / is as %2F"
        )
    if port == 0:
        raise SettingsError(f"{shown!r} is not an address: nothing listens on port 0")
    return parts


def _without_secrets(text: str) -> str:
    """Return as much of a text as can be shown that may be no address at all."""
    text, at, rest = text.rpartition("@")
    return re.split("[?#]", f"…{at}{rest}" if at else rest)[0]


def _guess(text: str, shown: str) -> str:
    """Return what was perhaps meant by an address without a scheme."""
    if "://" in text or re.match("https?[:/]", text):
        return ""
    rest = shown.lstrip("/")
    host = re.split("[/:]", rest)[0]
    return f": did you mean {'http' if _is_near(host) else 'https'}://{rest}?" if host else ""


def _is_near(host: str) -> bool:
    """Return whether a host is this machine or a neighbour, which mostly have no certificates."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan"))
