"""What a language model is to the rest of the service."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from orchestrator.core.prompts import Profile, Prompt
from orchestrator.core.replies import ModelReply
from orchestrator.errors import ModelError, SettingsError
from orchestrator.models.prices import Prices


class TextCallback(Protocol):
    """Called with each piece of an answer's text as it arrives, in order. It must not raise."""

    def __call__(self, piece: str, *, is_restart: bool = False) -> None:
        """Accept a piece; `is_restart`: all before it were thoughts, and the answer begins with it."""


class ModelRequest(NamedTuple):
    """One call: what is said, to which of the provider's models, and its bounds."""

    model: str
    """The provider's own name for the model, without the `provider/` in front."""
    prompt: Prompt
    max_output_tokens: int
    timeout_s: float
    """The longest the whole call may take; the provider sees to it."""
    is_watched: bool = False
    """Whether the answer is read as it is written; if not, it may come in one piece."""
    is_last_attempt: bool = False
    """Whether no other attempt would follow: then nothing is risked that others would make good."""

    @property
    def token_limit(self) -> int:
        """The most tokens to ask for: a prompt may be worth fewer than the instance allows."""
        return min(self.max_output_tokens, self.prompt.max_output_tokens or self.max_output_tokens)


class Provider(Protocol):
    """A place where models run."""

    @property
    def profile(self) -> Profile:
        """What its models are asked, and how they sample."""

    def check(self, model: str) -> None:
        """Raise SettingsError where it is plain beforehand that a model cannot be called."""

    async def complete(self, request: ModelRequest, on_text: TextCallback | None = None) -> ModelReply:
        """Answer one request; raise ModelError when that fails, or when its time is over.

        The reply states how it finished: one that was cut or refused is a reply too, and no failure here.
        Cancelling closes the connection at once. The pieces passed to `on_text`, from the last one on that
        restarts, add up to the reply's text. A call that fails may have emitted pieces before.
        """

    async def aclose(self) -> None:
        """Let go of connections and processes."""


def timed_out(whom: str, timeout_s: float) -> ModelError:
    """Return the error of an attempt that got no complete answer within its time."""
    message = f"{whom} did not answer within {timeout_s:g} s: see the attempt_timeout of the retry policy"
    return ModelError("TIMEOUT", message, retryable=True)


@dataclass(frozen=True, slots=True)
class Models:
    """All providers by name, and what they cost; resolves `provider/model`."""

    providers: Mapping[str, Provider]
    prices: Prices = field(default_factory=Prices)

    def resolve(self, name: str) -> tuple[Provider, str]:
        """Split `provider/model` and find the provider; raise SettingsError that says what would do."""
        provider, _, model = name.partition("/")
        if provider not in self.providers or not model:
            known = ", ".join(f"{known}/…" for known in sorted(self.providers))
            raise SettingsError(f"no model {name!r}: it must be provider/model, one of {known}")
        return self.providers[provider], model

    def check(self, name: str) -> None:
        """Raise SettingsError where it is plain beforehand that `provider/model` cannot be called."""
        provider, model = self.resolve(name)
        provider.check(model)

    async def aclose(self) -> None:
        """Close every provider."""
        for provider in self.providers.values():
            await provider.aclose()
