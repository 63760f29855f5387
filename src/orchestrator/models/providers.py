"""Which providers there are, and how each is set up from its usual variables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.errors import SettingsError
from orchestrator.models.base import Models, Provider
from orchestrator.models.chat_completions import ChatCompletions
from orchestrator.models.llama import Llama


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible endpoint: the variables that set it up, and its usual address."""

    name: str
    key_variable: str
    url_variable: str
    url: str


OPENAI_COMPATIBLE: Final = (
    Endpoint("openai", "OPENAI_API_KEY", "OPENAI_BASE_URL", "https://api.openai.com/v1"),
)


def from_environment(environment: Mapping[str, str]) -> Models:
    """Every provider, set up from the variables; raise SettingsError where one cannot be used.

    Nothing is opened or started. A provider without its key is there too: only calling it fails.
    """
    providers: dict[str, Provider] = {
        endpoint.name: _provider(endpoint, environment) for endpoint in OPENAI_COMPATIBLE
    }
    return Models({**providers, "llama": Llama()})


def _provider(endpoint: Endpoint, environment: Mapping[str, str]) -> Provider:
    key = environment.get(endpoint.key_variable, "").strip()
    url = environment.get(endpoint.url_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"{endpoint.key_variable} holds characters that no key has: set it again")
    try:
        return ChatCompletions(
            endpoint.name,
            url or endpoint.url,
            api_key=key,
            key_variable=endpoint.key_variable,
            # A server of one's own may do without.
            key_needed=not url,
        )
    except SettingsError as error:
        raise SettingsError(f"{endpoint.url_variable}: {error}") from None
