import pytest

from orchestrator.errors import SettingsError
from orchestrator.models.prices import Price, Prices


def test_a_hosted_models_price_is_known_and_grows_with_the_tokens() -> None:
    prices = Prices()
    once = prices.cost_usd("openai/gpt-4o", 1000, 1000)
    assert once
    assert prices.cost_usd("openai/gpt-4o", 2000, 2000) == pytest.approx(2 * once)
    assert prices.cost_usd("gemini/gemini-2.5-flash", 1000, 0)


def test_a_model_on_the_local_machine_costs_nothing() -> None:
    assert Prices().cost_usd("llama/smollm2-135m-instruct", 10**6, 10**6) == 0


def test_an_unknown_price_is_not_treated_as_zero() -> None:
    prices = Prices()
    for _ in range(2):
        assert prices.cost_usd("openai/made-up-by-us", 1, 1) is None


def test_a_price_of_the_settings_takes_precedence() -> None:
    prices = Prices({"openai/gpt-4o": Price.parse("openai/gpt-4o", {"input_usd": 1, "output_usd": 2.5})})
    assert prices.cost_usd("openai/gpt-4o", 1_000_000, 2_000_000) == 6.0


def test_a_price_for_an_invalid_model_name_is_rejected() -> None:
    with pytest.raises(SettingsError, match="provider/model"):
        Prices.read({"gpt-4o": {"input_usd": 1, "output_usd": 1}})


@pytest.mark.parametrize(
    "table",
    [3, {}, {"input_usd": 1}, {"input_usd": -1, "output_usd": 1}, {"input_usd": "1", "output_usd": 1}],
)
def test_an_invalid_price_is_rejected(table: object) -> None:
    with pytest.raises(SettingsError, match="dollars per million tokens"):
        Price.parse("openai/x", table)
