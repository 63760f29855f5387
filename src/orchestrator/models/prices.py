"""What model calls cost, in US dollars.

Hosted models are priced by genai-prices' table as it was when that was released; settings override it.
Models on one's own machine cost nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import genai_prices

from orchestrator.errors import SettingsError

_PER: Final = 1_000_000  # prices are per million tokens
_FREE: Final = frozenset({"llama", "ollama", "vllm"})
_PROVIDER_IDS: Final = {"gemini": "google"}
_MOST_UNKNOWN: Final = 1000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input_usd: float
    output_usd: float

    @classmethod
    def parse(cls, model: str, table: object) -> "Price":
        """Read `{input_usd = …, output_usd = …}` of the settings' `prices`; raise SettingsError."""
        if not all(model.partition("/")):
            raise SettingsError(
                f'prices."{model}" in orchestrator.toml must be for a "provider/model", as in "openai/gpt-5"'
            )
        values = table if isinstance(table, Mapping) else {}
        numbers = [values.get(name) for name in ("input_usd", "output_usd")]
        if set(values) != {"input_usd", "output_usd"} or not all(
            isinstance(number, int | float) and number >= 0 for number in numbers
        ):
            raise SettingsError(
                f'prices."{model}" in orchestrator.toml must be {{ input_usd = …, output_usd = … }}, '
                "dollars per million tokens"
            )
        return cls(*map(float, numbers))  # type: ignore[arg-type]  # checked above


@dataclass(slots=True)
class Prices:
    """The price of each `provider/model`."""

    overrides: Mapping[str, Price] = field(default_factory=dict)
    _unknown: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, tables: Mapping[str, object]) -> "Prices":
        """Read the settings' `prices`; raise SettingsError."""
        return cls({model: Price.parse(model, table) for model, table in tables.items()})

    def cost_usd(self, name: str, input_tokens: int, output_tokens: int) -> float | None:
        """Return what a call of `provider/model` costs that used so many tokens; None: no price is known."""
        provider, _, model = name.partition("/")
        if price := self.overrides.get(name):
            return (input_tokens * price.input_usd + output_tokens * price.output_usd) / _PER
        if provider in _FREE:
            return 0.0
        if name in self._unknown:
            return None
        used = genai_prices.Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        try:
            found = genai_prices.calc_price(used, model, provider_id=_PROVIDER_IDS.get(provider, provider))
        except LookupError:
            if len(self._unknown) < _MOST_UNKNOWN:  # clients choose the names
                self._unknown.add(name)
            return None
        return float(found.total_price)
