"""How each provider is set up from its usual variables, called over real HTTP where that shows it."""

from collections.abc import AsyncIterator

import pytest
from support.endpoint import Endpoint
from support.provider_calls import KEY, model_request

from orchestrator.errors import ModelError, SettingsError
from orchestrator.models.base import Models
from orchestrator.models.http.anthropic import Anthropic
from orchestrator.models.http.chat_completions import ChatCompletions
from orchestrator.models.providers import ENDPOINTS, from_environment, ollama_address
from orchestrator.models.providers import Endpoint as SetUp


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint() as endpoint:
        yield endpoint


def address(models: Models, name: str) -> str:
    """Where a provider's calls go to."""
    provider = models.providers[name]
    assert isinstance(provider, ChatCompletions | Anthropic)
    return f"{provider._client._base_url}/{provider.path}"


def test_every_provider_of_the_contract_exists() -> None:
    known = {"openai", "anthropic", "cloudflare", "ollama", "gemini", "groq", "openrouter", "vllm", "llama"}
    assert set(from_environment({}).providers) == known


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("openai", "https://api.openai.com/v1/chat/completions"),
        ("anthropic", "https://api.anthropic.com/v1/messages"),
        ("cloudflare", "https://api.cloudflare.com/client/v4/accounts/abc/ai/v1/chat/completions"),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions"),
        ("groq", "https://api.groq.com/openai/v1/chat/completions"),
        ("openrouter", "https://openrouter.ai/api/v1/chat/completions"),
        ("ollama", "http://127.0.0.1:11434/v1/chat/completions"),
        ("vllm", "http://127.0.0.1:8000/v1/chat/completions"),
    ],
)
def test_a_provider_is_called_at_its_usual_address(name: str, url: str) -> None:
    keys = dict.fromkeys((variable for it in ENDPOINTS for variable in it.key_variables), KEY)
    assert address(from_environment({**keys, "CLOUDFLARE_ACCOUNT_ID": "abc"}), name) == url


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("openai", "OPENAI_API_KEY"),
        ("anthropic", "ANTHROPIC_API_KEY"),
        ("cloudflare", "CLOUDFLARE_ACCOUNT_ID and CLOUDFLARE_API_TOKEN"),
        ("gemini", "GEMINI_API_KEY"),
        ("groq", "GROQ_API_KEY"),
        ("openrouter", "OPENROUTER_API_KEY"),
    ],
)
async def test_a_call_without_a_key_names_the_variable_to_set(name: str, variables: str) -> None:
    models = from_environment({})
    with pytest.raises(SettingsError, match=f"no key for {name}: set {variables}, or choose"):
        models.check(f"{name}/m")
    with pytest.raises(ModelError, match=f"set {variables}") as caught:
        await models.resolve(f"{name}/m")[0].complete(model_request())
    await models.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("MODEL_UNAUTHENTICATED", False)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"CLOUDFLARE_ACCOUNT_ID": "abc"}, "set CLOUDFLARE_API_TOKEN,"),
        ({"CLOUDFLARE_API_TOKEN": KEY}, "set CLOUDFLARE_ACCOUNT_ID,"),
    ],
)
def test_only_missing_variables_are_asked_for(given: dict[str, str], missing: str) -> None:
    with pytest.raises(SettingsError, match=missing):
        from_environment(given).check("cloudflare/m")


@pytest.mark.parametrize("name", ["ollama", "vllm", "llama"])
def test_a_local_provider_needs_no_key(name: str) -> None:
    from_environment({}).check(f"{name}/smollm2-135m-instruct")


@pytest.mark.parametrize("it", ENDPOINTS, ids=lambda it: it.name)
async def test_a_custom_address_is_called_with_the_key(endpoint: Endpoint, it: SetUp) -> None:
    keys = dict.fromkeys(it.key_variables, f"{KEY}\n")
    models = from_environment({**keys, it.url_variable: f"{endpoint.url}/"})
    provider, model = models.resolve(f"{it.name}/@cf/with/slashes")
    await provider.complete(model_request(model=model))
    await models.aclose()
    [call] = endpoint.calls
    assert call.body["model"] == "@cf/with/slashes"
    sent = call.headers.get("x-api-key") or call.headers.get("Authorization", "").removeprefix("Bearer ")
    assert sent == (KEY if keys else "")


@pytest.mark.parametrize("it", ENDPOINTS, ids=lambda it: it.name)
async def test_a_custom_address_needs_no_key(endpoint: Endpoint, it: SetUp) -> None:
    models = from_environment({it.url_variable: endpoint.url})
    await models.resolve(f"{it.name}/m")[0].complete(model_request())
    await models.aclose()
    assert not endpoint.calls[0].headers.keys() & {"Authorization", "x-api-key"}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"GEMINI_API_KEY": "a"}, "a"),
        ({"GOOGLE_API_KEY": "b"}, "b"),
        ({"GEMINI_API_KEY": "a", "GOOGLE_API_KEY": "b"}, "b"),
    ],
)
async def test_gemini_accepts_either_key_as_googles_libraries_do(
    endpoint: Endpoint, given: dict[str, str], sent: str
) -> None:
    models = from_environment({**given, "GEMINI_BASE_URL": endpoint.url})
    await models.resolve("gemini/m")[0].complete(model_request())
    await models.aclose()
    assert endpoint.calls[0].headers["Authorization"] == f"Bearer {sent}"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("box", "http://box:11434/v1"),
        ("box:8000", "http://box:8000/v1"),
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000/v1"),
        (":8000", "http://127.0.0.1:8000/v1"),
        ("http://box:8000", "http://box:8000/v1"),
        ("https://box/", "https://box/v1"),
        ("https://box/v1", "https://box/v1"),
        ("https://box/v1/chat/completions", "https://box/v1"),
        ("http://box:8000/api/chat", "http://box:8000/v1"),
        ("http://box/ollama/api/", "http://box/ollama/v1"),
        ("http://user:pw@box:8000?a=b", "http://user:pw@box:8000/v1?a=b"),
        ("box:8000/", "http://box:8000/v1"),
        ("user:pw@box", "http://user:pw@box:11434/v1"),
    ],
)
def test_ollama_host_is_parsed_as_ollama_parses_it(host: str, url: str) -> None:
    assert ollama_address(host) == url


@pytest.mark.parametrize("url", ["localhost:11434", "ftp://x", "http://", "http://a:b:c", "http://h:99999"])
@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"])
def test_an_invalid_address_affects_only_calls_to_it(variable: str, url: str) -> None:
    models = from_environment({variable: url, "GROQ_API_KEY": KEY})
    models.check("groq/m")
    with pytest.raises(SettingsError, match=variable):
        models.check(f"{variable.partition('_')[0].lower()}/m")


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"])
def test_a_key_that_cannot_be_sent_is_rejected_without_showing_it(variable: str) -> None:
    models = from_environment({variable: f"{KEY}\n{KEY}"})
    with pytest.raises(SettingsError, match=variable) as caught:
        models.check(f"{variable.partition('_')[0].lower()}/m")
    assert KEY not in str(caught.value)
