"""Which providers there are, and how each is set up from its usual variables."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.core.prompts import FULL, Profile
from orchestrator.core.replies import ModelReply
from orchestrator.errors import ModelError, SettingsError
from orchestrator.models.base import ModelRequest, Models, Provider, TextCallback
from orchestrator.models.http.address import Address
from orchestrator.models.http.anthropic import Anthropic
from orchestrator.models.http.chat_completions import ChatCompletions
from orchestrator.models.http.client import IDLE_TIMEOUT_S
from orchestrator.models.llama import Llama

ACCOUNT_VARIABLE: Final = "CLOUDFLARE_ACCOUNT_ID"
OLLAMA_PORT: Final = 11434
_OLLAMA_PATHS: Final = re.compile(r"(?:/v1(?:/chat/completions)?|/api(?:/chat|/generate)?)?/*$")
"""What the address of an Ollama may end in: its two APIs, and what is called there."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a provider is called: its usual address, and the variables that set it up."""

    name: str
    url: str
    """May hold variables, as in {ACCOUNT_ID}, which then are needed."""
    url_variable: str
    """Holds another address in place of the usual one; where it is set, a key may be missing."""
    key_variables: tuple[str, ...] = ()
    """The first that is set holds the key."""
    is_keyless: bool = False
    """Whether the usual address can be called without a key."""
    address: Callable[[str], str] = str
    """Makes a base address of what the url variable holds."""
    kind: type[ChatCompletions] | type[Anthropic] = ChatCompletions

    def url_in(self, environment: Mapping[str, str]) -> str:
        """Return the base address to call."""
        if url := environment.get(self.url_variable, "").strip():
            return self.address(url)
        return self.url.format(**{ACCOUNT_VARIABLE: environment.get(ACCOUNT_VARIABLE, "").strip()})

    def key_in(self, environment: Mapping[str, str]) -> tuple[str, str]:
        """Return the key, which may be empty, and the variable that holds it or is to hold it."""
        for variable in self.key_variables:
            if key := environment.get(variable, "").strip():
                return key, variable
        return "", self.key_variables[-1] if self.key_variables else ""

    def missing_variables(self, environment: Mapping[str, str]) -> str:
        """Return the variables that have to be set before it can be called, for people; empty: none."""
        if environment.get(self.url_variable, "").strip() or self.is_keyless:
            return ""
        key, variable = self.key_in(environment)
        account = ACCOUNT_VARIABLE if ACCOUNT_VARIABLE in self.url else ""
        needed = [account] if account and not environment.get(account, "").strip() else []
        return " and ".join([*needed, *([] if key else [variable])])

    def provider(self, environment: Mapping[str, str], idle_timeout_s: float) -> Provider:
        """Set it up, as far as the variables allow."""
        key, key_variable = self.key_in(environment)
        if unset := self.missing_variables(environment):
            return UnavailableProvider(
                f"no key for {self.name}: set {unset}, or choose a model of another provider; "
                "the service reads keys when it starts"
            )
        if not (key.isascii() and key.isprintable()):
            return UnavailableProvider(f"{key_variable} holds characters that no key has: set it again")
        try:
            return self.kind(
                self.name,
                self.url_in(environment),
                api_key=key,
                key_variable=key_variable,
                url_variable=self.url_variable,
                idle_timeout_s=idle_timeout_s,
            )
        except SettingsError as error:
            return UnavailableProvider(f"{self.url_variable}: {error}")

    def address_in(self, environment: Mapping[str, str]) -> Address:
        """Return the address to call, which can be shown; raise SettingsError where it is none."""
        return Address.parse(self.url_in(environment), self.url_variable, self.kind.endings)


@dataclass(frozen=True, slots=True)
class UnavailableProvider:
    """Stands for a provider that cannot be called, so that it troubles only those who call it."""

    problem: str
    """What is missing or wrong, and what to set."""

    @property
    def profile(self) -> Profile:
        """As for any large model."""
        return FULL

    def check(self, model: str) -> None:  # noqa: ARG002  it is none of them
        """Raise SettingsError."""
        raise SettingsError(self.problem)

    async def complete(self, request: ModelRequest, on_text: TextCallback | None = None) -> ModelReply:  # noqa: ARG002
        """Raise ModelError."""
        raise ModelError("MODEL_UNAUTHENTICATED", self.problem, retryable=False)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""


def ollama_address(host: str) -> str:
    """Return the base address that OLLAMA_HOST names: `host`, `host:port` or a whole address.

    It is also where its server listens, and 0.0.0.0 is no address to call.
    """
    scheme, _, rest = host.rpartition("://")
    place, query, parameters = rest.partition("?")
    place, slash, path = place.partition("/")
    if not scheme:
        name, colon, port = place.rpartition(":")
        name, port = (name, port) if colon and port.isdigit() else (place.rstrip(":"), str(OLLAMA_PORT))
        place = f"{'127.0.0.1' if name in ('', '0.0.0.0') else name}:{port}"  # noqa: S104
    path = _OLLAMA_PATHS.sub("", f"{slash}{path}")
    return f"{scheme or 'http'}://{place}{path}/v1{query}{parameters}"


ENDPOINTS: Final = (
    Endpoint("openai", "https://api.openai.com/v1", "OPENAI_BASE_URL", ("OPENAI_API_KEY",)),
    Endpoint(
        *("anthropic", "https://api.anthropic.com", "ANTHROPIC_BASE_URL", ("ANTHROPIC_API_KEY",)),
        kind=Anthropic,
    ),
    Endpoint(
        "cloudflare",
        f"https://api.cloudflare.com/client/v4/accounts/{{{ACCOUNT_VARIABLE}}}/ai/v1",
        "CLOUDFLARE_BASE_URL",
        ("CLOUDFLARE_API_TOKEN",),
    ),
    Endpoint(
        "gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "GEMINI_BASE_URL",
        # In the order in which Google's own libraries look.
        ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    ),
    Endpoint("groq", "https://api.groq.com/openai/v1", "GROQ_BASE_URL", ("GROQ_API_KEY",)),
    Endpoint("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_BASE_URL", ("OPENROUTER_API_KEY",)),
    Endpoint(
        *("ollama", f"http://127.0.0.1:{OLLAMA_PORT}/v1", "OLLAMA_HOST"),
        is_keyless=True,
        address=ollama_address,
    ),
    Endpoint(
        *("vllm", "http://127.0.0.1:8000/v1", "VLLM_BASE_URL", ("VLLM_API_KEY",)),
        is_keyless=True,
    ),
)


def from_environment(environment: Mapping[str, str], idle_timeout_s: float = IDLE_TIMEOUT_S) -> Models:
    """Return every provider, set up from the variables; nothing is opened or started.

    One without its key, or with an address that is none, is there too: only calling it fails. A streamed call
    fails when the endpoint is silent for `idle_timeout_s`.
    """
    providers = {endpoint.name: endpoint.provider(environment, idle_timeout_s) for endpoint in ENDPOINTS}
    return Models({**providers, "llama": Llama()})
